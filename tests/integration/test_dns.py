"""`make dns` against a Cloudflare that is stricter than the real one, and a droplet that shows certificates by TLS."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from local.certificate import make_certificate
from local.cloudflare.app import ALL_RIGHTS, Cloud
from testbed.served import served
from tools import cloudflare, dns

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-account-" + "x1" * 12
GIVEN = {
    "ENV": "production",
    "DNS_PROVIDER": "cloudflare",
    "DROPLET_HOST": "203.0.113.7",
    "API_DOMAIN": "api.example.com",
    "WEB_DOMAIN": "app.example.com",
    "N8N_DOMAIN": "n8n.example.com",
    "CLOUDFLARE_API_TOKEN": TOKEN,
}
HOSTS = [GIVEN["API_DOMAIN"], GIVEN["WEB_DOMAIN"], GIVEN["N8N_DOMAIN"]]
CONFIRM = {"CONFIRM": "yes"}
PROXIED = {"DNS_PROXIED": "on"}


class Done(NamedTuple):
    """How a run ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class World:
    """Cloudflare with one zone, and a droplet at CONNECT_TO that shows `certificate` (a file), or nothing."""

    cloud: Cloud
    url: str
    folder: Path
    door: int

    @property
    def zone(self) -> dict[str, Any]:
        return next(iter(self.cloud.zones.values()))

    def environment(self, given: dict[str, str]) -> dict[str, str]:
        known = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        here = {"CLOUDFLARE_API_URL": self.url, "CONNECT_TO": f"443=127.0.0.1:{self.door}"}
        here["SSL_CERT_FILE"] = str(self.folder / "browsers/ca.crt")
        return {**known, **GIVEN, **here, **given}

    def dns(self, *arguments: str, sent: str = "", **given: str) -> Done:
        """What the tool says and how it ends, in this process: a start of Python takes longer than all that it does."""
        self.cloud.asked.clear()
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            for name in set(dns.read()["settings"]) | {"CONFIRM"}:
                patch.delenv(name, raising=False)
            for name, value in self.environment(given).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["dns", *arguments])
            patch.setattr(sys, "stdin", io.StringIO(sent))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = dns.main()
        done = Done(code, out.getvalue(), err.getvalue())
        assert TOKEN not in done.stdout + done.stderr
        return done

    def made(self, **given: str) -> str:
        """What it did; the second run after it finds nothing to do."""
        done = self.dns(**CONFIRM, **given)
        assert done.returncode == 0, done.stdout + done.stderr
        assert self.writes()
        again = self.dns(**CONFIRM, **given)
        assert again.returncode == 0
        assert "dns: all is as it should be" in again.stdout
        assert self.writes() == []
        return done.stdout

    def writes(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path, _ in self.cloud.asked if method != "GET"]

    def records(self) -> dict[tuple[str, str], tuple[str, bool]]:
        return {
            (one["name"], one["type"]): (one["content"], one["proxied"])
            for one in self.zone["records"].values()
        }

    def settings(self) -> dict[str, Any]:
        return {name: one["value"] for name, one in self.zone["settings"].items()}

    def add(self, name: str, kind: str, content: str, **more: Any) -> dict[str, Any]:
        record = {
            "id": f"{len(self.zone['records']):032x}",
            "name": name,
            "type": kind,
            "content": content,
        }
        record |= {"ttl": 1, "proxied": False, "comment": None, **more}
        self.zone["records"][record["id"]] = record
        return record

    def show(self, which: str) -> None:
        """The droplet shows the certificate of this folder from now on."""
        (self.folder / "shown").write_text(which)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    cloud = Cloud()
    cloud.tokens[TOKEN] = ALL_RIGHTS
    cloud.add_zone("example.com")
    make_certificate(tmp_path / "nobody", "elsewhere.example")
    _authority(tmp_path / "browsers")
    (tmp_path / "shown").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as server, served(cloud.application()) as port:

        def answer() -> None:
            while True:
                try:
                    raw, _ = server.accept()
                except OSError:  # closed: it is over
                    return
                which = (tmp_path / "shown").read_text()
                with raw:
                    if which:
                        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                        files = tmp_path / which
                        context.load_cert_chain(files / "ca.crt", files / "server.key")
                        try:
                            context.wrap_socket(raw, server_side=True).close()
                        except OSError:
                            continue

        threading.Thread(target=answer, daemon=True).start()
        door = server.getsockname()[1]
        yield World(cloud, f"http://127.0.0.1:{port}/client/v4", tmp_path, door)
        server.shutdown(socket.SHUT_RDWR)


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    kind, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, kind, plain).decode()


def _request(hosts: list[str]) -> tuple[str, str]:
    """A key and a request for a certificate, as the droplet makes them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hosts[0])])
    csr = x509.CertificateSigningRequestBuilder(name).sign(key, hashes.SHA256())
    return _pem(key), csr.public_bytes(serialization.Encoding.PEM).decode()


def _authority(folder: Path) -> None:
    """A certificate for the product's names that browsers take, because its authority is itself."""
    folder.mkdir()
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority")])
    alternatives = x509.SubjectAlternativeName([x509.DNSName(one) for one in HOSTS])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=90))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(alternatives, critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "server.key").write_text(_pem(key))
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def test_a_plan_changes_nothing_and_confirm_makes_it_so(world: World) -> None:
    plan = world.dns(DROPLET_IPV6="2001:db8::7")
    assert plan.returncode == 0, plan.stderr
    assert "+ api.example.com A 203.0.113.7, directly" in plan.stdout
    assert "+ n8n.example.com AAAA 2001:db8::7, directly" in plan.stdout
    assert "dns: 6 to change; nothing was. Next: make dns ENV=production CONFIRM=yes" in plan.stdout
    assert (world.writes(), world.records()) == ([], {})
    world.made(DROPLET_IPV6="2001:db8::7")
    expected = {(host, "A"): ("203.0.113.7", False) for host in HOSTS}
    expected |= {(host, "AAAA"): ("2001:db8::7", False) for host in HOSTS}
    assert world.records() == expected
    assert {one["comment"] for one in world.zone["records"].values()} == {"cimt production"}
    assert world.settings()["ssl"] == "full", "a zone is not ours while nothing of us is behind it"


def test_another_droplet_and_an_app_less_change_only_what_is_ours(world: World) -> None:
    world.add("staging.example.com", "A", "203.0.113.1", comment="cimt staging")
    world.made()
    done = world.made(DROPLET_HOST="203.0.113.8", LEAVE_OUT="n8n,etl")
    assert "~ api.example.com A 203.0.113.7 → 203.0.113.8, directly" in done
    assert "- n8n.example.com A 203.0.113.7: ours, and no more wanted" in done
    assert world.records() == {
        ("api.example.com", "A"): ("203.0.113.8", False),
        ("app.example.com", "A"): ("203.0.113.8", False),
        ("staging.example.com", "A"): ("203.0.113.1", False),
    }


@pytest.mark.parametrize(("kind", "content"), [("A", "198.51.100.1"), ("CNAME", "www.example.com")])
def test_a_record_of_somebody_else_is_told_and_never_touched(
    world: World, kind: str, content: str
) -> None:
    theirs = world.add("api.example.com", kind, content, comment="the shop's")
    before = dict(theirs)
    done = world.dns(**CONFIRM)
    assert done.returncode == 1
    assert f"! api.example.com {kind} {content}: not ours; it stays" in done.stdout
    assert "make it ours by the comment `cimt production`" in done.stdout
    assert theirs == before
    assert world.records().keys() == {("api.example.com", kind), *((one, "A") for one in HOSTS[1:])}
    theirs |= {"comment": "cimt production"}  # as it says
    if kind == "A":
        world.made()
        assert world.records()["api.example.com", "A"] == ("203.0.113.7", False)


def test_a_record_that_is_right_already_needs_no_mark(world: World) -> None:
    world.add("api.example.com", "A", "203.0.113.7")
    done = world.made()
    assert "? api.example.com A 203.0.113.7: not ours, and as it should be; it stays" in done
    assert len(world.zone["records"]) == 3


def test_more_records_than_a_page_has(world: World) -> None:
    world.made()
    for number in range(120):
        world.add(f"host{number}.example.com", "A", "198.51.100.1")
    ours = dict(list(world.zone["records"].items())[:3])
    world.zone["records"] = dict(list(world.zone["records"].items())[3:]) | ours  # on the last page
    assert "all is as it should be" in world.dns(**CONFIRM).stdout


def test_through_the_proxy_the_zone_is_made_fit_first(world: World) -> None:
    world.show("browsers")
    world.made()
    done = world.made(**PROXIED)
    lines = done.splitlines()
    strict = lines.index("~ example.com, all of its hosts: ssl: full → strict")
    assert strict < lines.index("~ api.example.com A 203.0.113.7 → 203.0.113.7, through the proxy")
    assert "Next: make provision ENV=production" in lines[-1]
    assert set(world.records().values()) == {("203.0.113.7", True)}
    there = world.settings()
    assert {name: there[name] for name in dns.SETTINGS} == dns.SETTINGS
    policy = there["security_header"]["strict_transport_security"]
    assert (policy["enabled"], policy["max_age"], policy["include_subdomains"]) == (
        True,
        86400,
        False,
    )
    assert world.zone["bots"]["fight_mode"] is False
    # A week later it holds for a year.
    world.zone["settings"]["security_header"]["modified_on"] = "2026-01-01T00:00:00.000000Z"
    assert "HSTS: 86400 → 31536000 seconds" in world.made(**PROXIED)


def test_what_the_plan_of_the_zone_does_not_allow_and_what_is_stricter_stays(world: World) -> None:
    world.zone["settings"]["http3"] |= {"value": "off", "editable": False}
    world.zone["settings"]["min_tls_version"]["value"] = "1.3"
    world.zone["settings"]["security_level"]["value"] = "under_attack"
    done = world.made(**PROXIED)
    assert "? example.com, all of its hosts: http3: off → on: its plan does not allow that" in done
    assert "security_level under_attack refuses programs" in done
    assert world.settings()["min_tls_version"] == "1.3"


def test_a_certificate_that_cloudflare_refuses_is_told_before_it_is_an_error_526(
    world: World,
) -> None:
    world.show("nobody")
    done = world.dns(**PROXIED)
    assert done.returncode == 0
    assert "? api.example.com: the droplet's certificate (" in done.stdout
    assert "error 526" in done.stdout


def test_names_leave_the_proxy_when_browsers_take_the_droplets_own_certificate(
    world: World,
) -> None:
    """Else they would lead to a shut door, or to a certificate that Cloudflare alone believes."""
    world.made(**PROXIED)
    for shown, why in (("", "nobody answers there"), ("origin", "Cloudflare alone believes it")):
        if shown:
            (world.folder / shown).mkdir()
            key, csr = _request(HOSTS)
            text = json.dumps({"csr": csr, "hosts": HOSTS, "days": 5475})
            signed = world.dns("sign", sent=text)
            assert signed.returncode == 0, signed.stderr
            (world.folder / shown / "ca.crt").write_text(signed.stdout)
            (world.folder / shown / "server.key").write_text(key)
        world.show(shown)
        held = world.dns(**CONFIRM)
        assert held.returncode == 0, held.stderr
        assert f"(api.example.com: {why}). Next: make provision ENV=production" in held.stdout
        assert set(world.records().values()) == {("203.0.113.7", True)}
        assert (world.settings()["ssl"], world.settings()["always_use_https"]) == ("full", "off")
    world.show("browsers")
    done = world.made().splitlines()
    assert done.index("~ example.com, all of its hosts: ssl: full → strict") < done.index(
        "~ api.example.com A 203.0.113.7 → 203.0.113.7, directly"
    )
    assert set(world.records().values()) == {("203.0.113.7", False)}


@pytest.mark.parametrize("after", [1, 5, 7, 8, 10])
def test_killed_between_two_calls_the_next_run_ends_it(world: World, after: int) -> None:
    """Seven of the zone, then three records: in the midst of both, between them, and after the last."""
    world.cloud.hang_after = after
    command = [sys.executable, "-m", "tools.dns"]
    tool = subprocess.Popen(
        command, cwd=ROOT, env=world.environment({**PROXIED, **CONFIRM}), stdout=subprocess.DEVNULL
    )
    assert world.cloud.hung.wait(60)
    tool.kill()
    tool.wait()
    world.cloud.hang_after = 0
    world.made(**PROXIED) if after < 10 else world.dns(**PROXIED, **CONFIRM)
    assert {key: value[1] for key, value in world.records().items()} == {
        (one, "A"): True for one in HOSTS
    }
    assert len(world.zone["records"]) == 3


def test_a_busy_cloudflare_is_asked_again(world: World) -> None:
    world.cloud.busy = 2
    assert world.dns(**CONFIRM).returncode == 0
    assert len(world.records()) == 3


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("zone", "give this one Zone Read of the zone"),
        (
            "dns_records",
            "Authentication error (10000). Next: Cloudflare → My Profile → API Tokens: give this one DNS Edit",
        ),
        ("settings", "give this one Zone Settings Edit of the zone"),
        ("bot_management", "give this one Bot Management Edit of the zone"),
    ],
)
def test_a_token_that_may_not_says_what_it_lacks(world: World, lacks: str, says: str) -> None:
    world.cloud.tokens[TOKEN] = ALL_RIGHTS - {lacks}
    done = world.dns(**PROXIED, **CONFIRM)
    assert done.returncode == 1
    assert says in done.stderr
    assert world.records() == {}


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        ({"CLOUDFLARE_API_TOKEN": ""}, 2, "not set: CLOUDFLARE_API_TOKEN. Next: Cloudflare →"),
        (
            {"CLOUDFLARE_API_TOKEN": "short"},
            1,
            "Invalid request headers (6003). Next: Cloudflare →",
        ),
        ({"CLOUDFLARE_API_TOKEN": "y" * 40}, 1, "Invalid access token (9109). Next: Cloudflare →"),
        (
            {"API_DOMAIN": "api.example.org"},
            1,
            "no zone of api.example.org: the token sees example.com. Next: ",
        ),
        ({"API_DOMAIN": "api.notexample.com"}, 1, "no zone of api.notexample.com"),
        ({"DROPLET_HOST": ""}, 2, "not set: DROPLET_HOST. Next: "),
        ({"DROPLET_HOST": "droplet.example.com"}, 2, "is no IPv4 address. Next: "),
        ({"DROPLET_IPV6": "203.0.113.7"}, 2, "is no IPv6 address. Next: "),
        ({"DNS_PROVIDER": "route53"}, 2, "DNS_PROVIDER=route53. Next: one of none, cloudflare"),
        ({"DNS_PROVIDER": "none", **PROXIED}, 2, "Next: DNS_PROVIDER=cloudflare"),
        (
            {"API_DOMAIN": "api.cimt.example.com", **PROXIED},
            1,
            "Next: a name such as api-cimt.example.com",
        ),
        ({"ENV": "local"}, 2, "Next: ENV=production"),
    ],
)
def test_bad_input_ends_with_what_to_do(
    world: World, given: dict[str, str], code: int, says: str
) -> None:
    done = world.dns(**CONFIRM, **given)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stderr
    assert world.writes() == []


def test_a_zone_that_waits_for_its_registrar_is_told(world: World) -> None:
    world.zone["about"]["status"] = "pending"
    done = world.dns()
    assert done.returncode == 1
    assert "its nameservers: ada.ns.cloudflare.com, bob.ns.cloudflare.com" in done.stderr


def test_for_another_provider_the_records_are_printed(world: World) -> None:
    done = world.dns(
        DNS_PROVIDER="", CLOUDFLARE_API_TOKEN="", DROPLET_IPV6="2001:db8::7", LEAVE_OUT="n8n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        "api.example.com  A     203.0.113.7",
        "api.example.com  AAAA  2001:db8::7",
        "app.example.com  A     203.0.113.7",
        "app.example.com  AAAA  2001:db8::7",
    ]
    assert world.cloud.asked == []


def test_origin_ca_signs_for_the_zone_alone(world: World) -> None:
    _, csr = _request(["api.example.org"])
    done = world.dns(
        "sign", sent=json.dumps({"csr": csr, "hosts": ["api.example.org"], "days": 5475})
    )
    assert done.returncode == 1
    assert "Failed to validate requested hostname api.example.org" in done.stderr


def test_the_door_is_not_shut_on_names_that_lead_past_cloudflare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"cf.example": "104.16.0.1", "mixed.example": "203.0.113.7"}

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror
        return [(0, 0, 0, "", (one, 443)) for one in {"104.16.0.1", known[host]}]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert list(dns.astray(["cf.example"])) == []
    assert list(dns.astray(["mixed.example"])) == [
        "mixed.example leads to 203.0.113.7, past Cloudflare"
    ]
    assert list(dns.astray(["nowhere.example"])) == ["nowhere.example leads nowhere"]


@pytest.fixture
def networks(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """`make ranges` beside a copy of the file."""
    world.cloud.networks = {name: list(part) for name, part in cloudflare.kept().items()}
    (tmp_path / "kept.json").write_text(cloudflare.NETWORKS.read_text())
    monkeypatch.setattr(cloudflare, "NETWORKS", tmp_path / "kept.json")
    monkeypatch.setenv("CLOUDFLARE_API_URL", world.url)
    monkeypatch.setattr(sys, "argv", ["ranges"])
    return world


def test_the_kept_networks_are_compared_and_written(
    networks: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cloudflare.main() == 0
    networks.cloud.networks["ipv4_cidrs"].append("198.51.100.0/24")
    networks.cloud.networks["ipv6_cidrs"].remove("2c0f:f248::/32")
    assert cloudflare.main() == 1
    assert capsys.readouterr().out.splitlines()[1:3] == ["+ 198.51.100.0/24", "- 2c0f:f248::/32"]
    monkeypatch.setattr(sys, "argv", ["ranges", "--write"])
    assert cloudflare.main() == 0
    assert cloudflare.kept() == networks.cloud.networks
    assert cloudflare.within("198.51.100.9")
    assert not cloudflare.within("2c0f:f248::1")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("ipv4_cidrs", ["0.0.0.0/0"]),
        ("ipv4_cidrs", ["198.51.100.0/24"] * 3),
        ("ipv6_cidrs", ["not a network"]),
        ("ipv6_cidrs", ["198.51.100.0/24"] * 9),
    ],
)
def test_a_list_that_nobody_should_believe_is_refused(
    networks: World, capsys: pytest.CaptureFixture[str], part: str, said: list[str]
) -> None:
    networks.cloud.networks[part] = said
    assert cloudflare.main() == 2
    assert "GET /ips" in capsys.readouterr().err
