"""Traces: off until a collector is named, and then without a word of what people wrote."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from local.waiting import eventually
from testbed.api import Clouds, api, read

QUESTION = "How long is the warranty of the secret lamp?"


class Collector:
    """Takes what OTLP's HTTP exporters send; `spans` by name."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.raw = b""
        self.spans: dict[str, Any] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                return

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.paths.add(self.path)
                collector.raw += body
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans |= {span.name: span for span in scope.spans}
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_a_question_is_one_trace_without_its_words(
    collector: Collector, clouds: Clouds, folder: Path
) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    token = clouds.sign_in.token("ann@example.com")
    with api(folder, clouds.environment() | environment, until="/readyz") as traced:
        with traced.client(token) as client:
            assert read(client, "POST", "/chat", json={"message": QUESTION}).done
        wanted = {"POST /chat", "retrieval", "chat gpt-6-luna", "embeddings text-embedding-3-small"}
        eventually(lambda: wanted <= set(collector.spans), f"the spans {wanted}")
    assert len({collector.spans[name].trace_id for name in wanted}) == 1
    assert collector.paths == {"/v1/traces"}
    assert not [name for name in collector.spans if "healthz" in name or "readyz" in name]
    for secret in (QUESTION, "secret lamp", token, "sk-for-the-stand-in"):
        assert secret.encode() not in collector.raw
