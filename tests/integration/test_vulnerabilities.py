"""`make vulnerabilities` with the real pip-audit and npm: it is green only when it was told of every package."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
AUDIT = ROOT / ".venv/audit"
KNOWN: dict[str, Any] = {"info": {}, "releases": {}, "urls": [], "vulnerabilities": []}
HOLE = {"id": "PYSEC-2026-1", "aliases": [], "summary": "a hole", "details": "", "fixed_in": ["9"]}
LOCK = f"idna==3.20 \\\n    --hash=sha256:{'ab' * 32}\n"


@pytest.fixture(scope="session")
def host() -> str:
    """The name that pip-audit asks, and no other, whatever index installs packages."""
    subprocess.run(["make", "--no-print-directory", ".venv/audit/.installed"], cwd=ROOT, check=True)
    (service,) = AUDIT.glob("lib/python3*/site-packages/pip_audit/_service/pypi.py")
    found = re.search(r"https://([a-z.]+)/pypi/", service.read_text())
    assert found
    return found[1]


class Index(http.server.ThreadingHTTPServer):
    """What stands in for the package index, as a proxy to it by its real name, and for npm's registry."""

    def __init__(self, certificate: Path, host: str) -> None:
        self.host = host
        super().__init__(("127.0.0.1", 0), Answer)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate)
        self.python: dict[str, Any] | None = KNOWN
        self.npm: dict[str, Any] | None = {}
        self.asked: list[str] = []


class Answer(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        assert self.path == f"{self.server.host}:443"
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.setup_streams()
        self.handle_one_request()
        self.close_connection = True

    def setup_streams(self) -> None:
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)  # type: ignore[assignment]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.answer(self.server.python)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        self.answer(self.server.npm)

    def answer(self, document: dict[str, Any] | None) -> None:
        content = json.dumps(document or {}).encode()
        self.send_response(404 if document is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, host: str) -> Iterator[Index]:
    certificate = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    command += ["-keyout", str(certificate), "-out", str(tmp_path / "public.pem")]
    subprocess.run(command, check=True, capture_output=True)
    with certificate.open("a") as opened:
        opened.write((tmp_path / "public.pem").read_text())
    with Index(certificate, host) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


def check(index: Index, folder: Path) -> subprocess.CompletedProcess[str]:
    """The verb's script in a checkout with one Python lock and one of npm."""
    checkout = folder / "a checkout"
    (checkout / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools/locks.sh", checkout / "tools")
    (checkout / "requirements.txt").write_text(LOCK)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / name, checkout)
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    subprocess.run(["git", "add", "-A"], cwd=checkout, check=True)
    address = f"http://127.0.0.1:{index.server_port}"
    return subprocess.run(
        [checkout / "tools/locks.sh", "vulnerabilities"],
        env={
            "PATH": f"{AUDIT / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "HTTPS_PROXY": address,
            "REQUESTS_CA_BUNDLE": str(folder / "public.pem"),
            "npm_config_registry": address,
            "npm_config_fetch_retries": "0",
        },
        capture_output=True,
        text=True,
    )


def test_green_when_every_package_was_asked_for_and_has_no_hole(
    index: Index, tmp_path: Path
) -> None:
    done = check(index, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/pypi/idna/3.20/json" in index.asked
    assert any("advisories" in path for path in index.asked), index.asked


@pytest.mark.parametrize(
    ("python", "npm", "lock"),
    [
        pytest.param(None, {}, "requirements.txt", id="an index that knows nothing"),
        pytest.param(KNOWN, None, "package-lock.json", id="a registry that knows nothing"),
        pytest.param(
            KNOWN | {"vulnerabilities": [HOLE]}, {}, "requirements.txt", id="a known hole"
        ),
    ],
)
def test_red_when_it_was_not_told_or_told_of_a_hole(
    index: Index, tmp_path: Path, python: dict[str, Any], npm: dict[str, Any], lock: str
) -> None:
    index.python, index.npm = python, npm
    done = check(index, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = re.search(r"vulnerabilities of (.*) failed", done.stderr)
    assert failed is not None
    assert failed[1] == lock
