"""Role easypanel: the pinned panel, taken by its admin, its token read by root alone."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from cryptography import x509

from tools.declared import Declared

from .conftest import ORIGIN_KEY

pytestmark = pytest.mark.droplet


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


@pytest.mark.logs("traefik")
def test_cloudflare_is_shown_a_certificate_that_it_takes(
    declared: Declared, collected: dict[str, Any]
) -> None:
    """Behind its proxy a bad one is error 526 for everybody. Without, the droplet keeps no key of that kind."""
    key = collected["files"][ORIGIN_KEY]
    assert (key["kind"] == "file") is declared["proxied"], key
    assert key.get("mode", "0600") == "0600"
    for host in declared["easypanel_origin_hosts"]:
        assert collected["shown"][host], f"the proxy shows none for {host}. Next: make provision"
        certificate = x509.load_pem_x509_certificate(collected["shown"][host].encode())
        issuer = certificate.issuer.rfc4514_string()
        assert "CloudFlare Origin" in issuer, f"{host}: by {issuer}. Next: make provision"
        left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        assert left.days > declared["easypanel_origin_renew_days"] // 2, (
            f"{host}: {left.days} days. Next: make provision, from a shell with CLOUDFLARE_API_TOKEN"
        )
