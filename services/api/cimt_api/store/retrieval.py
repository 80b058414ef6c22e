"""The passages that an answer is based on."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from pgvector import HalfVector
from pgvector.psycopg.halfvec import HalfVectorBinaryDumper
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from ..http.auth import User
from ..settings import Settings
from .database import Database

# Cosine similarity below which a passage supports nothing. Texts that have nothing to do with each other lie
# around 0.1 with text-embedding-3-small, and rarely above 0.2.
RELEVANCE = 0.2
TOKEN_BYTES = 3  # UTF-8 bytes of one token: English takes 4, Portuguese 3.5, Chinese 3. It errs to the safe side
SEARCHED_LENGTH = 1000  # characters of a question whose words are searched
MODEL_KEPT_SECONDS = 5.0  # how long a change of the embedding model may stay unnoticed

log = logging.getLogger(__name__)

# In binary, a fifth of the text and made twenty times as quickly. The statement says what it is, so that no connection
# has to ask for the number of the type.
psycopg.adapters.register_dumper(HalfVector, HalfVectorBinaryDumper)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document."""

    id: int
    source: str
    chunk: int
    content: str
    title: str | None
    score: float  # of the fused ranking
    similarity: float  # cosine, -1 to 1


def tokens(text: str) -> int:
    """Estimate from its bytes how many tokens a text takes, rather too many than too few."""
    return -(-len(text.encode()) // TOKEN_BYTES)


class Retriever:
    """Searches what the user may read."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._count = settings.retrieval_count
        self._budget = settings.retrieval_tokens
        self._wanted = self._model = settings.embedding_model
        self._asked: float | None = None  # when the database named the model last (monotonic)

    async def model(self) -> str:
        """Return the model by which to embed: EMBEDDING_MODEL, or the last one while passages lack it (`make reembed`).

        Raises Problem 503 when the database does not answer.
        """
        if self._asked is None or time.monotonic() - self._asked > MODEL_KEPT_SECONDS:
            async with self._database.as_service() as connection:
                rows = await connection.execute("select private.served_model(%s)", (self._wanted,))
            ((model,),) = await rows.fetchall()
            if model != (self._wanted if self._asked is None else self._model):
                log.warning("passages are found by %s; EMBEDDING_MODEL is %s", model, self._wanted)
            self._model, self._asked = model, time.monotonic()
        return self._model

    async def search(
        self,
        user: User,
        question: str,
        embedding: Sequence[float],
        *,
        model: str,
        sources: list[str] | None,
        metadata: dict[str, Any] | None,
    ) -> list[Passage]:
        """Search for the passages to give to the model, in one round trip; `embedding` is of the question, by `model`.

        Returns those that are relevant enough and fit RETRIEVAL_TOKENS, best first: they are what is cited.
        """
        async with self._database.as_user(user) as connection:
            rows = connection.cursor(row_factory=class_row(Passage))
            await rows.execute(
                "select id, source, chunk, content, metadata->>'title' as title, score, similarity "
                "from private.search_passages(%s::extensions.halfvec, %s, %s, %s, %s, %s)",
                (
                    HalfVector(list(embedding)),
                    model,
                    question[:SEARCHED_LENGTH],
                    self._count,
                    sources or None,
                    Jsonb(metadata) if metadata else None,
                ),
            )
        return fitting(await rows.fetchall(), self._budget)


def fitting(passages: Sequence[Passage], budget: int) -> list[Passage]:
    """Choose the relevant passages that fit `budget` tokens; a small one may still fit after one that was too large."""
    chosen: list[Passage] = []
    for passage in passages:
        size = tokens(passage.content)
        if passage.similarity >= RELEVANCE and size <= budget:
            chosen.append(passage)
            budget -= size
    return chosen
