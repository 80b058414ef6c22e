"""`make dns`: the product's names lead to the droplet, directly or through Cloudflare's proxy (DNS_PROXIED).

Without CONFIRM=yes it only shows what it would change: `+` new, `~` other, `-` gone, `?` stays and is told, `!` stays
and is in the way. With another provider than Cloudflare (DNS_PROVIDER=none) it prints the records, to be typed there.
Ours are the records whose comment is `cimt ENV`; one of somebody else is never touched. Settings of the zone are
changed in the proxied mode alone: they hold for every host of it.

On the way back from the proxy the droplet must first show a certificate that browsers take; until then the names stay
behind the proxy, which meanwhile takes whatever the droplet shows (docs/decisions/0023).

python -m tools.dns        the above. Exit codes: 0 done, or shown; 1 not all of it; 2 refused, nobody was asked
python -m tools.dns sign   {"csr", "hosts", "days"} on stdin: the certificate of Cloudflare's Origin CA, on stdout
python -m tools.dns lead   0 when every name leads to Cloudflare: what `make provision` asks before it shuts the door
"""

from __future__ import annotations

import argparse
import datetime
import functools
import ipaddress
import json
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from plugins.filter.settings import doors, of_verb, values
from tools.cloudflare import TOKENS, Cloudflare, connect, within
from tools.github import NotDone, patiently
from tools.github_settings import Change
from tools.settings.__main__ import read

SECONDS = 10
# What a zone must be set to before our names may be behind it (docs/decisions/0023 says why).
SETTINGS: dict[str, Any] = {
    "ssl": "strict",
    "always_use_https": "on",
    "automatic_https_rewrites": "on",
    "min_tls_version": "1.2",
    "tls_1_3": "on",
    "http3": "on",
    "websockets": "on",
    "0rtt": "off",
    "browser_check": "off",
    "rocket_loader": "off",
    "email_obfuscation": "off",
}
# While the names leave the proxy: Let's Encrypt has to reach the droplet through it, whatever that shows.
LEAVING = {"ssl": "full", "always_use_https": "off"}
NO_BOTS = {"fight_mode": False, "enable_js": False}
DAY, WEEK, YEAR = 86400, 7, 31536000  # seconds, days, seconds
TRUSTED, ORIGIN = "trusted", "origin"


@dataclass(frozen=True)
class Wanted:
    """What DNS shall say of one environment."""

    environment: str
    hosts: list[str]
    addresses: dict[str, str]  # by type of record
    proxied: bool

    @property
    def mark(self) -> str:
        """The comment of records that are ours."""
        return f"cimt {self.environment}"


def hosts(declared: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, str]:
    """The product's names by their settings, without those of apps that are left out."""
    apart = {one.strip() for one in known.get("LEAVE_OUT", "").split(",")}
    named = {name: known.get(name, "") for name in declared["settings"] if name.endswith("_DOMAIN")}
    return {
        name: host.lower()
        for name, host in named.items()
        if host and name.removesuffix("_DOMAIN").lower() not in apart
    }


def wanted(declared: Mapping[str, Any], known: Mapping[str, str], environment: str) -> Wanted:
    """By the settings. Raises ValueError, with what to do, for what cannot be."""
    needed = of_verb(declared, "dns", "needed_by")
    named = hosts(declared, known)
    apart = {f"{one.strip().upper()}_DOMAIN" for one in known.get("LEAVE_OUT", "").split(",")}
    if lacking := [name for name in needed if not known.get(name) and name not in apart]:
        raise ValueError(
            f"not set: {', '.join(lacking)}. Next: docs/setup.md says where each comes from"
        )
    addresses = {}
    for name, kind, version in (("DROPLET_HOST", "A", 4), ("DROPLET_IPV6", "AAAA", 6)):
        if value := known.get(name, ""):
            try:
                address = ipaddress.ip_address(value)
            except ValueError:
                address = None
            if not address or address.version != version:
                raise ValueError(f"{name}={value} is no IPv{version} address. Next: the droplet's")
            addresses[kind] = str(address)
    proxied = known["DNS_PROXIED"] == "on"
    for name in ("DNS_PROVIDER", "DNS_PROXIED"):
        choices = declared["settings"][name]["choices"]
        if known[name] not in choices:
            raise ValueError(f"{name}={known[name]}. Next: one of {', '.join(choices)}")
    if proxied and known["DNS_PROVIDER"] != "cloudflare":
        raise ValueError("DNS_PROXIED=on is Cloudflare's proxy. Next: DNS_PROVIDER=cloudflare")
    return Wanted(environment, sorted(set(named.values())), addresses, proxied)


def table(want: Wanted) -> Iterator[str]:
    """The records, for people who type them elsewhere."""
    width = max(map(len, want.hosts))
    for host in want.hosts:
        for kind, address in want.addresses.items():
            yield f"{host:<{width}}  {kind:<4}  {address}"


def shown(host: str, place: tuple[str, int]) -> str:
    """Whose certificate is shown for a name at an address: TRUSTED by browsers, Cloudflare's ORIGIN CA, or why none is.

    Empty when nobody answers there.
    """
    try:
        context = ssl.create_default_context()
        with (
            socket.create_connection(place, SECONDS) as raw,
            context.wrap_socket(raw, server_hostname=host),
        ):
            return TRUSTED
    except ssl.SSLCertVerificationError as error:
        reason = error.verify_message
    except OSError:
        return ""
    try:
        return ORIGIN if "CloudFlare Origin" in _certificate(host, place) else reason
    except (OSError, ValueError):
        return reason


def _certificate(host: str, place: tuple[str, int]) -> str:
    """The issuer of what is shown, without any belief in it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(place, SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        der = tls.getpeercert(binary_form=True) or b""
    return x509.load_der_x509_certificate(der).issuer.rfc4514_string()


class Zones(Cloudflare):
    """The zones of the product's names. Every method raises NotDone."""

    def __init__(self, client: Any, want: Wanted, look: Callable[[str], str]) -> None:
        super().__init__(client)
        self._want = want
        self._look = look

    def plan(self) -> list[Change]:
        """Every difference, in the order in which it is made: a zone is fit for our names before they are behind it."""
        zones = self._zones()
        changes: list[Change] = []
        for zone in {one["id"]: one for one in zones.values()}.values():
            named = [host for host, its in zones.items() if its["id"] == zone["id"]]
            records = self.all(f"/zones/{zone['id']}/dns_records")
            changes += self._zone(zone, named, records)
        return changes

    def _zones(self) -> dict[str, dict[str, Any]]:
        """By name, the zone that it belongs to."""
        there = sorted(self.all("/zones"), key=lambda zone: -len(zone["name"]))
        found = {}
        for host in self._want.hosts:
            zone = next((one for one in there if f".{host}".endswith(f".{one['name']}")), None)
            if zone is None:
                seen = ", ".join(sorted(one["name"] for one in there)) or "none"
                raise NotDone(
                    f"no zone of {host}: the token sees {seen}. Next: {TOKENS}: Zone Read and DNS Edit of its zone; "
                    "or dash.cloudflare.com → Add a domain"
                )
            if zone["status"] != "active":
                servers = ", ".join(zone.get("name_servers") or ())
                raise NotDone(
                    f"the zone {zone['name']} is {zone['status']}. Next: at your registrar, its nameservers: {servers}"
                )
            if self._want.proxied and host.count(".") > zone["name"].count(".") + 1:
                raise NotDone(
                    f"{host} is two labels below {zone['name']}: Cloudflare's own certificate has one. "
                    "Next: a name such as "
                    f"{host.removesuffix('.' + zone['name']).replace('.', '-')}.{zone['name']}, or DNS_PROXIED=off"
                )
            found[host] = zone
        return found

    def _zone(
        self, zone: dict[str, Any], named: list[str], records: list[dict[str, Any]]
    ) -> Iterator[Change]:
        ours = [one for one in records if one.get("comment") == self._want.mark]
        behind = sorted({one["name"] for one in ours if one.get("proxied")})
        proxied = self._want.proxied
        if proxied:
            yield from self._settings(zone, SETTINGS)
            yield from self._header(zone)
            yield from self._bots(zone)
            for host in sorted(set(named) - set(behind)):
                if (reason := self._look(host)) and reason not in (TRUSTED, ORIGIN):
                    yield Change(
                        "?",
                        f"{host}: the droplet's certificate ({reason}) is none for Cloudflare: error 526, until make "
                        "provision has brought it one of Origin CA",
                    )
        elif behind:
            if bad := {host: why for host in behind if (why := self._look(host)) != TRUSTED}:
                proxied = True
                yield from self._settings(zone, LEAVING)
                host, why = next(iter(bad.items()))
                told = {"": "nobody answers there", ORIGIN: "Cloudflare alone believes it"}
                yield Change(
                    "?",
                    f"{', '.join(bad)}: behind the proxy until browsers take the droplet's own certificate "
                    f"({host}: {told.get(why, why)}). Next: make provision ENV={self._want.environment}, a minute "
                    "for Let's Encrypt, then make dns again",
                )
            else:
                yield from self._settings(zone, {name: SETTINGS[name] for name in LEAVING})
        yield from self._records(zone, named, records, ours, proxied)

    def _settings(self, zone: dict[str, Any], values_: Mapping[str, Any]) -> Iterator[Change]:
        for name, value in values_.items():
            place = f"/zones/{zone['id']}/settings/{name}"
            there = self.ask("GET", place)
            was = there["value"]
            stricter = name == "min_tls_version" and str(was) > value
            if was == value or stricter or (name, was) == ("tls_1_3", "zrt"):
                continue
            told = f"{zone['name']}, all of its hosts: {name}: {was} → {value}"
            if there.get("editable") is False:
                yield Change("?", f"{told}: its plan does not allow that; it stays")
                continue
            yield Change("~", told, self._do("PATCH", place, {"value": value}))
        if values_ is SETTINGS:
            level = self.ask("GET", f"/zones/{zone['id']}/settings/security_level")["value"]
            if level == "under_attack":
                yield Change(
                    "?",
                    f"{zone['name']}: security_level under_attack refuses programs, the smoke test too; it stays",
                )

    def _header(self, zone: dict[str, Any]) -> Iterator[Change]:
        """HSTS: for a day at first, because browsers do not forget it sooner; a week later for a year."""
        place = f"/zones/{zone['id']}/settings/security_header"
        there = self.ask("GET", place)
        was = (there.get("value") or {}).get("strict_transport_security") or {}
        before = int(was.get("max_age") or 0) if was.get("enabled") else 0
        age = DAY if before < DAY else before
        if before == DAY and (since := there.get("modified_on")):
            changed = datetime.datetime.fromisoformat(since.replace("Z", "+00:00"))
            if (datetime.datetime.now(datetime.UTC) - changed).days >= WEEK:
                age = YEAR
        if age != before:
            policy = {"include_subdomains": False, "nosniff": False, **was}
            policy |= {"enabled": True, "max_age": age}
            body = {"value": {"strict_transport_security": policy}}
            told = f"{zone['name']}, all of its hosts: HSTS: {before} → {age} seconds"
            yield Change("~", told, self._do("PATCH", place, body))

    def _bots(self, zone: dict[str, Any]) -> Iterator[Change]:
        place = f"/zones/{zone['id']}/bot_management"
        there = self.ask("GET", place)
        if on := [name for name in NO_BOTS if there.get(name)]:
            told = f"{zone['name']}, all of its hosts: {', '.join(on)} off: no rule can spare the api from it"
            yield Change("~", told, self._do("PUT", place, NO_BOTS))

    def _records(
        self,
        zone: dict[str, Any],
        named: list[str],
        records: list[dict[str, Any]],
        ours: list[dict[str, Any]],
        proxied: bool,
    ) -> Iterator[Change]:
        place = f"/zones/{zone['id']}/dns_records"
        addresses, mark = self._want.addresses, self._want.mark
        how = "through the proxy" if proxied else "directly"
        spare = list(ours)
        for host in named:
            others = [
                one
                for one in records
                if one["name"] == host and one["type"] in ("A", "AAAA", "CNAME") and one not in ours
            ]
            blocked = False
            for one in others:
                fits = addresses.get(one["type"]) == one["content"]
                fits = fits and bool(one.get("proxied")) is proxied
                blocked = blocked or not fits
                what = f"{host} {one['type']} {one['content']}: not ours"
                yield (
                    Change("?", f"{what}, and as it should be; it stays")
                    if fits
                    else Change(
                        "!",
                        f"{what}; it stays. Next: delete it at Cloudflare, or make it ours by the comment `{mark}`",
                    )
                )
            for kind, address in addresses.items():
                mine = [one for one in ours if (one["name"], one["type"]) == (host, kind)]
                mine.sort(key=lambda one: one["content"] != address)
                if mine:  # a second one of ours is spare
                    spare.remove(mine[0])
                if blocked or any(one["type"] == kind for one in others):
                    continue
                body = {"content": address, "proxied": proxied, "ttl": 1}
                if not mine:
                    new = {"type": kind, "name": host, "comment": mark, **body}
                    yield Change(
                        "+", f"{host} {kind} {address}, {how}", self._do("POST", place, new)
                    )
                elif was := {
                    name: mine[0].get(name) for name in body if mine[0].get(name) != body[name]
                }:
                    told = f"{host} {kind} {mine[0]['content']} → {address}, {how}"
                    if set(was) == {"ttl"}:
                        told = f"{host} {kind} {address}: its TTL is Cloudflare's own"
                    yield Change(
                        "~",
                        told,
                        self._do(
                            "PATCH",
                            f"{place}/{mine[0]['id']}",
                            {"type": kind, "name": host, **body},
                        ),
                    )
        for one in spare:
            told = f"{one['name']} {one['type']} {one['content']}: ours, and no more wanted"
            yield Change("-", told, self._do("DELETE", f"{place}/{one['id']}", None))

    def _do(self, method: str, path: str, body: Any) -> Callable[[], Any]:
        options = {} if body is None else {"json": body}
        return lambda: self.ask(method, path, **options)


def sign(token: str) -> str:
    """What Origin CA makes of the request on stdin. Raises NotDone; ValueError for what is no request."""
    given = json.load(sys.stdin)
    body = {"csr": given["csr"], "hostnames": given["hosts"], "request_type": "origin-ecc"}
    body["requested_validity"] = given["days"]
    with connect(token) as client:
        return str(Cloudflare(client).ask("POST", "/certificates", json=body)["certificate"])


def astray(named: list[str]) -> Iterator[str]:
    """Names that do not lead to Cloudflare alone, a line each."""
    for host in named:
        try:
            found = {
                str(one[4][0]) for one in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
            }
        except OSError:
            found = set()
        if other := sorted(one for one in found if not within(one)):
            yield f"{host} leads to {', '.join(other)}, past Cloudflare"
        elif not found:
            yield f"{host} leads nowhere"


def make(want: Wanted, token: str, places: Mapping[int, tuple[str, int]]) -> int:
    """Show the plan, or make it so; the exit code."""
    confirmed = os.environ.get("CONFIRM") == "yes"
    verb = f"make dns ENV={want.environment}"
    lines: list[str] = []
    place = places.get(443, (want.addresses["A"], 443))
    look = functools.cache(lambda host: shown(host, place))

    def do() -> None:
        with connect(token) as client:
            zones = Zones(client, want, look)
            for change in zones.plan():
                if str(change) not in lines:  # a second try tells only what is new
                    lines.append(str(change))
                    print(change, flush=True)
                if confirmed and change.do:
                    change.do()
            after = zones.plan() if confirmed else []
            if left := [one for one in after if one.do]:
                raise NotDone(f"still so after it was changed: {left[0]}")

    print(f"dns: {', '.join(want.hosts)}: {'through Cloudflare' if want.proxied else 'directly'}")
    if reason := patiently(do):
        line = " ".join(reason.replace(token, "***").split())[:400]
        following = "" if "Next: " in line else f". Next: {verb} again: it goes on where it stopped"
        print(f"dns: {line}{following}", file=sys.stderr)
        return 1
    count = sum(line[0] in "+~-" for line in lines)
    stuck = sum(line[0] == "!" for line in lines)
    if not count:
        print("dns: nothing to change" if stuck else "dns: all is as it should be")
    elif not confirmed:
        print(f"dns: {count} to change; nothing was. Next: {verb} CONFIRM=yes")
    else:
        then = f". Next: make provision ENV={want.environment}" if want.proxied else ""
        print(f"dns: {count} changed{then}")
    if stuck:
        print(f"dns: {stuck} in the way, see above", file=sys.stderr)
    return 1 if stuck else 0


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.dns")
    parser.add_argument("verb", nargs="?", choices=("make", "sign", "lead"), default="make")
    verb = parser.parse_args().verb
    environment = os.environ.get("ENV", "local")
    declared = read()
    known = values(declared)
    token = known["CLOUDFLARE_API_TOKEN"]
    if verb == "lead":
        for line in (lines := list(astray(sorted(set(hosts(declared, known).values()))))):
            print(f"dns: {line}. Next: make dns ENV={environment} CONFIRM=yes", file=sys.stderr)
        return 1 if lines else 0
    try:
        if verb == "make" and environment == "local":
            raise ValueError("the local droplet's names are this machine's. Next: ENV=production")
        want = wanted(declared, known, environment) if verb == "make" else None
        if want and known["DNS_PROVIDER"] == "none":
            print("dns: at your DNS, these records (DNS_PROVIDER=cloudflare: made for you)")
            print(*table(want), sep="\n")
            return 0
        if not token:
            raise ValueError(f"not set: CLOUDFLARE_API_TOKEN. Next: {TOKENS}; docs/setup.md §3")
        if want:
            return make(want, token, doors(known["CONNECT_TO"]))
        print(sign(token), end="")
    except ValueError as error:
        print(f"dns: {error}", file=sys.stderr)
        return 2
    except NotDone as error:
        print(f"dns: {str(error).replace(token, '***')}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
