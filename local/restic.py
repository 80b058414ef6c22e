"""restic, for the tests: Debian 13's package, which the local droplet has too."""

from __future__ import annotations

from pathlib import Path

from local.debian import unpacked
from local.settings import load


def program() -> Path:
    """The program, unpacked now when the cache does not have it: 29 MB. Raises LocalError."""
    return (
        unpacked(load().cache, "restic", ("restic", "libc6"), "usr/bin/restic") / "usr/bin/restic"
    )
