"""An answer while it is written: it belongs to the process, not to the request that asked, and many may follow it."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID

from .auth import User
from .problems import Problem
from .upstream import KINDS, UpstreamError

# Ends that are not the model's: status, title.
ENDS = {
    "interrupted": (503, "The server stopped before the answer was complete"),
    "cancelled": (503, "Nobody was listening, so the answer was not completed"),
    "database": (503, "The database does not answer"),
    "internal": (500, "The server made a mistake"),
}


def problem_of(kind: str) -> Problem:
    """Return the problem of an answer that failed before any text came, by the kind that is stored with it."""
    if kind in KINDS:
        return UpstreamError(kind).problem()
    status, title = ENDS.get(kind, ENDS["internal"])
    return Problem(status, title, kind=kind, headers={"Retry-After": "5"} if status == 503 else {})


class Answer:
    """An answer: its text so far, how it stands, and the requests that wait for more."""

    def __init__(self, answer_id: UUID, conversation_id: UUID, user: User, model: str) -> None:
        self.id = answer_id
        self.conversation_id = conversation_id
        self.user = user
        self.model = model
        self.created = int(time.time())
        self.text = ""
        self.status = "streaming"
        self.error: str | None = None
        self.problem: Problem | None = None  # why it failed, when nothing of it was said
        self.finish = "stop"
        self.usage: tuple[int, int] | None = None  # tokens of prompt and answer
        self.sources: list[dict[str, Any]] = []
        self.local = True  # this process writes it
        self.first_token_ms: int | None = None
        self.started = time.monotonic()
        self.grown = self.started  # when text came last, or the model was asked (monotonic)
        self.asked = False  # the model was
        self.stored = False  # there is a row that we keep up to date
        self.saved = 0  # characters stored
        self.touched = self.started  # when the row was last written (monotonic)
        self.saving: asyncio.Task[None] | None = None
        self.followers = 0
        self.alone: asyncio.TimerHandle | None = None  # cancels the answer, unless somebody listens
        self.task: asyncio.Task[None] | None = None
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def done(self) -> bool:
        """Tell whether nothing more will come."""
        return self.status != "streaming"

    def grow(self, text: str) -> None:
        """Append text, and wake those who wait for it."""
        self.text += text
        self.grown = time.monotonic()
        self.wake()

    def end(self, status: str, error: str | None = None) -> None:
        """Set the final status and the kind of failure, if any; only the first call counts."""
        if not self.done:
            self.status = status
            self.error = error
            self.wake()

    def wake(self) -> None:
        """Let everyone who waits for a change look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def change(self) -> asyncio.Future[None]:
        """Return a future that is done at the next change; a follower may set it itself, to look up for a ping."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    def stop(self, status: str, error: str) -> None:
        """End the answer from outside: its text so far is kept, and the model is told to stop."""
        if not self.done:
            self.end(status, error)
            if self.task is not None:
                self.task.cancel()
