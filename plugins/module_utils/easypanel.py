"""Client of the EasyPanel API, for modules that run on the droplet (standard library only).

Speaks the dialect of EasyPanel 2.33 and newer: ``GET /api/<operation>?a=b`` to read,
``POST /api/<operation>`` with a plain JSON body to write; the answer is the bare value.
Older panels have other transports, which are refused by name and not spoken.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
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

TESTED = "2.33.1"
"""The version of the panel that this repository is tested against."""
OLDEST = (2, 33)
NEXT_VERSION = f"tested: {TESTED}. Next: set easypanel_version to a tested one, then make provision"
UNAVAILABLE = (502, 503, 504)
"""What a proxy answers for a panel that restarts."""
NOT_READY = (0, *UNAVAILABLE)
TEXTS = ("getCustomConfig", "getEnv")
"""Of the panel's proxy: they answer a text, or nothing for an empty one."""
PROXY_PORTS = (80, 443)
PANEL_PORT = 3000
PATIENCE = 30.0
"""Seconds over which a call is repeated that a restart of the panel got in the way of."""


class PanelError(Exception):
    """The panel refused an operation, did not answer, or answered what nobody can make sense of.

    ``status`` is the HTTP status (0 when there was no answer).
    """

    def __init__(self, operation: str, status: int, message: str) -> None:
        super().__init__(f"panel: {operation}: {message}" + (f" (HTTP {status})" if status else ""))
        self.operation = operation
        self.status = status
        self.message = message


class Answer(dict[str, Any]):
    """An object of the panel's answer to ``operation``: asking it for what it has not is a PanelError."""

    operation = ""

    def __missing__(self, name: str) -> Any:
        raise PanelError(self.operation, 200, f"the answer has no '{name}'; {NEXT_VERSION}")

    def text(self, name: str) -> str:
        """The text under ``name``. Raises PanelError when there is none, or an empty one."""
        if not isinstance(value := self[name], str) or not value:
            raise PanelError(
                self.operation, 200, f"the answer's '{name}' is no text; {NEXT_VERSION}"
            )
        return value


def of_its_shape(operation: str, answer: Any) -> Any:
    """What a read operation answered. Raises PanelError when it never should: text for a list, a list for an object."""
    if operation in TEXTS:
        sound = answer is None or isinstance(answer, str)
    elif operation.startswith("list") and operation != "listProjectsAndServices":
        sound = isinstance(answer, list) and all(isinstance(one, dict) for one in answer)
    else:
        sound = isinstance(answer, bool if operation.startswith("can") else dict)
    if not sound:
        shown = json.dumps(answer)[:80]
        raise PanelError(operation, 200, f"answered {shown}, which it never should; {NEXT_VERSION}")
    return answer


def parsed_version(text: object) -> tuple[int, ...] | None:
    """A version such as 2.33.1 as numbers, comparable; None for anything else."""
    parts = str(text).removeprefix("v").split(".")
    return tuple(map(int, parts)) if len(parts) >= 2 and all(map(str.isdecimal, parts)) else None


class Panel:
    """One panel at ``url`` (no trailing slash), with an API ``token`` once there is one.

    ``timeout`` and ``patience`` in seconds: for one answer, and for repeating a call while the panel restarts.
    """

    def __init__(
        self, url: str, token: str | None = None, timeout: float = 60, patience: float = PATIENCE
    ) -> None:
        self.url = url.rstrip("/")
        self.token = token
        self.timeout = timeout
        self.patience = patience

    def read(self, operation: str, **params: str) -> Any:
        """Answer of a read operation; parameters travel as strings. Repeated while the panel restarts.

        Raises PanelError, also for an answer that is not of the operation's shape.
        """
        query = "?" + urllib.parse.urlencode(params) if params else ""
        answer = self._repeated(operation, f"/api/{operation}{query}", None, self.timeout, True)
        return of_its_shape(operation, answer)

    def write(self, operation: str, timeout: float | None = None, **body: Any) -> Any:
        """Answer of a write operation (None when its answer is empty).

        ``timeout`` in seconds: a deploy blocks until it has finished. What may be done twice without harm is
        repeated while the panel restarts, anything else only where it never reached the panel.
        """
        data = json.dumps(body).encode()
        twice = operation.startswith("update") or operation == "login"
        path = f"/api/{operation}"
        return self._repeated(operation, path, data, timeout or self.timeout, twice)

    def fire_hook(self, token: str) -> None:
        """Ask for a deploy the way a pipeline does; says nothing about its outcome."""
        self._repeated("deploy hook", f"/api/deploy/{token}", b"", self.timeout, False)

    def version(self) -> str:
        """What the panel is, such as 2.33.1. Raises PanelError when it is older than what is spoken, or unknown."""
        try:
            version = str(self.read("getUpdateStatus").text("version"))
        except PanelError as error:
            if error.status in (200, 404, 405):
                told = f"this panel speaks another API than {OLDEST[0]}.{OLDEST[1]} and newer"
                raise PanelError(
                    "getUpdateStatus", error.status, f"{told}; {NEXT_VERSION}"
                ) from None
            raise
        numbers = parsed_version(version)
        if numbers is None or numbers < OLDEST or numbers[0] != OLDEST[0]:
            told = f"version {version} of the panel is not one that is known here"
            raise PanelError("getUpdateStatus", 200, f"{told}; {NEXT_VERSION}")
        return version

    def _repeated(
        self, operation: str, path: str, data: bytes | None, timeout: float, twice: bool
    ) -> Any:
        """One answer; asked for again, ever slower, while the panel restarts and that does no harm."""
        deadline, pause = time.monotonic() + self.patience, 0.2
        while True:
            try:
                return self._request(operation, path, data, timeout)
            except _Unreached as error:
                if not (twice or error.unsent) or time.monotonic() + pause > deadline:
                    raise PanelError(operation, error.status, error.message) from None
            time.sleep(pause)
            pause = min(pause * 2, 2)

    def _request(self, operation: str, path: str, data: bytes | None, timeout: float) -> Any:
        request = urllib.request.Request(self.url + path, data=data)  # noqa: S310 - the panel's own URL
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", self.token)
        try:
            with _opener.open(request, timeout=timeout) as response:
                text = response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            with contextlib.suppress(OSError, http.client.HTTPException):
                text = error.read().decode(errors="replace")
            kind = _Unreached if error.code in UNAVAILABLE else PanelError
            raise kind(operation, error.code, _error_text(text)) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            message = f"no answer from {self.url}: {reason}"
            if isinstance(reason, TimeoutError):  # it may still be at it
                raise PanelError(operation, 0, message) from None
            failure = _Unreached(operation, 0, message)
            failure.unsent = isinstance(reason, ConnectionRefusedError)
            raise failure from None
        if operation == "deploy hook":
            return None

        def named(pairs: dict[str, Any]) -> Answer:
            answer = Answer(pairs)
            answer.operation = operation
            return answer

        try:
            return json.loads(text, object_hook=named) if text.strip() else None
        except ValueError:
            shown = " ".join(text.split())[:80]
            raise PanelError(
                operation, 200, f"answered no JSON but: {shown}; {NEXT_VERSION}"
            ) from None


class _Unreached(PanelError):
    """The call did not get through; ``unsent`` when it certainly changed nothing."""

    unsent = False


def _error_text(text: str) -> str:
    """The panel's own words from an error body, with the fields it complains about."""
    try:
        body = json.loads(text)
        fields = (body.get("data") or {}).get("zodErrors") or {}
        detail = ", ".join(f"{name}: {problem}" for name, problem in fields.items())
        return str(body["message"]) + (f" ({detail})" if detail else "")
    except (ValueError, KeyError, AttributeError, TypeError):
        return " ".join(text.split())[:200] or "empty answer"


def open_panel(url: str, token_file: str) -> Panel:
    """Panel with the token that the ``easypanel`` role left on this host, of a version that is spoken.

    Raises PanelError with what to do, before anything has been changed.
    """
    try:
        token = pathlib.Path(token_file).read_text().strip()
    except OSError as error:
        raise PanelError(
            "token",
            0,
            f"cannot read {token_file} ({error.strerror}); next: make provision",
        ) from None
    panel = Panel(url, token)
    try:
        panel.version()
    except PanelError as error:
        if error.status in (401, 403):
            told = (
                f"the panel does not take the token in {token_file} any more; next: make provision"
            )
            raise PanelError("token", error.status, told) from None
        raise
    return panel


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
