"""What a droplet starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Image:
    """A disk to start a droplet from. `kernel` and `initrd` are None for a disk with a boot loader."""

    name: str
    disk: Path
    format: str
    kernel: Path | None = None
    initrd: Path | None = None
