"""Answers and the database: what is written here is stored as it grows, what others write is followed there."""

from __future__ import annotations

import asyncio
import logging
import time

from .answer import Answer, problem_of
from .chats import Chats, Stored
from .metrics import Metrics
from .problems import Problem

TOUCH_SECONDS = 3.0  # a row that is older than DEAD_SECONDS has lost its process
DEAD_SECONDS = 10.0
SAVES_AT_ONCE = 4
LAST_SAVE_SECONDS = 60.0  # how long it is tried to store the end of an answer
STOPPING_SAVE_SECONDS = 5.0  # the same, when the server is stopping
POLL_SECONDS = 0.3  # of an answer that another process writes

log = logging.getLogger(__name__)


class Keeper:
    """Stores the answers that are written here, and follows those that others write."""

    def __init__(self, chats: Chats, metrics: Metrics) -> None:
        self._chats = chats
        self._metrics = metrics
        self._turn = asyncio.Semaphore(SAVES_AT_ONCE)
        self.stopping = False

    def keep_up(self, answer: Answer) -> None:
        """Begin to store what has come since the last time, if it is time for that."""
        if not answer.stored or (answer.saving is not None and not answer.saving.done()):
            return
        if len(answer.text) > answer.saved or time.monotonic() - answer.touched > TOUCH_SECONDS:
            answer.saving = asyncio.create_task(self._save_in_turn(answer))

    async def save_end(self, answer: Answer) -> None:
        """Store how the answer ended, and try again for a while where that fails."""
        if answer.saving is not None:
            await asyncio.gather(answer.saving, return_exceptions=True)
        since = time.monotonic()
        pause = 0.2
        while not await self._save(answer):
            limit = STOPPING_SAVE_SECONDS if self.stopping else LAST_SAVE_SECONDS
            if time.monotonic() - since > limit:
                log.error("answer %s: its end could not be stored", answer.id)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def watch(self, answer: Answer, stored: Stored) -> None:
        """Follow an answer that another process writes, or one that has lost its process."""
        heard = time.monotonic() - stored.updated_age_seconds
        while not answer.done:
            if time.monotonic() - heard > DEAD_SECONDS:
                answer.problem = problem_of("interrupted")
                answer.end("failed", "interrupted")
                return
            await asyncio.sleep(POLL_SECONDS)
            try:
                found = await self._chats.load(answer.user, answer.id)
            except Problem:
                continue  # the database is away: for as long as a process may be
            if found is None:  # deleted meanwhile
                answer.problem = Problem(404, "There is no such answer", kind="not-found")
                answer.end("failed", "not-found")
                return
            heard = time.monotonic() - found.updated_age_seconds
            self.adopt(answer, found)

    def adopt(self, answer: Answer, stored: Stored) -> None:
        """Take over what the database says of an answer that is not written here."""
        answer.local = False
        answer.conversation_id = stored.conversation_id
        answer.model = stored.model
        answer.sources = stored.sources
        if stored.prompt_tokens is not None and stored.completion_tokens is not None:
            answer.usage = (stored.prompt_tokens, stored.completion_tokens)
        if len(stored.answer) > len(answer.text):
            answer.grow(stored.answer[len(answer.text) :])
        if stored.status != "streaming":
            if stored.status != "complete":
                answer.problem = problem_of(stored.error or "internal")
            answer.end(stored.status, stored.error)

    async def _save_in_turn(self, answer: Answer) -> None:
        # A few at a time: a slow database makes the batches larger, not the queue longer.
        async with self._turn:
            if not answer.done:  # the end is stored by who writes it
                await self._save(answer)

    async def _save(self, answer: Answer) -> bool:
        """Store the answer as it is now. Returns False when the database did not take it."""
        text, usage = answer.text, answer.usage or (None, None)
        milliseconds = round((time.monotonic() - answer.started) * 1000)
        try:
            await self._chats.save(
                answer.user,
                answer.id,
                answer=text,
                status=answer.status,
                error=answer.error,
                sources=answer.sources,
                prompt_tokens=usage[0],
                completion_tokens=usage[1],
                first_token_ms=answer.first_token_ms,
                duration_ms=milliseconds if answer.done else None,
            )
        except Problem as problem:
            log.warning("answer %s: not stored yet (%s)", answer.id, problem.kind)
            self._metrics.save_errors.inc()
            return False
        answer.saved = len(text)
        answer.touched = time.monotonic()
        return True
