"""The panel's state: one JSON file, replaced as a whole."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import Internal

State = dict[str, Any]
"""Keys: ``users``, ``sessions``, ``projects``, ``apps``, ``domains``, ``actions`` (lists of
objects in the order of their creation), ``proxy`` (its own configuration, its
environment, and the one that it runs by since its last restart)."""


def _empty() -> State:
    lists: State = {
        key: [] for key in ("users", "sessions", "projects", "apps", "domains", "actions")
    }
    return lists | {"proxy": {"config": "", "env": "", "restarts": 0}}


class Store:
    """State in memory, written through to ``path``.

    A change is written to a temporary file, flushed to the disk and renamed over the old one, and
    only then becomes visible: a crash or a full disk at any moment leaves the old state whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_suffix(".tmp")
        self._lock = threading.RLock()
        self._state = _empty()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._temporary.unlink()  # a change that never happened
        if path.exists():
            try:
                self._state |= json.loads(path.read_text())
            except ValueError as error:
                raise SystemExit(
                    f"panel: {path} is not readable as JSON ({error}); it is left as it is. "
                    f"Next: restore it from a backup, or move it away and run setup again"
                ) from None

    def read(self) -> State:
        """The current state; callers must not change it."""
        return self._state

    @contextlib.contextmanager
    def change(self) -> Iterator[State]:
        """A copy of the state to change; kept when the block ends well and the disk took it."""
        with self._lock:
            state = copy.deepcopy(self._state)
            yield state
            try:
                self._write(json.dumps(state, separators=(",", ":")).encode())
            except OSError as error:
                with contextlib.suppress(OSError):
                    self._temporary.unlink()
                raise Internal(
                    f"The panel could not save its state ({error.strerror or error}); "
                    "nothing was changed. Next: df -h on the host"
                ) from error
            self._state = state

    def _write(self, data: bytes) -> None:
        descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(self._temporary, self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # so that the rename itself survives a power cut
        finally:
            os.close(directory)
