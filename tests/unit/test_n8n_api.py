"""How the role reaches n8n: its loopback address in its container's network, in a real network namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

from roles.n8n_workflows.filter_plugins.n8n import n8n_password_hash
from roles.n8n_workflows.module_utils.n8n_api import N8nError, container_pid, volume_key

ROOT = Path(__file__).parents[2]
# Without root, be root in a namespace of one's own.
AS_ROOT = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
# Listens on its own loopback only, as n8n does in its container.
CONTAINER = """
import http.server, subprocess
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
HOST = """
import os, subprocess, sys
from roles.n8n_workflows.module_utils.n8n_api import Api, N8nError
container = subprocess.Popen(
    ["unshare", "--net", sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True
)
try:
    port = int(container.stdout.readline())
    own = os.readlink("/proc/thread-self/ns/net")
    inside = Api(port, lambda: container.pid)
    assert os.readlink(f"/proc/{container.pid}/ns/net") != own
    for path in ("/first", "/second"):
        assert inside.ask("GET", path)[:2] == (200, path.encode())
    assert os.readlink("/proc/thread-self/ns/net") == own, "we are back"
    try:
        Api(port).ask("GET", "/")
    except N8nError as error:
        print(error)
finally:
    container.kill()
    container.wait()
"""


def test_n8n_is_reached_in_its_containers_network_and_from_nowhere_else() -> None:
    done = subprocess.run(
        [*AS_ROOT, sys.executable, "-c", HOST, CONTAINER],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("n8n: GET /: no answer: ")


def test_the_container_is_found_by_its_service() -> None:
    asked: list[list[str]] = []

    def docker(command: list[str]) -> tuple[int, str, str]:
        asked.append(command)
        return (0, "4711\n", "") if "inspect" in command else (0, "abc123\n", "")

    assert container_pid(docker, "docker", "cimt_n8n") == 4711
    assert "label=com.docker.swarm.service.name=cimt_n8n" in asked[0]
    with pytest.raises(N8nError, match="no container of cimt_n8n runs"):
        container_pid(lambda _: (0, "", ""), "docker", "cimt_n8n")


def test_the_key_of_a_volume(tmp_path: Path) -> None:
    assert volume_key(str(tmp_path)) == "", "a fresh volume takes any key"
    (tmp_path / "config").write_text('{"encryptionKey": "k"}')
    assert volume_key(str(tmp_path)) == "k"
    (tmp_path / "config").write_text('{"encryp')
    with pytest.raises(N8nError, match="config cannot be read"):
        volume_key(str(tmp_path))


def test_the_hash_of_the_owners_password_is_stable_and_refuses_what_n8n_refuses() -> None:
    hashed = n8n_password_hash("Correct-horse-1", "key")
    assert hashed.startswith("$2b$10$")
    assert len(hashed) == 60
    assert hashed == n8n_password_hash("Correct-horse-1", "key"), "a second run changes nothing"
    assert hashed != n8n_password_hash("Correct-horse-1", "another key")
    for password in ("short", "x" * 65):
        with pytest.raises(AnsibleFilterError, match="8 to 64"):
            n8n_password_hash(password, "key")
