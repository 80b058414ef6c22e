"""A web site on loopback that misbehaves on purpose, and counts who asked for what."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answers = Callable[[BaseHTTPRequestHandler], None]
Page = bytes | str | tuple[int, dict[str, str], bytes] | Answers


class Site:
    """``pages``: by path a body (HTML, served with an ETag), a whole answer, or what answers by itself."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.seen: list[tuple[str, int]] = []
        self.connections = 0
        self.ending = threading.Event()  # what drips stops then
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                site.connections += 1
                super().setup()

            def log_message(self, *_: Any) -> None:
                return

            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    site._answer(self)

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()

    def asked(self, path: str) -> list[int]:
        """The statuses by which requests of a path were answered."""
        return [status for one, status in self.seen if one == path]

    def sitemap(self, *paths: str, times: str = "") -> tuple[int, dict[str, str], bytes]:
        """A sitemap of these paths."""
        time = f"<lastmod>{times}</lastmod>" if times else ""
        urls = "".join(f"<url><loc>{self.url}{path}</loc>{time}</url>" for path in paths)
        return 200, {"Content-Type": "application/xml"}, f"<urlset>{urls}</urlset>".encode()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        page = self.pages.get(request.path, (404, {}, b"not here"))
        if callable(page):
            self.seen.append((request.path, 0))
            page(request)
            return
        if isinstance(page, bytes | str):
            body = page.encode() if isinstance(page, str) else page
            tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            same = request.headers["If-None-Match"] == tag
            headers = {"Content-Type": "text/html; charset=utf-8", "ETag": tag}
            page = (304, headers, b"") if same else (200, headers, body)
        status, headers, body = page
        self.seen.append((request.path, status))
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        if status != 304 and "Content-Length" not in headers:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
