"""POST /chat: a question. GET /chat/{answer_id}: its answer, again or from where a stream broke off."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID, uuid4

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from .answer import Answer, problem_of
from .generation import Answers
from .problems import Problem, documented, invalid_request
from .services import CurrentUser, services_of
from .stream import AnswerStream, OpenAIEvents, UIEvents, completion

GREETING = "Hello, CIMT!"  # what the smoke test expects of an empty POST /chat
QUESTION_LENGTH = 32_000  # characters, at most

log = logging.getLogger(__name__)
router = APIRouter(tags=["chat"])
NoNul = StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00]*$")


class Question(BaseModel):
    """The body of POST /chat."""

    model_config = ConfigDict(extra="forbid")

    message: str = Field(
        min_length=1,
        max_length=QUESTION_LENGTH,
        pattern=r"^[^\x00]*\S[^\x00]*$",
        description="The question.",
        examples=["How long is the warranty?"],
    )
    id: UUID | None = Field(
        None, description="Id of this question and its answer. Sent again, it asks nothing twice."
    )
    conversation_id: UUID | None = Field(None, description="Default: a new conversation.")
    stream: bool | None = Field(
        None, description="Default: whether Accept names text/event-stream."
    )
    sources: list[Annotated[str, NoNul]] | None = Field(
        None, max_length=50, description="Only these documents."
    )
    filter: dict[Annotated[str, NoNul], str | int | float | bool | None] | None = Field(
        None, max_length=20, description="Only documents whose metadata hold all of this."
    )


STREAM = {
    "text/event-stream": {
        # No schema: tools that know event streams take one for that of each event.
        "example": (
            'id: 5\ndata: {"id":"chatcmpl-…","object":"chat.completion.chunk","choices":'
            '[{"index":0,"delta":{"content":"Three"},"finish_reason":null}]}\n\ndata: [DONE]\n\n'
        ),
    }
}
ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, whole or as events; the greeting for an empty body.",
        "headers": {"X-Answer-Id": {"schema": {"type": "string", "format": "uuid"}}},
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {
                    "id": "chatcmpl-5f4c2f9e-8d0f-4f3e-9f0c-3f2f4d6b7a10",
                    "object": "chat.completion",
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "Three years [1]."},
                            "finish_reason": "stop",
                        }
                    ],
                    "cimt": {"conversation_id": "0b7f…", "status": "complete", "sources": []},
                },
            },
            **STREAM,
        },
    }
}
Format = Annotated[
    str, Query(pattern="^(openai|ui)$", description="Of the events: OpenAI's, or the AI SDK's.")
]


@router.post(
    "/chat",
    summary="Ask; an empty body is greeted",
    responses=ANSWERED | documented(401, 404, 409, 413, 422, 429, 500, 502, 503, 504),
    openapi_extra={
        "requestBody": {
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Question"}}}
        },
        "parameters": [
            {
                "name": "format",
                "in": "query",
                "schema": {"type": "string", "enum": ["openai", "ui"], "default": "openai"},
                "description": "Of the events: OpenAI's, or the AI SDK's.",
            },
            {
                "name": "Last-Event-ID",
                "in": "header",
                "schema": {"type": "integer", "minimum": 0},
                "description": "Characters that were received before the stream broke off.",
            },
        ],
        "security": [{}, {"bearer": []}],
    },
)
async def chat(request: Request) -> Response:
    """Answer in one piece, or as a stream when the body or the header Accept ask for one.

    A stream that broke off is resumed by the same request with the same id and the header Last-Event-ID; the
    model is not asked again.
    """
    # Nothing of a stranger's body is read, but where no length is declared: then its first piece, which tells whether
    # it is empty.
    stream = request.stream()
    declared = int(request.headers.get("content-length", "0")) > 0
    first_piece = b"" if declared else await anext(stream)
    if not declared and not first_piece:
        return _json({"message": GREETING}, {})
    services = services_of(request)
    user = await services.authenticator.user(request.headers.get("authorization"))
    answers: Answers = request.app.state.answers
    with contextlib.ExitStack() as admission:
        admission.enter_context(services.limits.hold(user.id))
        limits = await services.limits.count(user.id)
        body = first_piece + b"".join([piece async for piece in stream])
        try:
            question = Question.model_validate_json(body)
        except ValidationError as error:
            raise invalid_request(error.errors(include_url=False, include_input=False)) from None
        sent = _last_event_id(request)
        wire = _wire(request)
        # From here to `ask` nothing waits: two requests with one id are one question.
        answer = answers.find_here(user, question.id) if question.id else None
        if answer is None:
            services.upstream.check()
            if services.settings.log_content:
                log.info("question", extra={"fields": {"question": question.message}})
            answer = answers.ask(
                user,
                question.message,
                answer_id=question.id or uuid4(),
                conversation_id=question.conversation_id or uuid4(),
                sources=question.sources,
                metadata=question.filter,
                on_end=admission.pop_all().close,  # counts for as long as the model writes
            )
        streamed = question.stream
        if streamed is None:
            streamed = wire is UIEvents or "text/event-stream" in request.headers.get("accept", "")
        headers = {**limits, **await _first_sign(answers, answer, whole=not streamed)}
        if not streamed:
            if answer.status != "complete":
                raise _problem(answer, headers)
            return _json(completion(answer), headers)
        return _stream(request, answers, answer, wire, sent, headers, admission.pop_all())


@router.get(
    "/chat/{answer_id}",
    summary="An answer, as far as it has come, or the rest of its stream",
    responses=ANSWERED | documented(401, 404, 422, 429, 500, 502, 503, 504),
    openapi_extra={"security": [{"bearer": []}]},
)
async def resume(
    request: Request,
    answer_id: UUID,
    user: CurrentUser,
    format: Format = "openai",  # noqa: A002 - the parameter's public name
) -> Response:
    """Send the events after Last-Event-ID where Accept names text/event-stream; else the answer so far, as JSON."""
    services = services_of(request)
    sent = _last_event_id(request)
    answers: Answers = request.app.state.answers
    with contextlib.ExitStack() as admission:
        admission.enter_context(services.limits.hold(user.id))
        limits = await services.limits.count(user.id)
        answer = await answers.find(user, answer_id)
        streamed = format == "ui" or "text/event-stream" in request.headers.get("accept", "")
        if not streamed:
            return _json(completion(answer), {**limits, **_id_headers(answer)})
        headers = {**limits, **await _first_sign(answers, answer)}
        return _stream(request, answers, answer, _wire(request), sent, headers, admission.pop_all())


async def _first_sign(answers: Answers, answer: Answer, *, whole: bool = False) -> dict[str, str]:
    """Wait for the first text, or for the end if `whole`; then return the headers that name the answer.

    Raises the Problem of an answer that failed before any text came.
    """
    with answers.following(answer):
        while not answer.done and (whole or not answer.text):
            await answer.change()
    if answer.problem is not None and not answer.text:
        raise _problem(answer, {})
    return _id_headers(answer)


def _stream(
    request: Request,
    answers: Answers,
    answer: Answer,
    wire: type[OpenAIEvents] | type[UIEvents],
    sent: int,
    headers: Mapping[str, str],
    admission: contextlib.ExitStack,
) -> Response:
    return AnswerStream(
        answers,
        answer,
        wire(answer),
        sent=sent,
        headers=headers,
        ping_seconds=services_of(request).settings.ping_seconds,
        on_end=admission.close,
    )


def _id_headers(answer: Answer) -> dict[str, str]:
    return {"X-Answer-Id": str(answer.id), "X-Conversation-Id": str(answer.conversation_id)}


def _problem(answer: Answer, headers: Mapping[str, str]) -> Problem:
    """Return the answer's problem with its id, under which its text so far is kept."""
    problem = answer.problem or problem_of(answer.error or "internal")
    return Problem(
        problem.status,
        problem.title,
        problem.detail,
        kind=problem.kind,
        headers={**headers, **problem.headers, **_id_headers(answer)},
        answer_id=str(answer.id),
        **problem.extra,
    )


def _last_event_id(request: Request) -> int:
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


def _wire(request: Request) -> type[OpenAIEvents] | type[UIEvents]:
    """Return the format of the events that the request asks for. Raises Problem 422 for one that is unknown."""
    wanted = request.query_params.get("format", "")
    if wanted not in ("", "openai", "ui"):
        raise Problem(422, "format is openai or ui", kind="invalid-request")
    if wanted == "ui" or (not wanted and "x-vercel-ai-ui-message-stream" in request.headers):
        return UIEvents
    return OpenAIEvents


def _json(content: Any, headers: Mapping[str, str]) -> Response:
    return Response(orjson.dumps(content), headers=dict(headers), media_type="application/json")
