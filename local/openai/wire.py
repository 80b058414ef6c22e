"""The two shapes of an answer, Chat Completions and Responses: as one object, and as events of a stream."""

from __future__ import annotations

import functools
import itertools
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import answers
from .behaviour import Behaviour
from .errors import ApiError
from .models import refuse_unsupported

FINGERPRINT = "fp_stand_in"


@dataclass(frozen=True)
class Said:
    """An answer before it has a shape."""

    pieces: list[str]
    prompt_tokens: int
    whole: bool  # False: cut at the caller's limit


@dataclass(frozen=True)
class Events:
    """A stream, ready to be sent: whole server-sent events."""

    head: list[bytes]
    pieces: Iterator[bytes]
    tail: list[bytes]


def say(messages: list[dict[str, Any]], limit: Any, name: str, behaviour: Behaviour) -> Said:
    """Answer the messages with at most `limit` tokens."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ApiError(400, f"Invalid '{name}': integer below minimum value.", param=name)
    made = answers.pieces(behaviour.text or answers.answer(messages))
    if behaviour.chunks:
        made = list(itertools.islice(itertools.cycle([*made, " "]), behaviour.chunks))
    asked = sum(answers.tokens(answers.text_of(item.get("content"))) + 3 for item in messages)
    return Said(made[:limit], asked, limit is None or len(made) <= limit)


class Chat:
    """One answer of POST /v1/chat/completions."""

    def __init__(self, body: dict[str, Any], behaviour: Behaviour) -> None:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ApiError(
                400, "Invalid 'messages': empty array.", param="messages", code="empty_array"
            )
        if not all(isinstance(item, dict) and item.get("role") for item in messages):
            raise ApiError(400, "Invalid 'messages': each needs a role.", param="messages")
        refuse_unsupported(body, body.get("reasoning_effort"), "reasoning_effort")
        name = "max_completion_tokens" if body.get("max_tokens") is None else "max_tokens"
        self.said = say(messages, body.get(name), name, behaviour)
        options = body.get("stream_options") or {}
        self.with_usage = bool(options.get("include_usage"))
        self.model = str(body["model"])
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def usage(self) -> dict[str, Any]:
        """Tokens, as billed."""
        asked, answered = self.said.prompt_tokens, len(self.said.pieces)
        return {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "total_tokens": asked + answered,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    @property
    def _reason(self) -> str:
        return "stop" if self.said.whole else "length"

    def whole(self) -> dict[str, Any]:
        """The answer in one object."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self.said.pieces),
            "refusal": None,
            "annotations": [],
        }
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [
                {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason}
            ],
            "usage": self.usage(),
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }

    def events(self) -> Events:
        """The answer as a stream. What is the same in every stream is made once: the bench asks for many."""
        about = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }
        front = b"data: " + json.dumps(about, separators=(",", ":")).encode()[:-1]
        no_usage = b',"usage":null' if self.with_usage else b""
        end = no_usage + b"}\n\n"
        tail = [front + _choice("{}", json.dumps(self._reason)) + end]
        if self.with_usage:
            usage = json.dumps(self.usage(), separators=(",", ":")).encode()
            tail.append(front + b',"choices":[],"usage":' + usage + b"}\n\n")
        tail.append(b"data: [DONE]\n\n")
        opening = '{"role":"assistant","content":"","refusal":null}'
        return Events(
            [front + _choice(opening, "null") + end],
            (front + _delta(piece) + end for piece in self.said.pieces),
            tail,
        )


def _choice(delta: str, reason: str) -> bytes:
    return (
        f',"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}]'
    ).encode()


@functools.lru_cache(maxsize=8192)
def _delta(piece: str) -> bytes:
    return _choice(json.dumps({"content": piece}, ensure_ascii=False), "null")


class Response:
    """One answer of POST /v1/responses."""

    def __init__(self, body: dict[str, Any], behaviour: Behaviour) -> None:
        given = body.get("input")
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if not isinstance(messages, list) or not messages:
            raise ApiError(400, "Missing required parameter: 'input'.", param="input")
        messages = [item for item in messages if isinstance(item, dict) and item.get("role")]
        if body.get("instructions"):
            messages.insert(0, {"role": "system", "content": body["instructions"]})
        effort = (body.get("reasoning") or {}).get("effort")
        refuse_unsupported(body, effort, "reasoning.effort")
        name = "max_output_tokens"
        self.said = say(messages, body.get(name), name, behaviour)
        self.body = body
        self.id = f"resp_{uuid.uuid4().hex}"
        self.item = f"msg_{uuid.uuid4().hex}"
        self.created = int(time.time())

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, status: str, content: list[Any]) -> dict[str, Any]:
        return {
            "id": self.item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _object(self, status: str) -> dict[str, Any]:
        asked, answered = self.said.prompt_tokens, len(self.said.pieces)
        over = status != "in_progress"
        text = "".join(self.said.pieces)
        made: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"}
            if status == "incomplete"
            else None,
            "instructions": self.body.get("instructions"),
            "max_output_tokens": self.body.get("max_output_tokens"),
            "model": str(self.body["model"]),
            "output": [self._item("completed", [self._part(text)])] if over else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "metadata": {},
        }
        if over:
            made["usage"] = {
                "input_tokens": asked,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": answered,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": asked + answered,
            }
        return made

    def whole(self) -> dict[str, Any]:
        """The answer in one object."""
        return self._object("completed" if self.said.whole else "incomplete")

    def events(self) -> Events:
        """The answer as a stream of named events."""
        numbers = itertools.count()

        def event(kind: str, **data: Any) -> bytes:
            data = {"type": kind, "sequence_number": next(numbers), **data}
            return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()

        at = {"output_index": 0}
        in_part = {"item_id": self.item, "content_index": 0, **at}
        text = "".join(self.said.pieces)
        head = [
            event("response.created", response=self._object("in_progress")),
            event("response.in_progress", response=self._object("in_progress")),
            event("response.output_item.added", item=self._item("in_progress", []), **at),
            event("response.content_part.added", part=self._part(""), **in_part),
        ]
        middle = [
            event("response.output_text.delta", delta=piece, logprobs=[], **in_part)
            for piece in self.said.pieces
        ]
        whole = self.whole()
        tail = [
            event("response.output_text.done", text=text, logprobs=[], **in_part),
            event("response.content_part.done", part=self._part(text), **in_part),
            event("response.output_item.done", item=whole["output"][0], **at),
            event(f"response.{whole['status']}", response=whole),
        ]
        return Events(head, iter(middle), tail)
