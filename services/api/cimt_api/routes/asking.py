"""What every way to ask has in common: who may, from when a body is read, and how an answer is begun."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar
from uuid import UUID

import orjson
from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from ..answers.answer import Answer, Question
from ..answers.registry import Answers
from ..answers.wire import AnswerResponse, OpenAIEvents, UIEvents
from ..http.auth import User
from ..http.problems import Problem, invalid_request
from .dependencies import services_of

Body = TypeVar("Body", bound=BaseModel)

log = logging.getLogger(__name__)


def answers_of(request: Request) -> Answers:
    """Return the answers of the application that got this request."""
    found: Answers = request.app.state.answers
    return found


def may_ask(request: Request, user: User) -> None:
    """Raise Problem 429 or 503 for who is known not to be able to ask now, before a body is read.

    Who may be coming back for an answer passes: that takes no place and asks nothing. `begin` looks closer.
    """
    try:
        services_of(request).places.check(user)
    except Problem:
        if "last-event-id" not in request.headers and not answers_of(request).writes_for(user):
            raise


async def body_of(
    request: Request, user: User, pieces: AsyncIterator[bytes], first: bytes = b""
) -> dict[str, Any]:
    """Read the rest of a JSON object. Raises Problem 422, which counts as a question."""
    body = first + b"".join([piece async for piece in pieces])
    try:
        value = orjson.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        await services_of(request).places.count(user)
        raise invalid_request([{"loc": ("body",), "msg": "It is not a JSON object."}])
    return value


async def checked(request: Request, user: User, body: dict[str, Any], as_: type[Body]) -> Body:
    """Return the body as this model. Raises Problem 422, which counts as a question."""
    try:
        return as_.model_validate(body)
    except ValidationError as error:
        await services_of(request).places.count(user)
        raise invalid_request(error.errors(include_url=False, include_input=False)) from None


async def begin(
    request: Request, question: Question, sent: int = 0
) -> tuple[Answer, Mapping[str, str]]:
    """Return the answer to a question, begun now or before, and the headers that say how much more may be asked.

    Coming back for one asks nothing, so it costs nothing, whatever the limits and the model are like. Raises the
    Problems of `Answers.known`, and those of who may not ask.
    """
    services, answers = services_of(request), answers_of(request)
    if (answer := await answers.known(question, sent)) is not None:
        return answer, {}
    services.upstream.check()
    answer, admission = await answers.ask(question)
    if services.settings.log_content:
        log.info("question", extra={"fields": {"question": question.text}})
    return answer, admission.headers


def respond(
    request: Request,
    answer: Answer,
    wire: OpenAIEvents | UIEvents | None,
    headers: Mapping[str, str],
    sent: int = 0,
) -> Response:
    """Return the response that follows an answer; without a wire it is one JSON object."""
    ping_seconds = services_of(request).settings.ping_seconds
    return AnswerResponse(
        answers_of(request), answer, wire, sent=sent, headers=headers, ping_seconds=ping_seconds
    )


def last_event_id(request: Request) -> int:
    """Return how many characters the client has received: 0 without the header. Raises Problem 422."""
    text = request.headers.get("last-event-id", "").strip()
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise Problem(
            422,
            "Last-Event-ID is not one of ours",
            "It is the id of an event of this stream: a whole number.",
            kind="invalid-request",
        )
    return int(text)


def uuid_in(text: object) -> UUID | None:
    """Return the UUID that a text is, or None."""
    try:
        return UUID(text) if isinstance(text, str) else None
    except ValueError:
        return None
