"""Runs the API: public port 8000, metrics on 9090 (which the proxy does not route).

Settings by environment: LOG_LEVEL (info), DRAIN_SECONDS (3): how long it goes on accepting after SIGTERM,
so that the proxy has stopped sending before the port closes, GRACE_SECONDS (20) for answers under way.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

import uvicorn
from prometheus_client import start_http_server

from .app import create_app

PORT = 8000
METRICS_PORT = 9090


class Server(uvicorn.Server):
    """A server that keeps accepting for a moment after SIGTERM."""

    def __init__(self, config: uvicorn.Config, drain: float) -> None:
        super().__init__(config)
        self.drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Close at once on a second signal or Ctrl-C; else after the drain."""
        if sig != signal.SIGTERM or self.should_exit:
            super().handle_exit(sig, frame)
            return
        logging.getLogger("uvicorn.error").info("SIGTERM: draining for %s s", self.drain)
        timer = threading.Timer(self.drain, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()


def main() -> None:
    """Serve until SIGTERM."""
    host = os.environ.get("HOST", "0.0.0.0")  # noqa: S104 - the container's own address
    start_http_server(int(os.environ.get("METRICS_PORT", METRICS_PORT)), addr=host)
    config = uvicorn.Config(
        create_app(),
        host=host,
        port=int(os.environ.get("PORT", PORT)),
        log_level=os.environ.get("LOG_LEVEL", "info"),
        timeout_graceful_shutdown=int(os.environ.get("GRACE_SECONDS", "20")),
        server_header=False,
    )
    Server(config, float(os.environ.get("DRAIN_SECONDS", "3"))).run()


if __name__ == "__main__":
    main()
