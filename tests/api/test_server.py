"""The server around the routes: health, limits, headers, log, metrics, and how it starts and stops."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from prometheus_client import CollectorRegistry
from psycopg.conninfo import conninfo_to_dict

from local.waiting import eventually
from services.api.cimt_api.metrics import Metrics
from services.api.cimt_api.settings import SettingsError
from testbed.api import INGEST_KEY, REVISION, SERVICE, Api, api, settings_from

BODY_LIMIT = 4096  # bytes
DRAIN = 3.0  # seconds
# Nobody is there: the server must start and serve what needs nobody.
NOBODY = "127.0.0.1:1"
SECRET = "a-shared-secret-of-the-old-kind-with-enough-characters"
ALONE = {
    "DATABASE_URL": f"postgresql://cimt_api@{NOBODY}/supabase",
    "SUPABASE_URL": f"http://{NOBODY}",
    "SUPABASE_JWT_SECRET": SECRET,
    "OPENAI_API_KEY": "sk-nobody",
    "OPENAI_BASE_URL": f"http://{NOBODY}/v1",
    "INGEST_KEY": INGEST_KEY,
    "CORS_ORIGINS": "https://app.example.com",
    "DRAIN_SECONDS": str(DRAIN),
    "MAX_BODY_BYTES": str(BODY_LIMIT),
    "REVISION": "a variable must not shadow the image's revision",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Shared by the tests that leave it running."""
    with api(tmp_path_factory.mktemp("server") / "api", ALONE) as made:
        yield made


@pytest.fixture
def own_server(folder: Path) -> Iterator[Api]:
    """For a test that ends it; started outside an image, so without a revision."""
    with api(folder, ALONE, revision=None) as made:
        yield made


def test_health_names_version_and_the_revision_in_the_file(server: Api) -> None:
    answer = httpx.get(f"{server.url}/healthz")
    assert answer.json() == {"status": "ok", "version": "0.1.0", "revision": REVISION}
    looked = httpx.head(f"{server.url}/healthz")  # as uptime monitors do
    assert (looked.status_code, looked.content) == (200, b"")
    assert httpx.head(f"{server.url}/readyz", timeout=60).status_code == 503


def test_only_an_empty_body_is_greeted(server: Api) -> None:
    answer = httpx.post(f"{server.url}/chat")
    assert (answer.status_code, answer.json()) == (200, {"message": "Hello, CIMT!"})
    refused = httpx.post(f"{server.url}/chat", json={"message": "a question"})
    assert refused.status_code == 401
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["type"] == "urn:cimt:problem:unauthorized"


@pytest.mark.parametrize("path", ["/healthz", "/chat", "/no-such-path"])
def test_every_answer_has_the_security_headers(server: Api, path: str) -> None:
    headers = httpx.get(f"{server.url}{path}").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "max-age" in headers["strict-transport-security"]
    assert "server" not in headers


def test_a_request_id_is_given_back_and_logged_or_made(server: Api) -> None:
    kept = httpx.get(f"{server.url}/no-such-path", headers={"X-Request-Id": "from-the-proxy_1.2"})
    assert kept.headers["x-request-id"] == "from-the-proxy_1.2"
    made = httpx.get(f"{server.url}/no-such-path", headers={"X-Request-Id": 'a b"c'})
    assert len(made.headers["x-request-id"]) == 16
    eventually(
        lambda: [line for line in server.lines() if line.get("request_id") == "from-the-proxy_1.2"],
        "the id in the log",
    )


def test_browsers_of_other_origins_are_let_in_by_a_list(server: Api) -> None:
    def preflight(origin: str) -> httpx.Response:
        return httpx.options(
            f"{server.url}/chat",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                # What OpenAI's SDK sends from a browser, and nobody would think of.
                "Access-Control-Request-Headers": "authorization,last-event-id,user-agent,x-stainless-retry-count",
            },
        )

    welcome = preflight("https://app.example.com")
    assert welcome.status_code == 200
    assert welcome.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "access-control-allow-origin" not in preflight("https://example.net").headers
    # Errors too, or a browser could not tell why it was refused.
    refused = httpx.post(
        f"{server.url}/chat", content=b"x", headers={"Origin": "https://app.example.com"}
    )
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "X-Answer-Id" in refused.headers["access-control-expose-headers"]


def test_a_dead_dependency_is_no_reason_to_be_killed(server: Api) -> None:
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert httpx.get(f"{server.url}/readyz", timeout=60).status_code == 503


def test_a_body_has_a_bound_with_and_without_a_stated_length(server: Api) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        for _ in range(size // 512):
            yield b"x" * 512

    claims = {
        "iss": f"http://{NOBODY}/auth/v1",
        "aud": "authenticated",
        "role": "authenticated",
        "sub": "47ef7537-252a-4728-b1d2-6ad549fa51a3",
        "exp": time.time() + 3600,
    }
    with server.client(jwt.encode(claims, SECRET, "HS256")) as user:
        assert user.post("/chat", content=b"x" * BODY_LIMIT).status_code == 422
        assert user.post("/chat", content=chunks(BODY_LIMIT)).status_code == 422
        for body in (b"x" * (BODY_LIMIT + 1), chunks(BODY_LIMIT + 512)):
            answer = user.post("/chat", content=body)
            assert answer.status_code == 413
            assert str(BODY_LIMIT) in answer.json()["detail"]
        packed = user.post("/chat", content=b"x", headers={"Content-Encoding": "gzip"})
        assert packed.status_code == 415


def test_metrics_are_counted_by_route_and_not_public(server: Api) -> None:
    assert httpx.get(f"{server.url}/metrics").status_code == 404
    httpx.get(f"{server.url}/a/scanner/asks/this")
    httpx.post(f"{server.url}/chat")
    text = httpx.get(f"{server.metrics_url}/metrics").text
    assert 'http_requests_total{method="GET",route="unmatched",status="404"}' in text
    assert 'http_requests_total{method="POST",route="/chat",status="200"}' in text
    assert 'http_request_duration_seconds_bucket{le="0.005",method="POST",route="/chat"}' in text
    assert f'cimt_api_build_info{{revision="{REVISION}",version="0.1.0"}} 1.0' in text
    assert "scanner" not in text


def test_every_metric_of_the_chat_is_counted_somewhere() -> None:
    code = "".join(path.read_text() for path in (SERVICE / "cimt_api").rglob("*.py"))
    declared = set(vars(Metrics(CollectorRegistry()))) - {"registry"}
    assert [name for name in declared if f"metrics.{name}." not in code] == []


def test_the_log_is_json_without_what_people_wrote(server: Api) -> None:
    httpx.post(f"{server.url}/chat?token=a-secret", content=b"what-people-wrote")

    def logged() -> list[dict[str, Any]]:  # after the answer, that is
        return [line for line in server.lines() if line.get("path") == "/chat"]

    line = eventually(logged, "its line")[-1]
    assert line.keys() >= {"time", "level", "method", "status", "duration_ms"}
    assert "a-secret" not in server.log.read_text()
    assert "what-people-wrote" not in server.log.read_text()


def test_sigterm_fails_no_request_while_the_proxy_still_sends(own_server: Api) -> None:
    answers: list[httpx.Response] = []
    stop = threading.Event()
    failures: list[Exception] = []

    def ask() -> None:
        with httpx.Client(base_url=own_server.url) as client:
            while not stop.is_set():
                try:
                    answers.append(client.post("/chat"))
                except httpx.HTTPError as error:
                    failures.append(error)
                time.sleep(0.02)

    users = [threading.Thread(target=ask) for _ in range(3)]
    for user in users:
        user.start()
    eventually(lambda: len(answers) >= 10, "some answers")
    before = len(answers)
    signalled = time.monotonic()
    own_server.process.send_signal(signal.SIGTERM)
    while len(answers) <= before + 10 and time.monotonic() < signalled + DRAIN * 0.8:
        time.sleep(0.05)
    stop.set()
    for user in users:
        user.join()
    assert failures == []
    assert {answer.status_code for answer in answers} == {200}
    assert len(answers) > before + 10
    # The proxy is told to let go of its connections before they are cut.
    assert "connection" not in answers[0].headers
    assert answers[-1].headers["connection"] == "close"
    assert httpx.get(f"{own_server.url}/healthz").json()["revision"] == "unknown"
    own_server.process.wait(timeout=20)
    assert time.monotonic() - signalled >= DRAIN
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{own_server.url}/healthz")


def test_a_second_sigterm_does_not_wait_for_the_drain(folder: Path) -> None:
    """It would take a minute; TimeoutExpired says that it did."""
    with api(folder, ALONE | {"DRAIN_SECONDS": "60"}) as own:
        own.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        own.process.send_signal(signal.SIGTERM)
        own.process.wait(timeout=40)


@pytest.mark.parametrize(
    "rest",
    [
        *(f"silverfish{sign}woodlouse@db.invalid:5432/postgres" for sign in ("%", "@", "/", "%C3")),
        *(f"silverfish@db.invalid/postgres?sslmode={mode}" for mode in ("disable", "prefer")),
        "silverfish@127.0.0.1/postgres?hostaddr=127.0.0.1,8.8.8.8&sslmode=allow",
        "silverfish@db.invalid/postgres?sslmode",
    ],
)
def test_a_wrong_database_address_is_refused_without_its_password(rest: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings_from(ALONE | {"DATABASE_URL": f"postgresql://cimt_api:{rest}"})
    text = str(refused.value)
    assert text.startswith("DATABASE_URL ")
    assert len(text.splitlines()) == 1
    assert "silverfish" not in text
    assert "woodlouse" not in text


@pytest.mark.parametrize(
    ("address", "mode"),
    [
        ("postgresql://cimt_api:silver%2Ffish@db.invalid:5432/postgres", "require"),
        ("postgresql://cimt_api:silver%2Ffish@db.invalid/postgres?connect_timeout=3", "require"),
        (
            "postgresql://cimt_api:silver%2Ffish@db.invalid/postgres?sslmode=verify-full",
            "verify-full",
        ),
        ("postgresql://cimt_api:silver%2Ffish@8.8.8.8/postgres", "require"),
        ("postgresql://cimt_api:silver%2Ffish@127.0.0.1/postgres", None),
        ("postgresql://cimt_api:silver%2Ffish@10.0.2.2/postgres?sslmode=disable", "disable"),
    ],
)
def test_the_database_is_asked_for_tls_unless_it_is_near(address: str, mode: str | None) -> None:
    parts = conninfo_to_dict(
        settings_from(ALONE | {"DATABASE_URL": address}).database_url.get_secret_value()
    )
    assert (parts.get("sslmode"), parts["password"]) == (mode, "silver/fish")


def test_what_is_empty_counts_as_not_set_and_names_are_in_capitals() -> None:
    plain = settings_from(ALONE)
    empty = dict.fromkeys((name.upper() for name in type(plain).model_fields), "")
    assert settings_from(empty | ALONE | {"port": "1"}) == plain
    with pytest.raises(SettingsError) as refused:
        settings_from(empty)
    required = ("DATABASE_URL", "SUPABASE_URL", "OPENAI_API_KEY", "INGEST_KEY")
    assert str(refused.value).splitlines() == [f"{name} is not set" for name in required]


def test_switches_are_on_or_off_and_lists_have_commas_or_spaces() -> None:
    origins = ("https://a.example", "http://b.example:3000", "https://c.example")
    text = "{}, {} {}".format(*origins)
    read = settings_from(ALONE | {"CHAT_LOG": "Off", "LOG_CONTENT": "on", "CORS_ORIGINS": text})
    assert (read.chat_log, read.log_content, read.cors_origins) == (False, True, origins)


@pytest.mark.parametrize(
    ("variable", "allowed", "refused"),
    [
        ("PORT", "65535", "65536"),
        ("RETRIEVAL_COUNT", "0", "-1"),
        ("ANSWER_TOKENS", "128000", "0"),
        ("OPENAI_CONNECT_SECONDS", "0.1", "0.05"),
        ("RESUME_SECONDS", "3600", "inf"),
        ("INGEST_KEY", "k" * 32, "k" * 31),
        ("SUPABASE_URL", "http://192.168.0.1:54321", "http://example.com"),
        ("SUPABASE_JWKS_URL", "https://example.com/keys", "ftp://example.com/keys"),
        ("CORS_ORIGINS", "https://example.com", "https://example.com/"),
        ("CHAT_LOG", "ON", "true"),
        ("BUDGET_MONTH_USD", "0.000001", "0"),
        ("BUDGET_MONTH_USD", "1000000", "1000000.01"),
        ("BUDGET_USER_DAY_USD", "0.50", "-1"),
        ("BUDGET_USER_DAY_USD", "3", "0.0000001"),
        ("BUDGET_USER_DAY_USD", "3", "nan"),
        ("PING_SECONDS", "600", "\udcff"),
        ("MAX_BODY_BYTES", "0", "\udcff"),
    ],
)
def test_a_variable_has_bounds_and_says_which(variable: str, allowed: str, refused: str) -> None:
    settings_from(ALONE | {variable: allowed})
    with pytest.raises(SettingsError, match=f"^{variable}[ =].+$"):
        settings_from(ALONE | {variable: refused})


@pytest.mark.parametrize(("variable", "port"), [("PORT", "9090"), ("METRICS_PORT", "8000")])
def test_metrics_do_not_share_the_public_port(variable: str, port: str) -> None:
    with pytest.raises(SettingsError, match=f"^METRICS_PORT is PORT too, {port}.*\nLOG_LEVEL="):
        settings_from(ALONE | {variable: port, "LOG_LEVEL": "loud"})


def test_settings_show_no_secret() -> None:
    secrets = {"OPENAI_API_KEY": "sk-silverfish", "INGEST_KEY": "silverfish" * 4}
    secrets |= {"DATABASE_URL": "postgresql://a:silverfish@db.invalid/postgres"}
    secrets |= {"SUPABASE_JWT_SECRET": "silverfish" * 4}
    settings = settings_from(ALONE | secrets)
    assert "silverfish" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_every_wrong_or_missing_variable_is_named_at_once() -> None:
    wrong = {
        "DATABASE_URL": "postgresql://cimt_api:silverfish%woodlouse@db.invalid/postgres",
        "METRICS_PORT": "8000",  # what PORT is by default
        "STREAMS_TOTAL": "8.5",
        "DATABASE_POOL": "ten",
        "PING_SECONDS": "nan",
        "LOG_LEVEL": "loud",
        "DRAIN_SECONDS": "-1",
        "INGEST_KEY": "short-and-secret",
        "SUPABASE_URL": "http://example.com",
        "CORS_ORIGINS": "app.example.com",
        "CHAT_LOG": "perhaps",
        "BUDGET_MONTH_USD": "twenty",
        "BUDGET_USER_DAY_USD": "inf",
        "REASONING_EFFORT": "minimal",
    }
    missing = ("OPENAI_API_KEY",)
    clean = {name: value for name, value in os.environ.items() if name not in (*missing, "PORT")}
    result = subprocess.run(
        [sys.executable, "-m", "cimt_api"],
        cwd=SERVICE,
        env=clean | wrong,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    named = [re.split("[ =]", line)[0] for line in result.stderr.splitlines()]
    assert sorted(named) == sorted((*wrong, *missing)), result.stderr
    assert "short-and-secret" not in result.stderr
    assert "silverfish" not in result.stderr
    assert "woodlouse" not in result.stderr
    assert "Traceback" not in result.stderr
