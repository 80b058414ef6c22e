"""An answer on the wire: as server-sent events in two formats, or as one JSON object."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..http.edge import EVENT_STREAM
from ..http.problems import LEFT, Problem
from ..model import Usage
from .answer import Answer, State, problem_of
from .registry import Answers

# After which a stream begins without a word; until then it may still end in a plain error.
FIRST_SIGN_SECONDS = 5.0
# Without an empty line: that would end an event, and some clients then hand on an empty one.
PING = b": still there\n"
DONE = b"data: [DONE]\n\n"


class OpenAIEvents:
    """Writes `chat.completion.chunk` objects. The id of an event is the number of characters sent up to it.

    Usage comes with the last chunk, or in one of its own (`separate_usage`), as OpenAI's clients ask for it: its
    `choices` are empty, which breaks who does not expect it. Without `ids` it is what OpenAI itself sends.
    """

    headers: Mapping[str, str] = {}

    def __init__(self, answer: Answer, *, ids: bool = True, separate_usage: bool = False) -> None:
        self._ids = ids
        self._separate_usage = separate_usage
        self._base = {
            "id": f"chatcmpl-{answer.id}",
            "object": "chat.completion.chunk",
            "created": answer.created,
            "model": answer.model,
        }
        # All text events of an answer differ only in their id and their text.
        start = orjson.dumps(self._base)[:-1]
        self._before = b"data: " + start + b',"choices":[{"index":0,"delta":{"content":'
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
        return self._id(sent) + self._before + orjson.dumps(text) + self._after

    def end(self, answer: Answer, sent: int) -> list[bytes]:
        """Return the last events: how it ended, what it cost, and that nothing comes after."""
        if answer.problem is not None:
            error = answer.problem.openai()
            if self._ids:  # our own format names problems as its other errors do
                error |= {"code": answer.problem.kind}
            return [self._id(sent) + b"data: " + orjson.dumps({"error": error}) + b"\n\n", DONE]
        about = _about(answer) | {"status": answer.status}
        last = {"choices": [_choice({}, answer.finish)], "cimt": about}
        if answer.usage is None:
            return [self._event(sent, **last), DONE]
        usage = {"usage": _usage(answer)}
        if self._separate_usage:
            return [self._event(sent, **last), self._event(sent, choices=[], **usage), DONE]
        return [self._event(sent, **last, **usage), DONE]

    def _id(self, sent: int) -> bytes:
        return b"id: %d\n" % sent if self._ids else b""

    def _event(self, sent: int, **members: Any) -> bytes:
        return self._id(sent) + b"data: " + orjson.dumps(self._base | members) + b"\n\n"


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
        parts += [_source(source) for source in answer.sources]
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
        if answer.problem is not None:
            parts: list[dict[str, Any]] = [{"type": "error", "errorText": answer.problem.title}]
        else:
            metadata = _about(answer) | {"status": answer.status, "finish_reason": answer.finish}
            if answer.usage is not None:
                metadata["usage"] = _usage(answer)
            parts = [
                {"type": "text-end", "id": self._id},
                {"type": "finish-step"},
                # No finishReason: the first releases of AI SDK 5 refuse what they do not know.
                {"type": "finish", "messageMetadata": metadata},
            ]
        return [*(_part(sent, part) for part in parts), DONE]


def _source(source: dict[str, Any]) -> dict[str, Any]:
    """Return the AI SDK's part of a source: a link where it has one."""
    about = {"sourceId": str(source["id"]), "title": source.get("title") or source["source"]}
    if source.get("url"):
        return {"type": "source-url", "url": source["url"], **about}
    return {
        "type": "source-document",
        "mediaType": "text/plain",
        "filename": source["source"],
        **about,
    }


def completion(answer: Answer) -> dict[str, Any]:
    """Return the answer so far as one `chat.completion` object."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    finish = answer.finish if answer.state in (State.COMPLETE, State.STOPPED) else None
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


def _usage(answer: Answer) -> dict[str, Any]:
    prompt, completion_, cached, _ = answer.usage or Usage(0, 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_,
        "total_tokens": prompt + completion_,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _choice(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def _part(sent: int, part: dict[str, Any]) -> bytes:
    return b"id: %d\ndata: " % sent + orjson.dumps(part) + b"\n\n"


class AnswerResponse(Response):
    """The ASGI response that listens to an answer: its events to the end, or all of it at once.

    Every event is one write. A client that reads slowly gets what has come meanwhile in one piece, so a
    stream holds nothing but the answer itself. A client that leaves is noticed at once, whatever it waits for.
    """

    def __init__(
        self,
        answers: Answers,
        answer: Answer,
        wire: OpenAIEvents | UIEvents | None,
        *,
        sent: int,
        headers: Mapping[str, str],
        ping_seconds: float,
    ) -> None:
        # Not the base's own constructor: it would render a body and state its length.
        self.status_code = 200
        self.background = None
        self._answers = answers
        self._answer = answer
        self._wire = wire  # None: as one JSON object
        self._sent = sent  # characters that the client has already
        self._ping_seconds = ping_seconds
        self._change: asyncio.Future[None] | None = None
        self._written = time.monotonic()  # when something was sent last
        self._timer: asyncio.TimerHandle | None = None
        self._extra = {**headers, **id_headers(answer)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or end when the client leaves. Raises the Problem of an answer that failed before it was begun."""
        answer, wire = self._answer, self._wire
        gone = asyncio.ensure_future(_left(receive))
        loop = asyncio.get_running_loop()
        late: asyncio.Future[None] = loop.create_future()
        for reason in (gone, late):
            reason.add_done_callback(lambda _: self._look())
        patience = min(FIRST_SIGN_SECONDS, self._ping_seconds)
        self._timer = loop.call_later(patience, late.set_result, None)
        try:
            with self._answers.listening(answer):
                while not answer.done and not gone.done():
                    if wire is not None and (answer.text or late.done()):
                        break
                    await self._next()
                # Only now are they known: the store may have had the answer.
                self._extra |= id_headers(answer)
                if gone.done():
                    await Response(status_code=LEFT)(scope, receive, send)
                elif answer.problem is not None and (wire is None or not answer.text):
                    await self._answers.kept(answer)
                    raise problem_with_id(answer, self._extra)
                elif wire is None:
                    await self._answers.kept(answer)
                    await json(completion(answer), self._extra)(scope, receive, send)
                else:
                    await self._stream(wire, send, gone)
        finally:
            gone.cancel()
            if self._timer is not None:
                self._timer.cancel()

    async def _stream(
        self, wire: OpenAIEvents | UIEvents, send: Send, gone: asyncio.Future[None]
    ) -> None:
        answer = self._answer
        headers = {
            "content-type": EVENT_STREAM,
            "cache-control": "no-store, no-transform",
            "x-accel-buffering": "no",
            **wire.headers,
            **self._extra,
        }
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        self._ping()
        begun = False
        while not gone.done():
            size = len(answer.text)
            if not begun and answer.state is not State.ASKED:  # the sources are known
                begun = True
                for event in wire.head(answer, self._sent):
                    await _write(send, event)
            elif size > self._sent:
                piece = answer.text[self._sent :]
                self._sent = size
                await _write(send, wire.text(piece, size))
            elif answer.done:
                await self._answers.kept(answer)
                for event in wire.end(answer, self._sent):
                    await _write(send, event)
                await _write(send, b"", more=False)
                return
            elif time.monotonic() - self._written >= self._ping_seconds:
                await _write(send, PING)
            else:
                await self._next()
                continue
            self._written = time.monotonic()

    async def _next(self) -> None:
        """Wait for a change of the answer, or for another reason to look up."""
        self._change = self._answer.change()
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
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(due, self._ping)


def json(content: Any, headers: Mapping[str, str]) -> Response:
    """Return the response of one JSON value."""
    return Response(orjson.dumps(content), headers=dict(headers), media_type="application/json")


def id_headers(answer: Answer) -> dict[str, str]:
    """Return the headers that name an answer and its conversation."""
    return {"X-Answer-Id": str(answer.id), "X-Conversation-Id": str(answer.conversation_id)}


def problem_with_id(answer: Answer, headers: Mapping[str, str]) -> Problem:
    """Return the answer's problem with its id, under which its text so far is kept."""
    problem = answer.problem or problem_of("internal")
    return Problem(
        problem.status,
        problem.title,
        problem.detail,
        kind=problem.kind,
        headers={**headers, **problem.headers},
        answer_id=str(answer.id),
        **problem.extra,
    )


async def _write(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
