"""From outside: only the declared ports answer. The state of a firewall proves nothing about Docker."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import socket
from typing import Any

from .conftest import ENV, ROOT

SILENCE = 5  # seconds without a byte or an end of the connection: nobody is there
WELL_KNOWN = [
    21,
    22,
    25,
    80,
    111,
    443,
    2375,
    2376,
    2377,
    3000,
    4243,
    4789,
    5000,
    5355,
    5432,
    5678,
    6379,
    7946,
    8000,
    8080,
    8443,
    9000,
    9090,
    9323,
]


def answers(address: tuple[str, int]) -> bool:
    """Whether anything comes back: bytes, or the end of an accepted connection.

    An accepted connection alone says nothing: QEMU's forwards accept for the local droplet.
    """
    try:
        with socket.create_connection(address, timeout=SILENCE) as connection:
            connection.settimeout(SILENCE)
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            connection.recv(1)
            return True
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    except OSError:  # refused: for a firewall that drops, even that is an answer
        return True


def doors(declared: dict[str, Any]) -> dict[int, tuple[str, int]]:
    """Port of the droplet to the address at which it is reached from here."""
    if ENV == "local":
        ports = json.loads(pathlib.Path(ROOT / ".local/ports.json").read_text())
        inside = {"ssh": 22, "http": 80, "https": 443, "panel": 3000, "swarm": 2377}
        return {port: ("127.0.0.1", ports[name]) for name, port in inside.items()}
    ports = {*WELL_KNOWN, *declared["firewall_public_tcp_ports"], declared["firewall_ssh_port"]}
    return {port: (declared["connection"]["host"], port) for port in sorted(ports)}


def test_only_the_declared_ports_answer(declared: dict[str, Any], found: dict[str, Any]) -> None:
    """The panel's port and Swarm's are open on the host itself: that they are silent here is the proof."""
    assert found["active"]["docker"] == "active"
    addresses = doors(declared)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        open_ports = {
            port
            for port, answered in zip(addresses, pool.map(answers, addresses.values()), strict=True)
            if answered
        }
    assert open_ports == {declared["firewall_ssh_port"], *declared["firewall_public_tcp_ports"]}
