"""The stand-in as an ASGI application.

Nothing is done at once: time is counted in calls, and whatever is begun ends some calls later (a droplet is `new`, an
action `in-progress`, its droplet `locked`). Two droplets may have one name. Ports come back as "0". A list has 20
entries a page. What is kept can be looked at, and turned, in `kept` and the fields of `Api`.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import requests as asked

REGION = {"name": "", "features": ["storage", "metadata"], "available": True, "sizes": []}
REGIONS = ["nyc1", "nyc3", "sfo3", "ams3", "fra1", "lon1", "tor1", "blr1", "sgp1", "syd1"]
# slug: vCPU, MB, GB of disk, USD a month; where it is sold
SIZES = {
    "s-1vcpu-1gb": (1, 1024, 25, 6.0, REGIONS),
    "s-1vcpu-2gb": (1, 2048, 50, 12.0, REGIONS),
    "s-2vcpu-2gb": (2, 2048, 60, 18.0, REGIONS),
    "s-2vcpu-4gb": (2, 4096, 80, 24.0, REGIONS),
    "s-4vcpu-8gb": (4, 8192, 160, 48.0, ["nyc3", "ams3", "fra1"]),
}
IMAGES = {
    "ubuntu-20-04-x64": "retired",
    "ubuntu-22-04-x64": "available",
    "ubuntu-24-04-x64": "available",
}
CALLS_UNTIL = 3  # calls until what was begun has ended
LISTS = (
    "droplets",
    "volumes",
    "reserved_ips",
    "firewalls",
    "ssh_keys",
    "tags",
    "projects",
    "policies",
)


class Refused(Exception):
    """Becomes ``{"id", "message"}`` with this HTTP status."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class Api:
    """An account. ``tokens`` to their scopes (None: every one); ``busy`` calls are answered 429 first.

    ``addresses``: that of every droplet, or the beginning of made-up ones, which ends with a dot.
    """

    def __init__(self, addresses: str = "203.0.113.", state: Path | None = None) -> None:
        self.kept: dict[str, Any] = {name: [] for name in LISTS}
        self.kept |= {"actions": {}, "resources": {}, "number": 1000, "calls": 0}
        self._addresses = addresses
        self._state = state
        self._lock = threading.Lock()
        if state and state.exists():
            self.kept = json.loads(state.read_text())
        self.tokens: dict[str, set[str] | None] = {}
        self.busy, self.retry_after = 0, "1"
        self.broken: dict[str, int] = {}  # "METHOD path": calls of it that end in 503, done or not
        self.size_of_page = 20
        self.seen: list[tuple[str, str, Any]] = []  # method, path, body
        # Around each call that changes something: method, path.
        self.before: Callable[[str, str], None] = lambda *_: None
        self.after: Callable[[str, str], None] = lambda *_: None

    def application(self) -> Starlette:
        """To be served."""
        methods = ["GET", "POST", "PUT", "DELETE"]
        return Starlette(
            routes=[
                Route("/stand-in/health", lambda _: Response("ok")),
                Route("/v2/{path:path}", self._serve, methods=methods),
            ]
        )

    def account_now(self) -> dict[str, Any]:
        """A copy of what is kept, for another thread."""
        with self._lock:
            return copy.deepcopy(self.kept)

    async def _serve(self, request: Request) -> Response:
        body = await request.body()
        status, answer, headers = await run_in_threadpool(self._call, request, body)
        return (
            JSONResponse(answer, status, headers) if answer is not None else Response(None, status)
        )

    def _call(self, request: Request, raw: bytes) -> tuple[int, Any, dict[str, str]]:
        path = request.path_params["path"]
        try:
            if self.busy:
                self.busy -= 1
                raise Refused(429, "API Rate limit exceeded.", **{"retry-after": self.retry_after})
            name, arguments, body = self._asked(request, path, raw)
            if request.method != "GET":
                self.before(request.method, f"/v2/{path}")
            with self._lock:
                self.kept["calls"] += 1
                self._pass()
                answer = getattr(self, name)(*arguments, *([body] if body is not None else []))
            if isinstance(answer, list):
                answer = self._page(request, name, answer)
            if self.broken.get(call := f"{request.method} /v2/{path}"):
                self.broken[call] -= 1
                raise Refused(503, "Service Unavailable")
        except Refused as reason:
            kind = {401: "Unauthorized", 403: "Forbidden", 404: "not_found", 409: "conflict"}
            kind |= {422: "unprocessable_entity", 429: "too_many_requests"}
            told = {"id": kind.get(reason.status, "bad_request"), "message": str(reason)}
            return reason.status, told, reason.headers
        if request.method != "GET":
            self.seen.append((request.method, f"/v2/{path}", body))
            if self._state:
                self._state.parent.mkdir(parents=True, exist_ok=True)
                self._state.write_text(json.dumps(self.kept))
            self.after(request.method, f"/v2/{path}")
        status, answer = answer if isinstance(answer, tuple) else (200, answer)
        return status, answer, {}

    def _asked(self, request: Request, path: str, raw: bytes) -> tuple[str, list[str], Any]:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not token or (self.tokens and token not in self.tokens):
            raise Refused(401, "Unable to authenticate you")
        for form, (name, scope, queries, model) in asked.CALLS.items():
            match = re.fullmatch(form, f"{request.method} {path}")
            if not match:
                continue
            scopes = self.tokens.get(token)
            if scopes is not None and scope not in scopes:
                raise Refused(403, "You are not authorized to perform this operation")
            if strange := set(request.query_params) - queries:
                raise Refused(400, f"no query {sorted(strange)[0]}")
            if model is None:
                if raw:
                    raise Refused(400, "this call has no body")
                extra = [request.query_params] if queries - asked.PAGES else []
                return name, [*match.groups(), *extra], None  # type: ignore[list-item]
            if request.headers.get("content-type") != "application/json":
                raise Refused(415, "application/json is wanted")
            try:
                sent = model.model_validate_json(raw)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise Refused(422, f"{place}: {first['msg']}") from None
            return name, list(match.groups()), sent.model_dump(exclude_unset=True)
        raise Refused(404, "The resource you were accessing could not be found.")

    def _page(self, request: Request, name: str, found: list[Any]) -> dict[str, Any]:
        query = request.query_params
        size, page = int(query.get("per_page", self.size_of_page)), int(query.get("page", 1))
        if not 1 <= size <= 200:
            raise Refused(400, "per_page is 1 to 200")
        size = min(size, self.size_of_page)  # a caller that asks for one page only is found out
        pages = -(-len(found) // size)
        links = {}
        if page < pages:
            base = f"{request.url.scheme}://{request.url.netloc}{request.url.path}"
            links = {"pages": {"next": f"{base}?page={page + 1}", "last": f"{base}?page={pages}"}}
        key = {"keys": "ssh_keys", "addresses": "reserved_ips", "alerts": "policies"}.get(
            name, name
        )
        return {
            key: found[size * (page - 1) :][:size],
            "links": links,
            "meta": {"total": len(found)},
        }

    # -- time ------------------------------------------------------------------------------------------

    def _pass(self) -> None:
        """What was begun long enough ago has ended."""
        for action in self.kept["actions"].values():
            if action["status"] == "in-progress" and action["until"] <= self.kept["calls"]:
                action["status"] = "completed"
                self._end(action)

    def _number(self) -> int:
        self.kept["number"] += 1
        return int(self.kept["number"])

    def _begin(self, kind: str, resource: Any, **more: Any) -> dict[str, Any]:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        action = {"id": self._number(), "type": kind, "status": "in-progress", "started_at": at}
        action |= {"until": self.kept["calls"] + CALLS_UNTIL, "resource": resource, **more}
        self.kept["actions"][str(action["id"])] = action
        return {name: action[name] for name in ("id", "type", "status", "started_at")}

    def _end(self, action: dict[str, Any]) -> None:
        kind, resource = action["type"], action["resource"]
        droplet: dict[str, Any] = next(
            (one for one in self.kept["droplets"] if one["id"] == resource), {}
        )
        if kind in ("attach", "detach", "resize_volume"):
            volume = self._one("volumes", "id", resource)
            if kind == "resize_volume":
                volume["size_gigabytes"] = action["size_gigabytes"]
            else:
                volume["droplet_ids"] = [action["droplet_id"]] if kind == "attach" else []
            droplet = next(
                (one for one in self.kept["droplets"] if one["id"] == action.get("droplet_id")), {}
            )
        elif kind in ("assign", "unassign"):
            address = self._one("reserved_ips", "ip", resource)
            address |= {"locked": False, "droplet_id": action["droplet_id"]}
        elif kind in ("create", "power_on"):
            droplet["status"] = "active"
        elif kind in ("shutdown", "power_off"):
            droplet["status"] = "off"
        elif kind == "resize":
            self._sized(droplet, action["size"], action["disk"])
        elif kind == "enable_backups":
            droplet["features"].append("backups")
            droplet["policy"] = action["backup_policy"]
        elif kind == "disable_backups":
            droplet["features"].remove("backups")
        elif kind == "enable_ipv6":
            droplet["features"].append("ipv6")
        if droplet:
            droplet["locked"] = False

    # -- what there is ---------------------------------------------------------------------------------

    def _one(self, kind: str, field: str, value: Any) -> dict[str, Any]:
        for one in self.kept[kind]:
            if str(one[field]) == str(value):
                found: dict[str, Any] = one
                return found
        raise Refused(404, "The resource you were accessing could not be found.")

    def account(self) -> Any:
        """The account."""
        return {"account": {"status": "active", "droplet_limit": 10, "email": "ann@example.com"}}

    def keys(self) -> Any:
        """SSH keys."""
        return list(self.kept["ssh_keys"])

    def make_key(self, body: dict[str, Any]) -> Any:
        """One more."""
        value = body["public_key"].split()[:2]
        if any(one["public_key"].split()[:2] == value for one in self.kept["ssh_keys"]):
            raise Refused(422, "SSH Key is already in use on your account")
        key = {"id": self._number(), "fingerprint": "", **body}
        self.kept["ssh_keys"].append(key)
        return 201, {"ssh_key": key}

    def sizes(self) -> Any:
        """What is sold."""
        return [_size(slug) for slug in SIZES]

    def image(self, slug: str) -> Any:
        """One image."""
        if slug not in IMAGES:
            raise Refused(404, "The image you requested could not be found")
        return {"image": {"id": 1, "slug": slug, "status": IMAGES[slug], "regions": REGIONS}}

    def tags(self) -> Any:
        """Tags."""
        return list(self.kept["tags"])

    def make_tag(self, body: dict[str, Any]) -> Any:
        """One more; one that is there is no error."""
        if all(one["name"] != body["name"] for one in self.kept["tags"]):
            self.kept["tags"].append({"name": body["name"], "resources": {"count": 0}})
        return 201, {"tag": body}

    def droplets(self, query: Any) -> Any:
        """Those of a name or a tag."""
        if "name" in query and "tag_name" in query:
            raise Refused(400, "name and tag_name cannot be used together")
        shown = [self._shown(one) for one in self.kept["droplets"]]
        if "name" in query:
            return [one for one in shown if one["name"] == query["name"]]
        return [one for one in shown if query.get("tag_name") in (None, *one["tags"])]

    def droplet(self, number: str) -> Any:
        """One droplet."""
        return {"droplet": self._shown(self._one("droplets", "id", number))}

    def _shown(self, kept: dict[str, Any]) -> dict[str, Any]:
        volumes = [one["id"] for one in self.kept["volumes"] if kept["id"] in one["droplet_ids"]]
        hidden = ("user_data", "ssh_keys", "policy")
        shown = {name: value for name, value in kept.items() if name not in hidden}
        if kept["status"] == "new":
            shown["networks"] = {"v4": [], "v6": []}
        return shown | {"volume_ids": volumes, "size": _size(kept["size_slug"])}

    def _sized(self, droplet: dict[str, Any], slug: str, disk: bool) -> None:
        cores, memory, gigabytes, _, _ = SIZES[slug]
        droplet |= {"size_slug": slug, "vcpus": cores, "memory": memory}
        if disk:
            droplet["disk"] = gigabytes

    def make_droplet(self, body: dict[str, Any]) -> Any:
        """One more, also of a name that there is."""
        _sold(body["size"], body.get("region", ""))
        if IMAGES.get(body["image"]) != "available":
            raise Refused(422, "You specified an invalid image for Droplet creation.")
        for key in body.get("ssh_keys", ()):
            self._one("ssh_keys", "id", key)
        if body.get("backup_policy") and not body.get("backups"):
            raise Refused(422, "backup_policy without backups")
        number = self._number()
        wanted = {name: body.get(name, False) for name in ("ipv6", "monitoring", "backups")}
        droplet = {
            "id": number,
            "name": body["name"],
            "status": "new",
            "locked": True,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "features": [name for name, is_so in wanted.items() if is_so],
            "disk": SIZES[body["size"]][2],
            "image": {"id": 1, "slug": body["image"], "status": "available"},
            "region": {**REGION, "slug": body["region"]},
            "tags": body.get("tags", []),
            "networks": {
                "v4": [{"ip_address": self._address(), "type": "public"}],
                "v6": [{"ip_address": f"2001:db8::{number}", "type": "public"}]
                if wanted["ipv6"]
                else [],
            },
            "backup_ids": [],
            "snapshot_ids": [],
            "next_backup_window": None,
            "policy": body.get("backup_policy"),
            "user_data": body.get("user_data", ""),
            "ssh_keys": body.get("ssh_keys", []),
        }
        self._sized(droplet, body["size"], True)
        for tag in droplet["tags"]:
            self.make_tag({"name": tag})
        self.kept["droplets"].append(droplet)
        links = {
            "actions": [{"id": self._begin("create", number)["id"], "rel": "create", "href": ""}]
        }
        return 202, {"droplet": self._shown(droplet), "links": links}

    def _address(self) -> str:
        if not self._addresses.endswith("."):
            return self._addresses  # of the machine that it is
        return f"{self._addresses}{self._number() % 250 + 1}"

    def _free(self, droplet: dict[str, Any]) -> None:
        if droplet["locked"]:
            raise Refused(422, "Droplet already has a pending event.")

    def delete_droplet(self, number: str) -> Any:
        """It is gone, its volumes and its address are free."""
        droplet = self._one("droplets", "id", number)
        self._free(droplet)
        self.kept["droplets"].remove(droplet)
        for volume in self.kept["volumes"]:
            volume["droplet_ids"] = [one for one in volume["droplet_ids"] if one != droplet["id"]]
        for address in self.kept["reserved_ips"]:
            if address["droplet_id"] == droplet["id"]:
                address["droplet_id"] = None
        return 204, None

    def policy(self, number: str) -> Any:
        """Its backups."""
        droplet = self._one("droplets", "id", number)
        enabled = "backups" in droplet["features"]
        policy = (
            (droplet["policy"] or {"plan": "weekly", "weekday": "SUN", "hour": 0})
            if enabled
            else None
        )
        about = {"droplet_id": droplet["id"], "backup_enabled": enabled, "backup_policy": policy}
        return {"policy": about}

    def act(self, number: str, body: dict[str, Any]) -> Any:
        """Something is done to it, one thing at a time."""
        droplet = self._one("droplets", "id", number)
        self._free(droplet)
        kind, status = body["type"], droplet["status"]
        if kind == "resize":
            size = SIZES.get(body.get("size", ""))
            if not size or size[2] < droplet["disk"]:
                raise Refused(422, "This size is not available because it has a smaller disk.")
            if status != "off":
                raise Refused(422, "Droplet must be powered off to be resized.")
        if kind == "power_on" and status == "active":
            raise Refused(422, "Droplet is already powered on.")
        if kind in ("shutdown", "power_off") and status == "off":
            raise Refused(422, "Droplet is already powered off.")
        if kind in ("enable_backups", "disable_backups") and (kind == "enable_backups") == (
            "backups" in droplet["features"]
        ):
            raise Refused(422, "Backups are so already.")
        droplet["locked"] = True
        more = {"disk": False, "backup_policy": None} | body
        more.pop("type")
        return 201, {"action": self._begin(kind, droplet["id"], **more)}

    def action(self, *names: str) -> Any:
        """How far it is."""
        action = self.kept["actions"].get(names[-1])
        if not action:
            raise Refused(404, "The resource you were accessing could not be found.")
        return {"action": {name: action[name] for name in ("id", "type", "status", "started_at")}}

    def volumes(self, query: Any) -> Any:
        """Those of a name or a region."""
        found = self.kept["volumes"]
        found = [one for one in found if query.get("name") in (None, one["name"])]
        return [one for one in found if query.get("region") in (None, one["region"]["slug"])]

    def volume(self, number: str) -> Any:
        """One volume."""
        return {"volume": self._one("volumes", "id", number)}

    def make_volume(self, body: dict[str, Any]) -> Any:
        """One more; its name is its own in its region."""
        if body["region"] not in REGIONS:
            raise Refused(422, "region is invalid")
        if self.volumes({"name": body["name"], "region": body["region"]}):
            raise Refused(409, "a volume with this name already exists in this region")
        volume = {"id": str(uuid.uuid4()), "droplet_ids": [], "tags": [], **body}
        volume["region"] = {**REGION, "slug": body["region"]}
        self.kept["volumes"].append(volume)
        return 201, {"volume": volume}

    def delete_volume(self, number: str) -> Any:
        """Only when it is on no droplet."""
        volume = self._one("volumes", "id", number)
        if volume["droplet_ids"]:
            raise Refused(409, "volume is attached to a Droplet")
        self.kept["volumes"].remove(volume)
        return 204, None

    def act_volume(self, number: str, body: dict[str, Any]) -> Any:
        """Attach, detach, grow."""
        volume, kind = self._one("volumes", "id", number), body["type"]
        if kind == "resize":
            if body.get("size_gigabytes", 0) <= volume["size_gigabytes"]:
                raise Refused(422, "a volume only grows")
            more = {"size_gigabytes": body["size_gigabytes"]}
            return 202, {
                "action": self._begin("resize_volume", volume["id"], **more) | {"type": kind}
            }
        if "droplet_id" not in body:
            raise Refused(422, "droplet_id is missing")
        droplet = self._one("droplets", "id", body["droplet_id"])
        self._free(droplet)
        if kind == "attach" and volume["droplet_ids"]:
            raise Refused(422, "volume is already attached")
        if droplet["region"]["slug"] != volume["region"]["slug"]:
            raise Refused(422, "the Droplet is in another region")
        droplet["locked"] = True
        return 202, {"action": self._begin(kind, volume["id"], droplet_id=droplet["id"])}

    def addresses(self) -> Any:
        """Reserved IPs."""
        return [self._led(one) for one in self.kept["reserved_ips"]]

    def address(self, ip: str) -> Any:
        """One of them."""
        return {"reserved_ip": self._led(self._one("reserved_ips", "ip", ip))}

    def _led(self, kept: dict[str, Any]) -> dict[str, Any]:
        found = [one for one in self.kept["droplets"] if one["id"] == kept["droplet_id"]]
        shown = {name: kept[name] for name in ("ip", "region", "locked", "project_id")}
        return {**shown, "droplet": self._shown(found[0]) if found else None}

    def _unreserved(self, droplet: int) -> None:
        pending = [one for one in self.kept["actions"].values() if one["status"] == "in-progress"]
        if any(one["droplet_id"] == droplet for one in self.kept["reserved_ips"]) or any(
            one["type"] == "assign" and one["droplet_id"] == droplet for one in pending
        ):
            raise Refused(422, "The Droplet already has a reserved IP assigned to it.")

    def make_address(self, body: dict[str, Any]) -> Any:
        """One more, for a droplet that has none."""
        droplet = self._one("droplets", "id", body["droplet_id"])
        self._unreserved(droplet["id"])
        address = {"ip": self._address(), "region": droplet["region"], "locked": True}
        address |= {"project_id": "00000000-0000-4000-8000-000000000000", "droplet_id": None}
        self.kept["reserved_ips"].append(address)
        action = self._begin("assign", address["ip"], droplet_id=droplet["id"])
        links = {"actions": [{"id": action["id"], "rel": "assign_ip", "href": ""}]}
        return 202, {"reserved_ip": self._led(address), "links": links}

    def act_address(self, ip: str, body: dict[str, Any]) -> Any:
        """It leads elsewhere."""
        address = self._one("reserved_ips", "ip", ip)
        if address["locked"]:
            raise Refused(422, "The reserved IP has a pending event.")
        if body["type"] == "assign":
            self._unreserved(self._one("droplets", "id", body.get("droplet_id"))["id"])
        address["locked"] = True
        droplet = body["droplet_id"] if body["type"] == "assign" else None
        return 201, {"action": self._begin(body["type"], ip, droplet_id=droplet)}

    def delete_address(self, ip: str) -> Any:
        """It is given back."""
        self.kept["reserved_ips"].remove(self._one("reserved_ips", "ip", ip))
        return 204, None

    def firewalls(self) -> Any:
        """Firewalls."""
        return list(self.kept["firewalls"])

    def _walled(self, body: dict[str, Any], number: str) -> dict[str, Any]:
        for tag in body.get("tags", ()):
            self._one("tags", "name", tag)
        if any(
            one["name"] == body["name"] and one["id"] != number for one in self.kept["firewalls"]
        ):
            raise Refused(409, "duplicate name")
        if not body.get("inbound_rules") and not body.get("outbound_rules"):
            raise Refused(422, "a firewall has one rule at least")
        for rule in [*body.get("inbound_rules", ()), *body.get("outbound_rules", ())]:
            if rule["ports"] == "all" or rule["protocol"] == "icmp":
                rule["ports"] = "0"
        return {"tags": [], "droplet_ids": [], "inbound_rules": [], "outbound_rules": []} | body

    def make_firewall(self, body: dict[str, Any]) -> Any:
        """One more; its name is its own."""
        firewall = {**self._walled(body, ""), "id": str(uuid.uuid4()), "status": "waiting"}
        self.kept["firewalls"].append(firewall)
        return 202, {"firewall": firewall}

    def put_firewall(self, number: str, body: dict[str, Any]) -> Any:
        """All of it anew."""
        firewall = self._one("firewalls", "id", number)
        firewall |= self._walled(body, number)
        return {"firewall": firewall}

    def projects(self) -> Any:
        """Projects."""
        return list(self.kept["projects"])

    def make_project(self, body: dict[str, Any]) -> Any:
        """One more; its name is its own."""
        if any(one["name"] == body["name"] for one in self.kept["projects"]):
            raise Refused(409, "name is already in use")
        project = {"id": str(uuid.uuid4()), "is_default": False, **body}
        self.kept["projects"].append(project)
        return 201, {"project": project}

    def resources(self, number: str) -> Any:
        """What is in it."""
        self._one("projects", "id", number)
        there = [urn for urn, project in self.kept["resources"].items() if project == number]
        return [{"urn": urn, "status": "ok"} for urn in there if self._exists(urn)]

    def _exists(self, urn: str) -> bool:
        _, kind, number = urn.split(":", 2)
        name, field = {
            "droplet": ("droplets", "id"),
            "volume": ("volumes", "id"),
            "floatingip": ("reserved_ips", "ip"),
        }[kind]
        return any(str(one[field]) == number for one in self.kept[name])

    def assign(self, number: str, body: dict[str, Any]) -> Any:
        """It comes from wherever it was."""
        self._one("projects", "id", number)
        for urn in body["resources"]:
            if not self._exists(urn):
                raise Refused(404, f"{urn} could not be found")
            self.kept["resources"][urn] = number
            if ":floatingip:" in urn:
                self._one("reserved_ips", "ip", urn.split(":")[2])["project_id"] = number
        return {"resources": [{"urn": urn, "status": "assigned"} for urn in body["resources"]]}

    def alerts(self) -> Any:
        """Alerts."""
        return list(self.kept["policies"])

    def make_alert(self, body: dict[str, Any]) -> Any:
        """One more, to an address of the team's."""
        alert = {"uuid": str(uuid.uuid4()), **body}
        self.kept["policies"].append(alert)
        return {"policy": alert}

    def put_alert(self, number: str, body: dict[str, Any]) -> Any:
        """All of it anew."""
        alert = self._one("policies", "uuid", number)
        alert |= body
        return {"policy": alert}


def _size(slug: str) -> dict[str, Any]:
    cores, memory, disk, price, regions = SIZES[slug]
    size = {"slug": slug, "vcpus": cores, "memory": memory, "disk": disk, "regions": regions}
    size |= {"price_monthly": price, "price_hourly": round(price / 672, 5), "transfer": 3.0}
    return size | {"available": True, "description": "Basic"}


def _sold(size: str, region: str) -> None:
    if size not in SIZES:
        raise Refused(422, "You specified an invalid size for Droplet creation.")
    if region not in SIZES[size][4]:
        raise Refused(422, "Size is not available in this region.")
