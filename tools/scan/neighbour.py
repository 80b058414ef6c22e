"""What answers a stranger on the droplet's own network: every TCP port, and the usual UDP ports, over IPv4 and IPv6.

Usage: python tools/scan/neighbour.py FOLDER CARD IPV4 IPV6      (by `make scan`, of a local droplet)

It stands where another machine would: Ethernet frames pass through two Unix sockets in FOLDER (lan.sock is the end of
the droplet's network card CARD, neighbour.sock this one's), so neither root nor a second virtual machine is needed, and
no forward of QEMU's stands between. Its own addresses are the droplet's with 99 at their end. Prints
{"tcp 4": [port], "tcp 6": …, "udp 4": …, "udp 6": …}: those that say anything, be it that nobody is there.
"""

from __future__ import annotations

import json
import logging
import random
import re
import socket
import sys
import threading
import time
from pathlib import Path

logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402 - told to be quiet first
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6DestUnreach,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

OWN = "52:54:00:c1:47:99"
FROM = 40000  # our port; answers come to it
PASSES = 2  # a frame may be lost where the droplet is busy
AFTER = 5.0  # seconds for the last answers
# fmt: off
USUAL_UDP = [
    7, 19, 53, 67, 68, 69, 111, 123, 135, 137, 138, 161, 162, 177, 389, 427, 443, 500, 514, 517, 520, 623, 626,
    631, 996, 997, 998, 999, 1022, 1023, 1025, 1194, 1434, 1645, 1646, 1701, 1718, 1719, 1812, 1813, 1900, 2049,
    2377, 3000, 3283, 3456, 3478, 3703, 4444, 4500, 4789, 5000, 5060, 5353, 5355, 5632, 5683, 7946, 8472, 9200,
    10000, 11211, 17185, 20031, 27015, 30718, 31337, 32768, 33434, 41641, 49152, 51820, 60000,
]
# fmt: on


class Neighbour:
    """A machine on the link, with one address of each family."""

    def __init__(self, folder: Path, card: str, four: str, six: str) -> None:
        self.card = card
        self.theirs = {4: four, 6: six}
        self.ours = {4: re.sub(r"\d+$", "99", four), 6: re.sub(r"[0-9a-f]+$", "99", six)}
        self.far = str(folder / "lan.sock")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "neighbour.sock"))
        self.answered: dict[str, set[int]] = {
            f"{kind} {family}": set() for kind in ("tcp", "udp") for family in (4, 6)
        }

    def send(self, packet: Packet) -> None:
        """One frame to the droplet; waits while it cannot take one."""
        self.socket.sendto(bytes(Ether(src=OWN, dst=self.card) / packet), self.far)

    def listen(self) -> None:
        """Say where we are to whoever asks, and note who answers; for ever."""
        while True:
            frame = Ether(self.socket.recv(65536))
            if ARP in frame and frame[ARP].op == 1 and frame[ARP].pdst == self.ours[4]:
                self.send(
                    ARP(op=2, hwsrc=OWN, psrc=self.ours[4], hwdst=frame.src, pdst=frame[ARP].psrc)
                )
            elif ICMPv6ND_NS in frame and frame[ICMPv6ND_NS].tgt == self.ours[6]:
                here = ICMPv6ND_NA(tgt=self.ours[6], R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(
                    lladdr=OWN
                )
                self.send(IPv6(src=self.ours[6], dst=frame[IPv6].src) / here)
            else:
                self.note(frame)

    def note(self, frame: Packet) -> None:
        """The port that an answer is of: its own, or that of the packet which an ICMP error quotes."""
        family = 6 if IPv6 in frame else 4
        if TCP in frame and frame[TCP].dport == FROM:
            self.answered[f"tcp {family}"].add(frame[TCP].sport)
        elif UDP in frame and frame[UDP].dport == FROM and ICMP not in frame:
            self.answered[f"udp {family}"].add(frame[UDP].sport)
        elif ICMP in frame or ICMPv6DestUnreach in frame:
            quoted = bytes(
                frame[ICMP].payload if ICMP in frame else frame[ICMPv6DestUnreach].payload
            )
            header = 20 if family == 4 else 40
            kind = {6: "tcp", 17: "udp"}.get(quoted[9] if family == 4 else quoted[6])
            if kind:
                port = int.from_bytes(quoted[header + 2 : header + 4])
                self.answered[f"{kind} {family}"].add(port)

    def scan(self) -> dict[str, list[int]]:
        """Ask every port, in no order, and what was silent once more."""
        threading.Thread(target=self.listen, daemon=True).start()
        for _ in range(PASSES):
            for family, layer in ((4, IP), (6, IPv6)):
                head = layer(src=self.ours[family], dst=self.theirs[family])
                for port in random.sample(range(1, 65536), 65535):
                    if port not in self.answered[f"tcp {family}"]:
                        self.send(head / TCP(sport=FROM, dport=port, flags="S"))
                for port in USUAL_UDP:
                    self.send(head / UDP(sport=FROM, dport=port) / Raw(b"\0" * 16))
            time.sleep(AFTER)
        return {kind: sorted(ports) for kind, ports in self.answered.items()}


if __name__ == "__main__":
    place, *rest = sys.argv[1:]
    print(json.dumps(Neighbour(Path(place), *rest).scan()))
