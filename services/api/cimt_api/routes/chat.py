"""Asking in our own format and in that of the AI SDK: POST /chat, its answer again, its end before its time."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID, uuid4, uuid5

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..answers.answer import Question
from ..answers.wire import OpenAIEvents, UIEvents, completion, id_headers, json
from ..http.auth import User
from ..http.fields import Text
from ..http.problems import Problem, documented
from .asking import answers_of, begin, body_of, checked, last_event_id, may_ask, respond, uuid_in
from .dependencies import WITH_TOKEN, CurrentUser, services_of
from .schemas import Completion, CompletionChunk, Greeting, StreamError, UIPart, events

GREETING = "Hello, CIMT!"  # what the smoke test expects of an empty POST /chat
QUESTION_LENGTH = 32_000  # characters, at most
MESSAGES = 2000  # of a conversation that a client sends along, at most

router = APIRouter(tags=["Chat"])
Short = Annotated[Text, Field(min_length=1, max_length=500)]
Narrowing = dict[Short, Annotated[Text, Field(max_length=500)] | int | float | bool | None]


class StreamOptions(BaseModel):
    """OpenAI's."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = Field(
        False, description="Tokens in a chunk of their own, without choices, at the end."
    )


class Narrowed(BaseModel):
    """What a question is answered from."""

    model_config = ConfigDict(extra="forbid")

    sources: list[Short] | None = Field(None, max_length=50, description="Only these documents.")
    filter: Narrowing | None = Field(
        None, max_length=20, description="Only documents whose metadata hold all of this."
    )


class ChatRequest(Narrowed):
    """A question."""

    message: Text = Field(
        min_length=1,
        max_length=QUESTION_LENGTH,
        pattern=r"\S",
        description="The question.",
        examples=["How long is the warranty?"],
    )
    id: UUID | None = Field(
        None,
        description="Id of this question and its answer. Sent again, it asks nothing twice: an answer with an id "
        "outlives its connection. Without one it ends with it.",
    )
    conversation_id: UUID | None = Field(None, description="Default: a new conversation.")
    replaces: UUID | None = Field(
        None,
        description="Id of an answer of this conversation that goes, with all after it: to ask again, or otherwise.",
    )
    stream: bool | None = Field(
        None, description="Default: whether Accept names text/event-stream."
    )
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _replaces_in_a_conversation(self) -> ChatRequest:
        if self.replaces is not None and self.conversation_id is None:
            raise ValueError("replaces needs conversation_id")
        return self

    def question(self, user: User) -> Question:
        """Return it as what is asked."""
        return Question(
            user=user,
            id=self.id or uuid4(),
            conversation_id=self.conversation_id or uuid4(),
            text=self.message,
            named=self.conversation_id is not None,
            resumable=self.id is not None,
            sources=self.sources,
            metadata=self.filter,
            replaces=self.replaces,
        )


class UIRequest(Narrowed):
    """What `useChat` of the AI SDK sends, versions 5 to 7."""

    id: Text = Field(
        min_length=1, max_length=200, description="Of the conversation; a UUID, or any other text."
    )
    messages: list[dict[str, Any]] = Field(
        min_length=1, max_length=MESSAGES, description="UI messages. Asked is the user's last one."
    )
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    messageId: str | None = Field(  # noqa: N815 - the SDK's name
        None, max_length=200, description="Of the message that is written anew."
    )

    @field_validator("messages")
    @classmethod
    def _ends_with_a_question(cls, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        text = _text(messages[_last_of_user(messages)])
        if not text.strip():
            raise ValueError("the user's last message has no text")
        if len(text) > QUESTION_LENGTH:
            raise ValueError(f"the user's last message is longer than {QUESTION_LENGTH} characters")
        if "\0" in text:
            raise ValueError("holds the character NUL")
        return messages

    def question(self, user: User) -> Question:
        """Return it as what is asked. A message that is written anew replaces what follows it."""
        at = _last_of_user(self.messages)
        conversation = conversation_of(user, self.id)
        anew = self.trigger == "regenerate-message" or self.messageId is not None
        message_id = str(self.messages[at].get("id", ""))
        before = (uuid_in(message.get("id")) for message in self.messages[:at])
        return Question(
            user=user,
            # The same message asks nothing twice, unless it is meant to.
            id=uuid4()
            if anew or not message_id
            else uuid5(conversation, f"{user.id} {message_id}"),
            conversation_id=conversation,
            text=_text(self.messages[at]),
            resumable=True,
            sources=self.sources,
            metadata=self.filter,
            kept=frozenset(filter(None, before)) if anew else None,
        )


def conversation_of(user: User, chat_id: str) -> UUID:
    """Return the conversation that the AI SDK calls so: its id where that is a UUID, else one of this user's own."""
    return uuid_in(chat_id) or uuid5(UUID(user.id), chat_id)


def _last_of_user(messages: list[dict[str, Any]]) -> int:
    """Return the index of the user's last message. Raises ValueError where there is none."""
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].get("role") == "user":
            return at
    raise ValueError("none is the user's")


def _text(message: dict[str, Any]) -> str:
    """Return the text of a UI message: its parts of type text."""
    parts = message.get("parts")
    if not isinstance(parts, list):
        return ""
    texts = (
        part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"
    )
    return "\n".join(text for text in texts if isinstance(text, str))


EVENTS = events(
    CompletionChunk,
    StreamError,
    example='id: 5\ndata: {"id":"chatcmpl-…","object":"chat.completion.chunk","choices":'
    '[{"index":0,"delta":{"content":"Three"},"finish_reason":null}]}\n\ndata: [DONE]\n\n',
)
EITHER_EVENTS = events(
    CompletionChunk,
    StreamError,
    UIPart,
    example=EVENTS["text/event-stream"]["example"],
)
ANSWER_HEADERS = {
    name: {"schema": {"type": "string", "format": "uuid"}}
    for name in ("X-Answer-Id", "X-Conversation-Id")
}
ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, whole or as events; the greeting for an empty body.",
        "headers": ANSWER_HEADERS,
        "model": Completion | Greeting,
        "content": EITHER_EVENTS,
    }
}
READ: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer so far, or its events.",
        "headers": ANSWER_HEADERS,
        "model": Completion,
        "content": EITHER_EVENTS,
    }
}
Format = Annotated[
    Literal["openai", "ui"], Query(description="Of the events: OpenAI's, or the AI SDK's.")
]
ChatId = Annotated[
    str,
    Path(min_length=1, max_length=200, description="Of the conversation, as the client calls it."),
]
REPLAYED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer from its beginning.", "content": EITHER_EVENTS},
    204: {"description": "None is being written."},
}
LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": {"type": "integer", "minimum": 0},
    "description": "Characters that were received before the stream broke off.",
}


@router.post(
    "/chat",
    summary="Ask; an empty body is greeted",
    responses=ANSWERED
    | documented(401, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504, plain=True),
    openapi_extra={
        "requestBody": {
            "description": "Without any, the API only greets: that needs no token.",
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/ChatRequest"},
                            {"$ref": "#/components/schemas/UIRequest"},
                        ]
                    }
                }
            },
        },
        "parameters": [
            {
                "name": "format",
                "in": "query",
                "schema": {"type": "string", "enum": ["openai", "ui"]},
                "description": "Of the events: OpenAI's, or the AI SDK's. Default: as the body is.",
            },
            LAST_EVENT_ID,
        ],
        "security": [{}, {"bearer": []}],
    },
)
async def ask(request: Request) -> Response:
    """Answer in one piece, or as a stream when the body or the header Accept ask for one.

    An answer whose question has an id outlives its connection: the same request, with the header Last-Event-ID, goes on
    where it broke off, and the model is not asked again. Without an id it ends with its connection.
    """
    # Nothing of a stranger's body is read, but where no length is declared: then its first piece, which tells whether
    # it is empty.
    declared = int(request.headers.get("content-length", "0")) > 0
    pieces = request.stream()
    first_piece = b"" if declared else await anext(pieces)
    if not declared and not first_piece:
        return json({"message": GREETING}, {})
    user = await services_of(request).authenticator.user(request.headers.get("authorization"))
    may_ask(request, user)
    body = await body_of(request, user, pieces, first_piece)
    if ui := "messages" in body:
        request.state.plain_errors = True
    model: type[UIRequest | ChatRequest] = UIRequest if ui else ChatRequest
    asked = await checked(request, user, body, model)
    sent = last_event_id(request)
    question = asked.question(user)
    if sent and not question.resumable:
        raise Problem(
            409,
            "This answer cannot be resumed",
            "A question that may be resumed has an id: ask again, without Last-Event-ID and with an id.",
            kind="not-resumable",
        )
    ui = _ui(request, default=ui)
    answer, limits = await begin(request, question, sent)
    streamed: bool | None = True
    usage = False
    if isinstance(asked, ChatRequest):
        streamed = asked.stream
        usage = asked.stream_options is not None and asked.stream_options.include_usage
    if streamed is None:
        streamed = ui or _accepts_events(request)
    if not streamed:
        return respond(request, answer, None, limits)
    wire = UIEvents(answer) if ui else OpenAIEvents(answer, separate_usage=usage)
    return respond(request, answer, wire, limits, sent)


@router.get(
    "/chat/{answer_id}",
    summary="An answer, as far as it has come, or the rest of its stream",
    responses=READ | documented(401, 404, 422, 500, 502, 503, 504, plain=True),
    openapi_extra={"security": [{"bearer": []}], "parameters": [LAST_EVENT_ID]},
)
async def read_answer(
    request: Request,
    answer_id: UUID,
    user: CurrentUser,
    format: Format | None = None,  # noqa: A002 - the parameter's public name
) -> Response:
    """Send the events after Last-Event-ID where Accept names text/event-stream; else the answer so far, as JSON."""
    sent = last_event_id(request)
    answer = await answers_of(request).find(user, answer_id)
    if format != "ui" and not _accepts_events(request):
        return json(completion(answer), id_headers(answer))
    wire = UIEvents(answer) if _ui(request) else OpenAIEvents(answer)
    return respond(request, answer, wire, {}, sent)


@router.post(
    "/chat/{answer_id}/stop",
    summary="Stop an answer",
    status_code=204,
    responses=documented(401, 404, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def stop_answer(request: Request, answer_id: UUID, user: CurrentUser) -> None:
    """End it; its text so far is kept. One that has ended already stays as it is."""
    await answers_of(request).stop(user, answer_id)


@router.get(
    "/chat/{chat_id}/stream",
    summary="The answer that is being written in a conversation",
    responses=REPLAYED | documented(401, 404, 422, 500, 502, 503, 504, plain=True),
    openapi_extra=WITH_TOKEN,
)
async def running_answer(
    request: Request,
    chat_id: ChatId,
    user: CurrentUser,
    format: Format = "ui",  # noqa: A002 - the parameter's public name
) -> Response:
    """Send it from its beginning, in the AI SDK's format unless told otherwise: `resumeStream()` asks for it."""
    answer = await answers_of(request).running(user, conversation_of(user, chat_id))
    if answer is None:
        return Response(status_code=204)
    wire = UIEvents(answer) if format == "ui" else OpenAIEvents(answer)
    return respond(request, answer, wire, {})


@router.delete(
    "/chat/{chat_id}/stream",
    summary="Stop the answer that is being written in a conversation",
    status_code=204,
    responses=documented(401, 404, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def stop_running_answer(request: Request, chat_id: ChatId, user: CurrentUser) -> None:
    """End it where there is one; its text so far is kept. Before its first event nobody knows the answer's own id."""
    answers = answers_of(request)
    answer = await answers.running(user, conversation_of(user, chat_id))
    if answer is not None:
        await answers.stop(user, answer.id)


def _accepts_events(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "").lower()


def _ui(request: Request, *, default: bool = False) -> bool:
    """Tell whether events shall be the AI SDK's. Raises Problem 422 for a format that is unknown."""
    wanted = request.query_params.get("format", "")
    if wanted not in ("", "openai", "ui"):
        raise Problem(422, "format is openai or ui", kind="invalid-request")
    return wanted == "ui" or (
        not wanted and (default or "x-vercel-ai-ui-message-stream" in request.headers)
    )
