"""What the environment may change, read and checked once at start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

LOG_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(Exception):
    """Every wrong variable, one line each."""


@dataclass(frozen=True)
class Settings:
    """Defaults suit the container, which publishes no port: the proxy reaches it by its network."""

    host: str = "0.0.0.0"  # noqa: S104 - the container's own address
    port: int = 8000  # public, behind the proxy
    metrics_port: int = 9090  # for scrapers on the internal network; the proxy does not route to it
    log_level: str = "info"
    drain_seconds: float = 3.0  # from SIGTERM until no new connection is accepted
    shutdown_seconds: int = 20  # after that, for requests that are still running
    max_body_bytes: int = 65536


def load(env: Mapping[str, str] = os.environ) -> Settings:
    """Read the variables; raises SettingsError naming every wrong one at once."""
    wrong: list[str] = []

    def number(name: str, default: float, low: float, high: float) -> float:
        text = env.get(name, "")
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            wrong.append(f"{name}={text!r} is not a number from {low:g} to {high:g}")
            return default
        return value

    level = env.get("LOG_LEVEL", "") or Settings.log_level
    if level not in LOG_LEVELS:
        wrong.append(f"LOG_LEVEL={level!r} is unknown: choose one of {', '.join(LOG_LEVELS)}")
    settings = Settings(
        host=env.get("HOST", "") or Settings.host,
        port=int(number("PORT", Settings.port, 1, 65535)),
        metrics_port=int(number("METRICS_PORT", Settings.metrics_port, 1, 65535)),
        log_level=level,
        drain_seconds=number("DRAIN_SECONDS", Settings.drain_seconds, 0, 60),
        shutdown_seconds=int(number("SHUTDOWN_SECONDS", Settings.shutdown_seconds, 1, 600)),
        max_body_bytes=int(number("MAX_BODY_BYTES", Settings.max_body_bytes, 0, 2**30)),
    )
    if settings.port == settings.metrics_port:
        wrong.append(f"PORT and METRICS_PORT are both {settings.port}: metrics must not be public")
    if wrong:
        raise SettingsError("\n".join(wrong))
    return settings
