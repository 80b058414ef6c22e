"""Role easypanel: the pinned panel, taken by its admin, its token read by root alone."""

from __future__ import annotations

from typing import Any

import pytest

from tools.declared import Declared


@pytest.mark.logs("easypanel")
def test_the_panel_is_the_pinned_version(declared: Declared, collected: dict[str, Any]) -> None:
    """Its API changes between versions; one that updated itself is a stranger to our roles."""
    service = {item["name"]: item for item in collected["docker"]["services"]}.get("easypanel")
    assert service is not None, "there is no panel. Next: make provision"
    assert service["image"].split("@")[0] == declared["easypanel_image"]
    assert collected["panel"]["version"]["status"] == 200
    assert collected["panel"]["version"]["body"]["version"] == declared["easypanel_version"]


def test_a_starved_host_does_not_lose_itself(declared: Declared, collected: dict[str, Any]) -> None:
    """With Swarm's own 5 s a busy single host counted as lost, and every app was started again on it."""
    assert collected["docker"]["heartbeat_seconds"] == declared["easypanel_heartbeat_seconds"]


@pytest.mark.logs("easypanel", "traefik")
def test_panel_and_proxy_run(collected: dict[str, Any]) -> None:
    """Apps go on without the panel, but nothing can be released; without the proxy nothing answers."""
    by_name = {item["name"]: item["id"] for item in collected["docker"]["services"]}
    states = {
        name: [
            task["state"]
            for task in collected["docker"]["tasks"]
            if task["service"] == by_name.get(name) and task["wanted"] == "running"
        ]
        for name in ("easypanel", "traefik")
    }
    assert states == {"easypanel": ["running"], "traefik": ["running"]}


def test_the_panel_is_taken_and_asks_who_is_there(collected: dict[str, Any]) -> None:
    """A panel without an admin belongs to its first visitor; one that answers anybody belongs to all."""
    setup = collected["panel"]["setup"]
    assert setup["status"] == 200, (
        f"the panel does not answer on the droplet's loopback: {setup['body']}"
    )
    assert setup["body"]["isComplete"] is True
    assert collected["panel"]["anonymous"] in (401, 403)


def test_the_token_works_and_is_root_s_alone(declared: Declared, collected: dict[str, Any]) -> None:
    """Whoever reads the panel's token can run anything on this host; without it no release is possible."""
    token = collected["files"][declared["easypanel_token_file"]]
    assert (token["kind"], token.get("owner"), token.get("mode")) == ("file", "0:0", "0600")
    assert collected["panel"]["token"] == 200
