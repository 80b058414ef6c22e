"""One environment at DigitalOcean: what it is, what it shall be, and the changes from one to the other.

All that belongs to it bears its name (such as cimt-production): project, SSH key, tag, volume, firewall, droplet,
alerts; the reserved IP, which has none, is the droplet's, or lies in the project. `plan` reads nothing and changes
nothing; each Change makes one thing so, and the order is such that whoever stops in between can go on later.

Droplets have no unique names. One is ours by name and tag; who has just made one looks again, and of two the younger
is removed by whoever made it (docs/decisions/0022).
"""

from __future__ import annotations

import calendar
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ansible.module_utils.digitalocean_api import Client, Declined
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

EVERYWHERE = ["0.0.0.0/0", "::/0"]
ALL = "0"  # as the API gives back what was sent as `all`, and every rule of ICMP
# What an alert of ours watches, and the per cent above which it writes, over ten minutes.
ALERTS = {"cpu": 90, "memory_utilization_percent": 90, "disk_utilization_percent": 80}
BACKUPS = {
    "weekly": {"plan": "weekly", "weekday": "SUN", "hour": 4},
    "daily": {"plan": "daily", "hour": 4},
}
FRESH = 300.0  # seconds in which another run may still remove the second droplet of a name
OFF_SECONDS = 180.0
KINDS = {"production": "Production", "staging": "Staging"}


@dataclass(frozen=True)
class Change:
    """One line of the plan (`+` new, `~` other, `-` gone, `!` cannot be done in place), and what makes it so."""

    sign: str
    what: str
    do: Callable[[], Any] | None = None

    def __str__(self) -> str:
        return f"{self.sign} {self.what}"


# What nodes of a Swarm say to one another, in the ports' form of the API.
OF_NODES = (("tcp", "2377"), ("tcp", "7946"), ("udp", "7946"), ("udp", "4789"))


@dataclass(frozen=True)
class Wanted:
    """What shall be. ``address`` is the reserved IP that is known already, ``alerts_to`` an e-mail address or empty."""

    name: str
    environment: str
    region: str
    size: str
    image: str
    admin: str
    private_key: str
    ipv6: bool
    monitoring: bool
    backups: str
    volume_gb: int
    tcp_ports: list[int]
    udp_ports: list[int]
    nodes: bool
    alerts_to: str
    address: str


def public_half(private_key: str) -> str:
    """`TYPE KEY` of a private key of OpenSSH. Raises Declined."""
    try:
        text = private_key.replace("\r", "").strip() + "\n"
        key = serialization.load_ssh_private_key(text.encode(), None)
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        told = "DROPLET_SSH_KEY is no private key of OpenSSH without a passphrase"
        raise Declined(0, f"{told}. Next: ssh-keygen -q -t ed25519 -N '' -f deploy") from None
    return public.decode()


def first_host_key(private_key: str, mark: str) -> tuple[str, str]:
    """The host key of a droplet's first minutes, private and public half: who has DROPLET_SSH_KEY makes it again.

    It lies in the user data, where every process of the droplet can read it: worth nothing once it is replaced.
    """
    seed = hmac.new(private_key.strip().encode(), f"first host key {mark}".encode(), hashlib.sha256)
    key = Ed25519PrivateKey.from_private_bytes(seed.digest())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private.decode(), public.decode()


def user_data(wanted: Wanted, mark: str) -> str:
    """cloud-init's: an admin with our key alone, no root, and a host key that the first connection already knows."""
    private, public = first_host_key(wanted.private_key, mark)
    admin = {
        "name": wanted.admin,
        "gecos": "",
        "shell": "/bin/bash",
        "groups": "adm, sudo",
        "lock_passwd": True,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "ssh_authorized_keys": [public_half(wanted.private_key)],
    }
    config = {
        "users": [admin],
        "disable_root": True,
        "ssh_pwauth": False,
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": private, "ed25519_public": public},
    }
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"  # JSON is YAML


def rules(firewall: dict[str, Any]) -> set[tuple[str, ...]]:
    """The rules of a firewall, comparable: the API gives ports back otherwise than they were sent."""
    found = set()
    for way, far in (("inbound_rules", "sources"), ("outbound_rules", "destinations")):
        for rule in firewall.get(way) or ():
            ports = str(rule.get("ports") or ALL)
            ports = ALL if ports == "all" or rule["protocol"] == "icmp" else ports
            ends = rule.get(far) or {}
            told = [f"{kind}={one}" for kind, many in ends.items() for one in many or ()]
            found.add((way, rule["protocol"], ports, *sorted(told)))
    return found


class Environment:
    """What there is, by `read`; ids that a change makes are known to the changes after it."""

    def __init__(self, client: Client, wanted: Wanted) -> None:
        self.client = client
        self.wanted = wanted
        self.droplet: dict[str, Any] = {}
        self.volume: dict[str, Any] = {}
        self.project: dict[str, Any] = {}
        self.key: dict[str, Any] = {}
        self.address: dict[str, Any] = {}
        self.sizes: dict[str, Any] = {}
        self._urns: set[str] = set()
        self._gone: set[str | None] = {wanted.name, wanted.address}

    # -- what there is ---------------------------------------------------------------------------------

    def read(self, settled: bool = False) -> None:
        """Ask for all of it; ``settled``: wait for the end of what another run began. Raises Declined."""
        client, name = self.client, self.wanted.name
        self.sizes = {one["slug"]: one for one in client.all("/v2/sizes", "sizes")}
        self.droplet = self._droplet(settled)
        self.project = self._only("project", client.all("/v2/projects", "projects"))
        self._urns = set()
        if self.project:
            there = client.all(f"/v2/projects/{self.project['id']}/resources", "resources")
            self._urns = {one["urn"] for one in there}
        public = public_half(self.wanted.private_key)
        keys = client.all("/v2/account/keys", "ssh_keys")
        mine = [one for one in keys if one["public_key"].split()[:2] == public.split()[:2]]
        self.key = mine[0] if mine else {}
        self.tagged = any(one["name"] == name for one in client.all("/v2/tags", "tags"))
        self.firewall = self._only("firewall", client.all("/v2/firewalls", "firewalls"))
        self.volume = self._only("volume", client.all("/v2/volumes", "volumes", name=name))
        self.address = self._address(settled)
        self.alerts = (
            client.all("/v2/monitoring/alerts", "policies") if self.wanted.alerts_to else []
        )
        self.policy: dict[str, Any] = {}
        if "backups" in self.droplet.get("features", ()):
            policy = client.ask("GET", f"{self._at}/backups/policy")["policy"] or {}
            self.policy = policy.get("backup_policy") or {}

    def _named(self) -> list[dict[str, Any]]:
        """The droplets of our name, the oldest first. Raises Declined for one without our tag."""
        name = self.wanted.name
        found = self.client.all("/v2/droplets", "droplets", name=name)
        found = [one for one in found if one["name"] == name]
        if strange := [one["id"] for one in found if name not in (one["tags"] or ())]:
            raise Declined(
                0,
                f"droplet {strange[0]} is called {name} and has no tag {name}, so it is not ours. "
                "Next: rename it at DigitalOcean, or give it that tag",
            )
        return sorted(found, key=lambda one: (one["created_at"], one["id"]))

    def _droplet(self, settled: bool) -> dict[str, Any]:
        for _ in self.client.patiently(f"droplet {self.wanted.name}"):
            found = self._named()
            if len(found) > 1 and not (settled and _age(found[-1]) < FRESH):
                ids = ", ".join(str(one["id"]) for one in found)
                raise Declined(
                    0,
                    f"there are {len(found)} droplets called {self.wanted.name}: {ids}. "
                    "Next: delete all but the right one at DigitalOcean",
                )
            if not found or not settled or (len(found) == 1 and not found[0].get("locked")):
                break
        return found[0] if found else {}

    def _only(self, kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
        mine = [one for one in found if one["name"] == self.wanted.name]
        if len(mine) > 1:
            ids = ", ".join(str(one["id"]) for one in mine)
            raise Declined(
                0,
                f"there are {len(mine)} of {kind} {self.wanted.name}: {ids}. "
                "Next: delete all but the right one at DigitalOcean",
            )
        return mine[0] if mine else {}

    def _addresses(self, settled: bool = False) -> list[dict[str, Any]]:
        """Reserved IPs that are ours: the droplet's; else in the project, or known to be it."""
        for _ in self.client.patiently("reserved IPs"):
            found = self.client.all("/v2/reserved_ips", "reserved_ips")
            # One that is still on its way to our droplet does not say so yet.
            if not settled or not any(one.get("locked") for one in found):
                break
        own, known = self.project.get("id", "none"), self.wanted.address
        mine = [one for one in found if self._has(one)]
        return mine or [one for one in found if own == one.get("project_id") or known == one["ip"]]

    def _has(self, address: dict[str, Any]) -> bool:
        return bool(self.droplet) and (address["droplet"] or {}).get("id") == self.droplet["id"]

    def _address(self, settled: bool) -> dict[str, Any]:
        found = self._addresses(settled)
        found = [one for one in found if one["ip"] == self.wanted.address] or found
        if len(found) > 1:
            told = ", ".join(one["ip"] for one in found)
            raise Declined(
                0,
                f"reserved IPs {told}: which is it? Next: DROPLET_HOST=… says it, with make droplet",
            )
        return found[0] if found else {}

    @property
    def _at(self) -> str:
        return f"/v2/droplets/{self.droplet['id']}"

    @property
    def region(self) -> str:
        """Where the droplet is, or shall be: volume and address go where it is."""
        return str((self.droplet.get("region") or {}).get("slug") or self.wanted.region)

    def price(self, slug: str) -> str:
        """A size with what it costs, as the API says."""
        size = self.sizes[slug]
        told = f"{size['vcpus']} vCPU, {size['memory'] / 1024:g} GB, {size['disk']} GB disk"
        return f"{slug} ({told}; {size['price_monthly']:.2f} USD a month)"

    def _sold(self, slug: str) -> dict[str, Any]:
        size = self.sizes.get(slug)
        if not size or not size["available"] or self.region not in size["regions"]:
            why = "not sold in " + self.region if size else "no size of DigitalOcean's"
            near = [
                one
                for one in self.sizes.values()
                if one["available"] and self.region in one["regions"] and one["memory"] >= 2048
            ]
            near.sort(key=lambda one: float(one["price_monthly"]))
            told = ", ".join(f"{one['slug']} {one['price_monthly']:.2f} USD" for one in near[:3])
            raise Declined(
                0, f"{slug} is {why}. Next: another size or region; there is {told or 'none'}"
            )
        return dict(size)

    @property
    def mark(self) -> str:
        """What the droplet's first host key was made with; empty when it was not made here."""
        form = re.compile(re.escape(self.wanted.name) + r"-first-([0-9a-f]{8})")
        marks = [
            match[1] for tag in self.droplet.get("tags") or () if (match := form.fullmatch(tag))
        ]
        return marks[0] if marks else ""

    # -- what shall be ---------------------------------------------------------------------------------

    def plan(self) -> list[Change]:
        """Every difference, in the order in which it is made. Raises Declined where nothing may be begun."""
        if not self.droplet:
            self._refuse()
        if self.wanted.volume_gb:
            self._refuse_volume()
        if (self.address.get("droplet") or {}).get("id") not in (None, self.droplet.get("id")):
            other = self.address["droplet"]
            raise Declined(
                0,
                f"{self.address['ip']} leads to the droplet {other.get('name')} ({other['id']}). "
                "Next: unassign it there",
            )
        steps = (
            self._before,
            self._firewall,
            self._machine,
            self._disk,
            self._ip,
            self._in_project,
        )
        return [change for step in (*steps, self._alerts) for change in step()]

    def _refuse(self) -> None:
        """What would be refused in the middle is refused before the beginning."""
        self._sold(self.wanted.size)
        image = self.client.ask("GET", f"/v2/images/{self.wanted.image}")["image"]
        if image.get("status") not in (None, "available"):
            told = f"image {self.wanted.image} is {image['status']}"
            raise Declined(
                0, f"{told}. Next: droplet_image in the inventory, such as ubuntu-24-04-x64"
            )
        if self.wanted.region not in image["regions"]:
            raise Declined(
                0,
                f"image {self.wanted.image} is not in {self.wanted.region}. Next: DROPLET_REGION=…",
            )

    def _refuse_volume(self) -> None:
        volume, name = self.volume, self.wanted.name
        if not volume:
            return
        if others := [one for one in volume["droplet_ids"] or () if one != self.droplet.get("id")]:
            raise Declined(
                0,
                f"volume {name} is on the droplet {others[0]}. Next: detach it there, at DigitalOcean",
            )
        if volume["region"]["slug"] != self.region:
            raise Declined(
                0,
                f"volume {name} is in {volume['region']['slug']}, not in {self.region}, and cannot move. "
                f"Next: DROPLET_REGION={volume['region']['slug']}, or delete it",
            )

    def _before(self) -> Iterator[Change]:
        ask, name = self.client.ask, self.wanted.name
        public = public_half(self.wanted.private_key)
        body = {"name": name, "public_key": f"{public} {name}"}

        def key() -> None:
            self.key = ask("POST", "/v2/account/keys", body)["ssh_key"]

        def project() -> None:
            kind = KINDS.get(self.wanted.environment, "Development")
            about = {"name": name, "purpose": "Web Application", "environment": kind}
            self.project = ask("POST", "/v2/projects", about)["project"]

        if not self.key and not self.droplet:  # the droplet has its own by now
            yield Change("+", f"SSH key {name}", key)
        if not self.tagged:
            yield Change("+", f"tag {name}", lambda: ask("POST", "/v2/tags", {"name": name}))
        if not self.project:
            yield Change("+", f"project {name}", project)

    def _firewall(self) -> Iterator[Change]:
        ask, name, there = self.client.ask, self.wanted.name, self.firewall
        ports = [("tcp", one) for one in sorted(set(self.wanted.tcp_ports))]
        ports += [("udp", one) for one in sorted(set(self.wanted.udp_ports))]
        ends = {"addresses": EVERYWHERE}
        inward: list[dict[str, Any]] = [
            {"protocol": kind, "ports": str(port), "sources": ends} for kind, port in ports
        ]
        inward.append({"protocol": "icmp", "ports": ALL, "sources": ends})
        if self.wanted.nodes:  # this firewall stands between droplets of one VPC too
            inward += [
                {"protocol": kind, "ports": port, "sources": {"tags": [name]}}
                for kind, port in OF_NODES
            ]
        outward = [
            {"protocol": kind, "ports": ALL, "destinations": ends}
            for kind in ("tcp", "udp", "icmp")
        ]
        body: dict[str, Any] = {"name": name, "inbound_rules": inward, "outbound_rules": outward}
        body["droplet_ids"] = there.get("droplet_ids") or []
        body["tags"] = sorted({*(there.get("tags") or []), name})
        told = ", ".join(f"{kind} {port}" for kind, port in ports)
        told += ", between its droplets those of Swarm" if self.wanted.nodes else ""
        told = f"firewall {name}: in {told} and ICMP, out everything; by tag"
        if not there:
            yield Change("+", told, lambda: ask("POST", "/v2/firewalls", body))
        elif rules(there) != rules(body) or name not in (there.get("tags") or ()):
            yield Change("~", told, lambda: ask("PUT", f"/v2/firewalls/{there['id']}", body))

    def _machine(self) -> Iterator[Change]:
        wanted, name = self.wanted, self.wanted.name
        if not self.droplet:
            told = f"{self.price(wanted.size)}, {wanted.image}, in {wanted.region}"
            more = {"IPv6": wanted.ipv6, "monitoring": wanted.monitoring}
            more[f"{wanted.backups} backups"] = wanted.backups != "none"
            told += "".join(f", {what}" for what, is_so in more.items() if is_so)
            yield Change("+", f"droplet {name}: {told}", self._create)
            return
        droplet = self.droplet
        if droplet["status"] == "new":
            yield Change("~", f"droplet {name}: is being made; wait for it", self._active)
        elif droplet["status"] == "off":
            yield Change("~", f"droplet {name}: off → on", lambda: self._act("power_on"))
        elif droplet["status"] != "active":
            raise Declined(
                0, f"droplet {name} is {droplet['status']}. Next: ask DigitalOcean's support"
            )
        yield from self._unchangeable()
        has = "backups" in droplet["features"]
        if has and wanted.backups != self.policy.get("plan", wanted.backups):
            yield Change(
                "~", f"backups: {self.policy['plan']} → none", lambda: self._act("disable_backups")
            )
            has = False
        elif has and wanted.backups == "none":
            yield Change("~", "backups: on → none", lambda: self._act("disable_backups"))
        if not has and wanted.backups != "none":
            policy = BACKUPS[wanted.backups]
            yield Change(
                "~",
                f"backups: none → {wanted.backups}",
                lambda: self._act("enable_backups", backup_policy=policy),
            )
        if wanted.ipv6 and not self._ipv6():
            yield Change(
                "~",
                "IPv6: off → on (the system must be told as well: docs.digitalocean.com)",
                lambda: self._act("enable_ipv6"),
            )

    def ipv6(self) -> str:
        """Its public IPv6 address; empty while it has none."""
        there = self.droplet.get("networks", {}).get("v6", [])
        return next((str(one["ip_address"]) for one in there if one["type"] == "public"), "")

    def _ipv6(self) -> bool:
        return "ipv6" in self.droplet["features"] or bool(self.droplet["networks"].get("v6"))

    def _unchangeable(self) -> Iterator[Change]:
        """What is told and never done."""
        droplet, wanted = self.droplet, self.wanted
        new = "needs a new droplet (docs/operations/droplet.md)"
        size = droplet["size_slug"]
        if size != wanted.size:
            yield Change(
                "!",
                f"size: {size}, not {wanted.size}. Next: make droplet-resize SIZE={wanted.size}",
            )
        slug = droplet["image"].get("slug")  # a retired image has none
        for what, has, shall in (
            ("region", droplet["region"]["slug"], wanted.region),
            ("image", slug or wanted.image, wanted.image),
            ("monitoring", _on("monitoring" in droplet["features"]), _on(wanted.monitoring)),
            ("IPv6", _on(self._ipv6()), _on(self._ipv6() and wanted.ipv6)),
        ):
            if has != shall:
                yield Change("!", f"{what}: {has}, not {shall}: {new}")

    def _disk(self) -> Iterator[Change]:
        ask, wanted, name = self.client.ask, self.wanted, self.wanted.name
        if not wanted.volume_gb:
            return
        volume = self.volume

        def make() -> None:
            body = {
                "name": name,
                "size_gigabytes": wanted.volume_gb,
                "region": self.region,
                "tags": [name],
            }
            self.volume = ask("POST", "/v2/volumes", body)["volume"]

        def act(**body: Any) -> None:
            at = f"/v2/volumes/{self.volume['id']}/actions"
            self.client.finish(at, ask("POST", at, {**body, "region": self.region})["action"])

        if not volume:
            yield Change("+", f"volume {name}: {wanted.volume_gb} GB", make)
        elif volume["size_gigabytes"] > wanted.volume_gb:
            yield Change(
                "!", f"volume: {volume['size_gigabytes']} GB, not {wanted.volume_gb}: it only grows"
            )
        elif volume["size_gigabytes"] < wanted.volume_gb:
            told = f"volume {name}: {volume['size_gigabytes']} → {wanted.volume_gb} GB, for ever"
            yield Change("~", told, lambda: act(type="resize", size_gigabytes=wanted.volume_gb))
        if not volume or not volume["droplet_ids"]:
            told = f"volume {name}: on the droplet"
            yield Change("~", told, lambda: act(type="attach", droplet_id=self.droplet["id"]))

    def _ip(self) -> Iterator[Change]:
        if not self.address:
            yield Change("+", f"reserved IP in {self.region}, on the droplet", self._reserve)
        elif not self._has(self.address):
            at = f"/v2/reserved_ips/{self.address['ip']}/actions"

            def assign() -> None:
                body = {"type": "assign", "droplet_id": self.droplet["id"]}
                self.client.finish(at, self.client.ask("POST", at, body)["action"])

            yield Change("~", f"reserved IP {self.address['ip']}: on the droplet", assign)

    def _reserve(self) -> None:
        made = self.client.ask("POST", "/v2/reserved_ips", {"droplet_id": self.droplet["id"]})
        ip = made["reserved_ip"]["ip"]
        for _ in self.client.patiently(f"reserved IP {ip}"):
            found = {one["ip"]: one for one in self._addresses()}
            if ip in found and not found[ip].get("locked"):
                break
        if len(found) > 1:  # another run at the same moment
            self.client.ask("DELETE", f"/v2/reserved_ips/{ip}")
            del found[ip]
        self.address = next(iter(found.values()))

    def _in_project(self) -> Iterator[Change]:
        """One call brings in what is not there; an address is called by its former name as well."""
        kinds = ["droplet", *(["volume"] if self.wanted.volume_gb else []), "address"]

        def urns() -> dict[str, str]:
            ids = {"droplet": self.droplet.get("id"), "volume": self.volume.get("id")}
            own = {kind: f"do:{kind}:{ids[kind]}" for kind in kinds if kind != "address"}
            return own | {"address": f"do:floatingip:{self.address.get('ip')}"}

        lacking = [
            kind
            for kind, urn in urns().items()
            if not self._urns & {urn, urn.replace("floatingip", "reservedip")}
        ]
        if lacking:
            told = f"project {self.wanted.name}: {', '.join(lacking)} in it"

            def assign() -> Any:
                resources = [urns()[kind] for kind in lacking]
                at = f"/v2/projects/{self.project['id']}/resources"
                return self.client.ask("POST", at, {"resources": resources})

            yield Change("~", told, assign)

    def _alerts(self) -> Iterator[Change]:
        ask, name = self.client.ask, self.wanted.name
        for kind, per_cent in ALERTS.items() if self.wanted.alerts_to else ():
            body = {
                "type": f"v1/insights/droplet/{kind}",
                "description": f"{name}: {kind.partition('_')[0]} above {per_cent} %",
                "compare": "GreaterThan",
                "value": per_cent,
                "window": "10m",
                "entities": [],
                "tags": [name],
                "alerts": {"email": [self.wanted.alerts_to], "slack": []},
                "enabled": True,
            }
            there = [
                one for one in self.alerts if one["type"] == body["type"] and name in one["tags"]
            ]
            told = f"alert {body['description']}, to {self.wanted.alerts_to}"
            if not there:
                yield Change("+", told, partial(ask, "POST", "/v2/monitoring/alerts", body))
            elif any(there[0][field] != value for field, value in body.items()):
                at = f"/v2/monitoring/alerts/{there[0]['uuid']}"
                yield Change("~", told, partial(ask, "PUT", at, body))

    # -- how it becomes so -----------------------------------------------------------------------------

    def _create(self) -> None:
        wanted, mark = self.wanted, secrets.token_hex(4)
        body: dict[str, Any] = {
            "name": wanted.name,
            "region": wanted.region,
            "size": wanted.size,
            "image": wanted.image,
            "ssh_keys": [self.key["id"]],
            "ipv6": wanted.ipv6,
            "monitoring": wanted.monitoring,
            "backups": wanted.backups != "none",
            "tags": [wanted.name, f"{wanted.name}-first-{mark}"],
            "user_data": user_data(wanted, mark),
        }
        if wanted.backups != "none":
            body["backup_policy"] = BACKUPS[wanted.backups]
        made = self.client.ask("POST", "/v2/droplets", body)["droplet"]["id"]
        for _ in self.client.patiently(f"droplet {made}"):
            found = self._named()
            if any(one["id"] == made for one in found):
                break
        self.droplet = found[0]
        if found[0]["id"] != made:
            self._delete(made)
        self._active()

    def _delete(self, droplet: int) -> None:
        """Delete a droplet that is perhaps still being made, which refuses it."""
        for _ in self.client.patiently(f"droplet {droplet}: deletion"):
            try:
                self.client.ask("DELETE", f"/v2/droplets/{droplet}")
                return
            except Declined as reason:
                if reason.status == 404:
                    return
                if reason.status != 422:
                    raise

    def _active(self) -> None:
        for _ in self.client.patiently(f"droplet {self.wanted.name}"):
            self.droplet = self.client.ask("GET", self._at)["droplet"]
            if self.droplet["status"] == "active" and not self.droplet.get("locked"):
                return

    def _act(self, kind: str, **more: Any) -> None:
        at = f"{self._at}/actions"
        self.client.finish(at, self.client.ask("POST", at, {"type": kind, **more})["action"])

    # -- the other verbs -------------------------------------------------------------------------------

    def resizing(self, size: str, disk: bool) -> list[Change]:
        """The steps to another size; none when it has it and runs. ``disk``: the disk grows too, for ever."""
        self._there()
        new, droplet, name = self._sold(size), self.droplet, self.wanted.name
        steps = []
        if droplet["size_slug"] != size or (disk and droplet["disk"] < new["disk"]):
            if new["disk"] < droplet["disk"]:
                raise Declined(
                    0,
                    f"the disk of {name} has {droplet['disk']} GB and {size} has {new['disk']}: a disk never "
                    "shrinks. Next: another size, or a new droplet (docs/operations/droplet.md)",
                )
            grown = disk and new["disk"] > droplet["disk"]
            back = (
                f"disk {droplet['disk']} → {new['disk']} GB, for ever: no way back to a smaller size"
                if grown
                else f"disk stays {droplet['disk']} GB, so the way back is open"
            )
            told = f"{self.price(droplet['size_slug'])} → {self.price(size)}; {back}"
            if droplet["status"] != "off":
                told_off = f"droplet {name}: off for some minutes, and the product with it"
                steps.append(Change("~", told_off, self._shut_down))
            steps.append(
                Change(
                    "~",
                    f"droplet {name}: {told}",
                    lambda: self._act("resize", size=size, disk=grown),
                )
            )
        if steps or droplet["status"] == "off":
            steps.append(Change("~", f"droplet {name}: on", lambda: self._act("power_on")))
        return steps

    def _there(self) -> None:
        if not self.droplet:
            raise Declined(0, f"there is no droplet {self.wanted.name}. Next: make droplet")

    def _shut_down(self) -> None:
        """As by its power button; by the plug when that takes too long."""
        self._act("shutdown")
        end = time.monotonic() + OFF_SECONDS
        for _ in self.client.patiently(f"droplet {self.wanted.name}: power off"):
            if self.client.ask("GET", self._at)["droplet"]["status"] == "off":
                return
            if time.monotonic() > end:
                self._act("power_off")

    def destroying(self, also: list[str]) -> list[Change]:
        """The steps that delete the droplet, and of what outlives it the volume or address that ``also`` names."""
        volume, ip = self.volume.get("name"), self.address.get("ip")
        self._gone |= {volume, ip}  # what was there at first is no stranger when it is gone
        if strange := [one for one in also if one not in self._gone]:
            known = " or ".join(filter(None, (volume, ip))) or "nothing else here"
            raise Declined(
                0, f"ALSO={strange[0]} is neither volume nor address. Next: ALSO may be {known}"
            )
        steps = []
        if self.droplet:
            told = (
                f"droplet {self.wanted.name} ({self.droplet['id']}) with its disk and its backups"
            )
            if self.droplet["status"] == "active":
                steps.append(Change("~", f"droplet {self.wanted.name}: off", self._shut_down))
            steps.append(Change("-", told, self._destroy))
        for name, kind, at in (
            (volume, "volume", f"/v2/volumes/{self.volume.get('id')}"),
            (ip, "reserved IP", f"/v2/reserved_ips/{ip}"),
        ):
            if not name:
                continue
            if name in also:
                what = f"{kind} {name}" + (" with n8n's data" if kind == "volume" else "")
                steps.append(Change("-", what, partial(self._release, at)))
            else:
                steps.append(
                    Change("=", f"{kind} {name} stays, and costs; ALSO={name} takes it away too")
                )
        return steps

    def _destroy(self) -> None:
        self._delete(self.droplet["id"])
        for _ in self.client.patiently(f"droplet {self.droplet['id']}: deletion"):
            if not any(one["id"] == self.droplet["id"] for one in self._named()):
                return

    def _release(self, at: str) -> None:
        """Delete what the droplet had; it may take a moment to be free."""
        for _ in self.client.patiently(f"{at}: deletion"):
            try:
                self.client.ask("DELETE", at)
                return
            except Declined as reason:
                if reason.status == 404:
                    return
                if reason.status not in (409, 422):
                    raise


def _on(is_so: bool) -> str:
    return "on" if is_so else "off"


def _age(droplet: dict[str, Any]) -> float:
    """Seconds since it was made."""
    made = time.strptime(droplet["created_at"], "%Y-%m-%dT%H:%M:%SZ")
    return time.time() - calendar.timegm(made)
