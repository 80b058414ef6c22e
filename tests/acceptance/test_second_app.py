"""Another app takes its folder, its entry in services/compose.yaml and its settings. A part of `make faults`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from testbed.droplet import LOCAL, ROOT, Client, make, on_droplet, panel

FOLDER = ROOT / "services/hello"
DOCKERFILE = """\
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE}
ARG REVISION=unknown
RUN printf %s "${REVISION}" >/revision
COPY server.py /server.py
USER 10001
HEALTHCHECK --interval=5s --timeout=30s --start-period=60s CMD ["python3", "/server.py", "check"]
CMD ["python3", "/server.py"]
"""
SERVER = """\
import http.server, json, os, signal, sys, urllib.request

if "check" in sys.argv:
    urllib.request.urlopen("http://127.0.0.1:8000/healthz")
    sys.exit()

class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"revision": open("/revision").read(), "says": os.environ["HELLO_WORDS"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

signal.signal(signal.SIGTERM, lambda *_: sys.exit())
http.server.ThreadingHTTPServer(("", 8000), Hello).serve_forever()
"""
ENTRY = """\
services:
  hello:
    build: ./hello
    image: ${IMAGE_REPOSITORY}/hello
    environment:
      HELLO_WORDS: ${HELLO_WORDS}
    deploy:
      update_config:
        order: start-first
      resources:
        limits:
          memory: 64M
    x-easypanel:
      domains:
        - host: ${HELLO_DOMAIN}
          port: 8000

"""
SETTINGS = """\
settings:
  HELLO_DOMAIN:
    what: domain of hello
    from: your DNS
    needed_by: [release, smoke, audit]
    app: [hello]
  HELLO_WORDS:
    what: what it says
    from: you choose
    used_by: [services]
    app: [hello]
    default: good day
"""


@pytest.fixture
def hello() -> Iterator[None]:
    """The edits that a person would make; taken back at the end, and the app with them."""
    files = [ROOT / "services/compose.yaml", ROOT / "services/settings.yaml"]
    before = {path: path.read_text() for path in files}
    FOLDER.mkdir()
    try:
        (FOLDER / "Dockerfile").write_text(DOCKERFILE)
        (FOLDER / "server.py").write_text(SERVER)
        for path, addition in zip(files, (ENTRY, SETTINGS), strict=True):
            head = addition.partition("\n")[0] + "\n"
            assert head in before[path]
            path.write_text(before[path].replace(head, addition, 1))
        yield
    finally:
        for path, text in before.items():
            path.write_text(text)
        shutil.rmtree(FOLDER)
        (LOCAL / "build/hello.json").unlink(missing_ok=True)


def test_an_app_is_added_planned_released_and_removed(hello: None) -> None:
    plan = make("plan")
    assert plan.returncode == 0, "a plan shows, it does not fail"
    assert "+ hello.env.HELLO_WORDS: good day" in plan.stdout
    assert make("services").returncode == 0
    assert make("build", "SERVICE=hello").returncode == 0
    assert make("deploy", "SERVICE=hello").returncode == 0, "smoke test and audit take it in"
    answer = Client("hello.cimt.localhost").request("GET", "/").json()
    revision = json.loads((LOCAL / "build/hello.json").read_text())["revision"]
    assert answer == {"revision": revision, "says": "good day"}


def test_what_is_taken_out_of_the_file_is_left_alone_until_somebody_removes_it() -> None:
    services = make("services")
    assert services.returncode == 0
    assert "left alone" in services.stdout
    assert "hello" in services.stdout
    panel("destroyAppService", {"projectName": "cimt", "serviceName": "hello"})
    assert "cimt_hello" not in on_droplet("docker service ls --format '{{.Name}}'")
    assert make("services").returncode == 0
