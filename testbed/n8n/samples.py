"""A small workflow with a credential, and the server that it calls: for tests of n8n's own life."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CREDENTIAL = {
    "id": "sample",
    "name": "Sample",
    "type": "httpHeaderAuth",
    "data": {"name": "Authorization", "value": "Bearer kept-in-the-volume"},
}


def workflow(url: str) -> dict[str, Any]:
    """POST to its webhook calls ``url`` with the credential; every execution is kept."""
    used = {"httpHeaderAuth": {"id": CREDENTIAL["id"], "name": CREDENTIAL["name"]}}
    return {
        "id": "sample",
        "name": "Sample",
        "nodes": [
            {
                "id": "1",
                "name": "Hook",
                "type": "n8n-nodes-base.webhook",
                "typeVersion": 2,
                "position": [0, 0],
                "parameters": {"path": "sample", "httpMethod": "POST"},
                "webhookId": "sample",
            },
            {
                "id": "2",
                "name": "Call",
                "type": "n8n-nodes-base.httpRequest",
                "typeVersion": 4.2,
                "position": [200, 0],
                "parameters": {
                    "url": url,
                    "authentication": "genericCredentialType",
                    "genericAuthType": "httpHeaderAuth",
                    "options": {"timeout": 600000},
                },
                "credentials": used,
            },
        ],
        "connections": {"Hook": {"main": [[{"node": "Call", "type": "main", "index": 0}]]}},
        "settings": {"executionOrder": "v1", "saveDataSuccessExecution": "all"},
    }


class Slow:
    """A server that answers when ``gate`` is open; ``called`` is set when somebody waits for it."""

    def __init__(self) -> None:
        self.gate, self.called = threading.Event(), threading.Event()
        self.keys: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.keys.append(self.headers.get("Authorization", ""))
                outer.called.set()
                outer.gate.wait(600)
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(b'{"answer": "yes"}')

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Let everybody go."""
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()
