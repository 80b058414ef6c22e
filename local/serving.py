"""What the command lines of the stand-ins have in common."""

from __future__ import annotations

import argparse
from typing import Any

import uvicorn


def arguments(name: str, stands_for: str, switches: str = "") -> argparse.ArgumentParser:
    """The command line of `python -m local.NAME`, which wants the options of its own yet."""
    parser = argparse.ArgumentParser(
        prog=f"python -m local.{name}",
        description=f"Stand-in for {stands_for}, for development and tests only.",
        epilog=switches,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    levels = ["info", "warning", "error", "critical"]
    parser.add_argument("--log-level", default="warning", choices=levels)
    return parser


def serve(application: Any, given: argparse.Namespace, **options: Any) -> int:
    """Serve on loopback until stopped, with more options of uvicorn's; the exit code."""
    uvicorn.run(
        application,
        host="127.0.0.1",
        port=given.port,
        log_level=given.log_level,
        access_log=given.log_level == "info",
        timeout_graceful_shutdown=1,  # a stream that never ends must not keep this alive
        backlog=4096,
        **options,
    )
    return 0
