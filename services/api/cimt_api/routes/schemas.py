"""Answers as the OpenAPI document describes them, for generated clients; answers/wire.py writes them."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from ..http.problems import OpenAIErrorObject

Finish = Literal["stop", "length", "content_filter"]


class Described(BaseModel):
    """What clients are sent: there may be more in it one day."""

    model_config = ConfigDict(extra="allow")


class AnswerSource(Described):
    """A passage that an answer is based on."""

    id: int
    source: str = Field(description="The document.", examples=["en/warranty.md"])
    chunk: int = Field(description="Which passage of the document, from 0.")
    title: str | None = Field(examples=["Warranty"])
    url: str | None = Field(None, description="Of the document, where it has one.")
    passage: str | None = Field(None, description="Its text; the oldest answers have none.")
    score: float = Field(description="Of the ranking: the higher, the better it fits.")


class AnswerDetails(Described):
    """What OpenAI's format has no place for."""

    answer_id: UUID
    conversation_id: UUID
    status: Literal["streaming", "complete", "cancelled", "failed"]
    error: str | None = Field(description="Why it was not completed.")
    sources: list[AnswerSource]


class PromptTokens(Described):
    """Of the tokens that were read, those that were cheaper."""

    cached_tokens: int


class TokenUsage(Described):
    """Tokens as billed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class CompletionMessage(Described):
    """The answer."""

    role: Literal["assistant"]
    content: str = Field(examples=["Three years [1]."])
    refusal: None


class CompletionChoice(Described):
    """The one answer there is."""

    index: int
    message: CompletionMessage
    logprobs: None
    finish_reason: Finish | None = Field(description="null: it runs, or failed.")


class Completion(Described):
    """An answer in one piece: OpenAI's `chat.completion`."""

    id: str = Field(examples=["chatcmpl-5f4c2f9e-8d0f-4f3e-9f0c-3f2f4d6b7a10"])
    object: Literal["chat.completion"]
    created: int = Field(description="Unix time.")
    model: str = Field(examples=["gpt-6-luna"])
    choices: list[CompletionChoice]
    usage: TokenUsage | None = None
    cimt: AnswerDetails


class ChunkDelta(Described):
    """What has come since the last chunk."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Described):
    """The one answer there is."""

    index: int
    delta: ChunkDelta
    finish_reason: Finish | None = Field(description="null until the end.")


class ChunkDetails(Described):
    """Of an answer's details what is known: ids and sources with the first chunk, the status with the last."""

    answer_id: UUID
    conversation_id: UUID
    status: Literal["complete", "cancelled"] | None = None
    sources: list[AnswerSource] | None = None


class CompletionChunk(Described):
    """A piece of an answer: OpenAI's `chat.completion.chunk`, one event of the stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: TokenUsage | None = None
    cimt: ChunkDetails | None = None


class StreamError(Described):
    """How a stream ends that has begun and cannot be completed."""

    error: OpenAIErrorObject


class UIPart(Described):
    """One event of the AI SDK's UI message stream, version 1."""

    type: str = Field(examples=["text-delta"])


class Greeting(Described):
    """What an empty body is answered."""

    message: str


def events(*schemas: type[BaseModel], example: str) -> dict[str, Any]:
    """Return the `content` of an event stream whose events hold JSON of these schemas, and `[DONE]` at its end."""
    named = [{"$ref": f"#/components/schemas/{schema.__name__}"} for schema in schemas]
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": named},
    }
    position = {"type": "string", "description": "Characters sent up to here."}
    return {
        "text/event-stream": {
            "itemSchema": {
                "type": "object",
                "required": ["data"],
                "anyOf": [
                    {"properties": {"data": data, "id": position}},
                    {"properties": {"data": {"const": "[DONE]"}}},
                ],
            },
            "example": example,
        }
    }
