"""From outside: only the declared ports answer. The state of a firewall on the host proves nothing about Docker."""

from __future__ import annotations

import concurrent.futures
import socket
from typing import Any

import pytest

from plugins.filter.settings import doors
from tools.cloudflare import within
from tools.declared import Declared

from .conftest import Reached

pytestmark = pytest.mark.droplet

SILENCE = 4  # seconds without an answer: nobody is there
# What our own parts, Docker, Swarm and the usual databases and panels listen on.
# fmt: off
WELL_KNOWN = [
    21, 25, 80, 111, 443, 2375, 2376, 2377, 3000, 3306, 4243, 4789, 5000, 5355, 5432, 5678, 6379, 7946, 8000, 8080,
    8443, 9000, 9090, 9100, 9323, 27017,
]
# fmt: on


def answer(address: tuple[str, int], forwarded: bool) -> str:
    """What a port does: "silent", or how it answered.

    The request is one that makes HTTP and TLS servers speak; SSH speaks first. A forward accepts for the droplet
    whatever it has behind it, so there an accepted connection alone says nothing.
    """
    try:
        with socket.create_connection(address, timeout=SILENCE) as connection:
            connection.settimeout(SILENCE)
            try:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return "sent bytes" if connection.recv(1) else "closed"
            except TimeoutError:
                return "silent" if forwarded else "accepted"
            except ConnectionError:
                return "closed"
    except ConnectionRefusedError:
        # Even that is an answer: the firewall let the packet through to where nobody listens.
        return "refused"
    except OSError:  # a timeout, or a router that says it is unreachable
        return "silent"


def test_only_the_declared_ports_answer(declared: Declared, reached: Reached) -> None:
    """Panel and Swarm listen on every address of the host: that they are silent here is the proof.

    SSH, HTTP and HTTPS must answer in the same way, or silence would prove nothing. Behind Cloudflare, SSH alone.
    """
    wanted = {declared["firewall_ssh_port"], *declared["firewall_public_tcp_ports"]}
    wanted -= {80, 443} if declared["proxied"] else set()
    places = {port: declared.door(port) for port in sorted({*WELL_KNOWN, *wanted})}
    addresses = {port: address for port, address in places.items() if address is not None}
    forwarded = bool(declared["setting"]["CONNECT_TO"])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = dict(
            zip(
                addresses,
                pool.map(lambda at: answer(at, forwarded), addresses.values()),
                strict=True,
            )
        )
    seen = {port: what for port, what in answers.items() if what != "silent"}
    assert set(seen) == wanted, f"port by port: {answers}"
    assert set(addresses) - wanted, "no port was tried that has to be shut"


def test_each_name_leads_where_users_shall_go(
    app: dict[str, Any], declared: Declared, collected: dict[str, Any]
) -> None:
    """DNS_PROXIED=on: to Cloudflare alone, the droplet's door is shut. Off: to the droplet, or as CONNECT_TO says."""
    place = doors(declared["setting"]["CONNECT_TO"]).get(443)
    own = {str(declared["ansible_host"]), *(place or ())[:1]}
    own |= {one.partition("/")[0] for one in collected["host_networks"]["addresses"]}
    for domain in app["domains"]:
        at = place[0] if place and not declared["proxied"] else domain["host"]
        try:
            found = {str(one[4][0]) for one in socket.getaddrinfo(at, 443, type=socket.SOCK_STREAM)}
        except OSError:
            pytest.fail(f"nobody knows the name {domain['host']}. Next: make dns")
        strays = {one for one in found if not (within(one) if declared["proxied"] else one in own)}
        assert not strays, f"{domain['host']} leads to {', '.join(strays)}. Next: make dns"
