"""What `docker compose up n8n` starts: one opens it over plain HTTP, becomes its owner, and signs in again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from testbed.compose import loopback_project
from testbed.n8n.server import N8n

ANN = {"firstName": "Ann", "lastName": "Example"}
ADDRESS, PASSWORD = "ann@example.com", "Correct-horse-battery-2"


class Loopback(N8n):
    def declared(self) -> dict[str, str]:
        return dict(loopback_project()["services"]["n8n"]["environment"])


@pytest.fixture(scope="module")
def n8n(tmp_path_factory: pytest.TempPathFactory) -> Iterator[N8n]:
    server = Loopback(tmp_path_factory.mktemp("n8n"))
    try:
        yield server.start()
    finally:
        server.kill()


def browser(n8n: N8n) -> httpx.Client:
    """It keeps a cookie and sends it back by its own rules: over HTTP none that is for HTTPS only."""
    return httpx.Client(base_url=n8n.url, timeout=60, headers={"browser-id": "a browser of tests"})


def test_the_first_visitor_becomes_the_owner_and_signs_in(n8n: N8n) -> None:
    with browser(n8n) as first:
        shown = first.get("/rest/settings").json()["data"]
        assert shown["userManagement"]["showSetupOnFirstLoad"]
        body = {"email": ADDRESS, "password": PASSWORD, **ANN}
        made = first.post("/rest/owner/setup", json=body)
        assert made.status_code == 200, made.text
        assert first.get("/rest/login").json()["data"]["email"] == ADDRESS

    n8n.stop()
    n8n.start()
    with browser(n8n) as again:
        assert again.get("/rest/login").status_code == 401
        wrong = {"emailOrLdapLoginId": ADDRESS, "password": "Not-the-password-1"}
        assert again.post("/rest/login", json=wrong).status_code == 401
        answer = again.post("/rest/login", json={**wrong, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        assert "secure" not in answer.headers["set-cookie"].lower()
        me = again.get("/rest/login").json()["data"]
        assert (me["email"], me["role"]) == (ADDRESS, "global:owner")
        assert again.get("/rest/workflows").status_code == 200
        assert not again.get("/rest/settings").json()["data"]["userManagement"]["showSetupOnFirstLoad"]  # fmt: skip


def test_its_encryption_key_is_its_own(n8n: N8n) -> None:
    kept = json.loads((Path(n8n.folder) / ".n8n/config").read_text())
    assert len(kept["encryptionKey"]) >= 24
