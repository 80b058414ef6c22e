"""One answer, from its question to its end: a state machine that writers change and everybody else reads.

    question ──▶ ASKED ──prompt──▶ WRITING ──┐   say: the text grows
                   │                         ├──▶ COMPLETE · STOPPED · ABANDONED · FAILED
                   └───found───▶ FOLLOWED ───┘    (from ASKED too, but for COMPLETE)

| event    | fired by                    | means                                                                |
|----------|-----------------------------|----------------------------------------------------------------------|
| prompt   | the writer                  | its sources are known, and the model is asked                        |
| found    | the keeper                  | the store has it: another process writes it, or wrote it             |
| say      | the writer, or the keeper   | more text has come                                                   |
| complete | the writer, or the keeper   | the model has ended                                                  |
| stop     | the registry, or the keeper | its user wants no more of it                                         |
| abandon  | the registry, or the keeper | nobody listens any more                                              |
| fail     | any of them                 | a problem ended it; the text so far is kept                          |

An end is final: events after it change nothing, and whoever fired them is told so. An event that its state does not
know is a mistake of ours and raises. An answer belongs to the process, not to the request that asked for it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from ..http.auth import User
from ..http.problems import Problem
from ..model import KINDS, Usage, problem_of_kind
from ..store.chats import Turn

# Ends that are not the model's: status, title.
ENDS = {
    "interrupted": (503, "The server stopped before the answer was complete"),
    "cancelled": (503, "Nobody was listening, so the answer was not completed"),
    "database-unavailable": (503, "The database does not answer"),
    "not-found": (404, "There is no such answer"),
    "internal": (500, "The server made a mistake"),
}


class State(StrEnum):
    """Where an answer stands; the last four are ends."""

    ASKED = "asked"
    FOLLOWED = "followed"
    WRITING = "writing"
    COMPLETE = "complete"
    STOPPED = "stopped"
    ABANDONED = "abandoned"
    FAILED = "failed"


RUNNING = frozenset({State.ASKED, State.FOLLOWED, State.WRITING})
# Event: from which states, to which; None: stays where it is.
EVENTS: dict[str, tuple[frozenset[State], State | None]] = {
    "prompt": (frozenset({State.ASKED}), State.WRITING),
    "found": (frozenset({State.ASKED, State.FOLLOWED}), State.FOLLOWED),
    "say": (frozenset({State.WRITING, State.FOLLOWED}), None),
    "complete": (frozenset({State.WRITING, State.FOLLOWED}), State.COMPLETE),
    "stop": (RUNNING, State.STOPPED),
    "abandon": (RUNNING, State.ABANDONED),
    "fail": (RUNNING, State.FAILED),
}
# As a row of chat_logs says it.
STATUS = {State.STOPPED: "cancelled", State.ABANDONED: "cancelled"} | {
    state: state.value for state in (State.COMPLETE, State.FAILED)
}


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, by whom, and what is wanted of its answer."""

    user: User
    id: UUID  # of the answer
    conversation_id: UUID
    text: str
    named: bool = True  # the client named the conversation
    resumable: bool = False  # the client named the answer, and may come back for it
    stored: bool = True
    sources: list[str] | None = None  # only these documents
    metadata: dict[str, Any] | None = None  # only documents that have all of this
    instructions: str = ""  # of the client, beside our rules
    turns: list[Turn] | None = None  # what was said before; None: what the store has of it
    tokens: int | None = None  # of the answer, at most
    kept: frozenset[UUID] | None = None  # answers that stay, later ones go; None: all stay
    replaces: UUID | None = None  # this answer, and those after it


def problem_of(kind: str) -> Problem:
    """Return the problem of an answer that failed, by the kind that is stored with it."""
    if kind in KINDS:
        return problem_of_kind(kind)
    status, title = ENDS.get(kind, ENDS["internal"])
    return Problem(status, title, kind=kind, headers={"Retry-After": "5"} if status == 503 else {})


class Answer:
    """An answer: its state, its text so far, and the futures of those who wait for more."""

    def __init__(self, question: Question, model: str) -> None:
        self.question = question
        self.id = question.id
        self.user = question.user
        self.conversation_id = question.conversation_id
        self.model = model
        self.created = int(time.time())
        self.started = time.monotonic()
        self.state = State.ASKED
        self.text = ""
        self.sources: list[dict[str, Any]] = []
        self.finish = "stop"
        self.usage: Usage | None = None
        self.problem: Problem | None = None  # why it ended, unless it is complete or was stopped
        self.first_token_ms: int | None = None
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def done(self) -> bool:
        """Tell whether nothing more will come."""
        return self.state not in RUNNING

    @property
    def status(self) -> str:
        """Return the status as clients and the store know it: streaming, complete, cancelled, failed."""
        return STATUS.get(self.state, "streaming")

    @property
    def error(self) -> str | None:
        """Return why it was not completed, as a kind; None when it runs or is complete."""
        if self.state is State.STOPPED:
            return "stopped"
        return None if self.problem is None else self.problem.kind

    @property
    def void(self) -> bool:
        """Tell whether it ended without a word and not by its user's will: then it may be asked for again."""
        return self.state in (State.FAILED, State.ABANDONED) and not self.text

    def prompt(self, sources: list[dict[str, Any]]) -> bool:
        """Take the passages that it is based on; the model is asked now."""
        if not self._fire("prompt"):
            return False
        self.sources = sources
        self._wake()
        return True

    def found(self, conversation_id: UUID, model: str, sources: list[dict[str, Any]]) -> bool:
        """Take what the store says of an answer that is not written here."""
        if not self._fire("found"):
            return False
        self.conversation_id, self.model, self.sources = conversation_id, model, sources
        self._wake()
        return True

    def say(self, text: str) -> bool:
        """Append text."""
        if not self._fire("say"):
            return False
        if self.first_token_ms is None:
            self.first_token_ms = round((time.monotonic() - self.started) * 1000)
        self.text += text
        self._wake()
        return True

    def complete(self, finish: str) -> bool:
        """End as the model ended it: stop, length, content_filter."""
        self.finish = finish if not self.done else self.finish
        return self._end("complete", None)

    def stop(self) -> bool:
        """End by its user's will."""
        return self._end("stop", None)

    def abandon(self) -> bool:
        """End because nobody listens."""
        return self._end("abandon", problem_of("cancelled"))

    def fail(self, problem: Problem) -> bool:
        """End because of a problem."""
        return self._end("fail", problem)

    def change(self) -> asyncio.Future[None]:
        """Return a future that is done at the next change; who waits may set it, to look up for another reason."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    def _end(self, event: str, problem: Problem | None) -> bool:
        if not self._fire(event):
            return False
        self.problem = problem
        self._wake()
        return True

    def _fire(self, event: str) -> bool:
        """Go where the event leads. Returns False after the end; raises RuntimeError for what cannot happen here."""
        if self.done:
            return False
        sources, target = EVENTS[event]
        if self.state not in sources:
            raise RuntimeError(f"an answer that is {self.state} knows no {event}")
        self.state = target or self.state
        return True

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
