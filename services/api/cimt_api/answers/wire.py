"""An answer on the wire: as server-sent events in two formats, or as one JSON object."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .answer import Answer, problem_of
from .generation import Answers

PING = b": still there\n\n"
DONE = b"data: [DONE]\n\n"


class OpenAIEvents:
    """Writes `chat.completion.chunk` objects. The id of an event is the number of characters sent up to it."""

    headers: Mapping[str, str] = {}

    def __init__(self, answer: Answer) -> None:
        self._base = {
            "id": f"chatcmpl-{answer.id}",
            "object": "chat.completion.chunk",
            "created": answer.created,
            "model": answer.model,
        }
        # All text events of an answer differ only in their id and their text.
        start = orjson.dumps(self._base)[:-1]
        self._before = b"\ndata: " + start + b',"choices":[{"index":0,"delta":{"content":'
        self._after = b'},"finish_reason":null}]}\n\n'

    def head(self, answer: Answer, sent: int) -> list[bytes]:
        """Return the events before the text: who speaks, and from which sources."""
        delta = {"role": "assistant", "content": ""}
        return [
            self._event(
                sent, choices=[_choice(delta)], cimt=_about(answer) | {"sources": answer.sources}
            )
        ]

    def text(self, text: str, sent: int) -> bytes:
        """Return the event of one piece of text, which ends at character `sent`."""
        return b"id: %d" % sent + self._before + orjson.dumps(text) + self._after

    def end(self, answer: Answer, sent: int) -> list[bytes]:
        """Return the last events: how it ended, what it cost, and that nothing comes after."""
        if answer.status != "complete":
            problem = problem_of(answer.error or "internal")
            error = {
                "message": problem.title,
                "type": "server_error",
                "code": problem.kind,
                "param": None,
            }
            return [b"id: %d\ndata: " % sent + orjson.dumps({"error": error}) + b"\n\n", DONE]
        events = [self._event(sent, choices=[_choice({}, answer.finish)])]
        if answer.usage is not None:
            events.append(self._event(sent, choices=[], usage=_usage(answer), cimt=_about(answer)))
        return [*events, DONE]

    def _event(self, sent: int, **members: Any) -> bytes:
        return b"id: %d\ndata: " % sent + orjson.dumps(self._base | members) + b"\n\n"


class UIEvents:
    """Writes the UI message stream of the AI SDK, version 1, with the same event ids."""

    headers: Mapping[str, str] = {"x-vercel-ai-ui-message-stream": "v1"}

    def __init__(self, answer: Answer) -> None:
        self._id = str(answer.id)
        self._before = b'\ndata: {"type":"text-delta","id":"%s","delta":' % self._id.encode()

    def head(self, answer: Answer, sent: int) -> list[bytes]:
        """Return the events before the text: the message starts, with conversation and sources as data."""
        parts: list[dict[str, Any]] = [
            {"type": "start", "messageId": self._id, "messageMetadata": _about(answer)},
            {"type": "start-step"},
        ]
        parts += [
            {
                "type": "source-document",
                "sourceId": str(source["id"]),
                "mediaType": "text/plain",
                "title": source.get("title") or source["source"],
                "filename": source["source"],
            }
            for source in answer.sources
        ]
        parts += [
            {"type": "data-cimt", "data": _about(answer) | {"sources": answer.sources}},
            {"type": "text-start", "id": self._id},
        ]
        return [_part(sent, part) for part in parts]

    def text(self, text: str, sent: int) -> bytes:
        """Return the event of one piece of text, which ends at character `sent`."""
        return b"id: %d" % sent + self._before + orjson.dumps(text) + b"}\n\n"

    def end(self, answer: Answer, sent: int) -> list[bytes]:
        """Return the last events: how it ended, and that nothing comes after."""
        if answer.status != "complete":
            problem = problem_of(answer.error or "internal")
            parts: list[dict[str, Any]] = [{"type": "error", "errorText": problem.title}]
        else:
            metadata = _about(answer) | ({"usage": _usage(answer)} if answer.usage else {})
            parts = [
                {"type": "text-end", "id": self._id},
                {"type": "finish-step"},
                {
                    "type": "finish",
                    "finishReason": answer.finish.replace("_", "-"),
                    "messageMetadata": metadata,
                },
            ]
        return [*(_part(sent, part) for part in parts), DONE]


def completion(answer: Answer) -> dict[str, Any]:
    """Return the answer so far as one `chat.completion` object."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    finish = answer.finish if answer.status == "complete" else None
    return {
        "id": f"chatcmpl-{answer.id}",
        "object": "chat.completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        **({"usage": _usage(answer)} if answer.usage else {}),
        "cimt": _about(answer)
        | {"status": answer.status, "error": answer.error, "sources": answer.sources},
    }


def _about(answer: Answer) -> dict[str, Any]:
    return {"answer_id": str(answer.id), "conversation_id": str(answer.conversation_id)}


def _usage(answer: Answer) -> dict[str, int]:
    prompt, completion_ = answer.usage or (0, 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_,
        "total_tokens": prompt + completion_,
    }


def _choice(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _part(sent: int, part: dict[str, Any]) -> bytes:
    return b"id: %d\ndata: " % sent + orjson.dumps(part) + b"\n\n"


class AnswerStream(Response):
    """The ASGI response that follows an answer to its end.

    Every event is one write. A client that reads slowly gets what has come meanwhile in one piece, so a
    stream holds nothing but the answer itself.
    """

    def __init__(
        self,
        answers: Answers,
        answer: Answer,
        wire: OpenAIEvents | UIEvents,
        *,
        sent: int,
        headers: Mapping[str, str],
        ping_seconds: float,
        on_end: Callable[[], None],
    ) -> None:
        # Not the base's own constructor: it would render a body and state its length.
        self.status_code = 200
        self.background = None
        self._answers = answers
        self._answer = answer
        self._wire = wire
        self._sent = sent  # characters that the client has already
        self._ping_seconds = ping_seconds
        self._on_end = on_end
        self._change: asyncio.Future[None] | None = None
        self._written = 0.0  # when something was sent last (monotonic)
        self._timer: asyncio.TimerHandle | None = None
        self.raw_headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store, no-transform"),
            (b"x-accel-buffering", b"no"),
            *((k.encode(), v.encode()) for k, v in {**wire.headers, **headers}.items()),
        ]

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Stream until the answer ends or the client leaves."""
        gone = asyncio.ensure_future(_left(receive))
        gone.add_done_callback(lambda _: self._look())
        self._written = time.monotonic()
        self._ping()
        try:
            with self._answers.following(self._answer):
                await self._follow(send, gone)
        finally:
            self._on_end()
            gone.cancel()
            if self._timer is not None:
                self._timer.cancel()

    async def _follow(self, send: Send, gone: asyncio.Future[None]) -> None:
        answer, wire = self._answer, self._wire
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for event in wire.head(answer, self._sent):
            await _write(send, event)
        while not gone.done():
            size = len(answer.text)
            if size > self._sent:
                piece = answer.text[self._sent :]
                self._sent = size
                await _write(send, wire.text(piece, size))
                self._written = time.monotonic()
            elif answer.done:
                for event in wire.end(answer, self._sent):
                    await _write(send, event)
                await _write(send, b"", more=False)
                return
            elif time.monotonic() - self._written >= self._ping_seconds:
                await _write(send, PING)
                self._written = time.monotonic()
            else:
                self._change = answer.change()
                await self._change

    def _look(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    def _ping(self) -> None:
        """Look up when it is time for a ping: one timer per ping, not per event."""
        due = self._written + self._ping_seconds - time.monotonic()
        if due <= 0:
            self._look()
            due = self._ping_seconds
        self._timer = asyncio.get_running_loop().call_later(due, self._ping)


async def _write(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
