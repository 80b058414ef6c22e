"""Stand-in for the part of Supabase's management API that the CLI's `config diff` and `config push` ask.

It answers what the CLI 3.1 asks; what it writes was learnt by running it. auth_config.json is the shape of the answer
that the CLI wants then, every value empty.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REF = "abcdefghijklmnopqrst"  # of the project
EMPTY = json.loads(Path(__file__).with_name("auth_config.json").read_text())


class Management:
    """What Supabase keeps of one project."""

    def __init__(self) -> None:
        self.auth: dict[str, Any] = {"site_url": "http://localhost:3000", "jwt_expiry": 3600}
        self.written: list[dict[str, Any]] = []
        self.tokens: set[str] = set()

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        if method == "PATCH" and path == f"/v1/projects/{REF}/config/auth":
            self.written.append(json.loads(body))
            return {**EMPTY, **self.written[-1]}
        if path == f"/v2/projects/{REF}/config":
            attributes = {"auth": self.auth}
            return {"data": {"type": "project_config", "id": REF, "attributes": attributes}}
        if path == f"/v1/projects/{REF}/billing/addons":
            return {"selected_addons": [], "available_addons": []}
        database = {"host": "x", "version": "17", "postgres_engine": "17", "release_channel": "ga"}
        about = {"id": REF, "ref": REF, "name": "cimt", "region": "sa-east-1", "database": database}
        owner = {"organization_id": "o", "organization_slug": "o"}
        since = {"status": "ACTIVE_HEALTHY", "created_at": "2026-01-01T00:00:00Z"}
        return about | owner | since


@contextlib.contextmanager
def management(folder: Path) -> Iterator[tuple[Management, Path]]:
    """The stand-in, and the profile by which the CLI finds it."""
    kept = Management()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kept.tokens.add(self.headers.get("Authorization", ""))
            data = json.dumps(kept.answer(self.command, self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_PATCH(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    profile = folder / "profile.yaml"
    profile.write_text(
        f"name: stand-in\napi_url: {url}\ndashboard_url: {url}\nproject_host: supabase.co\n"
    )
    try:
        yield kept, profile
    finally:
        server.shutdown()
