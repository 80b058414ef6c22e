"""Which address a host has on the private network that it shares with other nodes."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable

OF_CONTAINERS = ("lo", "docker", "br-", "veth")


def private_address(run: Callable[[list[str]], tuple[int, str, str]]) -> str:
    """The private IPv4 address of a link that does not lead to the world; empty where there is none.

    A droplet of DigitalOcean has one on its second link. On the first, whose default route leads to the world, an
    address may be private as well (a reserved IP's anchor): nobody reaches a node by that one. ``run`` gives exit
    code, output and errors of a command.
    """
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "default"])[1] or "[]")
    to_the_world = {route.get("dev") for route in routes}
    links = json.loads(
        run(["ip", "-json", "-4", "address", "show", "up", "scope", "global"])[1] or "[]"
    )
    found = [
        address["local"]
        for link in links
        if link["ifname"] not in to_the_world and not link["ifname"].startswith(OF_CONTAINERS)
        for address in link["addr_info"]
        if ipaddress.ip_address(address["local"]).is_private
    ]
    return str(found[0]) if found else ""
