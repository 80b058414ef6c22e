"""The panel's HTTP side, in the dialect of 2.33 and newer: ``/api/<operation>``, bare JSON both ways."""

from __future__ import annotations

import json
import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .errors import BadRequest, NotFound, PanelError
from .models import parse
from .panel import Panel
from .quirks import Quirks

DATA = Path("/etc/easypanel/data/panel.json")
PROJECTS = Path("/etc/easypanel/projects")


def application(panel: Panel, quirks: Quirks | None = None) -> Starlette:
    """The web application of one panel; with ``quirks`` it is not the tested one."""
    operations = panel.operations()
    quirks = quirks or Quirks()

    async def call(request: Request) -> Response:
        if (instead := quirks.before(request.path_params["operation"], request)) is not None:
            return instead
        operation = operations.get(request.path_params["operation"])
        if operation is None or operation.method != request.method:
            raise NotFound("Not found")
        if not operation.open:
            panel.authenticate(request.headers.get("authorization"))
        if operation.method == "GET":
            data = dict(request.query_params)  # strings only, as the panel takes them
        else:
            try:
                data = json.loads(await request.body() or b"{}")
            except ValueError:
                raise BadRequest("Malformed request body") from None
        body = parse(operation.body, data)
        answer = await run_in_threadpool(operation.run, body)
        return Response() if answer is None else JSONResponse(quirks.after(answer))

    async def hook(request: Request) -> Response:
        if request.method == "HEAD":  # the router adds it to GET, and it must not deploy
            raise NotFound("Not found")
        await run_in_threadpool(panel.hook, request.path_params["token"])
        return Response("Deploying...\n")

    async def page(_: Request) -> Response:
        return Response("EasyPanel stand-in, for development and tests only.\n")

    async def failed(_: Request, error: Exception) -> Response:
        problem = PanelError(f"Internal error: {error}")
        if isinstance(error, PanelError):
            problem = error
        elif isinstance(error, HTTPException):
            problem = NotFound("Not found")
        data = {"zodErrors": problem.fields} if problem.fields else {}
        body = {"code": problem.code, "message": problem.message, "data": data}
        return JSONResponse(body, status_code=problem.status)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/api/deploy/{token}", hook, methods=["GET", "POST"]),
            Route("/api/{operation}", call, methods=["GET", "POST"]),
        ],
        exception_handlers={PanelError: failed, HTTPException: failed, Exception: failed},
    )


def main() -> int:
    """Serve on port 3000 until stopped."""
    import uvicorn

    from .engine_api import EngineApi
    from .proxy import Proxy
    from .store import Store
    from .swarm import Swarm

    store = Store(DATA)
    proxy = Proxy()
    panel = Panel(
        store, Swarm(EngineApi(), PROJECTS), proxy, os.environ.get("RELEASE_TAG", "unknown")
    )
    proxy.apply(store.read())
    proxy.start()
    uvicorn.run(
        application(panel),
        host="0.0.0.0",  # noqa: S104 - the port is published, and the host's firewall guards it
        port=3000,
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    # A deploy under way is Swarm's to finish; nobody waits for the threads that watch it.
    os._exit(0)
