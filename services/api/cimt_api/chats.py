"""Questions and answers in Postgres, each as the user who asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from .auth import User
from .database import Database


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier question of the conversation with its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of chat_logs."""

    id: UUID
    conversation_id: UUID
    question: str
    answer: str
    status: str  # streaming, complete, cancelled, failed
    error: str | None
    sources: list[dict[str, Any]]
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    updated_age_seconds: float  # since the answer grew last


@dataclass(frozen=True, slots=True)
class Begun:
    """What `begin` found."""

    new: bool  # False: this id was asked before, by the same user; `stored` is how far it got
    history: list[Turn]  # of the conversation, oldest first
    stored: Stored | None


class Chats:
    """Keeps answers while they grow."""

    def __init__(self, database: Database) -> None: ...

    async def begin(
        self,
        user: User,
        *,
        answer_id: UUID,
        conversation_id: UUID,
        question: str,
        model: str,
        embedding_model: str | None,
    ) -> Begun:
        """Keep the question; makes the conversation when it is new. One round trip.

        Problem 404 when the conversation is another user's, 409 when the id is taken.
        """
        raise NotImplementedError

    async def save(
        self,
        user: User,
        answer_id: UUID,
        *,
        answer: str,
        status: str,
        error: str | None = None,
        sources: list[dict[str, Any]] | None = None,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        first_token_ms: int | None = None,
        duration_ms: int | None = None,
    ) -> bool:
        """Let the stored answer grow to `answer` (the whole of it so far), and touch the row."""
        raise NotImplementedError

    async def load(self, user: User, answer_id: UUID) -> Stored | None:
        """The user's answer, or None where there is none of that id."""
        raise NotImplementedError

    async def expire(self, days: int) -> int:
        """Delete what was asked more than `days` days ago; how many answers."""
        raise NotImplementedError
