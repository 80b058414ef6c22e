"""The little server: it starts runs, each a process of its own, so that nothing of a run stays when it has ended."""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from .store import State

RUN_SECONDS = 3 * 3600.0  # a run that takes longer is ended
GOES_ON = {
    "running": True,
    "message": None,
    "note": "A run goes on. The next call tells what came of it.",
}


class Runs:
    """At most one run at a time; who asks meanwhile joins it."""

    def __init__(self, command: list[str], registry: CollectorRegistry) -> None:
        self.command = command
        self.task: asyncio.Task[dict[str, Any]] | None = None
        self.listeners: set[asyncio.Queue[dict[str, Any]]] = set()
        self.ended = Counter(
            "cimt_etl_runs", "Runs by what came of them.", ["result"], registry=registry
        )
        for result in ("read", "partly", "failed"):
            self.ended.labels(result)
        self.last = Gauge(
            "cimt_etl_last_run_timestamp_seconds", "When the last run ended.", registry=registry
        )
        self.counts = Gauge(
            "cimt_etl_documents", "Of the last run, by outcome.", ["outcome"], registry=registry
        )
        running = Gauge("cimt_etl_running", "1 while a run goes on.", registry=registry)
        running.set_function(lambda: float(self.going))

    @property
    def going(self) -> bool:
        """Whether a run goes on."""
        return self.task is not None and not self.task.done()

    def join(self, *options: str) -> asyncio.Task[dict[str, Any]]:
        """Return the run that goes on, or begin one."""
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._run(options))
        return self.task

    async def _run(self, options: tuple[str, ...]) -> dict[str, Any]:
        child = await asyncio.create_subprocess_exec(
            *self.command,
            "--json",
            *options,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        assert child.stdout and child.stderr  # noqa: S101, PT018 - both are pipes
        complaints = asyncio.create_task(child.stderr.read())
        report: dict[str, Any] | None = None
        try:
            async with asyncio.timeout(RUN_SECONDS):
                async for line in child.stdout:
                    event = json.loads(line)
                    report = event.get("report", report)
                    for listener in self.listeners:
                        listener.put_nowait(event)
                await child.wait()
        except TimeoutError:
            pass
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        said = (await complaints).decode(errors="replace").strip()
        if said:
            print(said[-4000:], file=sys.stderr, flush=True)
        if report is None:
            end = (
                f"it ended with {child.returncode}"
                if child.returncode != -9
                else "it took more memory or time than it may"
            )
            text = (said or end)[-1000:]
            note = {
                "level": "alarm",
                "title": "Seed ETL does not run",
                "text": text,
                "told": "does not run",
            }
            report = {"error": text, "failed": [], "not_read": 0, "message": note}
        result = "failed" if report["error"] else "partly" if report["not_read"] else "read"
        self.ended.labels(result).inc()
        self.last.set_to_current_time()
        for outcome in ("stored", "unchanged", "removed", "waiting", "not_read"):
            self.counts.labels(outcome).set(report.get(outcome, 0))
        return report

    async def follow(self, task: asyncio.Task[dict[str, Any]]) -> AsyncIterator[bytes]:
        """Yield a run's progress as lines of JSON, its report last."""
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.listeners.add(events)
        try:
            while not (task.done() and events.empty()):
                waiting = asyncio.create_task(events.get())
                await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
                if waiting.done() and "report" not in waiting.result():
                    yield json.dumps(waiting.result()).encode() + b"\n"
                waiting.cancel()
            yield json.dumps({"report": await task}).encode() + b"\n"
        finally:
            self.listeners.discard(events)


def application(arguments: argparse.Namespace, keys: list[str]) -> Starlette:
    """Return the routes."""
    registry = CollectorRegistry()
    command = [
        sys.executable,
        "-m",
        "cimt_etl",
        "run",
        str(arguments.sources),
        "--api",
        arguments.api,
    ]
    if arguments.state:
        command += ["--state", str(arguments.state)]
    runs = Runs(command, registry)

    def wrong(request: Request) -> Response | None:
        given = request.headers.get("authorization", "")
        taken = [hmac.compare_digest(given.encode(), f"Bearer {key}".encode()) for key in keys]
        if any(taken):
            return None
        return JSONResponse(
            {"error": "This needs the key ETL_KEY."}, 401, {"WWW-Authenticate": "Bearer"}
        )

    async def start(request: Request) -> Response:
        if refused := wrong(request):
            return refused
        query = request.query_params
        # Seconds after which it is answered in any case; at once where a run goes on: one who waits is enough.
        wait = query.get("wait", "")
        if wait and not wait.isdecimal():
            return JSONResponse({"error": "`wait` is a number of seconds."}, 422)
        if wait and runs.going:
            return JSONResponse(GOES_ON, 202)
        accept = query.get("accept", "")
        options = (["--due"] if "due" in query else []) + ([f"--accept={accept}"] if accept else [])
        task = runs.join(*options)
        if "ndjson" in request.headers.get("accept", ""):
            return StreamingResponse(runs.follow(task), media_type="application/x-ndjson")
        # Neither the time nor who leaves ends the run: others may wait for it.
        await asyncio.wait((task,), timeout=int(wait) if wait else None)
        return JSONResponse(task.result()) if task.done() else JSONResponse(GOES_ON, 202)

    async def listed(request: Request) -> Response:
        return wrong(request) or JSONResponse(State(arguments.state).runs())

    async def told(request: Request) -> Response:
        if refused := wrong(request):
            return refused
        State(arguments.state).tell(str((await request.json())["told"])[:64])
        return Response(status_code=204)

    async def healthy(_: Request) -> Response:
        return JSONResponse({"status": "ok", "revision": revision()})

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(generate_latest(registry))

    return Starlette(
        routes=[
            Route("/run", start, methods=["POST"]),
            Route("/runs", listed),
            Route("/told", told, methods=["POST"]),
            Route("/healthz", healthy),
            Route("/metrics", metrics),
        ]
    )


def revision() -> str:
    """Return the commit that the image was built from, where there is one."""
    try:
        with open("revision") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


def serve(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM; 2 when there is nothing to serve with."""
    # The one from before is taken too, while it changes hands.
    keys = [key for name in ("ETL_KEY", "ETL_KEY_OLD") if (key := os.environ.get(name, ""))]
    missing = [name for name in ("ETL_KEY", "INGEST_KEY") if not os.environ.get(name)]
    if missing:
        print(f"etl: {' and '.join(missing)} not set", file=sys.stderr)
        return 2
    uvicorn.run(
        application(arguments, keys), host=arguments.host, port=arguments.port, log_level="warning", access_log=False,
        server_header=False, timeout_graceful_shutdown=5,
    )  # fmt: skip
    return 0
