"""The passages that an answer is based on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from .auth import User
from .database import Database
from .settings import Settings

# Cosine similarity below which a passage supports nothing. Texts that have nothing to do with each other lie
# around 0.1 with text-embedding-3-small, and rarely above 0.2.
RELEVANCE = 0.2
TOKEN_BYTES = 3  # UTF-8 bytes of one token: English takes 4, Portuguese 3.5, Chinese 3. It errs to the safe side
WORDS = 1000  # characters of a question that full-text search looks at


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
    """How many tokens a text takes, estimated from its bytes; rather too many than too few."""
    return -(-len(text.encode()) // TOKEN_BYTES)


def halfvec(embedding: Sequence[float]) -> str:
    """An embedding as Postgres reads it. Half precision keeps three to four digits; more need not travel."""
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
        language: str,
    ) -> list[Passage]:
        """The passages to give to the model, best first; one round trip. `embedding` is that of the question.

        Only those that are relevant enough and fit RETRIEVAL_TOKENS: what is returned is what is cited.
        """
        async with self._database.as_user(user) as connection:
            rows = connection.cursor(row_factory=class_row(Passage))
            await rows.execute(
                "select id, source, chunk, content, metadata->>'title' as title, score, similarity "
                "from public.search_vectors(%s, %s, %s, %s, %s, %s)",
                (
                    halfvec(embedding),
                    question[:WORDS],
                    self._count,
                    sources or None,
                    Jsonb(metadata) if metadata else None,
                    language,
                ),
            )
        return fitting(await rows.fetchall(), self._budget)


def fitting(found: Sequence[Passage], budget: int) -> list[Passage]:
    """The relevant ones, best first, as far as `budget` tokens reach; a smaller one may still fit after a large one."""
    chosen: list[Passage] = []
    for passage in found:
        size = tokens(passage.content)
        if passage.similarity >= RELEVANCE and size <= budget:
            chosen.append(passage)
            budget -= size
    return chosen
