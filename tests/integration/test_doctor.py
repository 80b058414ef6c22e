"""`make doctor`: every value of an environment tried against what answers it: a real Postgres, the stand-ins, TLS."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from local.certificate import make_certificate
from local.cloudflare.app import Cloud
from testbed.api import Clouds, clouds, stand_in
from testbed.served import served
from testbed.tree import ROOT, copy_tree
from tools import cloudflare, doctor
from tools.doctor import CHECKS, SUPPORTED, Finding, Patient, discreet, examine, production

HOST = "api.cimt.test"
KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIFXHCVsE8hvveBIa91VpfgNDk22hC8wvSYoEB0UxGPaa"
PASSWORD = "a password / of the api"
INGEST = "the-key-of-the-ingest-0123456789abcdef"
SECRETS = {
    "REGISTRY_PASSWORD": "ghp_of-the-registry",
    "NOTIFY_SMTP_PASSWORD": "of-the-mail-server",
    "NOTIFY_SLACK_TOKEN": "xoxb-of-slack",
    "NOTIFY_TELEGRAM_TOKEN": "123:of-telegram",
}
WORLD: dict[str, Any] = {
    "images": True,
    "front": 200,
    "mail": "235 welcome",
    "telegram": True,
}  # how the servers below answer
Server = Callable[[socket.socket], None]


def registry() -> Starlette:
    """A registry that wants a token, as ghcr.io does; and Slack and Telegram, which have closed servers."""

    def tags(request: Request) -> JSONResponse:
        realm = f"https://{request.url.netloc}/token"
        head = {"www-authenticate": f'Bearer realm="{realm}",service="registry"'}
        if request.headers.get("authorization") != "Bearer pull":
            return JSONResponse({}, 401, head)
        return JSONResponse({}, 200 if WORLD["images"] else 404)

    def token(request: Request) -> JSONResponse:
        user = request.headers.get("authorization", "")
        good = user == f"Basic {base64.b64encode(b'ops:ghp_of-the-registry').decode()}"
        return JSONResponse({"token": "pull"} if good else {}, 200 if good else 401)

    def slack(request: Request) -> JSONResponse:
        good = request.headers["authorization"] == "Bearer xoxb-of-slack"
        return JSONResponse({"ok": good, "error": "invalid_auth"})

    def telegram(request: Request) -> JSONResponse:
        good = request.path_params["token"] == "123:of-telegram" and WORLD["telegram"]
        return JSONResponse({"ok": good, "description": "chat not found"})

    def front(_: Request) -> JSONResponse:
        return JSONResponse({}, WORLD["front"])

    def documents(request: Request) -> JSONResponse:
        good = request.headers["authorization"] == f"Bearer {INGEST}"
        return JSONResponse({}, 200 if good and request.url.hostname == HOST else 401)

    routes = [
        Route("/", front),
        Route("/documents", documents),
        Route("/v2/example/cimt/api/tags/list", tags),
        Route("/token", token),
        Route("/auth.test", slack, methods=["POST"]),
        Route("/bot{token}/getChat", telegram),
    ]
    return Starlette(routes=routes)


def mail(client: socket.socket) -> None:
    """A mail server, as far as a sign-in goes."""
    with client, client.makefile("rwb") as talk:
        talk.write(b"220 mail.cimt.test\r\n")
        talk.flush()
        while line := talk.readline():
            said = {
                b"EHLO": "250-mail\r\n250 AUTH PLAIN",
                b"AUTH": str(WORLD["mail"]),
                b"QUIT": "221 bye",
            }
            talk.write(f"{said.get(line.split()[0].upper(), '250 ok')}\r\n".encode())
            talk.flush()


@contextlib.contextmanager
def listening(serve: Server, folder: Path) -> Iterator[int]:
    """A server with TLS on a port of its own; what serves it ends with the connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):  # closed: it is over
                while True:
                    raw, _ = server.accept()
                    with contextlib.suppress(OSError):
                        serve(context.wrap_socket(raw, server_side=True))

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clouds]:
    with clouds(tmp_path_factory.mktemp("clouds")) as running:
        yield running


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a production that is well, but for the clouds."""
    folder = tmp_path_factory.mktemp("servers")
    make_certificate(folder, HOST)
    options = {"ssl_certfile": folder / "ca.crt", "ssl_keyfile": folder / "server.key"}
    with served(registry(), **options) as port, listening(mail, folder) as smtp:
        yield {
            "SSL_CERT_FILE": str(folder / "ca.crt"),
            "CONNECT_TO": f"443=127.0.0.1:{port}",
            "IMAGE_REPOSITORY": f"127.0.0.1:{port}/example/cimt",
            "NOTIFY_SMTP_HOST": f"127.0.0.1:{smtp}",
            "SLACK": f"https://127.0.0.1:{port}",
        }


@pytest.fixture
def well(
    elsewhere: Clouds, servers: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Patient:
    """Everything is as it should be. SSH alone is a script: what the droplet shows stands in `shown` and `system`."""
    with psycopg.connect(
        elsewhere.postgres.cluster.url(user="supabase_admin"), autocommit=True
    ) as admin:
        admin.execute(f"alter role cimt_api password '{PASSWORD}'")
    programs = {
        "ssh-keyscan": f'echo "$@" | grep -q 203.0.113.7 && cat "{tmp_path}/shown"',
        "ssh": f'[ -e "{tmp_path}/in" ] && exec cat "{tmp_path}/system"\n'
        'echo "ops@droplet: Permission denied" >&2; exit 255',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "in").touch()
    (tmp_path / "shown").write_text(f"203.0.113.7 ssh-ed25519 {KEY}\n")
    (tmp_path / "system").write_text('ID=debian\nVERSION_ID="13"\n')
    for name in doctor.read()["settings"]:
        monkeypatch.delenv(name, raising=False)
    url = elsewhere.postgres.url
    given = {
        **servers,
        **SECRETS,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "ENV": "production",
        "DROPLET_HOST": "203.0.113.7",
        "DROPLET_KNOWN_HOSTS": f"203.0.113.7 ssh-ed25519 {KEY}",
        "API_DOMAIN": HOST,
        "LEAVE_OUT": "etl",
        "REGISTRY_USERNAME": "ops",
        "SUPABASE_DB_URL": elsewhere.postgres.cluster.url(user="postgres"),
        "API_DATABASE_URL": re.sub(r"//[^@]*@", "//cimt_api@", url),
        "API_DATABASE_PASSWORD": PASSWORD,
        "SUPABASE_URL": elsewhere.sign_in.url,
        "OPENAI_API_KEY": "sk-for-the-stand-in",
        "OPENAI_BASE_URL": f"{elsewhere.model.url}/v1",
        "NOTIFY_CHANNELS": "mail,slack,telegram",
        "NOTIFY_SMTP_USER": "ops",
        "GITHUB_ACTIONS": "true",  # GitHub itself is asked in tests/unit/test_github_settings.py
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "SLACK", servers["SLACK"])
    monkeypatch.setattr(doctor, "TELEGRAM", servers["SLACK"])
    return production("production")


def found(patient: Patient, *checks: str) -> list[Finding]:
    """What these checks find; nothing of it holds a secret."""
    findings = [one for check in CHECKS if check.__name__ in checks for one in check(patient)]
    for finding in findings:
        for secret in (*SECRETS.values(), PASSWORD):
            assert secret not in discreet(str(finding), patient)
        assert finding.following or finding.sign == "✓"
    return findings


def signs(patient: Patient, *checks: str) -> str:
    return "".join(one.sign for one in found(patient, *checks))


def changed(patient: Patient, **known: str) -> Patient:
    return replace(patient, known=patient.known | known)


def test_a_production_that_is_well(well: Patient) -> None:
    told = [one for one in examine(well) if "is not set" not in one.what]  # most of n8n's are not
    assert [str(one) for one in told if one.sign != "✓"] == []
    text = "\n".join(map(str, told))
    for part in (
        f"certificate of {HOST}",
        "host key is the pinned one",
        "ops pulls 127.0.0.1",
        "lets its owner in",
        "lets cimt_api in",
        "OpenAI has gpt-6-luna",
        "OpenAI has text-embedding-3-small",
        "debian 13 gets updates until 2030",
        "Slack takes",
        "Telegram knows",
        "takes the sign-in",
    ):
        assert part in text


def test_what_is_not_set_is_named_and_what_is_left_out_is_not(
    well: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(well, "settings") == [], "a job of GitHub has those of its verbs alone"
    monkeypatch.delenv("GITHUB_ACTIONS")
    lines = [one.what for one in found(well, "settings")]
    assert any(line.startswith("N8N_DOMAIN is not set") for line in lines)
    assert not any(line.startswith(("ETL_KEY", "API_DOMAIN")) for line in lines)
    less = [
        one.what for one in found(changed(well, LEAVE_OUT="n8n,etl", API_DOMAIN=""), "settings")
    ]
    assert any(line.startswith("API_DOMAIN is not set") for line in less)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    empty = replace(well, known=dict.fromkeys(well.known, ""), pinned="")
    told = [one.what for one in examine(empty) if "is not set" not in one.what]
    assert told == ["alerts reach nobody"], "what is not there is named once, and not asked"
    assert not any(line.startswith("N8N_") for line in less)


def test_names(well: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    leads = {"203.0.113.7": {"203.0.113.7"}, HOST: {"203.0.113.7"}}
    monkeypatch.setattr(doctor, "addresses", lambda host: leads[host])
    direct = replace(well, places={})
    assert signs(direct, "names") == "✓"
    leads[HOST] = {"203.0.113.7", "2001:db8::1"}
    assert signs(direct, "names") == "!"
    leads[HOST] = {"198.51.100.1"}
    (finding,) = found(direct, "names")
    assert str(finding).startswith(f"✗ API_DOMAIN: {HOST} leads to 198.51.100.1")
    assert finding.following == f"at your DNS: {HOST} A 203.0.113.7"
    monkeypatch.undo()
    nobody = replace(changed(well, DROPLET_HOST="127.0.0.1", API_DOMAIN="api.invalid"), places={})
    (finding,) = found(nobody, "names")
    assert "nobody knows the name api.invalid" in finding.what


def test_behind_cloudflare(
    well: Patient, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = servers["SLACK"].removeprefix(
        "https://"
    )  # any server with TLS, in place of Cloudflare's
    behind = changed(well, DNS_PROXIED="on", API_DOMAIN=place)
    leads = {HOST: "203.0.113.7", "cf.test": "104.16.0.1"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *_, **__: [(0, 0, 0, "", (leads[host], 443))]
    )
    (finding,) = found(changed(behind, API_DOMAIN=HOST), "names")
    assert str(finding) == (
        f"✗ {HOST} leads to 203.0.113.7, past Cloudflare. Next: make dns ENV=production"
    )
    assert signs(changed(behind, API_DOMAIN="cf.test"), "names") == "✓"
    monkeypatch.undo()
    cloud = Cloud()
    cloud.networks = {name: list(part) for name, part in cloudflare.kept().items()}
    with served(cloud.application()) as port:
        monkeypatch.setenv("CLOUDFLARE_API_URL", f"http://127.0.0.1:{port}/client/v4")
        monkeypatch.setenv("SSL_CERT_FILE", servers["SSL_CERT_FILE"])
        assert signs(behind, "proxy") == "✓✓"
        monkeypatch.setitem(WORLD, "front", 526)
        cloud.networks["ipv4_cidrs"].append("198.51.100.0/24")
        refused, changes = found(behind, "proxy")
    assert refused.sign == "✗"
    assert "(526): the droplet's certificate is none for it" in refused.what
    assert str(changes).startswith("! Cloudflare's networks changed: + 198.51.100.0/24. Next: ")
    assert found(well, "proxy") == []


def test_certificates(well: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = found(changed(well, API_DOMAIN="other.cimt.test"), "certificates")
    assert "Hostname mismatch" in finding.what
    monkeypatch.delenv("SSL_CERT_FILE")
    (finding,) = found(well, "certificates")
    assert "self-signed certificate" in finding.what
    monkeypatch.undo()
    (finding,) = found(replace(well, places={443: ("127.0.0.1", 9)}), "certificates")
    assert str(finding).startswith(
        "✗ api.cimt.test does not answer on 443 (ConnectionRefusedError)"
    )


def test_a_certificate_that_ends_soon(well: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CERTIFICATE_DAYS", 900)
    assert signs(well, "certificates") == "!"


def test_the_host_key(well: Patient, tmp_path: Path) -> None:
    (tmp_path / "shown").write_text(f"203.0.113.7 ssh-ed25519 {KEY[:-2]}bb\n")
    (finding,) = found(well, "host_key")
    assert "another SSH host key" in finding.what
    (tmp_path / "shown").write_text("")
    (finding,) = found(well, "host_key")
    assert "nobody speaks SSH at 203.0.113.7 port 22" in finding.what
    assert signs(replace(well, pinned=""), "host_key") == "✗"


def test_the_droplet_s_system(
    well: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_today", lambda: date(2026, 11, 26))
    (tmp_path / "system").write_text('ID=ubuntu\nVERSION_ID="22.04"\n')
    assert "!" in signs(well, "droplet"), "five months before its end"
    monkeypatch.setattr(doctor, "_today", lambda: SUPPORTED["ubuntu 22.04"] + timedelta(1))
    assert signs(well, "droplet") == "✓✗"
    monkeypatch.setenv("DROPLET_DOOR", "cimt-ci")
    system = 'ID=debian\nVERSION_ID="13"\n'
    (tmp_path / "system").write_text(json.dumps({"door": "0" * 64, "system": system}))
    assert signs(well, "droplet") == "✗✓✓", (
        "a pipeline is told that the host's program is not its own"
    )
    monkeypatch.delenv("DROPLET_DOOR")
    (tmp_path / "in").unlink()
    (finding,) = found(well, "droplet")
    assert "SSH lets cimt not in: ops@droplet: Permission denied" in finding.what


def test_the_registry(well: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert signs(changed(well, REGISTRY_PASSWORD="ghp_old"), "registry") == "✗"
    assert signs(changed(well, REGISTRY_PASSWORD=""), "registry") == "✗"
    monkeypatch.setitem(WORLD, "images", False)
    (finding,) = found(well, "registry")
    assert finding.following == "make build ENV=production"


def test_the_database(well: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server of the tests trusts loopback: a role that is not there is refused all the same.
    missing = changed(
        well, API_DATABASE_URL=well["API_DATABASE_URL"].replace("//cimt_api", "//cimt_nobody")
    )
    last = found(missing, "database")[-1]
    assert last.sign == "✗"
    assert last.following.startswith("make migrate ENV=production")
    monkeypatch.setenv(
        "SUPABASE_DB_URL", "postgresql://postgres:hunter2@db.example.com:6543/postgres"
    )
    first = found(well, "database")[0]
    assert "port 6543" in first.what
    assert "hunter2" not in str(first)


def test_sign_in_and_the_model(well: Patient, elsewhere: Clouds) -> None:
    elsewhere.sign_in.behave("empty")
    assert signs(well, "sign_in") == "✗"
    assert signs(changed(well, SUPABASE_JWT_SECRET="s" * 40), "sign_in") == "!"
    elsewhere.sign_in.behave("ok")
    assert signs(well, "sign_in") == "✓"
    near = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
    elsewhere.model.shut_down({"gpt-6-luna": near})
    assert signs(well, "model") == "!✓"
    elsewhere.model.shut_down({})
    assert signs(changed(well, CHAT_MODEL="gpt-4-forgotten"), "model") == "✗✓"
    elsewhere.model.behave("failing", status=401, code="invalid_api_key", paths=["/v1/models"])
    (finding,) = found(well, "model")
    elsewhere.model.reset()
    assert str(finding).startswith(
        "✗ OpenAI refuses OPENAI_API_KEY (401). Next: platform.openai.com"
    )


def test_the_api_takes_the_key_for_documents(well: Patient) -> None:
    assert signs(changed(well, INGEST_KEY=INGEST), "ingest") == "✓"
    (finding,) = found(changed(well, INGEST_KEY="another"), "ingest")
    assert str(finding).startswith("✗ the api refuses INGEST_KEY (401). Next: make services")


def test_alerts_and_mail(well: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert signs(changed(well, NOTIFY_CHANNELS=""), "alerts", "mail") == "!"
    assert signs(changed(well, NOTIFY_SLACK_TOKEN="old"), "alerts") == "✗✓"
    monkeypatch.setitem(WORLD, "mail", "535 no")
    (finding,) = found(well, "mail")
    assert "(535)" in finding.what
    hook = changed(
        well, NOTIFY_CHANNELS="webhook", NOTIFY_WEBHOOK_URL="https://127.0.0.1:9/of-ours"
    )
    (finding,) = found(hook, "alerts")
    assert finding.what == "NOTIFY_WEBHOOK_URL: 127.0.0.1 does not answer (ConnectionRefusedError)"


def test_tokens_of_clouds(
    well: Patient, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert signs(well, "tokens") == ""
    monkeypatch.setenv("DIGITALOCEAN_TOKEN", "dop_v1_of-nobody")
    place = (f"{well['OPENAI_BASE_URL']}/nowhere", ("account", "status"), "account:read")
    monkeypatch.setattr(doctor, "TOKENS", {"DIGITALOCEAN_TOKEN": place})
    (finding,) = found(well, "tokens")
    assert str(finding).startswith("✗ DIGITALOCEAN_TOKEN is refused (404")
    assert "dop_v1" not in str(finding)


def test_github(well: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make github` would change is wrong; a token that may not look says nothing about it."""
    token = "ghp_of-a-person"
    monkeypatch.delenv("GITHUB_ACTIONS")
    for name in ("GITHUB_TOKEN", "GH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "gh").write_text("#!/bin/sh\nexit 1\n")  # nobody is signed in
    (tmp_path / "gh").chmod(0o755)
    monkeypatch.setenv("GITHUB_REPOSITORY", "example/cimt")
    (finding,) = found(well, "on_github")
    assert str(finding) == "! GitHub was not asked. Next: gh auth login"
    monkeypatch.setenv("GITHUB_TOKEN", token)
    rights = {"metadata": "read", "actions": "read", "environments": "read", "variables": "read"}
    options = ("--folder", str(tmp_path), "--state", str(tmp_path))
    with stand_in(tmp_path, "github", *options) as url:
        monkeypatch.setenv("GITHUB_API_URL", f"{url}/api")
        (tmp_path / "tokens.json").write_text(json.dumps({token: {"permissions": rights}}))
        lines = [str(one) for one in found(well, "on_github")]
        assert "✗ GitHub differs: + variable API_DOMAIN. Next: make github ENV=production" in lines
        assert (
            "✗ GitHub differs: + secret OPENAI_API_KEY. Next: make github ENV=production" in lines
        )
        (tmp_path / "tokens.json").write_text(
            json.dumps({token: {"permissions": {"checks": "read"}}})
        )
        (finding,) = found(well, "on_github")
        assert finding.sign == "!"
        assert "403" in finding.what


def test_nothing_answers_and_no_secret_is_told(well: Patient) -> None:
    """The command itself, with every address one where nobody listens: an end in seconds, each check one line."""
    nowhere = "127.0.0.1:9"
    secrets = {
        name: f"secret-of-{name}"
        for name, one in doctor.read()["settings"].items()
        if one.get("secret")
    }
    given = {
        **os.environ,
        **secrets,
        "SUPABASE_DB_URL": f"postgresql://postgres:secret-of-postgres@{nowhere}/postgres",
        "API_DATABASE_URL": f"postgresql://cimt_api@{nowhere}/postgres",
        "CONNECT_TO": f"443={nowhere}",
        "IMAGE_REPOSITORY": f"{nowhere}/example/cimt",
        "SUPABASE_URL": f"http://{nowhere}",
        "OPENAI_BASE_URL": f"http://{nowhere}/v1",
        "NOTIFY_SMTP_HOST": nowhere,
        "NOTIFY_WEBHOOK_URL": f"https://{nowhere}/secret-of-webhook",
        "NOTIFY_CHANNELS": "mail,webhook",
        "NOTIFY_SLACK_TOKEN": "",
        "DROPLET_HOST": "127.0.0.1",
    }
    command = [sys.executable, "-m", "tools.doctor"]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    wrong = [line for line in lines if line.startswith("✗")]
    assert len(wrong) >= 8
    assert all(". Next: " in line for line in lines[:-1] if not line.startswith("✓"))
    assert re.fullmatch(r"doctor: \d+ well, \d+ to look at, \d+ wrong; \d+ s", lines[-1])
    assert "secret-of" not in done.stdout
    # What a merge mends (a name, a droplet's system, a channel of alerts) must not hold it up.
    command.append("--before-release")
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    *told, _ = done.stdout.splitlines()
    asked = {re.findall(r"registry|database|sign_in|model", line)[0] for line in told}
    assert asked == {"registry", "database", "sign_in", "model"}, done.stdout


def test_local_without_and_with_a_droplet_that_is_off(elsewhere: Clouds, tmp_path: Path) -> None:
    """Its clouds answer; that its droplet does not is what is found."""
    root = tmp_path / "a clone"
    copy_tree(root)
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tools.doctor"]
        env = kept | {"ANSIBLE_CONFIG": str(root / "ansible.cfg"), "ENV": "local"}
        return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)

    done = run()
    assert done.returncode == 2
    assert done.stderr.endswith("Next: make up\n")
    ports = dict.fromkeys(("ssh", "http", "https", "panel", "swarm", "registry", "s3", "github"), 9)
    for name, url in {
        "postgres": elsewhere.postgres.url,
        "supabase": elsewhere.sign_in.url,
        "openai": elsewhere.model.url,
    }.items():
        ports[name] = int(re.findall(r":(\d+)", url)[-1])
    home = root / ".local"
    (home / "droplet").mkdir(parents=True)
    (home / "ports.json").write_text(json.dumps(ports))
    (home / "ssh_config").write_text("Host droplet\n  HostName 127.0.0.1\n  Port 9\n")
    (home / "droplet/host_ed25519.pub").write_text(f"ssh-ed25519 {KEY}\n")
    done = run()
    assert done.returncode == 1, done.stderr
    assert "✗ nobody speaks SSH at 127.0.0.1 port 9" in done.stdout, done.stdout
    for part in (
        "✓ the database lets its owner in",
        "✓ sign-in:",
        "✓ CHAT_MODEL: OpenAI has gpt-6-luna",
    ):
        assert part in done.stdout, done.stdout
