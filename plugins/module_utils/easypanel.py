"""Client of the EasyPanel API, for modules that run on the droplet (standard library only).

Speaks the dialect of EasyPanel 2.33 and newer: ``GET /api/<operation>?a=b`` to read,
``POST /api/<operation>`` with a plain JSON body to write; the answer is the bare value.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

# The panel listens on loopback: a proxy from the environment must never see its token.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class PanelError(Exception):
    """The panel refused an operation, or did not answer.

    ``status`` is the HTTP status (0 when there was no answer).
    """

    def __init__(self, operation: str, status: int, message: str) -> None:
        super().__init__(f"panel: {operation}: {message}" + (f" (HTTP {status})" if status else ""))
        self.operation = operation
        self.status = status
        self.message = message


class Panel:
    """One panel at ``url`` (no trailing slash), with an API ``token`` once there is one."""

    def __init__(self, url: str, token: str | None = None, timeout: float = 60) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self.timeout = timeout

    def read(self, operation: str, **params: str) -> Any:
        """Answer of a read operation; parameters travel as strings."""
        query = "?" + urllib.parse.urlencode(params) if params else ""
        return self._request(operation, f"/api/{operation}{query}", None, self.timeout)

    def write(self, operation: str, timeout: float | None = None, **body: Any) -> Any:
        """Answer of a write operation (None when its answer is empty).

        ``timeout`` in seconds: a deploy blocks until it has finished.
        """
        data = json.dumps(body).encode()
        return self._request(operation, f"/api/{operation}", data, timeout or self.timeout)

    def fire_hook(self, token: str) -> None:
        """Ask for a deploy the way a pipeline does; says nothing about its outcome."""
        self._request("deploy hook", f"/api/deploy/{token}", b"", self.timeout)

    def _request(self, operation: str, path: str, data: bytes | None, timeout: float) -> Any:
        request = urllib.request.Request(self.url + path, data=data)  # noqa: S310 - the panel's own URL
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", self.token)
        try:
            with _opener.open(request, timeout=timeout) as response:
                text = response.read().decode()
        except urllib.error.HTTPError as error:
            raise PanelError(
                operation, error.code, _error_text(error.read().decode(errors="replace"))
            ) from None
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "reason", error)
            raise PanelError(operation, 0, f"no answer from {self.url}: {reason}") from None
        if operation == "deploy hook":
            return None
        return json.loads(text) if text else None


def _error_text(text: str) -> str:
    """The panel's own words from an error body, with the fields it complains about."""
    try:
        body = json.loads(text)
        fields = (body.get("data") or {}).get("zodErrors") or {}
        detail = ", ".join(f"{name}: {problem}" for name, problem in fields.items())
        return str(body["message"]) + (f" ({detail})" if detail else "")
    except (ValueError, KeyError, AttributeError):
        return text[:200] or "empty answer"


def open_panel(url: str, token_file: str) -> Panel:
    """Panel with the token that the ``easypanel`` role left on this host."""
    try:
        token = pathlib.Path(token_file).read_text().strip()
    except OSError as error:
        raise PanelError(
            "token",
            0,
            f"cannot read {token_file} ({error.strerror}); next: make provision",
        ) from None
    return Panel(url, token)


def write_file(path: str, text: str, mode: int = 0o600) -> None:
    """Replace ``path`` by ``text`` so that a crash leaves either the old or the new file whole."""
    target = pathlib.Path(path)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


# Of every module that uses the panel, and of every one that takes the lock.
PANEL_ARGUMENTS: dict[str, dict[str, Any]] = {
    "url": {"type": "str", "required": True},
    "token_file": {"type": "path", "required": True, "no_log": False},
}
LOCK_ARGUMENTS: dict[str, dict[str, Any]] = {
    "state_directory": {"type": "path", "required": True},
    "who": {"type": "str", "required": True},
    "lock_wait": {"type": "int", "default": 0},
    "newer": {"type": "list", "elements": "str", "default": []},
}


class Locked(Exception):
    """Somebody else changes the apps of this host; the text names who, since when and why."""


@contextlib.contextmanager
def host_lock(state_directory: str, who: str, purpose: str, wait: float) -> Iterator[None]:
    """Hold the one lock under which apps are changed on this host.

    The kernel drops an flock with its process, so a killed run leaves no stale lock behind.
    Waits up to ``wait`` seconds, then raises Locked with the holder's own words.
    """
    lock = pathlib.Path(state_directory, "release.lock")
    lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    with open(lock, "a+") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    stream.seek(0)
                    holder = stream.read().strip() or "another run that has just started"
                    raise Locked(f"the apps of this host are locked by {holder}") from None
                time.sleep(1)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        stream.truncate(0)
        stream.write(f"{who} since {started}: {purpose}\n")
        stream.flush()
        yield
        stream.truncate(0)


@contextlib.contextmanager
def failures(module: Any, when_locked: str, *others: type[Exception]) -> Iterator[None]:
    """End ``module`` with one line for what can go wrong on a host, and for errors that are ``others``.

    ``when_locked`` is what to type next while somebody else holds the lock.
    """
    known: tuple[type[Exception], ...] = (PanelError, *others)
    try:
        yield
    except Locked as error:
        module.fail_json(msg=f"{error}. Next: {when_locked}", locked=True)
    except known as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        usual = "a full disk is the usual reason"
        module.fail_json(msg=f"{error}. Next, on the droplet: df -h; {usual}")
