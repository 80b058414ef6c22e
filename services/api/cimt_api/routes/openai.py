"""OpenAI's API over our answers: /v1/chat/completions and /v1/models, for whoever has only a base URL to change."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..answers.answer import Question
from ..answers.wire import OpenAIEvents
from ..http.auth import User, bearer, refusal
from ..http.fields import Text
from ..http.problems import Problem, documented_for_openai
from ..store.chats import Turn
from ..store.keys import PREFIX
from .asking import begin, body_of, may_ask, respond
from .chat import EVENTS, QUESTION_LENGTH, StreamOptions
from .dependencies import WITH_TOKEN, ServicesOf, admitting, services_of
from .schemas import Completion

NAME = "cimt"  # of our model, whatever answers behind it
# Parameters that change no answer of ours, whatever they say. Tools are only offered, and UIs offer theirs with every
# question: a model may call none of them, and ours never does.
HARMLESS = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
    "tools",
    "functions",
    "parallel_tool_calls",
)
# What others may be only: the value that they have when nobody sends them.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "temperature": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tool_choice": ("auto", "none"),
    "function_call": ("auto", "none"),
    "verbosity": ("medium",),
    "stop": ([],),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


async def asker(request: Request) -> User:
    """Return who asks, by an API key or by Supabase's token. Raises Problem 401 or 503."""
    services = services_of(request)
    authorization = request.headers.get("authorization")
    token = bearer(authorization)
    if token.startswith(PREFIX):
        return await services.keys.user(token)
    if token.count(".") != 2:
        raise refusal("That is neither an API key of ours (cimt_…) nor an access token.")
    return await services.authenticator.user(authorization)


router = APIRouter(tags=["OpenAI"], route_class=admitting(asker))


class TextPart(BaseModel):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


def _in_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(BaseModel):
    """A message of the conversation; other fields of OpenAI's are passed over.

    What tools told another model earlier in the conversation counts as the assistant's words.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    # As one type, so that an error names the part that it is about.
    content: Annotated[
        list[TextPart] | None,
        BeforeValidator(_in_parts, json_schema_input_type=Text | list[TextPart] | None),
    ] = None

    @property
    def words(self) -> str:
        """Return its text."""
        return "".join(part.text for part in self.content or ())


class CompletionRequest(BaseModel):
    """OpenAI's request; of the parameters that are not here only those are taken that change nothing."""

    model_config = ConfigDict(extra="allow")

    model: Text = Field(max_length=200, examples=[NAME])
    messages: list[Message] = Field(
        min_length=1,
        max_length=2000,
        description="The whole conversation; the last message is the user's question.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    store: bool | None = Field(None, description="Keep it among my conversations. Default: no.")

    def question(self, user: User) -> Question:
        """Return it as what is asked. Raises Problem 400 where there is no question."""
        said = [one for one in self.messages if one.role not in ("system", "developer")]
        text = said[-1].words if said and said[-1].role == "user" else ""
        if not text.strip() or len(text) > QUESTION_LENGTH:
            raise unfit(
                "messages", f"the last one is not a user's, of 1 to {QUESTION_LENGTH} characters"
            )
        instructions = "\n\n".join(
            one.words for one in self.messages if one.role in ("system", "developer")
        )
        if len(instructions) > QUESTION_LENGTH:  # which are paid for with every question
            why = f"the system's are longer than {QUESTION_LENGTH} characters"
            raise unfit("messages", why)
        return Question(
            user=user,
            id=uuid4(),
            conversation_id=uuid4(),
            text=text,
            named=False,
            stored=bool(self.store),
            instructions=instructions,
            turns=_turns(said[:-1]),
            tokens=self.max_completion_tokens or self.max_tokens,
        )


def _turns(messages: list[Message]) -> list[Turn]:
    """Return what was said before, in turns: several messages of one side in a row are one."""
    turns: list[Turn] = []
    asked: list[str] = []
    for message in messages:
        if message.role == "user":
            asked.append(message.words)
        elif asked or not turns:
            turns.append(Turn("\n".join(asked), message.words))
            asked = []
        else:
            turns[-1] = Turn(turns[-1].question, f"{turns[-1].answer}\n{message.words}")
    return [*turns, *([Turn("\n".join(asked), "")] if asked else [])]


def unfit(param: str, why: str, code: str = "invalid-value") -> Problem:
    """Make the Problem 400 of a parameter, as OpenAI says it."""
    return Problem(400, "The request does not fit", f"{param}: {why}", kind=code, param=param)


def _checked(body: dict[str, Any], models: tuple[str, ...]) -> CompletionRequest:
    """Return the request. Raises Problem 400 that names what is wrong, or not honoured here; 404 for another model."""
    try:
        asked = CompletionRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise unfit(".".join(map(str, first["loc"])), first["msg"]) from None
    for name, value in (asked.model_extra or {}).items():
        if value is None or name in HARMLESS or value in NEUTRAL.get(name, ()):
            continue
        known = name in NEUTRAL
        why = f"only {NEUTRAL[name][0]!r} is honoured here" if known else "is not honoured here"
        raise unfit(name[:100], why, code="unsupported-value" if known else "unsupported-parameter")
    if asked.model not in models:
        raise Problem(404, "There is no such model", kind="model-not-found", param="model")
    return asked


COMPLETED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A `chat.completion`, or its chunks.",
        "model": Completion,
        "content": EVENTS,
    }
}


@router.post(
    "/v1/chat/completions",
    summary="Chat completions, as OpenAI has them",
    responses=COMPLETED
    | documented_for_openai(400, 401, 404, 413, 415, 422, 429, 500, 502, 503, 504),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/CompletionRequest"}}
            },
        },
        **WITH_TOKEN,
    },
)
async def create_completion(request: Request) -> Response:
    """Answer the last message from our documents; who leaves stops the model."""
    user: User = request.state.admitted
    may_ask(request, user)
    services = services_of(request)
    body = await body_of(request, user, request.stream())
    try:
        asked = _checked(body, (NAME, services.settings.chat_model))
        question = asked.question(user)
    except Problem:
        await services.places.count(user)
        raise
    answer, limits = await begin(request, question)
    if not asked.stream:
        return respond(request, answer, None, limits)
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    return respond(request, answer, OpenAIEvents(answer, ids=False, separate_usage=usage), limits)


class Model(BaseModel):
    """A model, as OpenAI lists it."""

    id: str = Field(examples=[NAME])
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "cimt"


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get(
    "/v1/models",
    summary="The models: ours",
    response_model=ModelList,
    responses=documented_for_openai(401, 503),
    openapi_extra=WITH_TOKEN,
)
async def list_models() -> ModelList:
    """List the one model there is; what answers behind its name is the operators' business."""
    return ModelList(data=[Model(id=NAME)])


@router.get(
    "/v1/models/{model}",
    summary="A model",
    response_model=Model,
    responses=documented_for_openai(401, 404, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def read_model(model: str, services: ServicesOf) -> Model:
    """Tell that it is there."""
    if model not in (NAME, services.settings.chat_model):
        raise Problem(404, "There is no such model", kind="model-not-found", param="model")
    return Model(id=model)
