"""The stand-in as an ASGI application, without a framework: a benchmark must not wait for it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from . import embeddings, models
from .behaviour import Behaviour, Switch, as_json, parse, wish
from .errors import ApiError
from .wire import Chat, Events, Response

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

MOST_BYTES = 16 * 1024 * 1024
STREAM = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
SHAPES: dict[str, type[Chat | Response]] = {
    "/v1/chat/completions": Chat,
    "/v1/responses": Response,
}
MALFORMED = b'data: {"id":"chatcmpl-cut","object":"chat.comp\n\n'


class StandIn:
    """OpenAI's paths below /v1, and the switches below /stand-in."""

    def __init__(self, default: Behaviour | None = None) -> None:
        self.switch = Switch(default or Behaviour())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        try:
            if scope["path"].startswith("/stand-in/"):
                await self._switches(scope, receive, send)
            else:
                await self._api(scope, receive, send)
        except ApiError as error:
            await _json(send, error.status, error.body, error.headers)

    async def _switches(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = f"{scope['method']} {scope['path'].removeprefix('/stand-in/')}"
        if call == "PUT behaviour":
            self.switch.current = parse(await _body(receive), self.switch.default)
            await _answer(send, 200, as_json(self.switch.current))
        elif call == "GET behaviour":
            await _answer(send, 200, as_json(self.switch.current))
        elif call == "DELETE behaviour":
            self.switch.current = self.switch.default
            await _answer(send, 204, b"")
        elif call == "PUT shutdowns":
            self.switch.shutdowns = models.parse_shutdowns(await _body(receive))
            await _json(send, 200, models.listed(self.switch.shutdowns))
        elif call == "GET calls":
            await _json(send, 200, self.switch.state())
        elif call == "DELETE calls":
            self.switch.forget()
            await _answer(send, 204, b"")
        elif call == "GET requests":
            await _json(send, 200, list(self.switch.requests))
        elif call == "GET health":
            await _json(send, 200, {"status": "ok"})
        else:
            raise ApiError(404, f"the stand-in has no {call}")

    async def _api(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if not headers.get(b"authorization", "").removeprefix("Bearer ").strip():
            raise ApiError(
                401,
                "You didn't provide an API key. You need to provide your API key in an Authorization header "
                "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            )
        if (method, path) == ("GET", "/v1/models"):
            self.switch.calls[path] += 1
            # Only a behaviour that names this path: a look at the list uses up none that is meant for a question.
            named = path in self.switch.current.paths
            behaviour = self.switch.take(path) if named else self.switch.default
            refuse(behaviour, "the list of models")
            await self._whole(models.listed(self.switch.shutdowns), behaviour, receive, send)
            return
        if path not in SHAPES and path != "/v1/embeddings":
            raise ApiError(404, f"Invalid URL ({method} {path})")
        if method != "POST":
            raise ApiError(405, f"Not allowed to {method} on {path}.", code="method_not_supported")
        body = await _body(receive)
        self.switch.calls[path] += 1
        self.switch.requests.append({"path": path, "body": body})
        if not isinstance(body.get("model"), str) or not body["model"]:
            raise ApiError(400, "you must provide a model parameter")
        models.refuse_unknown(body["model"], path, self.switch.shutdowns)
        wanted = wish(headers.get(b"x-stand-in"), body, self.switch.default)
        behaviour = wanted or self.switch.take(path)
        refuse(behaviour, body["model"])
        shape = SHAPES.get(path)
        if shape is None:
            given = body.get("input")
            self.switch.inputs += len(given) if isinstance(given, list) else 1
            await self._whole(embeddings.answer(body), behaviour, receive, send)
            return
        answer = shape(body, behaviour)
        if body.get("stream"):
            self.switch.open += 1
            try:
                await stream(answer.events(), behaviour, receive, send)
            finally:
                self.switch.open -= 1
        else:
            await self._whole(answer.whole(), behaviour, receive, send)

    async def _whole(
        self, answer: dict[str, Any], behaviour: Behaviour, receive: Receive, send: Send
    ) -> None:
        data = json.dumps(answer, separators=(",", ":")).encode()
        if behaviour.waits:  # an endless answer never comes
            seconds = None if behaviour.kind == "endless" else behaviour.first
            if await _left(receive, seconds):
                return
        if behaviour.kind == "malformed":
            data = data[: len(data) // 2]
        if behaviour.kind == "broken":
            await _start(send, 200, {"content-type": "application/json"}, len(data))
            await send({"type": "http.response.body", "body": data[:20], "more_body": True})
            return  # the server closes the connection of an answer that is not whole
        await _answer(send, 200, data)


def refuse(behaviour: Behaviour, model: str) -> None:
    """Raise the error that this behaviour answers with, if it does."""
    if behaviour.kind == "rate_limited":
        raise ApiError(
            429,
            f"Rate limit reached for {model} on requests per min (RPM): Limit 500, Used 500, Requested 1. "
            f"Please try again in {behaviour.retry_after}s.",
            kind="requests",
            code="rate_limit_exceeded",
            headers={
                "retry-after": behaviour.retry_after,
                "x-ratelimit-limit-requests": "500",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": f"{behaviour.retry_after}s",
            },
        )
    if behaviour.kind == "failing":
        raise ApiError(
            behaviour.status,
            "The server had an error while processing your request. Sorry about that!",
            kind=behaviour.code or "server_error",
            code=behaviour.code or None,
        )


async def stream(events: Events, behaviour: Behaviour, receive: Receive, send: Send) -> None:
    """Send the events, as the behaviour has it. Returns as soon as the client has left."""
    if not behaviour.waits and behaviour.kind == "normal":
        await _start(send, 200, STREAM)
        for part in (events.head, events.pieces, events.tail):
            for event in part:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    left = asyncio.ensure_future(_left(receive, None))
    try:
        await _wait(left, behaviour.first)
        await _start(send, 200, STREAM)
        for number, event in enumerate(_misbehaving(events, behaviour)):
            if number:
                await _wait(left, behaviour.delay)
            if left.done():
                return
            if behaviour.kind == "broken" and number >= behaviour.after:
                return  # the server closes the connection of an answer that is not whole
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        left.cancel()


def _misbehaving(events: Events, behaviour: Behaviour) -> Iterable[bytes]:
    """The events in their order, with what the behaviour does to them."""
    sent = 0
    pieces: list[bytes] = []
    for part in (events.head, events.pieces):
        for event in part:
            if behaviour.kind == "malformed" and sent == behaviour.after:
                yield MALFORMED
            yield event
            sent += 1
            pieces.append(event)
    if behaviour.kind == "malformed" and sent <= behaviour.after:
        yield MALFORMED
    while behaviour.kind == "endless":
        yield from pieces[len(events.head) :]
    yield from events.tail


async def _left(receive: Receive, seconds: float | None) -> bool:
    """Wait until the client has left (True), for so many seconds at most."""
    try:
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True


async def _wait(left: asyncio.Future[bool], seconds: float) -> None:
    """Wait, or less when the client leaves. Always lets others run."""
    await asyncio.wait([left], timeout=seconds)


async def _body(receive: Receive) -> dict[str, Any]:
    """The JSON object of the request. Raises ApiError."""
    parts, size = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            raise ApiError(413, "the request is too large")
        if not message.get("more_body"):
            break
    try:
        value = json.loads(b"".join(parts))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ApiError(
            400,
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your "
            "HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)",
        )
    return value


async def _json(send: Send, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
    await _answer(send, status, json.dumps(value).encode(), headers)


async def _answer(
    send: Send, status: int, data: bytes, headers: dict[str, str] | None = None
) -> None:
    await _start(send, status, {"content-type": "application/json"} | (headers or {}), len(data))
    await send({"type": "http.response.body", "body": data})


async def _start(
    send: Send, status: int, headers: dict[str, str], length: int | None = None
) -> None:
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    lines.append((b"x-request-id", f"req_{uuid.uuid4().hex}".encode()))
    if length is not None:
        lines.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": lines})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
