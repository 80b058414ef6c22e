"""Serve: `python -m cimt_api`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from types import FrameType

import uvicorn
from prometheus_client import start_http_server

from .app import application
from .http.edge import Edge
from .logs import JsonFormatter
from .settings import Settings, SettingsError, load

STREAM_END_SECONDS = 5  # after SHUTDOWN_SECONDS: for interrupted streams to say so, and be stored

log = logging.getLogger("cimt_api")


class DrainingServer(uvicorn.Server):
    """A server that goes on accepting for a while after SIGTERM: until then the load balancer may still send."""

    def __init__(self, config: uvicorn.Config, edge: Edge, settings: Settings) -> None:
        super().__init__(config)
        self.edge = edge
        self.settings = settings
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Start as uvicorn does, and remember the loop that signals are handed to."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain and then stop at the first SIGTERM; a second one, or SIGINT (Ctrl-C), stops at once."""
        if sig != signal.SIGTERM or self.edge.draining or self.loop is None:
            super().handle_exit(sig, frame)
            return
        self.edge.draining = True
        drain, shutdown = self.settings.drain_seconds, self.settings.shutdown_seconds
        log.info("SIGTERM: accepting for %g s more, then %d s for what is running", drain, shutdown)
        # A signal may interrupt anything: what follows is left to the loop.
        self.loop.call_soon_threadsafe(self.edge.stop_in, drain + shutdown)
        self.loop.call_soon_threadsafe(self.loop.call_later, drain, super().handle_exit, sig, frame)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    edge = application(settings)
    start_http_server(settings.metrics_port, addr=settings.host, registry=edge.registry)
    config = uvicorn.Config(
        edge,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds + STREAM_END_SECONDS,
    )
    DrainingServer(config, edge, settings).run()


def main() -> int:
    """Serve as the environment says. Returns 2, after one line for each, when variables are wrong or missing."""
    try:
        settings = load()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    with contextlib.suppress(KeyboardInterrupt):
        serve(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
