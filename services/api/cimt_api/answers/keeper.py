"""Answers and the database: what is written here is stored as it grows, what others write is followed there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ..http.problems import Problem
from ..metrics import Metrics
from ..model import Usage
from ..store.chats import DEAD_SECONDS, Chats, Stored
from ..store.money import Charge, Money
from .answer import Answer, State, problem_of
from .bill import Bill

TOUCH_SECONDS = 3.0  # a row that is older than DEAD_SECONDS has lost its process
SAVES_AT_ONCE = 4
LAST_SAVE_SECONDS = 60.0  # how long it is tried to store the end of an answer
STOPPING_SAVE_SECONDS = 5.0  # the same, when the server is stopping
POLL_SECONDS = 0.3  # of an answer that another process writes

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Row:
    """The row of an answer that is written here: how much of it is stored."""

    answer: Answer
    bill: Bill
    begun: bool = False  # False: perhaps it is not there yet
    saved: int = 0  # characters
    sourced: bool = False  # its sources are stored
    touched: float = field(default_factory=time.monotonic)  # when the row was last written
    saving: asyncio.Task[None] | None = None
    lost: bool = False  # deleted, or ended by another process


class Keeper:
    """Stores the answers that are written here, and follows those that others write."""

    def __init__(self, chats: Chats, money: Money, metrics: Metrics) -> None:
        self._chats = chats
        self._money = money
        self._metrics = metrics
        self._turn = asyncio.Semaphore(SAVES_AT_ONCE)
        self.stopping = False

    def keep_up(self, row: Row) -> None:
        """Begin to store what has come since the last time, if it is time for that."""
        if row.saving is not None and not row.saving.done():
            return
        if len(row.answer.text) > row.saved or time.monotonic() - row.touched > TOUCH_SECONDS:
            row.saving = asyncio.create_task(self._save_in_turn(row))

    async def save_end(self, row: Row) -> None:
        """Store how the answer ended and what it cost, and try again for a while where that fails."""
        if row.saving is not None:
            await asyncio.gather(row.saving, return_exceptions=True)
        await self._insist(row.answer, lambda: self._save(row))

    async def settle(self, answer: Answer, charge: Charge) -> None:
        """Store what an answer cost of which nothing else is stored, and try again in the same way."""

        async def settled() -> bool:
            try:
                await self._money.settle(answer.user, charge)
            except Problem:
                return False
            return True

        await self._insist(answer, settled)

    async def _insist(self, answer: Answer, attempt: Callable[[], Awaitable[bool]]) -> None:
        since = time.monotonic()
        pause = 0.2
        while not await attempt():
            limit = STOPPING_SAVE_SECONDS if self.stopping else LAST_SAVE_SECONDS
            if time.monotonic() - since > limit:
                log.error("answer %s: its end could not be stored", answer.id)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def watch(self, answer: Answer, stored: Stored) -> None:
        """Follow an answer that another process writes, or one that has lost its process."""
        heard = time.monotonic() - stored.updated_age_seconds
        self.adopt(answer, stored)
        while not answer.done:
            if time.monotonic() - heard > DEAD_SECONDS:
                answer.fail(problem_of("interrupted"))
                return
            await asyncio.sleep(POLL_SECONDS)
            try:
                found = await self._chats.load(answer.user, answer.id)
            except Problem:
                continue  # the database is away: for as long as a process may be
            if found is None:  # deleted meanwhile
                answer.fail(problem_of("not-found"))
                return
            heard = time.monotonic() - found.updated_age_seconds
            self.adopt(answer, found)

    def adopt(self, answer: Answer, stored: Stored) -> None:
        """Take over what the database says of an answer that is not written here."""
        answer.found(stored.conversation_id, stored.model, stored.sources)
        if stored.prompt_tokens is not None and stored.completion_tokens is not None:
            answer.usage = Usage(
                stored.prompt_tokens, stored.completion_tokens, stored.cached_tokens or 0
            )
        if len(stored.answer) > len(answer.text):
            answer.say(stored.answer[len(answer.text) :])
        if stored.status == "complete":
            answer.complete("stop")
        elif stored.error == "stopped":
            answer.stop()
        elif stored.status == "cancelled":
            answer.abandon()
        elif stored.status != "streaming":
            answer.fail(problem_of(stored.error or "internal"))

    async def _save_in_turn(self, row: Row) -> None:
        # A few at a time: a slow database makes the batches larger, not the queue longer.
        async with self._turn:
            if not row.answer.done:  # the end is stored by who writes it
                await self._save(row)

    async def _save(self, row: Row) -> bool:
        """Store the answer as it is now. Returns False when the database did not take it."""
        answer = row.answer
        text, usage = answer.text, answer.usage
        sourced = answer.state is not State.ASKED
        milliseconds = round((time.monotonic() - answer.started) * 1000)
        try:
            kept = await self._chats.save(
                answer.user,
                answer.id,
                answer=text,
                status=answer.status,
                error=answer.error,
                sources=None if row.sourced else answer.sources,
                usage=usage,
                first_token_ms=answer.first_token_ms,
                duration_ms=milliseconds if answer.done else None,
                charge=row.bill.charge(text, usage) if answer.done else None,
            )
        except Problem as problem:
            log.warning("answer %s: not stored yet (%s)", answer.id, problem.kind)
            self._metrics.save_errors.inc()
            return False
        row.lost = not kept
        row.sourced = row.sourced or sourced
        row.saved = len(text)
        row.touched = time.monotonic()
        return True
