"""What every request passes: size limit, request id, security headers, one log line, metrics. Buffers nothing."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..logs import request_id

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=31536000"),
]
# From a cached answer to a long streamed one, in seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

EVENT_STREAM = "text/event-stream; charset=utf-8"
STREAMED = (b"content-type", EVENT_STREAM.encode())

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("cimt_api.access")


class Edge:
    """The outermost ASGI layer.

    `draining` is set by the server after SIGTERM: answers then carry `Connection: close`, so that the
    proxy stops reusing its connections before they are cut. A stream always does: it may be what this
    process ends with, long after its head was sent, and a proxy that has its connection back then sends
    the next question into it, which is lost where it is a POST (proxies ask GET again by themselves).
    `stop_in` tells the application in how many seconds it must be done with what it is doing.
    """

    def __init__(
        self,
        app: ASGIApp,
        registry: CollectorRegistry,
        *,
        max_body_bytes: int,
        max_document_bytes: int,
        stop_in: Callable[[float], None],
        version: str,
        revision: str,
    ) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_document_bytes = max_document_bytes
        self.draining = False
        self.stop_in = stop_in
        self.registry = registry
        self.requests = Counter(
            "http_requests",
            "Finished requests.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "http_request_duration_seconds",
            "From the request's head to the last byte of the answer.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.running = Gauge(
            "http_requests_running", "Requests in progress.", registry=self.registry
        )
        build = Gauge(
            "cimt_api_build_info", "Always 1.", ["version", "revision"], registry=self.registry
        )
        build.labels(version, revision).set(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; an event of the server's life passes untouched."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500  # what the client gets when the application fails before it answers
        received = 0
        declared, identifier, encoded = self._head(scope)
        request_id.set(identifier.decode())
        documents = scope["path"].startswith("/documents/")
        limit = self.max_document_bytes if documents else self.max_body_bytes

        async def limited_receive() -> Message:
            nonlocal received
            # Refused before it is read where its length is declared, else as soon as it is too long.
            if declared > limit or received > limit:
                raise HTTPException(413, f"The body is larger than {limit} bytes.")
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, f"The body is larger than {limit} bytes.")
            if encoded and received:
                raise HTTPException(415, "Send the body as it is, without Content-Encoding.")
            return message

        async def marked_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), *SECURITY_HEADERS]
                headers.append((b"x-request-id", identifier))
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                if self.draining or STREAMED in headers:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        self.running.inc()
        try:
            await self.app(scope, limited_receive, marked_send)
        finally:
            self.running.dec()
            self._observe(scope, status, time.perf_counter() - started)

    @staticmethod
    def _head(scope: Scope) -> tuple[int, bytes, bool]:
        """Return the declared length of the body in bytes (0: not declared), the request's id, whether it is encoded.

        The server has checked that the length is a number. A client's id is kept where it is harmless.
        """
        length, client_id, encoded = 0, b"", False
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = int(value)
            elif name == b"content-encoding":
                encoded = value.strip().lower() not in (b"", b"identity")
            elif name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                client_id = value
        return length, client_id or os.urandom(8).hex().encode(), encoded

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        # Labels have few values whatever a client sends: the route's template, never the path.
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", "unmatched")
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)
        # Neither query, headers nor body: they may hold secrets and what people wrote.
        fields = {
            "method": method,
            "path": scope["path"][:200],
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
        }
        # The image's HEALTHCHECK asks every few seconds; its successes are no news.
        quiet = route == "/healthz" and status == 200
        log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})
