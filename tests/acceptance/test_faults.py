"""The droplet under faults, in the order in which they are cheapest to run; alone: `make faults`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from testbed.droplet import (
    GENEROUS,
    LOCAL,
    ROOT,
    Client,
    Image,
    Traffic,
    full_disk,
    ledger,
    make,
    on_droplet,
    panel,
    reboot,
    release,
    running_image,
)

INSPECT, OF_APP = "inspectAppService", "?projectName=cimt&serviceName=api"


def containers() -> list[str]:
    """The api's containers that run, as Docker names them."""
    return on_droplet(
        "docker ps --quiet --no-trunc --filter label=com.docker.swarm.service.name=cimt_api"
    ).split()


def test_a_good_release_and_its_rollback_lose_no_request(
    client: Client, traffic: Traffic, images: dict[str, Image], live_build: Image
) -> None:
    done = release(images["good"])
    assert done.returncode == 0
    assert running_image() == images["good"].reference
    assert client.revision() == images["good"].revision
    assert ledger()[-1]["result"] == "live"

    done = make("rollback", "SERVICE=api")
    assert done.returncode == 0
    assert running_image() == live_build.reference
    assert client.revision() == live_build.revision
    assert (ledger()[-1]["action"], ledger()[-1]["result"]) == ("rollback", "live")
    traffic.assert_no_gap()


def test_a_first_release_that_came_up_too_late_ends_as_live(live_build: Image) -> None:
    """Its line says "failed" and nothing was put back; then it serves, and the next deploy says so."""
    lines = ledger()
    late = {**lines[-1], "from": "", "result": "failed", "reason": "not live after 600 s"}
    file = "/var/lib/cimt/releases.jsonl"
    on_droplet(f"cp -p {file} {file}.kept; cat >{file} <<'END'\n{json.dumps(late)}\nEND")
    try:
        done = release(live_build)
        assert done.returncode == 0
        assert "already runs" in done.stdout
        assert [line["result"] for line in ledger()] == ["failed", "live"]
        assert ledger()[-1]["to"] == running_image()
        # The deploy has ended with an audit, which compares what runs with the ledger's last live line.
    finally:
        on_droplet(f"mv {file}.kept {file}")


@pytest.mark.parametrize("fault", ["crashes at once", "never healthy", "wrong revision"])
def test_a_broken_release_fails_says_why_and_is_not_noticed_by_users(
    fault: str, client: Client, traffic: Traffic, images: dict[str, Image], live_build: Image
) -> None:
    before = containers()
    done = release(images[fault])
    assert done.returncode != 0, "a rollback is never green"
    reason = {
        "crashes at once": "task: non-zero exit",
        "never healthy": "unhealthy",
        "wrong revision": "reports revision 0000000000000000000000000000000000000000",
    }[fault]
    assert reason in done.stdout
    assert f"{live_build.reference} is back and answers" in " ".join(done.stdout.split())
    assert running_image() == live_build.reference
    assert client.revision() == live_build.revision
    assert ledger()[-1]["result"] == "failed, restored"
    if (
        fault != "wrong revision"
    ):  # that one serves, and has replaced the container before it is found out
        # The broken one may still be on its way out.
        assert set(before) <= set(containers()), "what never stopped serving is left alone"
    traffic.assert_no_gap()


def test_bad_settings_with_a_good_image_go_back_with_it(
    client: Client, traffic: Traffic, images: dict[str, Image], live_build: Image
) -> None:
    before, kept = containers(), panel(INSPECT, query=OF_APP)
    done = release(images["good"], SHUTDOWN_SECONDS="soon")
    assert done.returncode != 0
    assert f"{live_build.reference} is back and answers" in " ".join(done.stdout.split())
    assert panel(INSPECT, query=OF_APP) == kept
    assert set(before) <= set(containers()), "what never stopped serving is left alone"
    line = ledger()[-1]
    assert line["result"] == "failed, restored"
    assert "api.env.SHUTDOWN_SECONDS: 20 -> soon" in str(line["changes"])
    traffic.assert_no_gap()
    assert release(images["good"]).returncode == 0, "it was not the image's fault"
    assert make("rollback", "SERVICE=api").returncode == 0
    assert client.revision() == live_build.revision


def test_of_two_releases_at_once_one_is_told_who_holds_the_lock(
    client: Client, traffic: Traffic, images: dict[str, Image], live_build: Image
) -> None:
    commands = [
        ["make", "deploy", "SERVICE=api", f"IMAGE={image.reference}", f"REVISION={image.revision}"]
        for image in (images["good"], images["not pulled before"])
    ]
    both = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    outputs = [process.communicate(timeout=GENEROUS)[0] for process in both]
    codes = [process.returncode for process in both]
    print(*outputs, sep="\n----\n")
    assert sorted(code == 0 for code in codes) == [False, True]
    loser = outputs[0] if codes[0] else outputs[1]
    assert "the apps of this host are locked by" in loser
    assert make("rollback", "SERVICE=api").returncode == 0
    assert client.revision() == live_build.revision
    traffic.assert_no_gap()


def test_a_full_disk_stops_a_release_before_it_starts(
    client: Client, traffic: Traffic, images: dict[str, Image], live_build: Image
) -> None:
    before = len(ledger())
    with full_disk():
        done = release(images["good"])
        assert done.returncode != 0
        assert re.search(r"only \d+ MB free on the droplet's disk", done.stdout)
        assert client.revision() == live_build.revision
    assert running_image() == live_build.reference
    assert len(ledger()) == before
    traffic.assert_no_gap()


@contextlib.contextmanager
def stopped_registry() -> Iterator[None]:
    for verb in ("stop", "start"):
        subprocess.run(
            ["python", "-m", "local", "clouds", verb, "registry"], cwd=ROOT, check=True, timeout=120
        )
        if verb == "stop":
            yield


def test_a_release_without_its_registry_fails_and_the_app_goes_on(
    client: Client, traffic: Traffic, images: dict[str, Image], live_build: Image
) -> None:
    on_droplet(
        f"docker image rm --force {images['not pulled before'].reference} >/dev/null 2>&1; true"
    )
    with stopped_registry():
        done = release(images["not pulled before"])
    assert done.returncode != 0
    assert "the panel's deploy failed" in done.stdout
    assert "is back and answers" in " ".join(done.stdout.split())
    assert running_image() == live_build.reference
    assert client.revision() == live_build.revision
    traffic.assert_no_gap()


def test_a_reboot_brings_everything_back(client: Client, live_build: Image) -> None:
    reboot()
    client.wait_for(live_build.revision)
    assert make("audit").returncode == 0


def test_a_droplet_killed_while_provisioning_is_resumed_by_make_up(
    client: Client, live_build: Image
) -> None:
    pid = int((LOCAL / "droplet/qemu.pid").read_text())
    with subprocess.Popen(
        ["make", "provision"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as provision:
        assert provision.stdout is not None
        for line in provision.stdout:
            if "TASK [firewall" in line:
                break
        os.kill(pid, signal.SIGKILL)
        provision.communicate(timeout=GENEROUS)
        assert provision.returncode != 0
    done = make("up", timeout=2 * GENEROUS)
    assert done.returncode == 0
    assert json.loads((LOCAL / "droplet/state.json").read_text())["ready"]
    client.wait_for(live_build.revision)
