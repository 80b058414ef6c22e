"""A release that comes up and is bad all the same is put back; a fault beside it is told. A part of `make faults`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.droplet import (
    Client,
    Image,
    Traffic,
    ledger,
    make,
    on_droplet,
    panel,
    release,
    running_image,
)


@pytest.fixture
def failed_unit() -> Iterator[None]:
    """A fault of the host that is no app's."""
    on_droplet(
        "systemd-run --quiet --wait --unit=cimt-stray false || systemctl is-failed cimt-stray"
    )
    yield
    on_droplet("systemctl reset-failed cimt-stray")


def assert_put_back(output: str, image: Image, before: Image, reason: str) -> None:
    """What one command says, what runs, and what the ledger knows of a release that was taken back."""
    told = " ".join(output.split())
    assert f"{before.reference} is back and answers" in told
    assert "Next: mend it" in told
    assert running_image() == before.reference
    live, line = ledger()[-2:]
    assert (live["to"], live["result"]) == (image.reference, "live")
    assert (line["action"], line["result"]) == ("undo", "failed, restored")
    assert (line["from"], line["to"]) == (before.reference, image.reference)
    assert str(line["reason"]).startswith(reason)


def test_a_release_that_answers_wrongly_is_put_back_by_the_same_command(
    client: Client, traffic: Traffic, images: dict[str, Image], live_build: Image
) -> None:
    done = release(images["answers wrongly"])
    assert done.returncode != 0
    question = "tests/smoke/test_smoke.py::test_an_empty_question_is_greeted"
    assert_put_back(done.stdout, images["answers wrongly"], live_build, f"smoke: FAILED {question}")
    assert "Hello, CIMT!" in client.request("POST", "/chat").text
    assert "failed, restored" in " ".join(make("history").stdout.split())
    traffic.assert_no_gap()
    again = release(live_build)
    assert again.returncode == 0, "for smoke test and audit the one before is what is live"
    assert "already runs" in again.stdout


def test_a_finding_about_the_released_app_puts_it_back(
    client: Client, traffic: Traffic, images: dict[str, Image], live_build: Image
) -> None:
    # Another value than the audit reads from the files.
    done = release(images["good"], API_LOG_LEVEL="debug")
    assert done.returncode != 0
    finding = "tests/audit/test_services.py::test_its_settings_are_the_declared_ones[api]"
    assert_put_back(done.stdout, images["good"], live_build, f"audit: FAILED {finding}")
    assert client.revision() == live_build.revision
    kept = panel("inspectAppService", query="?projectName=cimt&serviceName=api")
    assert isinstance(kept, dict)
    assert "LOG_LEVEL=info" in kept["env"], "the settings go with the release that brought them"
    traffic.assert_no_gap()


def test_a_finding_about_the_host_is_red_and_leaves_the_release(
    failed_unit: None,
    client: Client,
    traffic: Traffic,
    images: dict[str, Image],
    live_build: Image,
) -> None:
    done = release(images["good"])
    assert done.returncode != 0
    assert "nothing of it is about api: what was released stays" in " ".join(done.stdout.split())
    assert "test_no_unit_has_failed" in done.stdout
    assert running_image() == images["good"].reference
    assert client.revision() == images["good"].revision
    assert ledger()[-1]["result"] == "live"
    assert make("rollback", "SERVICE=api").returncode == 0
    assert client.revision() == live_build.revision
    traffic.assert_no_gap()


def test_an_older_checkout_is_refused_while_a_newer_release_serves(
    images: dict[str, Image], live_build: Image
) -> None:
    """As production's inventory tells it: `git rev-list REVISION..origin/main` is `release_newer`."""
    before = len(ledger())
    image = images["not pulled before"]
    newer = f"""ARGS=-e '{{"release_newer": ["{live_build.revision[:40]}"]}}'"""
    done = make(
        "deploy", "SERVICE=api", f"IMAGE={image.reference}", f"REVISION={image.revision}", newer
    )
    assert done.returncode != 0
    assert f"runs revision {live_build.revision[:12]}, released by" in " ".join(done.stdout.split())
    assert running_image() == live_build.reference
    assert len(ledger()) == before
