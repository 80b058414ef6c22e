"""At the end of a run: which versions of Postgres it was."""

from __future__ import annotations

import sys
from typing import Any

import pytest

_seen: set[str] = set()


def _started() -> set[str]:
    server = sys.modules.get("testbed.postgres")
    return server.STARTED if server else set()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands over what it started; without workers it is ours."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is None:
        _seen.update(_started())
    else:
        output["postgres"] = sorted(_started())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Of pytest-xdist: a worker has ended."""
    _seen.update(getattr(node, "workeroutput", {}).get("postgres", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line a version."""
    for version in sorted(_seen):
        terminalreporter.write_line(f"tested on {version}")
