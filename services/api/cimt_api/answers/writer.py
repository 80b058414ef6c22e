"""How an answer is written: the question is stored, its passages are found, and the model is relayed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from ..http.problems import Problem
from ..metrics import Metrics
from ..model import Upstream, UpstreamError
from ..settings import Settings
from ..store.chats import Chats, Turn
from ..store.retrieval import Passage, Retriever
from . import prompt
from .answer import Answer
from .bill import EMBEDDED_BYTES, Bill
from .keeper import Keeper, Row

if TYPE_CHECKING:
    from collections.abc import Sequence

CHARACTERS_PER_TOKEN = 16  # more than any language has: stops a model that ignores its limit

TRACER = trace.get_tracer(__name__)  # costs nothing until a collector is configured (app.py)


@dataclass(eq=False, slots=True)
class Writing:
    """An answer that this process writes: its row, once there may be one, and when the model was heard last."""

    answer: Answer
    bill: Bill
    row: Row | None = None
    # When text or thought came, or the model was asked (monotonic); None: not asked yet.
    heard: float | None = None


class Writer:
    """Writes answers; what ends one is an event of the answer, never an exception."""

    def __init__(
        self,
        settings: Settings,
        chats: Chats,
        keeper: Keeper,
        retriever: Retriever,
        upstream: Upstream,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._chats = chats
        self._keeper = keeper
        self._retriever = retriever
        self._upstream = upstream
        self._metrics = metrics

    async def write(self, writing: Writing) -> None:
        """Write an answer to its end; follow it where the store shows that it was asked before."""
        answer, question, bill = writing.answer, writing.answer.question, writing.bill
        try:
            turns: Sequence[Turn] = question.turns or []
            if question.stored:
                writing.row = row = Row(answer, bill)
                begun = await self._chats.begin(
                    answer.user,
                    answer_id=answer.id,
                    conversation_id=answer.conversation_id,
                    named=question.named,
                    question=question.text,
                    model=answer.model,
                    embedding_model=await self._retriever.model()
                    if self._settings.retrieval_count
                    else None,
                    kept=None if question.kept is None else list(question.kept),
                    replaces=question.replaces,
                )
                answer.conversation_id = begun.stored.conversation_id
                if not begun.new:
                    writing.row = None
                    await self._keeper.watch(answer, begun.stored)
                    return
                row.begun = True
                turns = begun.history if question.turns is None else turns
        except Problem as problem:  # nothing is stored under this id by us
            writing.row = None
            answer.fail(problem)
            return
        try:
            passages = await self._search(answer, bill) if self._settings.retrieval_count else None
            answer.prompt(_sources(passages or []))
            messages = prompt.messages(
                question.text, passages, turns, self._settings, question.instructions
            )
            bill.asked(messages)
            await self._relay(writing, bill, messages)
        except UpstreamError as error:
            if not answer.text:
                bill.refused(error.kind)
            answer.fail(error.problem())
        except Problem as problem:
            answer.fail(problem)

    def overdue(self, writing: Writing) -> bool:
        """Tell whether the model has been silent for too long, or the answer takes longer than any may."""
        if time.monotonic() - writing.answer.started > self._settings.answer_seconds:
            return True
        patience = (  # seconds
            self._settings.openai_between_tokens_seconds
            if writing.answer.text
            else self._settings.openai_first_token_seconds
        )
        return writing.heard is not None and time.monotonic() - writing.heard > patience

    async def _search(self, answer: Answer, bill: Bill) -> list[Passage]:
        started = time.perf_counter()
        question = answer.question
        with TRACER.start_as_current_span("retrieval"):
            model = await self._retriever.model()
            beginning = question.text.encode()[:EMBEDDED_BYTES].decode(errors="ignore")
            (vector,) = await self._upstream.embed([beginning], model)
            bill.embedded(beginning, model)
            passages = await self._retriever.search(
                answer.user,
                question.text,
                vector,
                model=model,
                sources=question.sources,
                metadata=question.metadata,
            )
        self._metrics.retrieval.observe(time.perf_counter() - started)
        return passages

    async def _relay(self, writing: Writing, bill: Bill, messages: list[dict[str, str]]) -> None:
        """Let the answer grow as the model writes, to its limit of tokens; one without a word is a failure."""
        answer = writing.answer
        tokens = min(
            answer.question.tokens or self._settings.answer_tokens, self._settings.answer_tokens
        )
        left = tokens * CHARACTERS_PER_TOKEN
        finish = "stop"
        writing.heard = time.monotonic()
        with TRACER.start_as_current_span(f"chat {answer.model}", kind=SpanKind.CLIENT):
            async with contextlib.aclosing(self._upstream.stream(messages, tokens)) as deltas:
                async for delta in deltas:
                    finish = delta.finish or finish
                    answer.usage = delta.usage or answer.usage
                    if delta.text or delta.thought:
                        writing.heard = time.monotonic()
                        left -= len(delta.text) + delta.thought
                        bill.thought += delta.thought
                    if delta.text:
                        if not answer.text:
                            self._metrics.first_token.observe(writing.heard - answer.started)
                        answer.say(delta.text)
                    if delta.done or left < 0:
                        finish = finish if delta.done else "length"
                        if not answer.text and finish != "content_filter":
                            raise UpstreamError("upstream-empty")
                        answer.complete(finish)
                        if not delta.done:
                            return


def _sources(passages: Sequence[Passage]) -> list[dict[str, object]]:
    return [
        {
            "id": passage.id,
            "source": passage.source,
            "chunk": passage.chunk,
            "title": passage.title,
            "url": passage.source if passage.source.startswith(("https://", "http://")) else None,
            "passage": passage.content,
            "score": round(passage.score, 5),
        }
        for passage in passages
    ]
