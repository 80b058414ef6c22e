"""DNS_PROXIED=on and off again on the running local droplet: Cloudflare alone comes in, and sees its own certificate.

Cloudflare's API is the stand-in. For its proxy stands this machine, whose address is among the networks meanwhile; that
names lead there is asked of DNS, which knows none of the local ones, so plays begin after that question.
"""

from __future__ import annotations

import json
import re
import secrets
import ssl
from collections.abc import Iterator

import httpx
import pytest
from cryptography import x509

from local.cloudflare.app import ALL_RIGHTS, Cloud
from testbed.droplet import DOMAIN, GENEROUS, LOCAL, ROOT, Client, make, on_droplet
from testbed.served import served

NETWORKS = ROOT / "services/cloudflare.json"
CERTIFICATE = "/etc/easypanel/traefik/cimt-origin.crt"
HERE = "10.0.2.2/32"  # this machine, for the droplet
AFTER_DNS = "ARGS=--start-at-task 'Which system this is'"
# From outside the audit looks where Cloudflare's names lead.
INSIDE = "ARGS=-k 'not test_outside and not test_its_domains_are_served'"
ISSUER = f"""\
openssl s_client -connect 127.0.0.1:443 -servername {DOMAIN} </dev/null 2>/dev/null | openssl x509
"""


def issuer() -> str:
    """Who has issued the certificate that the proxy shows for the api."""
    shown = x509.load_pem_x509_certificate(on_droplet(ISSUER).encode())
    return shown.issuer.rfc4514_string()


def behind_cloudflare() -> Client:
    """Who asks as Cloudflare does, and believes the very certificate that the droplet got from it."""
    client = Client()
    client.context = ssl.create_default_context(cadata=on_droplet(f"cat {CERTIFICATE}"))
    client.context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return client


@pytest.fixture
def cloudflare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a person has who puts Cloudflare before the droplet; in the end the droplet is as it was."""
    cloud, token, before = Cloud(), secrets.token_hex(20), NETWORKS.read_text()
    given = LOCAL / "given.json"
    cloud.tokens[token] = ALL_RIGHTS
    cloud.add_zone(DOMAIN.partition(".")[2])
    with served(cloud.application()) as port:
        monkeypatch.setenv("CLOUDFLARE_API_URL", f"http://127.0.0.1:{port}/client/v4")
        monkeypatch.setenv("CLOUDFLARE_API_TOKEN", token)
        given.write_text(json.dumps({"DNS_PROVIDER": "cloudflare", "DNS_PROXIED": "on"}))
        try:
            yield
        finally:
            NETWORKS.write_text(before)
            given.unlink()
            monkeypatch.undo()
            make("provision", timeout=2 * GENEROUS)


def test_the_droplet_goes_behind_cloudflare_and_comes_back(cloudflare: None) -> None:
    assert "CloudFlare" not in issuer()
    known = json.loads(NETWORKS.read_text())
    known["ipv4_cidrs"].append(HERE)
    NETWORKS.write_text(json.dumps(known))
    done = make("provision", AFTER_DNS, timeout=2 * GENEROUS)
    assert done.returncode == 0
    assert "CloudFlare Origin" in issuer()
    client = behind_cloudflare()
    assert client.request("GET", "/healthz").status_code == 200
    # The key stays, and nothing else is to be done.
    done = make("provision", AFTER_DNS, timeout=2 * GENEROUS)
    assert re.findall(r"changed=(\d+)", done.stdout) == ["0"]
    assert make("audit", INSIDE).returncode == 0
    # Without this machine among its networks, the door is shut to it.
    known["ipv4_cidrs"].remove(HERE)
    NETWORKS.write_text(json.dumps(known))
    assert make("provision", AFTER_DNS, timeout=2 * GENEROUS).returncode == 0
    with pytest.raises(httpx.TransportError):
        client.request("GET", "/healthz", timeout=20)
    assert make("audit", INSIDE).returncode == 0


def test_and_nothing_of_it_stays() -> None:
    assert make("audit").returncode == 0
    assert Client().request("GET", "/healthz").status_code == 200
    assert "CloudFlare" not in issuer()
