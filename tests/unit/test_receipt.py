"""Steps, receipt and findings: what is told of a release, from what its steps left; and that no secret is told."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from local.waiting import eventually
from tools import receipt, step
from tools.plan import live

ROOT = Path(__file__).parents[2]
DIGEST = "ghcr.io/example/cimt/api@sha256:" + "1" * 64
REVISION = "0123456789abcdef0123456789abcdef01234567"
AUDIT = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="0"
 failures="{failures}" skipped="0" tests="2" time="9.1" timestamp="{when}" hostname="runner">
<testcase classname="tests.audit.test_ssh" name="test_only_keys_open_the_door" time="0.01" />
<testcase classname="tests.audit.test_services" name="test_it_runs_with_all_its_replicas[api]">{bad}</testcase>
</testsuite></testsuites>"""
BAD = '<failure message="AssertionError: Next: make deploy&#10;assert 0 == 1">def test…</failure>'
LOOKED: dict[str, Any] = {"plan": {"changed": []}, "audit": {}, "auth": {}, "doctor": {}}
# As the steps leave it.
STEPS: dict[str, dict[str, Any]] = {
    "migrate": {"seconds": 3.1, "migrations": [["20261124010000_profiles.sql", "expand"]]},
    "services": {"seconds": 21.0, "changed": ["services : Apps as declared: api.env, api.image"]},
    "deploy": {
        "seconds": 80.5,
        "slow": [["release : Release (deploy)", 61.2]],
        "timeline": ["   0.1 s  deploy api: nothing -> x", "  60.0 s  live"],
    },
}


def audit_report(folder: Path, *, failed: bool = False, environment: str = "production") -> None:
    when = datetime.datetime.now().astimezone().isoformat()
    report = folder / f".local/reports/audit-{environment}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(AUDIT.format(failures=int(failed), bad=BAD if failed else "", when=when))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A checkout in production, after a release; the fixture changes what a step left (None: it did not run)."""
    (tmp_path / "services").symlink_to(ROOT / "services")
    monkeypatch.setattr(receipt, "ROOT", tmp_path)
    monkeypatch.setattr(receipt, "ENV", "production")
    monkeypatch.setattr(step, "FOLDER", tmp_path)
    environment = {
        "ENV": "production",
        "BUILDS": json.dumps({"api": {"image": DIGEST, "revision": REVISION}}),
    }
    environment |= {"GITHUB_RUN_ID": "42", "GITHUB_RUN_ATTEMPT": "1", "API_DOMAIN": "api.invalid"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    audit_report(tmp_path)

    def change(**steps: dict[str, Any] | None) -> None:
        for name, one in (STEPS | steps).items():
            path = tmp_path / f"{name}.json"
            path.unlink(missing_ok=True)
            if one is not None:
                path.write_text(json.dumps({"step": name, "env": "production", "code": 0} | one))

    change()
    return change


def test_a_green_release(kept: Callable[..., None]) -> None:
    text = receipt.release("success")
    assert text.splitlines()[0] == "<!-- cimt-receipt 42/1 -->", "each attempt has its own comment"
    assert "✅ Released to production `0123456789ab`" in text
    for told in (
        DIGEST,
        "20261124010000_profiles.sql` (expand)",
        "api.env, api.image",
        "2 passed, 0 findings",
    ):
        assert told in text
    assert "| deploy | done | 80.5 |\n| … release : Release (deploy) | | 61.2 |" in text
    assert "make rollback ENV=production SERVICE=api" in text
    assert "**Serves now**, api: **no answer**" in text, "nobody is asked under .invalid"


@pytest.mark.parametrize(
    ("steps", "status", "title", "told"),
    [
        (
            {"deploy": {"code": 2, "seconds": 70.0, "failed": [["Release", "failed; x is back"]]}},
            "failure",
            "❌ Release to production failed: deploy",
            "Release: failed; x is back",
        ),
        (
            {"migrate": {"code": 1, "seconds": 2.0}, "services": None, "deploy": None},
            "failure",
            "failed: migrate",
            "`make migrate` ended with 1; its log says why.",
        ),
        (
            {"migrate": None, "services": None, "deploy": None},
            "failure",
            "deploy, which did not run",
            "log of the run",
        ),
        ({}, "cancelled", "failed: the job (cancelled)", "log of the run"),
        ({"audit": {"code": 1, "seconds": 9.0}}, "failure", "failed: audit", "| audit | 1 | 9.0 |"),
        ({"deploy": {"env": "local", "seconds": 1}}, "", "deploy, which did not run", "not run"),
    ],
)
def test_a_failed_release_has_a_receipt_too(
    kept: Callable[..., None], steps: dict[str, Any], status: str, title: str, told: str
) -> None:
    kept(**steps)
    text = receipt.release(status)
    assert title in text
    assert told in text
    assert "**Next**" in text
    assert "✅" not in text


def test_findings_are_the_same_text_for_the_same_findings(
    kept: Callable[..., None], tmp_path: Path
) -> None:
    kept(**LOOKED)
    assert receipt.findings()[1], "clean"
    found: dict[str, Any] = {
        "plan": {"seconds": 1.0, "changed": ["firewall : Rules: /etc/x"]},
        "audit": {"seconds": 2.0, "code": 1},
        "auth": {"code": 2, "changed": ["auth.site_url (update)"]},
        "doctor": {"code": 1, "changed": ["✗ OpenAI refuses"], "notes": ["! ends in 9 days"]},
    }
    kept(**found)
    audit_report(tmp_path, failed=True)
    text, clean = receipt.findings()
    assert not clean
    assert "firewall : Rules: /etc/x" in text
    assert "test_it_runs_with_all_its_replicas[api]: AssertionError: Next: make deploy" in text
    for told in ("- auth.site_url (update)", "- ✗ OpenAI refuses\n- ! ends in 9 days"):
        assert told in text
    kept(**{name: one | {"seconds": 9.0} for name, one in found.items()})
    audit_report(tmp_path, failed=True)
    assert receipt.findings()[0] == text


@pytest.mark.parametrize(
    "steps",
    [
        {"plan": None},
        {"audit": None},
        {"plan": {"code": 4, "changed": [], "failed": [["x", "unreachable"]]}},
        {"plan": {"code": 4}},
        {"audit": {"code": 1}},
        {"auth": None},
        {"auth": {"code": 2}},
        {"doctor": {"code": 1}},
    ],
)
def test_who_did_not_look_has_not_found_nothing(
    kept: Callable[..., None], steps: dict[str, Any]
) -> None:
    kept(**(LOOKED | steps))
    assert not receipt.findings()[1]


def test_a_plan_is_data_with_its_count(
    kept: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FILE", tmp_path / "found.json")  # not the receipt of the step
    change = {"app": "api", "path": "env.KEY", "kind": "change", "secret": True}
    told = [f"{live.TASK}~ api.env.KEY: (changed)", "firewall : Rules: /etc/x"]
    kept(plan={"ended": "now", "changed": told, "plan": [change], "notes": ["api: by hand"]})
    assert live.main() == 2
    found = json.loads(live.FILE.read_text())
    assert (found["count"], found["apps"], found["tasks"]) == (2, [change], told[1:])
    text, _ = receipt.findings()
    assert "api: by hand" in text, "the nightly issue says since when"
    kept(plan={"ended": "now", "changed": []})
    assert live.main() == 0
    assert json.loads(live.FILE.read_text())["count"] == 0
    kept(plan={"ended": "now", "code": 4})
    assert live.main() == 1
    assert not live.FILE.exists(), "the plan of yesterday is none"


@pytest.fixture
def healthz(tmp_path: Path) -> Iterator[int]:
    """The port of a proxy that serves two names, by an authority of its own in .local/ca.crt."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "proxy")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("api.cimt.localhost"), x509.DNSName("app.cimt.localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / ".local").mkdir(exist_ok=True)
    (tmp_path / ".local/ca.crt").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(private)

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = ("api.cimt.localhost", "app.cimt.localhost")
            right = self.headers["host"] in known and self.path == "/healthz"
            self.send_response(200 if right else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"revision": REVISION} if right else {}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / ".local/ca.crt", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_serves_now_is_asked(
    kept: Callable[..., None], tmp_path: Path, healthz: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt, "ENV", "local")
    (tmp_path / ".local/ports.json").write_text(json.dumps({"https": healthz}))
    known = [f"**Serves now**, {app}: revision `{REVISION}`" for app in ("api", "web")]
    assert list(receipt.serving()) == known

    monkeypatch.setattr(receipt, "ENV", "production")
    monkeypatch.setenv("API_DOMAIN", "api.cimt.localhost")
    monkeypatch.setenv("WEB_DOMAIN", "app.cimt.localhost")
    monkeypatch.setenv("CONNECT_TO", f"443=127.0.0.1:{healthz}")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / ".local/ca.crt"))
    assert list(receipt.serving()) == known

    monkeypatch.setattr(receipt, "ENV", "local")
    shutil.rmtree(tmp_path / ".local")
    assert "no answer" in next(receipt.serving())


def start(folder: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    """A step in a process of its own that keeps its result in ``folder``."""
    code = (
        "import pathlib, sys; from tools import step;"
        "step.FOLDER = pathlib.Path(sys.argv.pop(1)); sys.exit(step.main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), "trial", *command],
        cwd=ROOT,
        env=os.environ | {"ENV": "local"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "trial.json").read_text()))


def test_a_step_keeps_what_its_command_noted_but_no_secret(tmp_path: Path) -> None:
    key = 'two lines\nof a "key"'
    code = (
        "import os, sys; from tools.step import note; k = os.environ['DROPLET_SSH_KEY'];"
        "note(said=[k, repr(k), 'x ' + k.split(chr(10))[1], "
        "{'url': os.environ['SUPABASE_DB_URL']}, 'plain']); sys.exit(3)"
    )
    url = "postgresql://u:p%40ssw0rd@db.example.com:5432/postgres"
    process = start(tmp_path, sys.executable, "-c", code, DROPLET_SSH_KEY=key, SUPABASE_DB_URL=url)
    process.communicate(timeout=60)
    assert process.returncode == 3
    text = (tmp_path / "trial.json").read_text()
    assert "p%40ssw0rd" not in text
    assert "two lines" not in text
    assert 'a "key"' not in json.dumps(result(tmp_path)["said"]).replace('\\"', '"')
    kept = result(tmp_path)
    assert (kept["step"], kept["code"], kept["env"], kept["said"][-1]) == (
        "trial",
        3,
        "local",
        "plain",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["trial.json"]


def test_a_step_that_is_ended_ends_its_command_and_says_so(tmp_path: Path) -> None:
    process = start(tmp_path, "sh", "-c", f"touch '{tmp_path}/begun'; exec sleep 600")
    eventually((tmp_path / "begun").exists, "the command runs", process=process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert result(tmp_path)["code"] == -signal.SIGTERM


PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars: {ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  tasks:
    - name: A file
      ansible.builtin.copy: {content: x, dest: "{{ folder }}/file", mode: "0600"}
      diff: true
    - name: A hidden one
      ansible.builtin.copy: {content: hidden-word, dest: "{{ folder }}/hidden-name", mode: "0600"}
      no_log: true
      diff: true
    - name: The same file
      ansible.builtin.copy: {content: x, dest: "{{ folder }}/file", mode: "0600"}
    - name: A hidden failure
      block:
        - name: A hidden failure
          ansible.builtin.assert: {that: false, fail_msg: hidden-word}
          no_log: true
      rescue:
        - name: The end
          ansible.builtin.fail: {msg: "said aloud-key"}
"""


def test_a_play_tells_what_changed_and_why_it_failed_by_name(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY)
    play = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        "localhost,",
        "-e",
        f"folder={tmp_path}",
        str(tmp_path / "play.yml"),
    ]
    process = start(
        tmp_path, *play, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), INGEST_KEY="aloud-key"
    )
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    kept = result(tmp_path)
    assert kept["changed"] == [f"A file: {tmp_path}/file", "A hidden one"]
    assert kept["failed"][-1] == ["The end", "said ***"]
    assert "hidden-" not in json.dumps(kept)
