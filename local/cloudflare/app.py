"""The API below /client/v4, on state in memory. The published document says the shapes, field reports the errors."""

from __future__ import annotations

import datetime
import re
import secrets
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import models
from .origin import OriginCa

ALL_RIGHTS = frozenset({"zone", "dns_records", "settings", "bot_management", "certificates"})
ROOT = "/client/v4"
B = TypeVar("B", bound=models.Body)
State = dict[str, Any]


class Refusal(Exception):
    """Becomes an answer of this status, in Cloudflare's shape of an error."""

    def __init__(self, status: int, code: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.error: State = {"code": code, "message": message}
        self.headers = headers


def envelope(result: Any, errors: list[State] | None = None, **more: Any) -> State:
    """What every answer is wrapped in."""
    said = errors or []
    return {"success": not said, "errors": said, "messages": [], "result": result, **more}


def now() -> str:
    """This moment, as the API writes it."""
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


class Cloud:
    """Cloudflare, as far as one account sees it. Tests read and turn what has no underscore."""

    def __init__(self) -> None:
        self.tokens: dict[str, frozenset[str]] = {}  # what each may do, of ALL_RIGHTS
        self.zones: dict[str, State] = {}
        self.certificates: dict[str, State] = {}
        self.networks: dict[str, list[str]] = {"ipv4_cidrs": [], "ipv6_cidrs": []}
        self.asked: list[tuple[str, str, Any]] = []  # method, path, body
        self.busy = 0  # so many requests are answered with 429
        self.hang_after = 0  # the answer to this write never comes: what was asked is done
        self.hung = threading.Event()
        self._ca = OriginCa()

    def add_zone(self, name: str, status: str = "active") -> State:
        """A zone as it is when it is new."""
        zone_id = secrets.token_hex(16)
        settings: State = {key: value for key, (_, value) in models.SETTINGS.items()}
        settings["security_header"] = {
            "strict_transport_security": models.Hsts(enabled=False).model_dump()
        }
        self.zones[zone_id] = {
            "about": {
                "id": zone_id,
                "name": name,
                "status": status,
                "paused": False,
                "type": "full",
                "development_mode": 0,
                "name_servers": ["ada.ns.cloudflare.com", "bob.ns.cloudflare.com"],
                "original_name_servers": None,
                "original_registrar": None,
                "original_dnshost": None,
                "activated_on": now(),
                "created_on": now(),
                "modified_on": now(),
                "owner": {"id": secrets.token_hex(16), "type": "user", "name": "example"},
                "account": {"id": secrets.token_hex(16), "name": "example"},
                "meta": {},
            },
            "records": {},
            "settings": {
                key: {"id": key, "value": value, "editable": True, "modified_on": None}
                for key, value in settings.items()
            },
            "bots": {"fight_mode": True, "enable_js": True, "using_latest_model": True},
        }
        return self.zones[zone_id]

    # -- how it is asked -------------------------------------------------------------------------

    def application(self) -> Starlette:
        """The whole API."""
        zone = f"{ROOT}/zones/{{zone}}"
        table: list[tuple[str, str, str, Callable[[Request, Any], Any]]] = [
            (f"{ROOT}/user/tokens/verify", "GET", "", self._verify),
            (f"{ROOT}/zones", "GET", "zone", self._zones),
            (f"{zone}/dns_records", "GET", "dns_records", self._records),
            (f"{zone}/dns_records", "POST", "dns_records", self._create),
            (f"{zone}/dns_records/{{record}}", "PATCH", "dns_records", self._change),
            (f"{zone}/dns_records/{{record}}", "DELETE", "dns_records", self._delete),
            (f"{zone}/settings/{{setting}}", "GET", "settings", self._setting),
            (f"{zone}/settings/{{setting}}", "PATCH", "settings", self._set),
            (f"{zone}/bot_management", "GET", "bot_management", self._bots),
            (f"{zone}/bot_management", "PUT", "bot_management", self._set_bots),
            (f"{ROOT}/certificates", "POST", "certificates", self._sign),
            (f"{ROOT}/ips", "GET", "-", self._ips),
        ]
        routes = [
            Route(path, self._asked(right, handler), methods=[method])
            for path, method, right, handler in table
        ]
        missing = Route(
            "/{path:path}", self._missing, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]
        )
        return Starlette(routes=[*routes, missing])

    async def _missing(self, request: Request) -> Response:
        self.asked.append((request.method, request.url.path, None))
        error = {"code": 7000, "message": "No route for that URI"}
        return JSONResponse(envelope(None, [error]), 400)

    def _asked(
        self, right: str, handler: Callable[[Request, Any], Any]
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint: token, right, limit, body; then the handler, whose answer is the result, or (result, info)."""

        async def endpoint(request: Request) -> Response:
            raw = await request.body()
            try:
                body = await request.json() if raw else None
            except ValueError:
                body = None
            self.asked.append((request.method, request.url.path.removeprefix(ROOT), body))
            try:
                if self.busy:
                    self.busy -= 1
                    told = "Please wait and consider throttling your request speed"
                    raise Refusal(429, 971, told, **{"retry-after": "1"})
                self._authorize(request.headers.get("authorization", ""), right)
                found = handler(request, body)
            except Refusal as refusal:
                answer = envelope(None, [refusal.error])
                return JSONResponse(answer, refusal.status, refusal.headers)
            writes = sum(method != "GET" for method, _, _ in self.asked)
            if request.method != "GET" and writes == self.hang_after:
                self.hung.set()
                await request.receive()  # until whoever asked has gone
            result, info = found if isinstance(found, tuple) else (found, None)
            return JSONResponse(envelope(result, **({"result_info": info} if info else {})))

        return endpoint

    def _authorize(self, header: str, right: str) -> None:
        if right == "-":
            return
        token = header.removeprefix("Bearer ")
        if not re.fullmatch(r"Bearer [\w-]{40,}", header):
            raise Refusal(400, 6003, "Invalid request headers")
        if token not in self.tokens:
            if not right:
                raise Refusal(401, 1000, "Invalid API Token")
            raise Refusal(403, 9109, "Invalid access token")
        if right and right not in self.tokens[token]:
            if right == "zone":
                needs = "requires permission 'com.cloudflare.api.account.zone.list' to list zones"
                raise Refusal(403, 0, f"Actor 'com.cloudflare.api.token' {needs}")
            raise Refusal(403, 10000, "Authentication error")

    def _read(self, model: type[B], body: Any, code: int) -> B:
        """A body of this shape; any other is refused."""
        try:
            return model.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Refusal(400, code, f"{where}: {first['msg']}".lstrip(": ")) from None

    def _page(self, request: Request, entries: list[Any], most: int) -> tuple[list[Any], State]:
        query = request.query_params
        try:
            page, size = int(query.get("page", 1)), int(query.get("per_page", 20))
        except ValueError:
            page = size = 0
        if page < 1 or not 5 <= size <= most:
            raise Refusal(400, 1003, f"Invalid page or per_page (5 to {most})")
        some = entries[(page - 1) * size : page * size]
        info = {"page": page, "per_page": size, "count": len(some), "total_count": len(entries)}
        return some, {**info, "total_pages": -(-len(entries) // size)}

    def _query(self, request: Request, *names: str) -> State:
        unknown = set(request.query_params) - {*names, "page", "per_page"}
        if unknown:
            raise Refusal(400, 1004, f"unknown parameter {', '.join(sorted(unknown))}")
        return {name: request.query_params[name] for name in names if name in request.query_params}

    # -- what it does ----------------------------------------------------------------------------

    def _verify(self, _: Request, __: Any) -> State:
        return {"id": secrets.token_hex(16), "status": "active"}

    def _ips(self, _: Request, __: Any) -> State:
        return {"etag": secrets.token_hex(16), **self.networks}

    def _zones(self, request: Request, _: Any) -> tuple[list[Any], State]:
        query = self._query(request, "name", "status")
        found = [
            zone["about"]
            for zone in self.zones.values()
            if all(zone["about"][key] == value for key, value in query.items())
        ]
        return self._page(request, found, 50)

    def _zone(self, request: Request) -> State:
        zone = self.zones.get(request.path_params["zone"])
        if zone is None:
            raise Refusal(
                404,
                7003,
                "Could not route to that zone, perhaps your object identifier is invalid?",
            )
        return zone

    def _records(self, request: Request, _: Any) -> tuple[list[Any], State]:
        query = self._query(request, "name", "type", "content", "comment")
        found = [
            one
            for one in self._zone(request)["records"].values()
            if all(one[key] == value for key, value in query.items())
        ]
        return self._page(request, found, 50000)

    def _kept(self, zone: State, record: models.Record, before: State | None = None) -> State:
        """A record as it is kept. One that cannot stand beside the others is refused."""
        name = record.name.lower().rstrip(".")
        root = zone["about"]["name"]
        if not f".{name}".endswith(f".{root}"):
            name = f"{name}.{root}"  # a name of another zone becomes one of this
        kept = {**record.model_dump(), "name": name}
        if record.proxied:
            kept["ttl"] = 1
        for other in zone["records"].values():
            if other is before or other["name"] != name:
                continue
            kinds = {other["type"], record.type}
            if kinds == {record.type} and other["content"] == record.content:
                if all(other[key] == kept[key] for key in ("proxied", "ttl")):
                    raise Refusal(400, 81058, "An identical record already exists.")
                raise Refusal(400, 81057, "The record already exists.")
            if "CNAME" in kinds and kinds <= {"A", "AAAA", "CNAME"}:
                if other["type"] == "CNAME":
                    raise Refusal(400, 81054, "A CNAME record with that host already exists.")
                told = "An A, AAAA, or CNAME record with that host already exists."
                raise Refusal(400, 81053, told)
        return kept

    def _create(self, request: Request, body: Any) -> State:
        zone = self._zone(request)
        kept = self._kept(zone, self._read(models.Record, body, 9005))
        record = {
            "id": secrets.token_hex(16),
            **kept,
            "locked": False,
            "proxiable": kept["type"] in ("A", "AAAA", "CNAME"),
            "tags": [],
            "meta": {},
            "settings": {},
            "created_on": now(),
            "modified_on": now(),
        }
        zone["records"][record["id"]] = record
        return dict(record)

    def _record(self, request: Request) -> tuple[State, State]:
        zone = self._zone(request)
        record = zone["records"].get(request.path_params["record"])
        if record is None:
            raise Refusal(404, 81044, "Record does not exist.")
        return zone, record

    def _change(self, request: Request, body: Any) -> State:
        zone, record = self._record(request)
        fields = {key: record[key] for key in models.Record.model_fields}
        after = self._read(models.Record, {**fields, **(body or {})}, 9005)
        record |= {**self._kept(zone, after, record), "modified_on": now()}
        return dict(record)

    def _delete(self, request: Request, _: Any) -> State:
        zone, record = self._record(request)
        del zone["records"][record["id"]]
        return {"id": record["id"]}

    def _setting(self, request: Request, _: Any) -> State:
        setting = self._zone(request)["settings"].get(request.path_params["setting"])
        if setting is None:
            raise Refusal(400, 1003, "Undefined zone setting")
        return dict(setting)

    def _set(self, request: Request, body: Any) -> State:
        name = request.path_params["setting"]
        there = self._setting(request, None)
        value = self._read(models.Setting, body, 1007).value
        if not there["editable"]:
            raise Refusal(403, 1015, f"Not allowed to edit setting for {name}")
        if name == "security_header":
            value = self._read(models.SecurityHeader, value, 1007).model_dump()
        elif value not in models.SETTINGS[name][0]:
            raise Refusal(400, 1007, f"Invalid value for zone setting {name}")
        self._zone(request)["settings"][name] |= {"value": value, "modified_on": now()}
        return self._setting(request, None)

    def _bots(self, request: Request, _: Any) -> State:
        return dict(self._zone(request)["bots"])

    def _set_bots(self, request: Request, body: Any) -> State:
        given = self._read(models.Bots, body, 1007).model_dump(exclude_none=True)
        self._zone(request)["bots"] |= given
        return self._bots(request, None)

    def _sign(self, _: Request, body: Any) -> State:
        given = self._read(models.Request, body, 1100)
        roots = [zone["about"]["name"] for zone in self.zones.values()]
        for host in given.hostnames:
            if not any(f".{host}".endswith(f".{root}") for root in roots):
                told = (
                    "This zone is either not part of your account, or you do not have access to it."
                )
                raise Refusal(400, 1010, f"Failed to validate requested hostname {host}: {told}")
        try:
            certificate, end = self._ca.sign(
                given.csr, given.hostnames, given.request_type, given.requested_validity
            )
        except ValueError as error:
            raise Refusal(
                400, 1002, f"Failed to parse the certificate signing request: {error}"
            ) from None
        made = {"id": str(secrets.randbits(120)), **given.model_dump()}
        made |= {"certificate": certificate, "expires_on": end}
        self.certificates[made["id"]] = made
        return dict(made)
