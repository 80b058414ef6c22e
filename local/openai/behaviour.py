"""The switches: how the stand-in is told to be slow, rate-limited or broken, and what it remembers of its calls."""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .answers import text_of
from .errors import ApiError
from .models import Shutdowns

KINDS = ("normal", "slow", "rate_limited", "failing", "broken", "endless", "malformed")
# In the last message of the user, for who speaks to the model through an API of his own.
MARKER = re.compile(r"\[stand-in:([^\]]*)\]")
REMEMBERED = 50  # request bodies


@dataclass(frozen=True)
class Behaviour:
    """How one request is answered. Times in seconds.

    kind: normal, slow (waits `first` before the first token and `delay` between tokens), rate_limited (429 with
    `retry_after`), failing (`status`, `code`), broken (the connection is cut after `after` events), endless (tokens for
    as long as the client stays), malformed (a data line that is not JSON after `after` events).
    """

    kind: str = "normal"
    times: int | None = None  # for so many requests, then normal again; None: until told otherwise
    paths: tuple[str, ...] = ()  # only there, such as /v1/embeddings; empty: everywhere
    first: float = 0.0
    delay: float = 0.0
    retry_after: str = "1"  # seconds, or whatever a service may write there
    code: str = ""  # of the error
    status: int = 500
    after: int = 3
    text: str = ""  # the answer in place of what the passages say
    chunks: int = 0  # the answer is repeated or cut to so many tokens; 0: as long as it is

    @property
    def waits(self) -> bool:
        """Whether this answer can take long."""
        return self.kind == "endless" or bool(self.first or self.delay)


_TYPES = {
    "first": float,
    "delay": float,
    "times": int,
    "status": int,
    "after": int,
    "chunks": int,
}


def parse(given: dict[str, Any], default: Behaviour) -> Behaviour:
    """The behaviour in a JSON object; what it does not name is as in `default`. Raises ApiError 400."""
    known = [item.name for item in fields(Behaviour)]
    if not isinstance(given, dict) or set(given) - set(known):
        raise ApiError(400, f"a behaviour is an object with some of: {', '.join(known)}")
    values: dict[str, Any] = {"times": None, "paths": ()} | dict(given)
    for name, of in _TYPES.items():
        if values.get(name) is not None:
            try:
                values[name] = of(values[name])
            except (TypeError, ValueError):
                raise ApiError(400, f"{name} is not a number: {values[name]!r}") from None
            if values[name] < 0:
                raise ApiError(400, f"{name} is below zero")
    values |= {
        name: str(values[name]) for name in ("retry_after", "code", "text") if name in values
    }
    paths = values["paths"]
    values["paths"] = (paths,) if isinstance(paths, str) else tuple(map(str, paths))
    made = replace(default, **values)
    if made.kind not in KINDS:
        raise ApiError(400, f"kind is one of: {', '.join(KINDS)}")
    if made.kind == "slow" and not (made.first or made.delay):
        made = replace(made, first=2.0, delay=0.2)
    if made.kind == "endless" and not made.delay:
        made = replace(made, delay=0.01)
    return made


def marked(text: str, default: Behaviour) -> Behaviour:
    """The behaviour in ``slow; first=0.5``."""
    kind, *rest = [part.strip() for part in text.split(";")]
    values = dict(part.split("=", 1) for part in rest if "=" in part)
    return parse({"kind": kind, **{key.strip(): value for key, value in values.items()}}, default)


def wish(header: str | None, body: dict[str, Any], default: Behaviour) -> Behaviour | None:
    """What this request asks for itself: by the header X-Stand-In, or by ``[stand-in: slow]`` in the question."""
    if header:
        return marked(header, default)
    messages = body.get("messages") or body.get("input")
    if isinstance(messages, str):
        last = messages
    elif isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        last = text_of(messages[-1].get("content"))
    else:
        return None
    found = MARKER.search(last)
    return marked(found[1], default) if found else None


@dataclass
class Switch:
    """What is set for all requests, and the counters that tests read."""

    default: Behaviour = field(default_factory=Behaviour)
    current: Behaviour = field(default_factory=Behaviour)
    calls: Counter[str] = field(default_factory=Counter)
    inputs: int = 0  # texts embedded
    open: int = 0  # streams on their way
    shutdowns: Shutdowns = field(default_factory=dict)
    requests: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def __post_init__(self) -> None:
        self.current = self.default

    def take(self, path: str) -> Behaviour:
        """The behaviour for the next request to a path; counts `times` down."""
        current = self.current
        if current.paths and path not in current.paths:
            return self.default
        if current.times is None:
            return current
        left = current.times - 1
        if left < 0:
            self.current = self.default
            return self.default
        self.current = replace(current, times=left) if left else self.default
        return current

    def state(self) -> dict[str, Any]:
        """For GET /stand-in/calls."""
        return {
            "total": self.calls.total(),
            "paths": dict(self.calls),
            "embedded_texts": self.inputs,
            "open_streams": self.open,
        }

    def forget(self) -> None:
        """Counters from zero."""
        self.calls.clear()
        self.requests.clear()
        self.inputs = 0


def as_json(behaviour: Behaviour) -> bytes:
    """For the answer to PUT and GET /stand-in/behaviour."""
    return json.dumps(asdict(behaviour)).encode()
