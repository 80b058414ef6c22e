"""What a killed n8n keeps: workflows, credentials, executions. And what its environment closes."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local.waiting import eventually
from testbed.backup import Host
from testbed.n8n.samples import CREDENTIAL, Slow, workflow
from testbed.n8n.server import N8n

BOUND = 120.0
# By these it answers, and starts, before it looks at what is active.
ANSWERING = ("webhook_entity", "workflow_published_version", "workflow_publication_outbox")


@pytest.fixture(scope="module")
def slow() -> Iterator[Slow]:
    server = Slow()
    yield server
    server.close()


@pytest.fixture(scope="module")
def n8n(tmp_path_factory: pytest.TempPathFactory, slow: Slow) -> Iterator[N8n]:
    server = N8n(tmp_path_factory.mktemp("n8n"))
    try:
        server.start()
        server.api("POST", "/credentials", CREDENTIAL)
        server.cli_import(workflow(slow.url))
        server.api("POST", "/workflows/sample/publish", {})
        yield server
    finally:
        server.kill()


def call(n8n: N8n, slow: Slow) -> None:
    """One execution from beginning to end, with the stored credential."""
    before = len(n8n.executions("sample", "success"))
    assert eventually(lambda: n8n.webhook("sample").status_code == 200, "the webhook answers")
    eventually(lambda: len(n8n.executions("sample", "success")) > before, "the execution succeeds")
    assert slow.keys[-1] == "Bearer kept-in-the-volume"


def test_a_kill_in_the_middle_of_an_execution_loses_nothing(n8n: N8n, slow: Slow) -> None:
    slow.gate.set()
    call(n8n, slow)
    slow.gate.clear()
    slow.called.clear()
    n8n.webhook("sample")
    assert slow.called.wait(BOUND), "the execution is in the middle"
    n8n.kill()
    slow.gate.set()

    n8n.start()
    kept = {one["id"]: one for one in n8n.api("GET", "/workflows")["data"]}
    assert kept["sample"]["active"]
    states = sorted(one["status"] for one in n8n.executions("sample"))
    assert states == ["crashed", "success"], "what ran is told apart from what ended well"
    call(n8n, slow)


def test_a_restart_lets_a_short_execution_end(n8n: N8n, slow: Slow) -> None:
    before = len(n8n.executions("sample", "success"))
    slow.gate.clear()
    slow.called.clear()
    n8n.webhook("sample")
    assert slow.called.wait(BOUND)
    assert n8n.process is not None
    n8n.process.terminate()  # once: a second one would end it at once
    slow.gate.set()
    assert n8n.process.wait(BOUND) == 0
    n8n.stop()
    n8n.start()
    assert len(n8n.executions("sample", "success")) == before + 1
    call(n8n, slow)


def test_a_backup_of_the_running_n8n_comes_back_silent_with_its_secrets(
    n8n: N8n, slow: Slow, tmp_path: Path
) -> None:
    host = Host(tmp_path / "droplet", str(tmp_path / "repository"))
    host.said["volumes"] = {"n8n": str(n8n.folder / ".n8n")}
    host.said["panel"]["path"] = ""
    counts = host.good()["counts"]["n8n"]
    assert counts["workflow_entity"] == counts["credentials_entity"] == 1
    executions = len(n8n.executions("sample"))
    n8n.stop()
    host.good("restore", "n8n", "latest")
    with contextlib.closing(sqlite3.connect(n8n.folder / ".n8n/database.sqlite")) as restored:
        for table in ANSWERING:
            assert restored.execute(f"select count(*) from {table}").fetchone() == (0,), table  # noqa: S608
    n8n.start()
    assert [one["active"] for one in n8n.api("GET", "/workflows")["data"]] == [False]
    assert n8n.webhook("sample").status_code == 404
    assert len(n8n.executions("sample")) == executions
    assert "kept-in-the-volume" in n8n.cli("export:credentials", "--all", "--decrypted")
    n8n.api("POST", "/workflows/sample/publish", {})
    call(n8n, slow)


def test_another_encryption_key_is_refused_by_n8n_itself(n8n: N8n, tmp_path: Path) -> None:
    """The reason for the role's own check, which refuses it before the running n8n is stopped."""
    other = N8n(n8n.folder, N8N_ENCRYPTION_KEY="another-key")
    other.log = tmp_path / "log"
    other.start(wait=False)
    assert other.process is not None
    try:
        assert other.process.wait(BOUND) != 0
    finally:
        other.kill()
    assert "Mismatching encryption keys" in other.tail(100)


@pytest.mark.parametrize("path", ["/metrics", "/METRICS", "/metrics/", "/api/v1/docs/"])
def test_nothing_that_the_world_shall_not_see_is_served(n8n: N8n, path: str) -> None:
    answer = httpx.get(n8n.url + path, timeout=60)
    assert answer.status_code == 404
    assert "n8n_" not in answer.text


def test_nobody_can_claim_the_instance(n8n: N8n) -> None:
    body = {
        "email": "ann@example.com",
        "firstName": "Ann",
        "lastName": "Example",
        "password": "Some-password-1",
    }
    answer = httpx.post(f"{n8n.url}/rest/owner/setup", json=body, timeout=60)
    assert answer.status_code == 400
    assert "already" in answer.text
    assert httpx.get(f"{n8n.url}/api/v1/workflows", timeout=60).status_code == 401


def test_a_code_node_cannot_read_the_environment(n8n: N8n) -> None:
    """It holds the encryption key."""
    spy = {
        "id": "spy",
        "name": "Spy",
        "nodes": [
            {
                "id": "1",
                "name": "Hook",
                "type": "n8n-nodes-base.webhook",
                "typeVersion": 2,
                "position": [0, 0],
                "parameters": {"path": "spy", "httpMethod": "POST", "responseMode": "lastNode"},
                "webhookId": "spy",
            },
            {
                "id": "2",
                "name": "Code",
                "type": "n8n-nodes-base.code",
                "typeVersion": 2,
                "position": [200, 0],
                "parameters": {
                    "jsCode": "const seen = [];\n"
                    "try { seen.push($env.N8N_ENCRYPTION_KEY) } catch (e) { seen.push('denied') }\n"
                    "try { seen.push(process.env.N8N_ENCRYPTION_KEY ?? 'empty') } catch (e) "
                    "{ seen.push('denied') }\nreturn [{ json: { seen } }]"
                },
            },
        ],
        "connections": {"Hook": {"main": [[{"node": "Code", "type": "main", "index": 0}]]}},
        "settings": {"executionOrder": "v1"},
    }
    n8n.cli_import(spy)
    n8n.api("POST", "/workflows/spy/publish", {})
    answer = eventually(
        lambda: (found := n8n.webhook("spy")).status_code == 200 and found.json(), "it answers"
    )
    assert set(answer["seen"]) <= {"denied", "empty"}
