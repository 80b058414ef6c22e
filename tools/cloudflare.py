"""Cloudflare's API, as far as this repository asks it; and its networks, which services/cloudflare.json keeps.

usage: python -m tools.cloudflare [--write]   are Cloudflare's networks those of the file? `--write` makes the file so

Asked is CLOUDFLARE_API_URL (api.cloudflare.com); its networks it tells anybody. Exit codes: 0 they are the same, or
were written, 1 they are not, 2 Cloudflare did not say.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx

from tools.github import NotDone, patiently

NETWORKS = Path(__file__).parents[1] / "services/cloudflare.json"
URL = "https://api.cloudflare.com/client/v4"
PAGE = 50
FAMILIES = {"ipv4_cidrs": (4, 10, 12), "ipv6_cidrs": (6, 5, 28)}  # version, fewest, widest prefix
THERE_ALREADY = {81057, 81058}  # another run made the record meanwhile
# What the token lacks where a path is refused, by a part of the path.
RIGHTS = {
    "dns_records": "DNS Edit",
    "bot_management": "Bot Management Edit",
    "settings": "Zone Settings Edit",
    "certificates": "SSL and Certificates Edit",
    "zones": "Zone Read",
}
TOKENS = "Cloudflare → My Profile → API Tokens"


class Cloudflare:
    """One token's view of Cloudflare. Every method raises NotDone, whose text says what to do and holds no token."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """The field `result` of the answer."""
        return self._answer(method, path, **options)["result"]

    def all(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """Every entry of a list, page by page."""
        entries: list[dict[str, Any]] = []
        while True:
            page = {**query, "per_page": PAGE, "page": len(entries) // PAGE + 1}
            more = self._answer("GET", path, params=page)["result"]
            entries += more
            if len(more) < PAGE:
                return entries

    def _answer(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise NotDone(f"{method} {path}: {type(error).__name__}", again=0) from None
        try:
            body: Any = answer.json()
            errors = list(body.get("errors") or ())
        except (AttributeError, ValueError):
            body, errors = {}, []
        if answer.is_success and body.get("success"):
            return dict(body)
        told = "; ".join(f"{one.get('message')} ({one.get('code')})" for one in errors)
        told = f"{method} {path}: {answer.status_code} {told or answer.reason_phrase}"
        wait = answer.headers.get("retry-after", "")
        codes = {one.get("code") for one in errors}
        if answer.status_code == 429 or answer.status_code >= 500 or codes & THERE_ALREADY:
            raise NotDone(told, float(wait) if wait.isdecimal() else 0)
        if answer.status_code in (401, 403) or codes & {6003, 9109}:
            if codes & {1000, 6003, 9109}:
                raise NotDone(f"{told}. Next: {TOKENS}, a new one as CLOUDFLARE_API_TOKEN")
            right = next((text for part, text in RIGHTS.items() if part in path), "that")
            raise NotDone(f"{told}. Next: {TOKENS}: give this one {right} of the zone")
        raise NotDone(told)


def connect(token: str = "") -> httpx.Client:
    """A connection to Cloudflare, or to what CLOUDFLARE_API_URL names. Raises NotDone for an address without TLS."""
    url = os.environ.get("CLOUDFLARE_API_URL") or URL
    if not url.startswith(("https://", "http://127.0.0.1:")):
        raise NotDone("CLOUDFLARE_API_URL has no TLS. Next: https://…")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=30)


Networks = dict[str, list[str]]


def kept() -> Networks:
    """The networks of the reviewed file: what the firewall lets in where DNS_PROXIED is on."""
    return dict(json.loads(NETWORKS.read_text()))


def published() -> Networks:
    """The networks that Cloudflare says it has. Raises NotDone, also for a list that nobody should believe."""
    with connect() as client:
        said = Cloudflare(client).ask("GET", "/ips")
    found = {}
    for name, (version, fewest, widest) in FAMILIES.items():
        try:
            networks = [ipaddress.ip_network(one) for one in said[name]]
        except (KeyError, TypeError, ValueError):
            raise NotDone(f"GET /ips: {name} is no list of networks") from None
        odd = [str(one) for one in networks if one.version != version or one.prefixlen < widest]
        if odd or len(networks) < fewest:
            why = f"{odd[0]} is too wide" if odd else f"only {len(networks)} networks"
            raise NotDone(f"GET /ips: {name}: {why}; the file stays. Next: ask Cloudflare")
        found[name] = [str(one) for one in networks]
    return found


def differences(before: Networks, after: Networks) -> list[str]:
    """One line for each network that came (`+`) or went (`-`)."""
    old, new = ({one for part in networks.values() for one in part} for networks in (before, after))
    return [f"+ {one}" for one in sorted(new - old)] + [f"- {one}" for one in sorted(old - new)]


def within(address: str) -> bool:
    """Whether an address is one of Cloudflare's, by the reviewed file."""
    one = ipaddress.ip_address(address)
    return any(
        one in network
        for part in kept().values()
        for network in map(ipaddress.ip_network, part)
        if network.version == one.version
    )


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.cloudflare")
    parser.add_argument(
        "--write", action="store_true", help="bring services/cloudflare.json up to date"
    )
    write = parser.parse_args().write
    said: Networks = {}
    if reason := patiently(lambda: said.update(published())):
        print(f"ranges: {reason}", file=sys.stderr)
        return 2
    lines = differences(kept(), said)
    print(
        *lines or ["ranges: Cloudflare's networks are those of services/cloudflare.json"], sep="\n"
    )
    if lines and write:
        NETWORKS.write_text(json.dumps(said, indent=2) + "\n")
        print(
            "ranges: written. Next: read the change, commit it, make provision of what is proxied"
        )
    elif lines:
        print(
            "ranges: nothing was changed. Next: make ranges ARGS=--write, review, make provision of what is proxied"
        )
    return 1 if lines and not write else 0


if __name__ == "__main__":
    sys.exit(main())
