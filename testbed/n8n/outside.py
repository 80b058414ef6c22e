"""What the workflows talk to, on loopback: the API's pages, the etl, a recorder of messages."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

# By path, who may post there.
ETL_KEY = "etl-key-of-the-tests-0123456789abcdef"
KEYS = {"/notify": "key-of-the-webhook", "/run": ETL_KEY, "/told": ETL_KEY}


class Listener(ThreadingHTTPServer):
    """Takes as many calls at once as n8n makes: with the usual queue of five, the others wait a second."""

    request_queue_size = 256


class Outside:
    """A server whose answers a test changes while it runs.

    ``pages`` maps a path to (content type, body). ``broken`` maps a path to a status that it answers with instead.
    ``report`` is what the etl answers. ``messages`` are the bodies that were posted to /notify, ``posts`` those to any
    other path; ``seen`` all requests.
    """

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, bytes]] = {}
        self.broken: dict[str, int] = {}
        self.report: dict[str, Any] = {"stored": 0, "failed": [], "message": None}
        self.messages: list[dict[str, Any]] = []
        self.posts: dict[str, list[dict[str, Any]]] = {}
        self.seen: list[tuple[str, str, int]] = []
        self._lock = threading.Lock()
        outside = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                return

            def do_GET(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

            def _answer(self, body: bytes) -> None:
                with outside._lock:
                    status, kind, content = outside._respond(self, body)
                    outside.seen.append((self.command, self.path, status))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Outside:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def requests(self, method: str, prefix: str = "/") -> list[tuple[str, int]]:
        """Paths and answered statuses of the requests of a method."""
        with self._lock:
            return [
                (path, status)
                for verb, path, status in self.seen
                if verb == method and path.startswith(prefix)
            ]

    def forget(self) -> None:
        """Start counting requests and messages again."""
        with self._lock:
            self.seen.clear()
            self.messages.clear()
            self.posts.clear()

    def _respond(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, str, bytes]:
        path = urlsplit(request.path).path
        if path in self.broken:
            return self.broken[path], "text/plain", b"broken for a test"
        if path in KEYS and request.headers["Authorization"] != f"Bearer {KEYS[path]}":
            return 401, "text/plain", b"who are you"
        if path == "/notify":
            self.messages.append(json.loads(body))
            return 204, "text/plain", b""
        if path == "/run":
            return 200, "application/json", json.dumps(self.report).encode()
        if request.command == "POST":
            self.posts.setdefault(path, []).append(json.loads(body))
            return 200, "application/json", b'{"ok": true, "result": {}}'
        if path not in self.pages:
            return 404, "text/plain", b"not here"
        return 200, *self.pages[path]
