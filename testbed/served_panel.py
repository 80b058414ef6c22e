"""The stand-in panel over HTTP, without Swarm and proxy; what is asked of it is held against the published document."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import uvicorn
import yaml
from starlette.types import Message, Receive, Scope, Send

from local.easypanel.engine import App, DeployFailed, Log
from local.easypanel.panel import Panel
from local.easypanel.proxy import Proxy
from local.easypanel.quirks import Quirks
from local.easypanel.serve import application
from local.easypanel.store import Store
from local.waiting import eventually, free_port

OPERATIONS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("easypanel_operations.yaml").read_text()
)


class Memory:
    """In place of Swarm: remembers what it was asked to run; fails when told to."""

    def __init__(self) -> None:
        self.deployed: list[App] = []
        self.fails = ""
        self.gate = threading.Event()
        self.gate.set()

    def deploy(self, app: App, log: Log) -> None:
        log(f"### Pulling image {app.image}")
        self.gate.wait(10)
        if self.fails:
            raise DeployFailed(self.fails)
        self.deployed.append(app)

    def create_project(self, project: str) -> None: ...
    def remove(self, app: App) -> None: ...
    def address(self) -> str:
        return "192.0.2.1"


class Routes:
    """Takes domains in place of the proxy."""

    def __init__(self) -> None:
        self.domains: list[dict[str, Any]] = []

    def apply(self, state: dict[str, Any]) -> None:
        self.domains = state["domains"]


def memory_panel(state: Path, machine: Memory, routes: Routes, version: str = "2.33.1") -> Panel:
    """The stand-in on the state that lies there, with these in place of Swarm and proxy."""
    return Panel(Store(state), machine, cast("Proxy", routes), version)


def breach(method: str, operation: str, given: Mapping[str, Any]) -> str:
    """What the published document has against a request; empty when nothing."""
    known = OPERATIONS.get(operation)
    if known is None:
        return f"{operation} is not one of easypanel_operations.yaml"
    required, optional = set(known.get("required", ())), set(known.get("optional", ()))
    return "; ".join(
        [
            *([f"{method} in place of {known['method']}"] if method != known["method"] else []),
            *(f"no {name}" for name in sorted(required - set(given))),
            *(f"unknown {name}" for name in sorted(set(given) - required - optional)),
        ]
    )


class ServedPanel:
    """A panel on a port of loopback. ``asked`` has the calls, ``breaches`` those that the document does not allow."""

    def __init__(self, folder: Path, version: str = "2.33.1") -> None:
        self.quirks = Quirks()
        self.machine, self.routes = Memory(), Routes()
        self.panel = memory_panel(folder / "panel.json", self.machine, self.routes, version)
        self.asked: list[str] = []
        self.breaches: list[str] = []
        self._web = application(self.panel, self.quirks)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: uvicorn.Server | None = None

    def start(self) -> ServedPanel:
        """Serve; `stop` ends it, and it may be started again on the same port."""
        config = uvicorn.Config(
            self._watched,
            interface="asgi3",
            host="127.0.0.1",
            port=self.port,
            lifespan="off",
            log_level="critical",
        )
        self._server = uvicorn.Server(config)
        threading.Thread(target=self._server.run, daemon=True).start()
        eventually(lambda: self._server and self._server.started, "the panel serves")
        return self

    def stop(self) -> None:
        """End it, with its connections."""
        if (server := self._server) is not None:
            server.should_exit = True
            eventually(
                lambda: not server.servers or not any(s.is_serving() for s in server.servers),
                "it stopped",
            )

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold each request against the document before the stand-in, which drops what it does not know, sees it."""
        operation = scope["path"].removeprefix("/api/")
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if not operation.startswith("deploy/"):
            self.asked.append(operation)
            query = [
                pair.partition("=")[0] for pair in scope["query_string"].decode().split("&") if pair
            ]
            given = dict.fromkeys(query) if scope["method"] == "GET" else json.loads(body or b"{}")
            if told := breach(scope["method"], operation, given):
                self.breaches.append(f"{operation}: {told}")

        async def again() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._web(scope, again, send)
