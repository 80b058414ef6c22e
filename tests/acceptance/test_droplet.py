"""The droplet in daily use: converge, drift, wrong input. Releases: test_pipeline.py, test_faults.py."""

from __future__ import annotations

import json
import re
import subprocess
import time

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
    on_droplet,
    panel,
)
from tools.host import door


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


def by_the_pipelines_key(*words: str, request: str = "") -> subprocess.CompletedProcess[str]:
    """What that key gets for a call of ssh with these words."""
    ssh = ["ssh", "-F", str(LOCAL / "ssh_config"), "-o", "ControlPath=none", "-o", "LogLevel=error"]
    ssh += [
        "-o",
        "IdentitiesOnly=yes",
        "-i",
        str(LOCAL / "droplet/ci_ed25519"),
        "-l",
        door.account(),
    ]
    return subprocess.run(
        [*ssh, *words], input=request, capture_output=True, text=True, timeout=120
    )


def test_the_pipelines_key_opens_nothing_but_the_door() -> None:
    hello = json.loads(
        by_the_pipelines_key("droplet", "cimt-door", request=door.request("hello")).stdout
    )
    assert abs(hello["time"] - time.time()) < 60
    for words in (["droplet", "bash -i"], ["droplet", "sudo id"], ["-s", "droplet", "sftp"]):
        done = by_the_pipelines_key(*words)
        assert done.returncode != 0
        assert json.loads(done.stdout)["msg"].endswith("is no request"), done
    for words in (
        ["-W", "127.0.0.1:3000", "droplet"],
        ["-o", "ExitOnForwardFailure=yes", "-R", "4444:127.0.0.1:22", "-N", "droplet"],
    ):
        assert by_the_pipelines_key(*words).returncode != 0
    everything = {"type": "bind", "hostPath": "/", "mountPath": "/host"}
    crafted = {"service": "api", "app": {"name": "api", "mounts": [everything]}}
    request = {"do": "easypanel_release", "door": hello["door"], "with": crafted}
    told = by_the_pipelines_key("droplet", "cimt-door", request=json.dumps(request)).stdout
    assert "no app may have api: '/' of the host" in json.loads(told)["msg"]
    said = on_droplet("journalctl --no-pager --identifier=cimt-door --output=cat --since=-10min")
    assert "refused: a command: 'sudo id' is no request" in said
    assert "refused: easypanel_release: no app may have api: '/' of the host" in said
    sshd = "--identifier=sshd --identifier=sshd-session"
    said = on_droplet(f"journalctl --no-pager {sshd} --output=cat --since=-10min")
    assert "refused local port forward" in said


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
