"""The real server process on loopback."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

API = pathlib.Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, its public address and its metrics address."""
    port, metrics = free_port(), free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "cimt_api"],
        cwd=API,
        env=os.environ
        | {"HOST": "127.0.0.1", "PORT": str(port), "METRICS_PORT": str(metrics), "DRAIN_SECONDS": "1"},
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{url}/healthz")
            break
        except httpx.TransportError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield process, url, f"http://127.0.0.1:{metrics}"
    process.kill()
    process.wait()


def test_health_names_version_and_revision(server: tuple) -> None:
    answer = httpx.get(f"{server[1]}/healthz")
    assert answer.json() == {"status": "ok", "version": "0.1.0", "revision": "unknown"}
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_empty_post_is_greeted(server: tuple) -> None:
    assert httpx.post(f"{server[1]}/chat").json() == {"message": "Hello, CIMT!"}


def test_a_body_has_a_bound_with_and_without_a_stated_length(server: tuple) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(65):
            yield b"x" * 1024

    assert httpx.post(f"{server[1]}/chat", content=b"x" * 65 * 1024).status_code == 413
    assert httpx.post(f"{server[1]}/chat", content=chunks()).status_code == 413


def test_metrics_are_counted_but_not_on_the_public_port(server: tuple) -> None:
    httpx.get(f"{server[1]}/no-such-path")
    assert httpx.get(f"{server[1]}/metrics").status_code == 404
    text = httpx.get(f"{server[2]}/metrics").text
    assert 'cimt_http_requests_total{method="GET",path="other",status="404"}' in text


def test_sigterm_serves_through_the_drain_and_then_ends(server: tuple) -> None:
    process, url, _ = server
    process.send_signal(signal.SIGTERM)
    answered = 0
    started = time.monotonic()
    while time.monotonic() - started < 0.7:
        assert httpx.get(f"{url}/healthz").status_code == 200
        answered += 1
    assert answered > 3
    assert process.wait(timeout=30) in (0, 143, -signal.SIGTERM)
