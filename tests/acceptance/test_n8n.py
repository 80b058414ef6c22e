"""n8n on the droplet: the knowledge base that it fills, and what its volume keeps. After `N8N=1 make up`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from local.settings import load
from local.sign_in import sign_in
from local.waiting import eventually
from testbed.droplet import GENEROUS, Client, call_webhook, on_droplet, reboot


def seed() -> dict[str, Any]:
    """The report of a run of Seed ETL, after one that goes on already."""

    def report() -> dict[str, Any] | None:
        said = call_webhook("seed-etl")
        return None if "running" in said else said

    return eventually(report, "a run of its own", GENEROUS) or {}


def test_documents_come_in_by_n8n_and_a_person_is_answered_from_them(client: Client) -> None:
    report = seed()
    assert report["failed"] == []
    token = sign_in(f"http://127.0.0.1:{load().ports['supabase']}", "n8n-reader@example.com")
    answer = client.request(
        "POST", "/chat", {"message": "How long is the warranty of a device?"}, key=token
    )
    assert answer.status_code == 200, answer.text[:500]
    assert "handbook/en/warranty.md" in answer.text, answer.text[:1000]
    again = seed()
    assert (again["stored"], again["failed"]) == (0, [])


def test_the_host_tells_how_it_is() -> None:
    call_webhook("alerts")  # n8n is up
    on_droplet("systemctl start cimt-host-report.service")  # fails unless n8n took the report
    told = call_webhook("alerts")
    assert [one for one in told["bad"] if one.startswith("host")] == []
    assert told["checks"] >= 6  # two probes, four figures of the host, and that they came


def kill() -> None:
    """What the kernel does to a program that takes too much memory."""
    on_droplet("docker kill --signal KILL $(docker ps -q --filter name=cimt_n8n)")


@pytest.mark.parametrize("blow", [kill, reboot])
def test_workflows_credentials_and_memory_survive(blow: Callable[[], None]) -> None:
    known = seed()
    blow()
    after = seed()
    # Published, its credentials readable, and what every server said is remembered: nothing is fetched twice.
    assert (after["stored"], after["failed"]) == (0, [])
    assert after["unchanged"] == known["unchanged"]
