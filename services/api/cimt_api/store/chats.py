"""Questions and answers in Postgres, each as the user who asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import errors
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from ..http.auth import User, refusal
from ..http.problems import Problem
from ..model import Usage
from .database import Database
from .money import Charge

TITLE_LENGTH = 80  # characters of the first question
# What memory may be made of: more never fits a prompt, and need not travel.
HISTORY_TURNS = 20
HISTORY_LENGTH = 8000  # characters of a question, and of an answer
EXPIRE_LOCK = 0x63696D74  # "cimt": one process at a time
EXPIRE_SECONDS = 300.0

DEAD_SECONDS = 10.0  # a row that streams and was not touched for so long has lost its process

STORED = (
    "select id, conversation_id, question, answer, status, error, sources, model, prompt_tokens, "
    "completion_tokens, cached_tokens, extract(epoch from now() - updated_at)::float8 as updated_age_seconds "
    "from public.chat_logs where "
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
    cached_tokens: int | None
    updated_age_seconds: float  # since the answer grew last

    def answers(self, question: str, conversation_id: UUID | None) -> bool:
        """Tell whether it is of this question, and of this conversation where one is named."""
        return self.question == question and conversation_id in (None, self.conversation_id)

    @property
    def void(self) -> bool:
        """Tell whether it ended without a word and not by its user's will: `begin` asks it anew."""
        dead = self.status == "streaming" and self.updated_age_seconds > DEAD_SECONDS
        ended = self.status in ("failed", "cancelled") and self.error != "stopped"
        return not self.answer and (dead or ended)


@dataclass(frozen=True, slots=True)
class Begun:
    """What `begin` found."""

    new: bool  # False: this id was asked before, by the same user, and there is something of it
    history: list[Turn]  # of the conversation, oldest first; empty when it is not new
    stored: Stored  # as it is now


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
        named: bool,
        question: str,
        model: str,
        embedding_model: str | None,
        kept: list[UUID] | None,
        replaces: UUID | None,
    ) -> Begun:
        """Store the question, and its conversation when that is new, in one round trip.

        An id of which there is not a word is asked anew, unless it was stopped. An answer that is replaced goes with
        all after it: `replaces` names it, or `kept` those before it. Raises Problem 404 when the conversation is
        another user's, 409 when the id is, or when it was used for another question, or (`named`) in another
        conversation; 401 when the account is gone.
        """
        values = (
            *(answer_id, conversation_id, named, user.id, question, _title(question), model),
            *(embedding_model, kept, replaces, DEAD_SECONDS, HISTORY_TURNS, HISTORY_LENGTH),
        )
        try:
            async with self._database.as_user(user) as connection:
                rows = await connection.execute(
                    "select * from private.store_question("
                    "%s, %s, %s, %s, %s, %s, %s, %s, %s::uuid[], %s, %s, %s, %s)",
                    values,
                )
        except errors.ForeignKeyViolation as error:
            if error.diag.constraint_name == "chat_logs_conversation_id_user_id_fkey":
                raise Problem(
                    404, "There is no such conversation", kind="conversation-not-found"
                ) from None
            raise refusal("The account does not exist any more.") from None
        ((new, *columns, questions, answers),) = await rows.fetchall()
        stored = Stored(*columns) if columns[0] else None
        if stored is not None and new:
            history = [Turn(*turn) for turn in zip(questions or (), answers or (), strict=True)]
            return Begun(new=True, history=history, stored=stored)
        if stored is None or stored.conversation_id != conversation_id:
            await self._drop_if_empty(user, conversation_id)
        if stored is None or not stored.answers(question, conversation_id if named else None):
            raise id_in_use()
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
        usage: Usage | None = None,
        first_token_ms: int | None = None,
        duration_ms: int | None = None,
        charge: Charge | None = None,
    ) -> bool:
        """Let the stored answer grow to `answer` (all of its text so far), and touch the row.

        A figure that is None stays as it is. An answer that has ended does not change any more, but its charge is
        spent all the same, once. Returns False when nothing was stored: it had ended, was deleted, or is longer in the
        database than here.
        """
        try:
            async with self._database.as_user(user) as connection:
                if charge is not None:
                    await charge.settle(connection)
                updated = await connection.execute(
                    "update public.chat_logs set answer = %(answer)s, status = %(status)s, "
                    "error = coalesce(%(error)s, error), sources = coalesce(%(sources)s, sources), "
                    "prompt_tokens = coalesce(%(prompt_tokens)s, prompt_tokens), "
                    "completion_tokens = coalesce(%(completion_tokens)s, completion_tokens), "
                    "cached_tokens = coalesce(%(cached_tokens)s, cached_tokens), "
                    "embedding_tokens = coalesce(%(embedding_tokens)s, embedding_tokens), "
                    "cost_micro_usd = coalesce(%(cost)s, cost_micro_usd), "
                    "first_token_ms = coalesce(%(first_token_ms)s, first_token_ms), "
                    "duration_ms = coalesce(%(duration_ms)s, duration_ms) "
                    "where id = %(id)s and status = 'streaming' and starts_with(%(answer)s, answer)",
                    {
                        "id": answer_id,
                        "answer": answer,
                        "status": status,
                        "error": error[:200] if error else None,
                        "sources": None if sources is None else Jsonb(sources),
                        "prompt_tokens": None if usage is None else usage.prompt,
                        "completion_tokens": None if usage is None else usage.completion,
                        "cached_tokens": None if usage is None else usage.cached,
                        "embedding_tokens": None if charge is None else charge.embedding,
                        "cost": None if charge is None else charge.micro_usd,
                        "first_token_ms": first_token_ms,
                        "duration_ms": duration_ms,
                    },
                )
        except errors.ForeignKeyViolation:
            return False  # the account has just gone, and with it the answer
        return updated.rowcount == 1

    async def load(self, user: User, answer_id: UUID) -> Stored | None:
        """Return the user's answer, or None where there is none of that id."""
        async with self._database.as_user(user) as connection:
            cursor = connection.cursor(row_factory=class_row(Stored))
            await cursor.execute(STORED + "id = %s", (answer_id,))
        return await cursor.fetchone()

    async def running(self, user: User, conversation_id: UUID) -> Stored | None:
        """Return the newest answer of the user's conversation that a process is writing, or None."""
        async with self._database.as_user(user) as connection:
            cursor = connection.cursor(row_factory=class_row(Stored))
            await cursor.execute(
                f"{STORED} conversation_id = %(conversation)s and user_id = %(user)s and status = 'streaming' "
                "and updated_at > now() - make_interval(secs => %(dead)s) order by created_at desc limit 1",
                {"conversation": conversation_id, "user": user.id, "dead": DEAD_SECONDS},
            )
        return await cursor.fetchone()

    async def stop(self, user: User, answer_id: UUID) -> None:
        """End an answer that another process writes, and free its place; that one is told at its next renewal."""
        async with self._database.as_user(user) as connection:
            await connection.execute("select private.let_go(%s)", (answer_id,))
            await connection.execute(
                "update public.chat_logs set status = 'cancelled', error = 'stopped' "
                "where id = %s and status = 'streaming'",
                (answer_id,),
            )

    async def expire(self, days: int) -> int:
        """Delete what was asked more than `days` days ago. Returns their number, 0 if another process does it."""
        async with self._database.as_service(EXPIRE_SECONDS) as connection:
            deleted = await connection.execute(
                "select case when pg_try_advisory_xact_lock(%s) then private.delete_expired_chats(%s) else 0 end",
                (EXPIRE_LOCK, days),
            )
        row = await deleted.fetchone()
        return int(row[0]) if row else 0

    async def last_expiry(self) -> tuple[float, int] | None:
        """Return when old answers were deleted last, in seconds since 1970, and how many; None: never."""
        async with self._database.as_service() as connection:
            rows = await connection.execute(
                "select extract(epoch from ran_at)::float8, answers from private.retention_runs "
                "order by ran_at desc limit 1"
            )
        return await rows.fetchone()

    async def _drop_if_empty(self, user: User, conversation_id: UUID) -> None:
        """Delete a conversation that was made for a question which was not stored."""
        async with self._database.as_user(user) as connection:
            await connection.execute(
                "delete from public.conversations c where id = %s and not exists "
                "(select from public.chat_logs l where l.conversation_id = c.id)",
                (conversation_id,),
            )


def id_in_use() -> Problem:
    """Make the Problem 409 of an id that something else has."""
    return Problem(
        409, "This id is in use", "Choose another id for another question.", kind="id-in-use"
    )


def _title(question: str) -> str:
    """Return the first words of a question in one line."""
    words = " ".join(question[: TITLE_LENGTH * 4].split())
    if len(words) <= TITLE_LENGTH:
        return words
    return words[:TITLE_LENGTH].rsplit(" ", 1)[0] + "…"
