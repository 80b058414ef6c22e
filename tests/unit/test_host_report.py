"""The program that tells Alerts how the host is, against a real TLS server that stands where the proxy stands."""

from __future__ import annotations

import datetime
import json
import os
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from local.settings import ROOT

PROGRAM = ROOT / "roles/host_report/files/host_report.py"
KEY = "a-key-of-the-webhooks-0123456789"
N8N, API = "n8n.example.com", "api.example.com"


class Swarm(BaseHTTPRequestHandler):
    """Docker on its socket: one node is well, one is lost."""

    def do_GET(self) -> None:
        nodes = [
            {
                "Description": {"Hostname": name},
                "Status": {"State": state},
                "Spec": {"Availability": "active"},
            }
            for name, state in (("droplet", "ready"), ("droplet-2", "down"))
        ]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(nodes).encode())

    def log_message(self, *_: Any) -> None:
        return


class Alerts:
    """n8n's webhook behind the proxy: keeps what it is told by somebody with the key."""

    def __init__(
        self, folder: Path, *, days_ago: int, days_left: int, origin: bool = False
    ) -> None:
        self.reports: list[dict[str, Any]] = []
        self.hosts: list[str] = []
        alerts = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                return

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                right = self.headers["Authorization"] == f"Bearer {KEY}"
                if right and self.path == "/webhook/alerts":
                    alerts.reports.append(json.loads(body))
                    alerts.hosts.append(self.headers["Host"])
                self.send_response(200 if right else 403)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.ca = certificate(folder, days_ago, days_left, origin)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca, folder / "key.pem")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def certificate(folder: Path, days_ago: int, days_left: int, origin: bool = False) -> Path:
    """A certificate for both names that is its own root; or, as Cloudflare's, one whose root nobody has."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.Name([]) if origin else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=days_ago))
        .not_valid_after(now + datetime.timedelta(days=days_left))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(N8N), x509.DNSName(API)]), False)
        .add_extension(x509.BasicConstraints(ca=not origin, path_length=None), True)
        .sign(ec.generate_private_key(ec.SECP256R1()) if origin else key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    path = folder / "certificate.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def alerts(tmp_path: Path) -> Iterator[Alerts]:
    server = Alerts(tmp_path, days_ago=60, days_left=30)
    yield server
    server.close()


def report(
    folder: Path, alerts: Alerts, *options: str, key: str = KEY, failed: str = "", **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Run it as the unit would. `failed` is what systemctl prints: this machine may have no systemd."""
    chosen = {
        "n8n": N8N, "domains": [N8N, API], "ca_file": str(alerts.ca), "port": alerts.port, "patience_seconds": 1,
        "disks": ["/", "/no/such/folder"], "nodes": 1, "docker": str(folder / "docker.sock"),
        "stamps": {
            "backup_age_hours": str(folder / "stamp"), "drill_age_days": str(folder / "drill"),
            "reboot_waits_days": str(folder / "reboot-required"),
        }, **settings,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(chosen))
    (folder / "key").write_text(key)
    systemctl = folder / "systemctl"
    systemctl.write_text(f"#!/bin/sh\ncat <<'END'\n{failed}\nEND\n")
    systemctl.chmod(0o755)
    return subprocess.run(
        [sys.executable, "-I", PROGRAM, "--settings", folder / "settings.json", *options],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "CREDENTIALS_DIRECTORY": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_tells_what_it_sees(tmp_path: Path, alerts: Alerts) -> None:
    for name in ("stamp", "drill", "reboot-required"):
        (tmp_path / name).touch()
    failed = "backup.service loaded failed failed Backup\ncimt-host-report.service loaded failed failed This\n"
    done = report(tmp_path, alerts, failed=failed)
    assert (done.returncode, done.stderr) == (0, "")
    assert alerts.hosts == [N8N]
    (told,) = alerts.reports
    assert json.loads(done.stdout) == told
    disk = os.statvfs("/")
    used = disk.f_blocks - disk.f_bfree
    blocks = 100 * used / (used + disk.f_bavail)
    inodes = 100 * (1 - disk.f_favail / disk.f_files) if disk.f_files else 0
    assert told["host"].pop("disk_used_percent") == pytest.approx(max(blocks, inodes), abs=2)
    assert 0 < told["host"].pop("memory_used_percent") < 100
    assert told["host"] == {
        "failed_units": 1,  # its own is told by its silence
        "certificate_left_percent": 33,
        "backup_age_hours": 0.0,
        "drill_age_days": 0.0,
        "reboot_waits_days": 0.0,
    }
    assert told["named"].pop("certificate_left_percent") in (N8N, API)
    assert told["named"] == {"disk_used_percent": "/", "failed_units": "backup.service"}


def test_without_a_backup_none_is_missed_and_dry_run_tells_nobody(
    tmp_path: Path, alerts: Alerts
) -> None:
    done = report(tmp_path, alerts, "--dry-run")
    assert done.returncode == 0, done.stderr
    absent = {"backup_age_hours", "drill_age_days", "reboot_waits_days"}
    assert not absent & json.loads(done.stdout)["host"].keys()
    assert alerts.reports == []


def test_a_node_that_is_lost_is_told_by_name(tmp_path: Path, alerts: Alerts) -> None:
    with socketserver.UnixStreamServer(str(tmp_path / "docker.sock"), Swarm) as docker:
        threading.Thread(target=docker.serve_forever, daemon=True).start()
        told = json.loads(report(tmp_path, alerts, "--dry-run", nodes=3).stdout)
        docker.shutdown()
    assert told["host"]["nodes_away"] == 2
    assert told["named"]["nodes_away"] == "droplet-2: down, active; 1 never joined"


def test_a_certificate_that_no_browser_takes_counts_as_ended(
    tmp_path: Path, alerts: Alerts
) -> None:
    done = report(tmp_path, alerts, "--dry-run", domains=[N8N, "shop.example.com"])
    told = json.loads(done.stdout)
    assert told["host"]["certificate_left_percent"] == 0
    assert told["named"]["certificate_left_percent"] == "shop.example.com"
    assert "certificate of shop.example.com: " in done.stderr
    done = report(tmp_path, alerts, "--dry-run", ca_file="")
    assert json.loads(done.stdout)["host"]["certificate_left_percent"] == 0


def test_behind_cloudflare_the_proxys_own_certificate_is_believed(tmp_path: Path) -> None:
    alerts = Alerts(tmp_path, days_ago=60, days_left=30, origin=True)
    done = report(tmp_path, alerts)
    assert (done.returncode, json.loads(done.stdout)["host"]["certificate_left_percent"]) == (0, 33)
    alerts.close()


def test_a_wrong_key_and_an_absent_n8n_are_one_line_without_the_key(
    tmp_path: Path, alerts: Alerts
) -> None:
    done = report(tmp_path, alerts, key="another-key-0123456789")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"host-report: not told to {N8N}: HTTP 403: it has another key. Next: make n8n-workflows"
    ]
    assert "another-key" not in done.stdout + done.stderr
    assert alerts.reports == []
    alerts.close()
    done = report(tmp_path, alerts, domains=[])
    assert done.returncode == 1
    assert f"not told to {N8N}: " in done.stderr
    assert "Connection refused" in done.stderr
