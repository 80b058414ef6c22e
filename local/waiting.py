"""Waiting for what a process that has just started will do, and a port for it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
WAIT_SECONDS = 120.0  # a bound for slow machines, no expectation


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(
    condition: Callable[[], T],
    description: str,
    seconds: float = WAIT_SECONDS,
    process: subprocess.Popen[Any] | None = None,
) -> T:
    """The first true value of the condition.

    Raises TimeoutError when there is none within so many seconds, or once ``process`` has ended.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if process and process.poll() is not None:
            raise TimeoutError(f"{description}: the process has ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{description}: not within {seconds:g} s")
        time.sleep(0.05)
    return value
