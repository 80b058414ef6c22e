"""How the role reaches n8n: its loopback address in its container's network, in a real network namespace."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
        [sys.executable, "-c", HOST, CONTAINER],
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
