"""Things that take long to make, made once: a directory named by the hash of all that goes into it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from local.settings import LocalError


def say(subject: str, text: str) -> None:
    """A line about what is being made, on stderr: the caller's stdout may be an answer, such as an image's name."""
    print(f"{subject}: {text}", file=sys.stderr, flush=True)


def run(
    subject: str,
    command: Sequence[str],
    cwd: Path | None = None,
    env: Mapping[str, str] = os.environ,
    *,
    within: Sequence[str] = (),
    then: str = "",
) -> None:
    """Run a step of making it, its output on stderr, as an argument of the command `within`.

    Raises LocalError, which ends with `then`.
    """
    path = f"{env.get('PATH', '')}:/usr/sbin:/sbin"
    first, *rest = [*within, *command]
    done = subprocess.run(
        [shutil.which(first, path=path) or first, *rest],
        cwd=cwd,
        env={**env, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=2,
    )
    if done.returncode:
        raise LocalError(
            f"{subject}: {command[0]} failed with exit code {done.returncode} (its output is above). {then}".strip()
        )


def key(inputs: Mapping[str, object]) -> str:
    """The name of what is made from these: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def made(
    subject: str, target: Path, inputs: Mapping[str, object], make: Callable[[Path], None]
) -> Path:
    """The directory `target`, made from `inputs` now when the cache does not have it; says what it does."""
    if target.is_dir():
        return target
    with building(target) as part:
        if part is not None:
            started = time.monotonic()
            say(subject, "making it, once …")
            make(part)
            (part / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n")
            say(subject, f"made in {time.monotonic() - started:.0f} s ({target})")
    return target


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
            say(target.name, "another run is making it; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            yield None
            return
        for stale in target.parent.glob(f".{target.name}.part-*"):
            _remove(stale)  # we hold the lock: whoever made it is dead
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
        part.chmod(0o755)
        try:
            yield part
            part.rename(target)
        finally:
            if part.exists():
                _remove(part)


def _remove(part: Path) -> None:
    """Delete what an unfinished build left, also what belongs to the users of its namespace."""
    try:
        shutil.rmtree(part)
    except PermissionError:
        part.chmod(0o777)  # the namespace's root is not us
        run(part.name, ["mmdebstrap", "--unshare-helper", "rm", "-rf", *map(str, part.iterdir())])
        part.rmdir()
