"""Does the product answer, through TLS, under its name?"""

from __future__ import annotations

import os
import re
import uuid
from urllib.parse import urlsplit

import pytest

from local.settings import load
from local.sign_in import sign_in

from .conftest import APPS, ASKED, DOMAIN, DOMAINS, LOCAL, Ask


@pytest.mark.parametrize("app", ASKED)
def test_health_reports_version_and_revision(ask: Ask, app: str) -> None:
    """Who looks at a problem must see which code runs. With REVISION set, it must be that (of SERVICE)."""
    answer = ask("GET", APPS[app]["health"], host=DOMAINS[app])
    assert answer.status_code == 200, answer.text[:500]
    body = answer.json()
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty-[0-9a-f]{8})?", body["revision"]), body
    if wanted := os.environ.get("REVISION"):
        assert body["revision"] == wanted


def test_the_api_says_its_version(ask: Ask) -> None:
    body = ask("GET", "/healthz").json()
    assert body["status"] == "ok"
    assert body["version"]


def test_an_empty_question_is_greeted(ask: Ask) -> None:
    """The shortest way through the whole product that a person would call an answer."""
    answer = ask("POST", "/chat")
    assert answer.status_code == 200, answer.text[:500]
    assert answer.text.count("Hello, CIMT!") == 1


if LOCAL:  # in production nobody is signed up by a test, and no answer is paid for

    def test_a_person_signs_in_and_is_answered(ask: Ask) -> None:
        """Through everything: sign-in, token, database, model, and the proxy that must not hold a stream back."""
        email = f"smoke-{uuid.uuid4().hex[:12]}@example.com"  # one mail a minute for each address
        token = sign_in(f"http://127.0.0.1:{load().ports['supabase']}", email)
        answer = ask(
            "POST",
            "/chat",
            headers={"Authorization": f"Bearer {token}"},
            json={"message": "How long is the warranty?", "stream": True},
        )
        assert answer.status_code == 200, answer.text[:500]
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text.rstrip().endswith("data: [DONE]"), answer.text[-500:]
        assert '"content":' in answer.text


def test_plain_http_is_sent_to_https(ask: Ask) -> None:
    """A question typed without https must not travel in the clear twice."""
    answer = ask("GET", "/healthz", scheme="http")
    assert answer.status_code in (301, 302, 307, 308)
    to = urlsplit(answer.headers["location"])
    assert (to.scheme, to.hostname, to.path) == ("https", DOMAIN, "/healthz")


def test_metrics_are_not_public(ask: Ask) -> None:
    """They tell a stranger how much is used, and when."""
    assert ask("GET", "/metrics").status_code == 404


def test_browsers_are_told_to_be_strict(ask: Ask) -> None:
    """No guessing of content types, and never without TLS again."""
    headers = ask("GET", "/healthz").headers
    assert headers["x-content-type-options"] == "nosniff"
    seconds = re.search(r"max-age=(\d+)", headers["strict-transport-security"])
    assert seconds is not None
    assert int(seconds[1]) > 0


def test_an_unknown_name_does_not_reach_the_app(ask: Ask) -> None:
    """Otherwise anybody can point a name of theirs at our product."""
    answer = ask("GET", "/healthz", host=f"other.{DOMAIN}")
    assert answer.status_code >= 400
    assert "revision" not in answer.text
