"""Serve: `python -m cimt_api`."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from types import FrameType

import uvicorn
from prometheus_client import start_http_server

from . import __version__
from .app import create_app, revision
from .edge import Edge, JsonFormatter
from .settings import Settings, SettingsError, load

log = logging.getLogger("cimt_api")


class DrainingServer(uvicorn.Server):
    """Goes on accepting for a while after SIGTERM: until then the load balancer may still send."""

    def __init__(self, config: uvicorn.Config, edge: Edge, drain_seconds: float) -> None:
        super().__init__(config)
        self.edge = edge
        self.drain_seconds = drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First SIGTERM: drain, then stop. A second one, or SIGINT (Ctrl-C), stops at once."""
        if sig != signal.SIGTERM or self.edge.draining:
            super().handle_exit(sig, frame)
            return
        self.edge.draining = True
        log.info("SIGTERM: draining for %g s", self.drain_seconds)
        # The server looks at `should_exit` ten times a second, so a thread may set it.
        timer = threading.Timer(self.drain_seconds, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    built_from = revision()
    edge = Edge(
        create_app(built_from),
        max_body_bytes=settings.max_body_bytes,
        version=__version__,
        revision=built_from,
    )
    start_http_server(settings.metrics_port, addr=settings.host, registry=edge.registry)
    config = uvicorn.Config(
        edge,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    DrainingServer(config, edge, settings.drain_seconds).run()


def main() -> int:
    """Exit code 2 and one line per wrong variable when the environment makes no sense."""
    try:
        settings = load()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    serve(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
