"""Questions and answers in Postgres, each as the user who asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import errors
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from .auth import User, refusal
from .database import Database
from .problems import Problem

TITLE_LENGTH = 80  # characters of the first question
# What memory may be made of: more never fits a prompt, and need not travel.
HISTORY_TURNS = 20
HISTORY_LENGTH = 8000  # characters of a question, and of an answer
EXPIRE_LOCK = 0x63696D74  # "cimt": one process at a time
EXPIRE_SECONDS = 300.0

STORED = (
    "select id, conversation_id, question, answer, status, error, sources, model, prompt_tokens, "
    "completion_tokens, extract(epoch from now() - updated_at)::float8 as updated_age_seconds "
    "from public.chat_logs where id = %s"
)


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
    history: list[Turn]  # of the conversation, oldest first; empty when it is not new
    stored: Stored | None


class Chats:
    """Keeps answers while they grow."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        """Store the question, and its conversation when that is new, in one round trip.

        Raises Problem 404 when the conversation is another user's, 409 when the id is, or when it was used for
        another question; 401 when the account is gone.
        """
        try:
            async with self._database.as_user(user) as connection:
                # Not when the id is known: a repeated request without a conversation must not leave an empty one.
                await connection.execute(
                    "insert into public.conversations (id, user_id, title) select %s, %s, %s "
                    "where not exists (select from public.chat_logs where id = %s) on conflict (id) do nothing",
                    (conversation_id, user.id, _title(question), answer_id),
                )
                inserted = await connection.execute(
                    "with asked as (insert into public.chat_logs "
                    "(id, conversation_id, user_id, question, model, embedding_model) "
                    "values (%s, %s, %s, %s, %s, %s) on conflict (id) do nothing returning conversation_id) "
                    "update public.conversations set title = title where id in (select conversation_id from asked) "
                    "returning id",
                    (answer_id, conversation_id, user.id, question, model, embedding_model),
                )
                found = connection.cursor(row_factory=class_row(Stored))
                await found.execute(STORED, (answer_id,))
                turns = connection.cursor(row_factory=class_row(Turn))
                await turns.execute(
                    "select left(question, %s) as question, left(answer, %s) as answer from public.chat_logs "
                    "where conversation_id = %s and user_id = %s and id <> %s and answer <> '' "
                    "order by created_at desc limit %s",
                    (
                        HISTORY_LENGTH,
                        HISTORY_LENGTH,
                        conversation_id,
                        user.id,
                        answer_id,
                        HISTORY_TURNS,
                    ),
                )
        except errors.ForeignKeyViolation as error:
            if error.diag.constraint_name == "chat_logs_conversation_id_user_id_fkey":
                raise Problem(
                    404, "There is no such conversation", kind="conversation-not-found"
                ) from None
            raise refusal("The account does not exist any more.") from None
        if await inserted.fetchone():
            return Begun(new=True, history=(await turns.fetchall())[::-1], stored=None)
        stored = await found.fetchone()
        if stored is None or stored.conversation_id != conversation_id:
            await self._drop_if_empty(user, conversation_id)
        if stored is None or stored.question != question:
            raise Problem(
                409,
                "This id is in use",
                "Choose another id for another question.",
                kind="id-in-use",
            )
        return Begun(new=False, history=[], stored=stored)

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
        """Let the stored answer grow to `answer` (all of its text so far), and touch the row.

        A figure that is None stays as it is. An answer that has ended does not change any more. Returns False
        when nothing was stored: it had ended, was deleted, or is longer in the database than here.
        """
        async with self._database.as_user(user) as connection:
            updated = await connection.execute(
                "update public.chat_logs set answer = %(answer)s, status = %(status)s, "
                "error = coalesce(%(error)s, error), sources = coalesce(%(sources)s, sources), "
                "prompt_tokens = coalesce(%(prompt_tokens)s, prompt_tokens), "
                "completion_tokens = coalesce(%(completion_tokens)s, completion_tokens), "
                "first_token_ms = coalesce(%(first_token_ms)s, first_token_ms), "
                "duration_ms = coalesce(%(duration_ms)s, duration_ms) "
                "where id = %(id)s and status = 'streaming' and starts_with(%(answer)s, answer)",
                {
                    "id": answer_id,
                    "answer": answer.replace(
                        "\0", "\ufffd"
                    ),  # Postgres has no NUL; as many characters
                    "status": status,
                    "error": error[:200] if error else None,
                    "sources": None if sources is None else Jsonb(sources),
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "first_token_ms": first_token_ms,
                    "duration_ms": duration_ms,
                },
            )
        return updated.rowcount == 1

    async def load(self, user: User, answer_id: UUID) -> Stored | None:
        """Return the user's answer, or None where there is none of that id."""
        async with self._database.as_user(user) as connection:
            cursor = connection.cursor(row_factory=class_row(Stored))
            await cursor.execute(STORED, (answer_id,))
        return await cursor.fetchone()

    async def expire(self, days: int) -> int:
        """Delete what was asked more than `days` days ago. Returns their number, 0 if another process does it."""
        async with self._database.as_service(EXPIRE_SECONDS) as connection:
            deleted = await connection.execute(
                "select case when pg_try_advisory_xact_lock(%s) then private.delete_expired_chats(%s) else 0 end",
                (EXPIRE_LOCK, days),
            )
        row = await deleted.fetchone()
        return int(row[0]) if row else 0

    async def _drop_if_empty(self, user: User, conversation_id: UUID) -> None:
        """Delete a conversation that was made for a question which was not stored."""
        async with self._database.as_user(user) as connection:
            await connection.execute(
                "delete from public.conversations c where id = %s and not exists "
                "(select from public.chat_logs l where l.conversation_id = c.id)",
                (conversation_id,),
            )


def _title(question: str) -> str:
    """Return the first words of a question in one line."""
    words = " ".join(question[: TITLE_LENGTH * 4].split())
    if len(words) <= TITLE_LENGTH:
        return words
    return words[:TITLE_LENGTH].rsplit(" ", 1)[0] + "…"
