"""What a user has asked, and who they are: read, rename, delete. Row-level security keeps everybody to their own."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict, Field

from ..http.auth import refusal
from ..http.fields import Text, position, position_of
from ..http.problems import Problem, documented
from .dependencies import WITH_TOKEN, CurrentUser, ServicesOf, admitting, current_user
from .schemas import AnswerSource

router = APIRouter(tags=["Mine"], route_class=admitting(current_user))

PAGE = 20
PAGE_MAX = 100
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="How many at most.")]
Cursor = Annotated[
    str | None,
    Query(max_length=200, description="`next` of the page before; none for the first page."),
]
FAILURES = documented(401, 422, 503)


class Conversation(BaseModel):
    """A thread of questions and answers."""

    id: UUID
    title: str | None = Field(examples=["How do I reset my password?"])
    created_at: datetime
    updated_at: datetime = Field(description="When something was asked in it last.")


class Conversations(BaseModel):
    """A page, the newest first."""

    items: list[Conversation]
    next: str | None = Field(description="`cursor` of the next page; null on the last one.")


class Answer(BaseModel):
    """A question with its answer."""

    id: UUID
    question: str
    answer: str = Field(description="As much of it as has come.")
    status: str = Field(examples=["complete"], description="streaming, complete, cancelled, failed")
    error: str | None
    sources: list[AnswerSource]
    model: str = Field(examples=["gpt-6-luna"])
    rating: Literal["up", "down"] | None = Field(description="What its user found it worth.")
    created_at: datetime


class ConversationPage(Conversation):
    """A conversation and a page of its answers, the newest first."""

    items: list[Answer]
    next: str | None = Field(description="`cursor` of the next, older page; null on the last one.")


class ConversationChange(BaseModel):
    """What a user may change of a conversation."""

    model_config = ConfigDict(extra="forbid")

    title: Annotated[Text, Field(min_length=1, max_length=200, pattern=r"\S")] = Field(
        examples=["Passwords"]
    )


class Feedback(BaseModel):
    """What an answer was worth to its user."""

    model_config = ConfigDict(extra="forbid")

    rating: Literal["up", "down"] | None = Field(description="null takes it back.")
    words: Annotated[Text, Field(max_length=2000)] | None = Field(
        None, examples=["The second step is missing."]
    )


class Export(BaseModel):
    """All that a user asked and was answered."""

    conversations: list[dict[str, Any]]


class Me(BaseModel):
    """The signed-in user."""

    id: UUID
    email: str | None = Field(examples=["ann@example.com"])
    display_name: str | None = Field(examples=["Ann"])
    created_at: datetime


class MeChange(BaseModel):
    """What a user may change."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"display_name": "Ann"}]}
    )

    display_name: Annotated[Text, Field(max_length=200)] | None


class Deleted(BaseModel):
    """What was deleted."""

    conversations: int = Field(examples=[3])


@router.get(
    "/conversations",
    summary="My conversations",
    response_model=Conversations,
    responses=FAILURES,
    openapi_extra=WITH_TOKEN,
)
async def list_conversations(
    user: CurrentUser,
    services: ServicesOf,
    limit: Limit = PAGE,
    cursor: Cursor = None,
    q: Annotated[
        Annotated[Text, Field(max_length=200)] | None,
        Query(description="Only those whose title or questions hold this text."),
    ] = None,
) -> dict[str, Any]:
    """List them in pages, the newest first."""
    wanted = None if not q else re.sub(r"([\\%_])", r"\\\1", q)
    async with services.database.as_user(user) as connection:
        rows = connection.cursor(row_factory=dict_row)
        await rows.execute(
            "select id, title, created_at, updated_at from public.conversations where user_id = %(user)s "
            "and (updated_at, id) < (%(when)s, %(id)s) "
            "and (%(q)s::text is null or title ilike '%%' || %(q)s || '%%' or exists (select from public.chat_logs l "
            "where l.conversation_id = conversations.id and l.question ilike '%%' || %(q)s || '%%')) "
            "order by updated_at desc, id desc limit %(limit)s",
            {**_bounds(user.id, limit, cursor), "q": wanted},
        )
    return _page(await rows.fetchall(), limit, "updated_at")


@router.delete(
    "/conversations",
    summary="Delete all my conversations",
    response_model=Deleted,
    responses=documented(401, 503),
    openapi_extra=WITH_TOKEN,
)
async def delete_conversations(user: CurrentUser, services: ServicesOf) -> dict[str, int]:
    """Delete them with every question and answer, for good."""
    async with services.database.as_user(user) as connection:
        rows = await connection.execute(
            "delete from public.conversations where user_id = %s", (user.id,)
        )
    return {"conversations": rows.rowcount}


@router.get(
    "/conversations/{conversation_id}",
    summary="One of my conversations with its answers",
    response_model=ConversationPage,
    responses=documented(401, 404, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def read_conversation(
    conversation_id: UUID,
    user: CurrentUser,
    services: ServicesOf,
    limit: Limit = PAGE,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """Read it with its answers in pages, the newest first."""
    async with services.database.as_user(user) as connection:
        head = connection.cursor(row_factory=dict_row)
        await head.execute(
            "select id, title, created_at, updated_at from public.conversations where id = %s and user_id = %s",
            (conversation_id, user.id),
        )
        rows = connection.cursor(row_factory=dict_row)
        await rows.execute(
            "select id, question, answer, status, error, sources, model, rating, created_at from public.chat_logs "
            "where conversation_id = %(conversation)s and user_id = %(user)s "
            "and (created_at, id) < (%(when)s, %(id)s) order by created_at desc, id desc limit %(limit)s",
            {"conversation": conversation_id, **_bounds(user.id, limit, cursor)},
        )
    conversation = await head.fetchone()
    if conversation is None:
        raise _missing()
    return {**conversation, **_page(await rows.fetchall(), limit, "created_at")}


@router.patch(
    "/conversations/{conversation_id}",
    summary="Rename one of my conversations",
    response_model=Conversation,
    responses=documented(400, 401, 404, 413, 415, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def rename_conversation(
    conversation_id: UUID, change: ConversationChange, user: CurrentUser, services: ServicesOf
) -> dict[str, Any]:
    """Give it another title than the words of its first question."""
    async with services.database.as_user(user) as connection:
        rows = connection.cursor(row_factory=dict_row)
        await rows.execute(
            "update public.conversations set title = %s where id = %s and user_id = %s "
            "returning id, title, created_at, updated_at",
            (change.title, conversation_id, user.id),
        )
    conversation = await rows.fetchone()
    if conversation is None:
        raise _missing()
    return conversation


@router.put(
    "/chat/{answer_id}/feedback",
    summary="Say what an answer was worth",
    status_code=204,
    responses=documented(400, 401, 404, 413, 415, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def rate_answer(
    answer_id: UUID, feedback: Feedback, user: CurrentUser, services: ServicesOf
) -> None:
    """Keep it with the answer; sent again it replaces what was said before."""
    async with services.database.as_user(user) as connection:
        rows = await connection.execute(
            "update public.chat_logs set rating = %s, feedback = %s where id = %s and user_id = %s",
            (feedback.rating, feedback.words, answer_id, user.id),
        )
    if rows.rowcount == 0:
        raise Problem(404, "There is no such answer", kind="not-found")


@router.get(
    "/me/export",
    summary="All my conversations",
    response_model=Export,
    responses=documented(401, 503),
    openapi_extra=WITH_TOKEN,
)
async def export_conversations(user: CurrentUser, services: ServicesOf) -> Response:
    """Send all that I asked and was answered, as one JSON document."""
    async with services.database.as_user(user) as connection:
        rows = await connection.execute(
            "select jsonb_build_object('conversations', coalesce(jsonb_agg(to_jsonb(c) || jsonb_build_object('items', "
            "coalesce((select jsonb_agg(to_jsonb(l) order by l.created_at) from public.chat_logs l "
            "where l.conversation_id = c.id), '[]'))  order by c.created_at), '[]'))::text "
            "from public.conversations c where user_id = %s",
            (user.id,),
        )
    row = await rows.fetchone()
    return Response(row[0] if row else "{}", media_type="application/json")


@router.delete(
    "/conversations/{conversation_id}",
    summary="Delete one of my conversations",
    status_code=204,
    responses=documented(401, 404, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def delete_conversation(
    conversation_id: UUID, user: CurrentUser, services: ServicesOf
) -> None:
    """Delete it with its questions and answers, for good. An answer that is being written is not kept."""
    async with services.database.as_user(user) as connection:
        rows = await connection.execute(
            "delete from public.conversations where id = %s and user_id = %s",
            (conversation_id, user.id),
        )
    if rows.rowcount == 0:
        raise _missing()


@router.get(
    "/me",
    summary="Who I am",
    response_model=Me,
    responses=documented(401, 503),
    openapi_extra=WITH_TOKEN,
)
async def read_me(user: CurrentUser, services: ServicesOf) -> dict[str, Any]:
    """Read the account that the token names, and the name of its profile."""
    async with services.database.as_user(user) as connection:
        rows = connection.cursor(row_factory=dict_row)
        await rows.execute(
            "select id, display_name, created_at from public.users where id = %s", (user.id,)
        )
    return _me(await rows.fetchone(), user.email)


@router.patch(
    "/me",
    summary="Change my name",
    response_model=Me,
    responses=documented(400, 401, 413, 415, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def change_me(change: MeChange, user: CurrentUser, services: ServicesOf) -> dict[str, Any]:
    """Change the display name; `null` takes it away."""
    async with services.database.as_user(user) as connection:
        rows = connection.cursor(row_factory=dict_row)
        await rows.execute(
            "update public.users set display_name = %s where id = %s returning id, display_name, created_at",
            (change.display_name, user.id),
        )
    return _me(await rows.fetchone(), user.email)


def _me(row: dict[str, Any] | None, email: str | None) -> dict[str, Any]:
    if row is None:
        raise refusal("The account does not exist any more.")
    return {**row, "email": email}


def _missing() -> Problem:
    """Make the Problem 404, the same for what is not there and for what is another user's."""
    return Problem(404, "There is no such conversation", kind="conversation-not-found")


def _bounds(user_id: str, limit: int, cursor: str | None) -> dict[str, Any]:
    """Return the values of a page's query: one row more than wanted tells whether another page follows."""
    when, row_id = position(cursor)
    return {"user": user_id, "limit": limit + 1, "when": when, "id": row_id}


def _page(rows: list[dict[str, Any]], limit: int, key: str) -> dict[str, Any]:
    """Return {items, next} of the rows; `key` names the column of times that orders them."""
    items = rows[:limit]
    more = len(rows) > limit
    return {"items": items, "next": position_of(items[-1][key], items[-1]["id"]) if more else None}
