"""Processes of this machine, as /proc shows them."""

from __future__ import annotations

from pathlib import Path


def running(process: int) -> bool:
    """Whether it has not ended; one that nobody has asked how it ended has."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def children(process: int) -> list[int]:
    """The processes that its first thread has started and that are still known."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(one) for one in text.split()]
