"""Role firewall: the kernel's table as a whole. (The file on disk: test_config; from outside: test_outside.)"""

from __future__ import annotations

import difflib
import json
from typing import Any

import pytest

from tools.declared import Declared


def items(listing: dict[str, Any]) -> list[dict[str, Any]]:
    """Objects of `nft --json list table`, without what differs from load to load.

    That is: handles, counters, the addresses seen, the order within an anonymous set.
    """
    assert listing["code"] == 0, listing["err"]

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if not isinstance(value, dict):
            return value
        result = {key: plain(item) for key, item in value.items() if key != "handle"}
        if isinstance(result.get("set"), list):
            result["set"] = sorted(result["set"], key=json.dumps)
        if "counter" in result:
            result["counter"] = None
        return result

    result = []
    for item in json.loads(listing["out"])["nftables"]:
        if "metainfo" in item:
            continue
        # What packets put into a set, not the file. (nft before 1.0.7 does not tell that a set is dynamic.)
        if {"dynamic", "timeout"} & set(item.get("set", {}).get("flags", [])):
            item["set"].pop("elem", None)
        result.append(plain(item))
    return result


def number(value: int | str) -> int:
    """A port; nft before 1.0.7 prints the ports of a connection as "0x50 [invalid type]"."""
    return value if isinstance(value, int) else int(value.split()[0], 0)


@pytest.mark.logs("cimt-firewall.service")
def test_the_kernel_has_the_file_and_nothing_else(collected: dict[str, Any]) -> None:
    """A rule that somebody added by hand is open until the next boot; a flushed table lets everything in."""
    live, file = (
        [json.dumps(item, sort_keys=True) for item in items(collected["firewall"][where])]
        for where in ("live", "file")
    )
    diff = "\n".join(
        difflib.unified_diff(
            file, live, "/etc/cimt/firewall.nft", "in the kernel", lineterm="", n=0
        )
    )
    assert live == file, diff + "\nNext: make provision loads the file again"


def test_what_is_not_declared_is_dropped(declared: Declared, collected: dict[str, Any]) -> None:
    """Said apart from the file, so that a mistake in its template is seen: default drop, and exactly these ports."""
    live = items(collected["firewall"]["live"])
    hooks = {
        chain["hook"]: chain["policy"]
        for chain in (item["chain"] for item in live if "chain" in item)
        if "hook" in chain
    }
    assert {hook: hooks.get(hook) for hook in ("input", "forward")} == {
        "input": "drop",
        "forward": "drop",
    }

    rules = [item["rule"] for item in live if "rule" in item]

    def ports(chain: str, protocol: str) -> set[int]:
        result: set[int] = set()
        for expressions in (rule["expr"] for rule in rules if rule["chain"] == chain):
            matches = [item["match"] for item in expressions if "match" in item]
            if not any(match["right"] == protocol for match in matches):
                continue
            for match in matches:
                # The port the client asked for: Docker translates it before the forward path sees the packet.
                if match["left"] == {"ct": {"key": "proto-dst", "dir": "original"}}:
                    right = match["right"]
                    result |= set(map(number, right["set"] if isinstance(right, dict) else [right]))
        return result

    assert ports("public", "tcp") == set(declared["firewall_public_tcp_ports"])
    assert ports("public", "udp") == set(declared["firewall_public_udp_ports"])

    direct = {
        match["right"]
        for rule in rules
        if rule["chain"] in ("input", "forward")
        for match in (item["match"] for item in rule["expr"] if "match" in item)
        if match["left"] == {"payload": {"protocol": "tcp", "field": "dport"}}
    }
    assert direct == {declared["firewall_ssh_port"]}
