"""The passages that an answer is based on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


def halfvec(embedding: Sequence[float]) -> str:
    """Write an embedding as Postgres reads it. Half precision keeps three to four digits; more need not travel."""
    return "[" + ",".join([f"{number:.5g}" for number in embedding]) + "]"


class Retriever:
    """Searches what the user may read."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._count = settings.retrieval_count
        self._budget = settings.retrieval_tokens

    async def search(
        self,
        user: User,
        question: str,
        embedding: Sequence[float],
        *,
        sources: list[str] | None,
        metadata: dict[str, Any] | None,
    ) -> list[Passage]:
        """Search for the passages to give to the model, in one round trip; `embedding` is that of the question.

        Returns those that are relevant enough and fit RETRIEVAL_TOKENS, best first: they are what is cited.
        """
        async with self._database.as_user(user) as connection:
            rows = connection.cursor(row_factory=class_row(Passage))
            await rows.execute(
                "select id, source, chunk, content, metadata->>'title' as title, score, similarity "
                "from public.search_vectors(%s, %s, %s, %s, %s)",
                (
                    halfvec(embedding),
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
