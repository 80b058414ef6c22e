"""Does the product answer, through TLS, under its name?"""

from __future__ import annotations

import os
import re

from .conftest import LOCAL, Ask


def test_health_reports_version_and_revision(ask: Ask) -> None:
    answer = ask("GET", "/healthz")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "ok"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty-[0-9a-f]{8})?", body["revision"])
    if os.environ.get("REVISION"):
        assert body["revision"] == os.environ["REVISION"]


def test_an_empty_question_is_greeted(ask: Ask) -> None:
    answer = ask("POST", "/chat")
    assert answer.status_code == 200
    assert "Hello, CIMT!" in answer.text


def test_plain_http_is_sent_to_https(ask: Ask) -> None:
    answer = ask("GET", "/healthz", scheme="http")
    assert answer.status_code in (301, 302, 307, 308)
    assert answer.headers["location"].startswith("https://")


def test_metrics_are_not_public(ask: Ask) -> None:
    assert ask("GET", "/metrics").status_code == 404


def test_browsers_are_told_to_be_strict(ask: Ask) -> None:
    headers = ask("GET", "/healthz").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "max-age" in headers["strict-transport-security"]


if LOCAL:

    def test_an_unknown_name_does_not_reach_the_app(ask: Ask) -> None:
        assert ask("GET", "/healthz", host="other.cimt.localhost").status_code == 404
