"""What git has at a revision, as a folder that is always removed."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


class UnknownRevision(ValueError):
    """Git has no such revision, or not the history that leads to it; the message says what to type."""


def _git(root: Path, *arguments: str) -> bytes:
    """What git prints. Raises UnknownRevision."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True)
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise UnknownRevision(
            f"git {arguments[0]} knows no {arguments[-1]!r} here ({said or 'no common history'}). "
            "Next: git fetch origin (in a shallow clone: git fetch --unshallow), or name another revision"
        )
    return done.stdout


def merge_base(base: str, root: Path = ROOT) -> str:
    """The commit at which what is checked out left `base`. Raises UnknownRevision."""
    return _git(root, "merge-base", "HEAD", base).decode().strip()


@contextlib.contextmanager
def exported(revision: str, root: Path = ROOT) -> Iterator[Path]:
    """A temporary folder with the files of a revision. Raises UnknownRevision."""
    packed = _git(root, "archive", "--format=tar", revision)
    with tempfile.TemporaryDirectory(prefix="cimt-revision-") as folder:
        # tar, because Python before 3.11.4 has no safe extraction.
        subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
        yield Path(folder)
