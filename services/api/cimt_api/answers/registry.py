"""All answers of this process: asked, found again, written, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from uuid import UUID

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from . import prompt
from .answer import Answer, problem_of
from .auth import User
from .chats import Chats
from .keeping import Keeper
from .metrics import Metrics
from .problems import Problem
from .retrieval import Passage, Retriever
from .settings import Settings
from .upstream import Upstream, UpstreamError

SAVE_SECONDS = 1.0  # between batches of one answer
STORED_BEFORE_SECONDS = 3.0
GAP_SECONDS = 1.0  # a request that goes from waiting to streaming stops listening for a moment
KEPT = 1000  # finished answers in memory, when they are stored nowhere
CHARACTERS_PER_TOKEN = 16  # more than any language has: stops a model that ignores its limit

log = logging.getLogger(__name__)
TRACER = trace.get_tracer(__name__)  # costs nothing until a collector is configured (app.py)


class Answers:
    """All answers of this process, by id."""

    def __init__(
        self,
        settings: Settings,
        chats: Chats,
        retriever: Retriever,
        upstream: Upstream,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._chats = chats
        self._keeper = Keeper(chats, metrics)
        self._retriever = retriever
        self._upstream = upstream
        self._metrics = metrics
        self._running: dict[UUID, Answer] = {}
        self._finished: OrderedDict[UUID, Answer] = OrderedDict()
        self._tick: asyncio.Task[None] | None = None
        self._stop_at: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to store answers while they grow."""
        self._tick = asyncio.create_task(self._every_second())

    def stop_in(self, seconds: float) -> None:
        """Interrupt in so many seconds what is still being written then; it is stored as far as it got."""
        self._keeper.stopping = True
        if self._stop_at is None:
            self._stop_at = asyncio.get_running_loop().call_later(seconds, self._interrupt)

    async def close(self) -> None:
        """Wait until what is being written is stored, or interrupted at the moment that `stop_in` set."""
        if self._stop_at is None:
            self._interrupt()
        tasks = [answer.task for answer in self._running.values() if answer.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._tick is not None:
            self._tick.cancel()

    def generating(self) -> int:
        """Count the answers that this process writes."""
        return sum(answer.local and not answer.done for answer in self._running.values())

    def unsaved(self) -> int:
        """Count the answers with text that is not stored."""
        return sum(
            answer.stored and len(answer.text) > answer.saved for answer in self._running.values()
        )

    def find_here(self, user: User, answer_id: UUID) -> Answer | None:
        """Return the user's answer, None if this process does not have it. Raises Problem 409 for somebody else's."""
        answer = self._running.get(answer_id) or self._finished.get(answer_id)
        if answer is not None and answer.user.id != user.id:
            raise Problem(409, "This id is taken", "Choose another id.", kind="conflict")
        return answer

    async def find(self, user: User, answer_id: UUID) -> Answer:
        """Return the user's answer, from memory or from the database. Raises Problem 404 where there is none."""
        with contextlib.suppress(Problem):  # somebody else's does not exist for who asks
            if answer := self.find_here(user, answer_id):
                return answer
        stored = await self._chats.load(user, answer_id) if self._settings.chat_log else None
        if stored is None:
            raise Problem(404, "There is no such answer", kind="not-found")
        if answer := self.find_here(user, answer_id):  # another request was quicker
            return answer
        answer = Answer(answer_id, stored.conversation_id, user, stored.model)
        self._keeper.adopt(answer, stored)
        if not answer.done:
            self._run(answer, self._keeper.watch(answer, stored))
        return answer

    def ask(
        self,
        user: User,
        question: str,
        *,
        answer_id: UUID,
        conversation_id: UUID,
        sources: list[str] | None,
        metadata: dict[str, Any] | None,
        on_end: Callable[[], None],
    ) -> Answer:
        """Begin to write a new answer and return it; `on_end` is called when it is written no more."""
        answer = Answer(answer_id, conversation_id, user, self._settings.chat_model)
        self._run(answer, self._write(answer, question, sources, metadata), on_end)
        return answer

    @contextlib.contextmanager
    def following(self, answer: Answer) -> Iterator[None]:
        """Count one more listener inside the block; without any the answer is cancelled after RESUME_SECONDS."""
        answer.followers += 1
        if answer.alone is not None:
            answer.alone.cancel()
            answer.alone = None
        try:
            yield
        finally:
            answer.followers -= 1
            self._leave_alone(answer)

    def _leave_alone(self, answer: Answer) -> None:
        if not answer.followers and not answer.done:
            wait = self._settings.resume_seconds if answer.local else 0.0
            answer.alone = asyncio.get_running_loop().call_later(
                max(wait, GAP_SECONDS), answer.stop, "cancelled", "cancelled"
            )

    def _run(
        self,
        answer: Answer,
        work: Coroutine[Any, Any, None],
        on_end: Callable[[], None] | None = None,
    ) -> None:
        async def run() -> None:
            try:
                await work
            except asyncio.CancelledError:
                pass  # `stop` has said why
            except Exception:
                log.exception("answer %s", answer.id)
                answer.problem = problem_of("internal")
                answer.end("failed", "internal")
            answer.end("failed", "interrupted")
            if on_end is not None:
                on_end()
            try:
                if answer.local:
                    await self._after(answer)
            finally:
                self._running.pop(answer.id, None)

        self._running[answer.id] = answer
        answer.task = asyncio.create_task(run())
        self._leave_alone(answer)

    async def _write(
        self,
        answer: Answer,
        question: str,
        sources: list[str] | None,
        metadata: dict[str, Any] | None,
    ) -> None:
        settings = self._settings
        history: list[Any] = []
        try:
            if settings.chat_log:
                await self._stored_before(answer)
                begun = await self._chats.begin(
                    answer.user,
                    answer_id=answer.id,
                    conversation_id=answer.conversation_id,
                    question=question,
                    model=answer.model,
                    embedding_model=settings.embedding_model if settings.retrieval_count else None,
                )
                if not begun.new and begun.stored is not None:
                    self._keeper.adopt(answer, begun.stored)
                    await self._keeper.watch(answer, begun.stored)
                    return
                history = begun.history
                answer.stored = True
        except Problem as problem:  # nothing is stored under this id by us
            answer.local = False
            answer.problem = problem
            answer.end("failed", problem.kind)
            return
        try:
            passages = None
            if settings.retrieval_count:
                passages = await self._search(answer, question, sources, metadata)
            await self._relay(answer, prompt.messages(question, passages, history, settings))
        except UpstreamError as error:
            answer.problem = error.problem()
            answer.end("failed", error.kind)
        except Problem as problem:
            answer.problem = problem
            answer.end("failed", problem.kind)

    async def _stored_before(self, answer: Answer) -> None:
        """Wait until the last answer of the conversation is stored: a quick client asks on before it is."""
        last = {
            other.task
            for other in self._running.values()
            if other.conversation_id == answer.conversation_id and other.done and other.task
        }
        if last:
            await asyncio.wait(last, timeout=STORED_BEFORE_SECONDS)

    async def _search(
        self,
        answer: Answer,
        question: str,
        sources: list[str] | None,
        metadata: dict[str, Any] | None,
    ) -> list[Passage]:
        started = time.perf_counter()
        with TRACER.start_as_current_span("retrieval"):
            (vector,) = await self._upstream.embed([question])
            passages = await self._retriever.search(
                answer.user, question, vector, sources=sources, metadata=metadata
            )
        self._metrics.retrieval.observe(time.perf_counter() - started)
        answer.sources = [
            {
                "id": passage.id,
                "source": passage.source,
                "chunk": passage.chunk,
                "title": passage.title,
                "score": round(passage.score, 5),
            }
            for passage in passages
        ]
        return passages

    async def _relay(self, answer: Answer, messages: list[dict[str, str]]) -> None:
        limit = self._settings.answer_tokens * CHARACTERS_PER_TOKEN
        answer.asked = True
        answer.grown = time.monotonic()
        with TRACER.start_as_current_span(f"chat {answer.model}", kind=SpanKind.CLIENT):
            await self._stream(answer, messages, limit)

    async def _stream(self, answer: Answer, messages: list[dict[str, str]], limit: int) -> None:
        """Let the answer grow as the model writes, to `limit` characters."""
        async with contextlib.aclosing(
            self._upstream.stream(messages, self._settings.answer_tokens)
        ) as deltas:
            async for delta in deltas:
                if delta.finish:
                    answer.finish = delta.finish
                if delta.usage:
                    answer.usage = delta.usage
                if delta.text:
                    if answer.first_token_ms is None:
                        seconds = time.monotonic() - answer.started
                        answer.first_token_ms = round(seconds * 1000)
                        self._metrics.first_token.observe(seconds)
                    answer.grow(delta.text)
                    if len(answer.text) > limit:
                        answer.finish = "length"
                        answer.end("complete")
                        return
                if delta.done:  # the rest of the loop only lets the connection be used again
                    answer.end("complete")

    async def _after(self, answer: Answer) -> None:
        """Count the answer, and store how it ended."""
        if answer.alone is not None:
            answer.alone.cancel()
        self._metrics.answers.labels(answer.status).inc()
        if answer.usage is not None:
            self._metrics.tokens.labels("prompt").inc(answer.usage[0])
            self._metrics.tokens.labels("completion").inc(answer.usage[1])
        if answer.stored:
            await self._keeper.save_end(answer)
            return
        self._finished[answer.id] = answer
        if len(self._finished) > KEPT:
            self._finished.popitem(last=False)

    def _interrupt(self) -> None:
        for answer in list(self._running.values()):
            answer.problem = answer.problem or problem_of("interrupted")
            answer.stop("failed", "interrupted")

    async def _every_second(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            now = time.monotonic()
            for answer in list(self._running.values()):
                if not answer.local or answer.done:
                    continue
                patience = (  # seconds
                    self._settings.openai_between_tokens_seconds
                    if answer.text
                    else self._settings.openai_first_token_seconds
                )
                if answer.asked and now - answer.grown > patience:
                    answer.problem = problem_of("upstream-timeout")
                    self._metrics.upstream_errors.labels("upstream-timeout").inc()
                    self._upstream.breaker.failure()
                    answer.stop("failed", "upstream-timeout")
                else:
                    self._keeper.keep_up(answer)
