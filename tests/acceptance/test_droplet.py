"""The droplet in daily use: converge, drift, wrong input. Releases: test_pipeline.py, test_faults.py."""

from __future__ import annotations

import json
import re

import pytest

from local import clouds
from local.settings import load
from testbed.droplet import (
    APP,
    LOCAL,
    Client,
    Image,
    Traffic,
    ledger,
    make,
    panel,
)


def test_a_second_provision_changes_nothing() -> None:
    done = make("provision")
    assert done.returncode == 0
    assert re.search(r"droplet\s+: ok=\d+\s+changed=0\s", done.stdout)


def test_its_owners_see_how_it_is_and_what_it_writes(live_build: Image) -> None:
    done = make("status")
    assert done.returncode == 0, done.stdout
    assert re.search(rf"cimt_api +1/1 .* {live_build.revision[:12]} ", done.stdout)
    assert "all is well" in done.stdout
    done = make("logs", "SERVICE=api", "SINCE=1d")
    assert done.returncode == 0
    assert "Application startup complete" in done.stdout
    done = make("logs", "SERVICE=nothing")
    assert done.returncode != 0
    assert re.search(r"^api 1/1$", done.stdout, re.MULTILINE)


def test_the_droplet_of_an_account_is_logged_in_to(live_build: Image) -> None:
    settings = load(running=True)
    clouds.start(settings, "digitalocean")
    try:
        done = make("droplet", "CONFIRM=yes")
        assert done.returncode == 0, done.stdout
        assert "+ droplet cimt-local" in done.stdout
        assert re.search(r"Log in by it\] .*\n.*\nok: ", done.stdout), "by its pinned host key"
        done = make("droplet", "CONFIRM=yes")
        assert done.returncode == 0
        assert "all is as it should be" in done.stdout
    finally:
        clouds.stop(settings, "digitalocean")
        (settings.clouds / "digitalocean.json").unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """The api's environment as the panel has it."""
    kept = panel("inspectAppService", query="?projectName=cimt&serviceName=api")
    return dict(line.split("=", 1) for line in kept["env"].splitlines())


def test_an_edit_in_the_panel_shows_in_the_plan_and_is_put_right(
    client: Client, traffic: Traffic, live_build: Image
) -> None:
    declared = environment()
    edited = {**declared, "LOG_LEVEL": "debug", "ADDED": "by-hand"}
    panel("updateAppEnv", {**APP, "env": "\n".join(f"{k}={v}" for k, v in edited.items())})
    plan = make("plan")
    assert plan.returncode == 0
    assert "~ api.env.LOG_LEVEL: debug -> info  [by hand]" in plan.stdout
    assert "- api.env.ADDED: (hidden)" in plan.stdout
    assert "by-hand" not in plan.stdout
    assert json.loads((LOCAL / "plan.json").read_text())["count"] == 2
    assert environment() == edited, "a plan must not write"

    assert make("services").returncode == 0
    assert environment() == declared
    client.wait_for(live_build.revision)
    traffic.assert_no_gap()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("deploy", "IMAGE=api:latest", f"REVISION={'1' * 40}"), "a release names a digest"),
        (("deploy", f"IMAGE=api@sha256:{'0' * 64}", "REVISION=main"), "not a full git revision"),
        (("deploy", "SERVICE=shop", f"IMAGE=a@sha256:{'0' * 64}", f"REVISION={'1' * 40}"), "shop"),
    ],
)
def test_a_wrong_release_is_refused_in_one_clear_line(
    arguments: tuple[str, ...], message: str
) -> None:
    before = len(ledger())
    done = make(*arguments)
    assert done.returncode != 0
    assert message in " ".join(done.stdout.split())
    assert len(ledger()) == before
