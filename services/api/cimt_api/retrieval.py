"""The passages that an answer is based on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .auth import User
from .database import Database
from .settings import Settings

Embed = Callable[[list[str]], Awaitable[list[list[float]]]]


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


class Retriever:
    """Searches what the user may read."""

    def __init__(self, database: Database, settings: Settings) -> None: ...

    async def search(
        self,
        user: User,
        question: str,
        *,
        sources: list[str] | None,
        metadata: dict[str, Any] | None,
        language: str,
        embed: Embed,
    ) -> list[Passage]:
        """The passages to give to the model, best first.

        Only those that are relevant enough and fit RETRIEVAL_TOKENS: what is returned is what is cited.
        """
        raise NotImplementedError
