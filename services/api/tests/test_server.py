"""The real server process on loopback, from a copy of the package as the image holds it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

API = Path(__file__).parents[1]
REVISION = "0123456789abcdef0123456789abcdef01234567"
BODY_LIMIT = 4096  # bytes
DRAIN = 3.0  # seconds


@dataclass
class Server:
    """A running process, its public and its metrics address, and the file its log goes to."""

    process: subprocess.Popen[bytes]
    url: str
    metrics: str
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, revision: str | None = REVISION) -> Iterator[Server]:
    shutil.copytree(API / "cimt_api", folder / "cimt_api", ignore=shutil.ignore_patterns("__pyc*"))
    if revision:
        (folder / "revision").write_text(f"{revision}\n")
    port, metrics = free_port(), free_port()
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "METRICS_PORT": str(metrics),
        "DRAIN_SECONDS": str(DRAIN),
        "MAX_BODY_BYTES": str(BODY_LIMIT),
        "REVISION": "a variable must not shadow the image's revision",
    }
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "cimt_api"], cwd=folder, env=os.environ | settings, stdout=stream
        )
    server = Server(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}", log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{server.url}/healthz")
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Shared by the tests that leave it running."""
    yield from start(tmp_path_factory.mktemp("api"))


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """For a test that ends it; started outside an image, so without a revision."""
    yield from start(tmp_path, revision=None)


def test_health_names_version_and_the_revision_in_the_file(server: Server) -> None:
    answer = httpx.get(f"{server.url}/healthz")
    assert answer.json() == {"status": "ok", "version": "0.1.0", "revision": REVISION}


@pytest.mark.parametrize("body", [b"", b'{"message": "a question"}', b"\xff not text"])
def test_chat_greets_whatever_is_said(server: Server, body: bytes) -> None:
    answer = httpx.post(f"{server.url}/chat", content=body)
    assert (answer.status_code, answer.json()) == (200, {"message": "Hello, CIMT!"})


@pytest.mark.parametrize("path", ["/healthz", "/chat", "/no-such-path"])
def test_every_answer_has_the_security_headers(server: Server, path: str) -> None:
    headers = httpx.get(f"{server.url}{path}").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "max-age" in headers["strict-transport-security"]
    assert "server" not in headers


def test_a_body_has_a_bound_with_and_without_a_stated_length(server: Server) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        for _ in range(size // 512):
            yield b"x" * 512

    url = f"{server.url}/chat"
    assert httpx.post(url, content=b"x" * BODY_LIMIT).status_code == 200
    assert httpx.post(url, content=chunks(BODY_LIMIT)).status_code == 200
    for body in (b"x" * (BODY_LIMIT + 1), chunks(BODY_LIMIT + 512)):
        answer = httpx.post(url, content=body)
        assert answer.status_code == 413
        assert str(BODY_LIMIT) in answer.json()["detail"]


def test_metrics_are_counted_by_route_and_not_public(server: Server) -> None:
    assert httpx.get(f"{server.url}/metrics").status_code == 404
    httpx.get(f"{server.url}/a/scanner/asks/this")
    httpx.post(f"{server.url}/chat")
    text = httpx.get(f"{server.metrics}/metrics").text
    assert 'http_requests_total{method="GET",route="unmatched",status="404"}' in text
    assert 'http_requests_total{method="POST",route="/chat",status="200"}' in text
    assert 'http_request_duration_seconds_bucket{le="0.005",method="POST",route="/chat"}' in text
    assert f'cimt_api_build_info{{revision="{REVISION}",version="0.1.0"}} 1.0' in text
    assert "scanner" not in text


def test_the_log_is_json_without_what_people_wrote(server: Server) -> None:
    httpx.post(f"{server.url}/chat?token=a-secret", content=b"what-people-wrote")
    line = [line for line in server.lines() if line.get("path") == "/chat"][-1]
    assert line.keys() >= {"time", "level", "method", "status", "duration_ms"}
    assert "a-secret" not in server.log.read_text()
    assert "what-people-wrote" not in server.log.read_text()


def test_sigterm_fails_no_request_while_the_proxy_still_sends(own_server: Server) -> None:
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
    deadline = time.monotonic() + 30
    while len(answers) < 10:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = len(answers)
    signalled = time.monotonic()
    own_server.process.send_signal(signal.SIGTERM)
    time.sleep(DRAIN * 0.5)
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


def test_a_second_sigterm_does_not_wait_for_the_drain(own_server: Server) -> None:
    own_server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    started = time.monotonic()
    own_server.process.send_signal(signal.SIGTERM)
    own_server.process.wait(timeout=20)
    assert time.monotonic() - started < DRAIN * 0.8


def test_every_wrong_variable_is_named_at_once() -> None:
    wrong = {"PORT": "http", "LOG_LEVEL": "loud", "DRAIN_SECONDS": "-1"}
    result = subprocess.run(
        [sys.executable, "-m", "cimt_api"],
        cwd=API,
        env=os.environ | wrong,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert all(name in result.stderr for name in wrong)
    assert "Traceback" not in result.stderr
