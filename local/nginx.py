"""nginx of Debian 13, which serves the web page in its image: unpacked, so that nothing is installed here."""

from __future__ import annotations

from pathlib import Path

from local.debian import unpacked

PACKAGES = ("nginx", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3t64", "libzstd1", "zlib1g")


def ensure(cache: Path) -> Path:
    """The folder with the `usr` of these packages, from the cache or made now. Raises LocalError."""
    return unpacked(cache, "nginx", PACKAGES, "usr/sbin/nginx")
