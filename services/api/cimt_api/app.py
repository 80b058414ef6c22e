"""The public application: `/healthz` and `POST /chat`."""

from __future__ import annotations

import pathlib
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import __version__

GREETING = "Hello, CIMT!"
MAX_BODY = 64 * 1024
"""Bytes that a request body may have."""

# Baked into the image as a file: a variable of the running container must not be able to shadow it.
REVISION_FILE = pathlib.Path(__file__).parent.parent / "revision"

REQUESTS = Counter("cimt_http_requests", "Requests answered", ["method", "path", "status"])
SECONDS = Histogram("cimt_http_request_seconds", "Time to answer a request", ["method", "path"])
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"strict-transport-security", b"max-age=31536000"),
]


def revision() -> str:
    """Git revision of this build; "unknown" where none was baked in."""
    return REVISION_FILE.read_text().strip() if REVISION_FILE.exists() else "unknown"


class Frame:
    """What every answer gets: security headers, a bound on the request body, and a measurement."""

    def __init__(self, app: ASGIApp, paths: frozenset[str]) -> None:
        self.app = app
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        # Unknown paths share one label: a scanner must not fill the memory with names.
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *SECURITY_HEADERS]
                REQUESTS.labels(scope["method"], path, message["status"]).inc()
                SECONDS.labels(scope["method"], path).observe(time.perf_counter() - started)
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY:
            await _too_large()(scope, receive, framed)
            return
        await self.app(scope, receive, framed)


def _too_large() -> JSONResponse:
    return JSONResponse({"detail": f"The body may have {MAX_BODY} bytes."}, status_code=413)


def create_app() -> FastAPI:
    """The application; reads its revision once."""
    app = FastAPI(title="CIMT API", version=__version__)
    baked = revision()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Alive, and which build this is."""
        return {"status": "ok", "version": __version__, "revision": baked}

    @app.post("/chat", response_model=None)
    async def chat(request: Request) -> Any:
        """Greets; the answer to a question comes with the chat itself."""
        size = 0
        async for part in request.stream():  # a chunked body states no length
            size += len(part)
            if size > MAX_BODY:
                return _too_large()
        return {"message": GREETING}

    app.add_middleware(Frame, paths=frozenset({"/healthz", "/chat"}))
    return app
