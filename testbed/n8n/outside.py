"""What the workflows talk to, on loopback: a web site, a git server, the seam to our API, a recorder of messages."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

INGEST_KEY = "ingest-key-of-the-tests-0123456789abcdef"


class Listener(ThreadingHTTPServer):
    """Takes as many calls at once as n8n makes: with the usual queue of five, the others wait a second."""

    request_queue_size = 256


class Outside:
    """A server whose answers a test changes while it runs.

    ``pages`` maps a path to (content type, body); each is served with an ETag. ``broken`` maps a path to a status
    that it answers with instead. ``documents`` is what was ingested: name to the body of its PUT, as the API's
    `/documents` takes it. ``messages`` are the bodies that were posted to /notify, ``posts`` those to any other path;
    ``seen`` all requests.
    """

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, bytes]] = {}
        self.broken: dict[str, int] = {}
        self.documents: dict[str, dict[str, Any]] = {}
        self.messages: list[dict[str, Any]] = []
        self.posts: dict[str, list[dict[str, Any]]] = {}
        self.seen: list[tuple[str, str, int]] = []
        self.page_size = 2  # of the list of documents: small, so that a client must turn the page
        self._lock = threading.Lock()
        outside = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                return

            def do_GET(self) -> None:
                self._answer(b"")

            def do_HEAD(self) -> None:
                self._answer(b"")

            def do_PUT(self) -> None:
                self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

            def do_POST(self) -> None:
                self.do_PUT()

            def do_DELETE(self) -> None:
                self.do_GET()

            def _answer(self, body: bytes) -> None:
                with outside._lock:
                    status, kind, content, headers = outside._respond(self, body)
                    outside.seen.append((self.command, self.path, status))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if status != 304:
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if status != 304 and self.command != "HEAD":
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

    def _respond(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, str, bytes, dict[str, str]]:
        path = urlsplit(request.path).path
        if path in self.broken:
            return self.broken[path], "text/plain", b"broken for a test", {}
        if path == "/notify":
            if request.headers["Authorization"] != "Bearer key-of-the-webhook":
                return 401, "text/plain", b"who are you", {}
            self.messages.append(json.loads(body))
            return 204, "text/plain", b"", {}
        if path == "/documents" or path.startswith("/documents/"):
            status, answer = self._documents(request, body)
            return status, "application/json", json.dumps(answer).encode(), {}
        if request.command == "POST":
            self.posts.setdefault(path, []).append(json.loads(body))
            return 200, "application/json", b'{"ok": true, "result": {}}', {}
        if path not in self.pages:
            return 404, "text/plain", b"not here", {}
        kind, content = self.pages[path]
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        if request.headers["If-None-Match"] == tag:
            return 304, kind, b"", {"ETag": tag}
        return 200, kind, content, {"ETag": tag}

    def _documents(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Any]:
        if request.headers["Authorization"] != f"Bearer {INGEST_KEY}":
            return 401, {"title": "who are you"}
        url = urlsplit(request.path)
        name = unquote(url.path[len("/documents/") :])
        if request.command == "GET":
            query = parse_qs(url.query)
            after, limit = query.get("after", [""])[0], self.page_size
            names = sorted(one for one in self.documents if one > after)
            items = [
                {"source": one, "owner_id": None, "sha256": _sha256(self.documents[one]["content"])}
                for one in names[:limit]
            ]
            return 200, {"items": items, "next": names[limit - 1] if len(names) > limit else None}
        if request.command == "PUT":
            before = self.documents.get(name, {}).get("content")
            self.documents[name] = json.loads(body)
            same = before == self.documents[name]["content"]
            return 200, {
                "source": name,
                "sha256": _sha256(self.documents[name]["content"]),
                "chunks": 1,
                "embedded": 0 if same else 1,
                "unchanged": 1 if same else 0,
                "removed": 0,
            }
        return (
            (200, {"removed": 1})
            if self.documents.pop(name, None)
            else (404, {"title": "not there"})
        )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
