"""Things that take long to make, made once: a directory named by the hash of all that goes into it."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """A private directory that becomes `target` when the block ends well, and vanishes when it does not.

    Yields None when another process made the target while we waited for the lock.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # On stderr: the caller's stdout may be an answer, such as the name of an image.
            waiting = f"image: another run is making {target.name}; waiting for it"
            print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            yield None
            return
        for stale in target.parent.glob(f".{target.name}.part-*"):
            shutil.rmtree(stale)  # we hold the lock: whoever made it is dead
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
        part.chmod(0o755)
        try:
            yield part
            part.rename(target)
        finally:
            if part.exists():
                shutil.rmtree(part)
