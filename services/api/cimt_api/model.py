"""The model, through OpenAI's SDK: its client, without an object per token.

The SDK is imported beside the running server: that takes seconds, half a minute on an emulated host, and
nobody's health check should wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import json
import logging
import math
import random
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from pydantic import BaseModel

from .http.problems import Problem
from .metrics import Metrics
from .settings import Settings

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

DIMENSIONS = 1536  # of the column that embeddings are stored in
LONGEST_LINE = 1_000_000  # bytes of one event
# The breaker opens when of the requests of so many seconds, if they are so many, so large a part has failed.
WINDOW_SECONDS = 30.0
VOLUME = 10
FAILED_PART = 0.5
OPEN_SECONDS = 5.0  # the first time; doubles up to
OPEN_SECONDS_MAX = 60.0
RETRY_AFTER = 5.0  # seconds, where nothing says better
RETRY_AFTER_LONGEST = 3600.0
RETRY_AFTER_MAX = 2.0  # seconds that a retry may be put off; longer ones are the client's to wait
EMBED_SECONDS = 10.0
LAST_SECONDS = 2.0  # after the end of an answer, for its usage and the end of the response
LIST_SECONDS = 30.0
LOAD_AFTER_TENTHS = 50  # of a second, at most: importing holds up all else, such as fetching keys

log = logging.getLogger(__name__)
TRACER = trace.get_tracer(__name__)

# Kind of failure: HTTP status, title, whether another attempt may help, whether the breaker counts it.
KINDS: dict[str, tuple[int, str, bool, bool]] = {
    "upstream-unreachable": (502, "The model cannot be reached", True, True),
    "upstream-timeout": (504, "The model did not answer in time", False, True),
    "upstream-rate-limited": (503, "The model takes no more questions at the moment", True, False),
    "upstream-failing": (502, "The model's service has an error", True, True),
    "upstream-refused": (502, "The model's service refused the request", False, False),
    "upstream-quota": (503, "The model's account is used up", False, False),
    "upstream-empty": (502, "The model ended without a word", False, False),
    "upstream-malformed": (502, "The model's answer cannot be read", True, True),
    "upstream-broken": (502, "The model's answer broke off", True, True),
    "upstream-resting": (503, "The model has failed repeatedly and is not asked now", False, False),
}
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # of an error, as services call theirs
# Ends of other services, as OpenAI calls them; what is not here is `stop`.
FINISHES = {
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), "length"),
    **dict.fromkeys(("content_filter", "content-filter", "safety", "sensitive"), "content_filter"),
    **dict.fromkeys(("recitation", "blocklist", "prohibited_content", "spii"), "content_filter"),
    **dict.fromkeys(("error", "network_error", "abort", "timeout", "cancelled"), "error"),
    **dict.fromkeys(("insufficient_system_resource", "malformed_response"), "error"),
}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class UpstreamError(Exception):
    """The model did not answer, or not to the end. Holds nothing of what its service said."""

    def __init__(self, kind: str, retry_after: float | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.retry_after = retry_after  # seconds

    def problem(self) -> Problem:
        """Return what the client is told when nothing of the answer was sent yet."""
        return problem_of_kind(self.kind, self.retry_after)


def problem_of_kind(kind: str, retry_after: float | None = None) -> Problem:
    """Return the Problem of one of KINDS; what passes by itself says after how many seconds to come back."""
    status, title, _, _ = KINDS[kind]
    wait = {"Retry-After": f"{max(1, round(retry_after or RETRY_AFTER))}"} if status == 503 else {}
    return Problem(status, title, kind=kind, headers=wait)


class ServedModel(BaseModel):
    """What the list of models says about one of them."""

    id: str
    shutdown_date: datetime.date | None = None


class ServedModels(BaseModel):
    """The list of models."""

    data: list[ServedModel]


class Usage(NamedTuple):
    """Tokens as billed."""

    prompt: int
    completion: int
    cached: int = 0  # of the prompt, what the service had in its cache
    written: int = 0  # of the prompt, what the service put there


class Delta(NamedTuple):
    """What one read from the model's stream brought."""

    text: str = ""
    thought: int = 0  # characters that it thought instead of saying them
    finish: str | None = None  # why the model stopped: stop, length, content_filter
    usage: Usage | None = None
    done: bool = False  # nothing comes after this
    error: str | None = None  # kind of failure that follows what is here


NOTHING = Delta()


class Breaker:
    """Opens when most requests fail, if there are enough of them; then one at a time may try until one succeeds."""

    def __init__(self) -> None:
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=10 * VOLUME)  # when, whether well
        self._seconds = OPEN_SECONDS
        self._until: float | None = None  # monotonic; None: closed
        self._probing = False

    @property
    def open(self) -> bool:
        """Tell whether requests are refused now."""
        return self._until is not None

    def check(self) -> None:
        """Raise UpstreamError while open, except for one request when it is time to try again."""
        if self._until is not None and (left := self._until - time.monotonic()) > 0:
            raise UpstreamError("upstream-resting", left)

    def enter(self) -> None:
        """Do as `check`; the request that passes while open is the one that tries."""
        self.check()
        if self._until is not None:
            self._probing = True
            # The others wait for the outcome, or for this long.
            self._until = time.monotonic() + self._seconds

    def success(self) -> None:
        """Count a request that went well; it closes an open breaker."""
        if self._until is not None:
            self._until, self._probing, self._seconds = None, False, OPEN_SECONDS
            self._outcomes.clear()
        self._outcomes.append((time.monotonic(), True))

    def failure(self) -> None:
        """Count a request that failed, however often it was tried; a probe that does opens it for longer."""
        now = time.monotonic()
        if self._until is not None:
            if self._probing:
                self._seconds = min(self._seconds * 2, OPEN_SECONDS_MAX)
                self._until, self._probing = now + self._seconds, False
            return
        self._outcomes.append((now, False))
        recent = [well for when, well in self._outcomes if now - when < WINDOW_SECONDS]
        failed = recent.count(False)
        if len(recent) >= VOLUME and failed >= FAILED_PART * len(recent):
            log.error("the model failed %d of %d times: not asked now", failed, len(recent))
            self._until = now + self._seconds


class Tries:
    """The attempts of one request: each is counted, and the breaker is told once how the request ended."""

    def __init__(self, attempts: int, breaker: Breaker, metrics: Metrics) -> None:
        breaker.enter()
        self._attempts = attempts
        self._made = 0
        self._breaker = breaker
        self._metrics = metrics

    async def failed(self, error: UpstreamError, *, last: bool = False) -> None:
        """Wait until it is time for another attempt; raise the error where none may help, or none is left."""
        self._made += 1
        self._metrics.upstream_errors.labels(error.kind).inc()
        if last or self._made >= self._attempts or not _retryable(error):
            if KINDS[error.kind][3]:
                self._breaker.failure()
            raise error
        await _pause(self._made - 1, error)


class Upstream:
    """Chat completions as a stream, and embeddings."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._client: asyncio.Future[AsyncOpenAI] | None = None
        self._response: type[httpx2.Response] | None = None
        self.breaker = Breaker()
        self.embedding_breaker = Breaker()  # of its own: either may fail while the other works
        self.refused: str | None = None  # key or quota: what its service will not take any more

    async def start(self, after: Callable[[], bool]) -> None:
        """Begin to load the SDK once `after` returns true, or that takes long, without waiting for it."""
        self._client = asyncio.ensure_future(self._load(after))

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None and self._client.done():
            await self._client.result().close()
        elif self._client is not None:
            self._client.cancel()

    @property
    def ready(self) -> bool:
        """Tell whether the SDK is loaded, the breaker closed, and our key taken."""
        loaded = self._client is not None and self._client.done()
        return loaded and not self.breaker.open and self.refused is None

    def check(self) -> None:
        """Raise Problem 503 while a breaker keeps questions from being answered."""
        try:
            self.breaker.check()
            if self._settings.retrieval_count:
                self.embedding_breaker.check()
        except UpstreamError as error:
            raise error.problem() from None

    async def stream(
        self, messages: list[dict[str, str]], max_tokens: int
    ) -> AsyncGenerator[Delta]:
        """Yield the answer as it comes. Raises UpstreamError; tries again only before the first token."""
        body: dict[str, Any] = {
            "model": self._settings.chat_model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_completion_tokens": max_tokens,
        }
        if self._settings.reasoning_effort != "off":
            body["reasoning_effort"] = self._settings.reasoning_effort
        tries = Tries(self._settings.openai_retries + 1, self.breaker, self._metrics)
        begun = False
        while True:
            try:
                async with contextlib.aclosing(self._attempt(body)) as deltas:
                    async for delta in deltas:
                        begun = begun or bool(delta.text)
                        if delta.done:
                            self.breaker.success()
                            self.refused = None
                        yield delta
                return
            except UpstreamError as error:
                await tries.failed(error, last=begun)

    def timed_out(self) -> None:
        """Count a request that was given up from outside, because nothing came any more."""
        self._metrics.upstream_errors.labels("upstream-timeout").inc()
        self.breaker.failure()

    async def embed(self, texts: list[str], model: str) -> list[list[float]]:
        """Return one vector of 1,536 numbers per text. Raises UpstreamError after bounded attempts."""
        tries = Tries(self._settings.openai_retries + 1, self.embedding_breaker, self._metrics)
        while True:
            try:
                vectors = await self._embed_once(texts, model)
            except UpstreamError as error:
                await tries.failed(error)
            else:
                self.embedding_breaker.success()
                return vectors

    async def shutdown_dates(self) -> dict[str, datetime.date | None]:
        """Return the last day of every model that is served, None: not announced. Raises UpstreamError, tries once."""
        client = await self._loaded()
        assert self._response is not None  # noqa: S101 - set with the client
        async with self._translated():
            response = await client.get(
                "/models", cast_to=self._response, options={"timeout": LIST_SECONDS}
            )
            listed = ServedModels.model_validate_json(response.content)
        return {model.id: model.shutdown_date for model in listed.data}

    async def _attempt(self, body: dict[str, Any]) -> AsyncGenerator[Delta]:
        client = await self._loaded()
        assert self._response is not None  # noqa: S101 - set with the client
        async with self._translated():
            # The SDK's own way to a path that it does not know; with this type it hands the response over unread.
            response = await client.post(
                "/chat/completions",
                cast_to=self._response,
                body=body,
                stream=True,
                stream_cls=None,
            )
        deltas = _read(response)
        ended = False
        try:
            async with self._translated():
                while True:
                    async with asyncio.timeout(LAST_SECONDS if ended else None):
                        delta = await anext(deltas, None)
                    if delta is None:
                        return
                    ended = ended or delta.finish is not None or delta.done
                    yield delta
        except (UpstreamError, TimeoutError):
            if not ended:
                raise
            yield Delta(done=True)  # all was said before it
        finally:
            await deltas.aclose()
            await response.aclose()

    async def _embed_once(self, texts: list[str], model: str) -> list[list[float]]:
        client = await self._loaded()
        # Only the third generation can be told how long its vectors are.
        sized: dict[str, Any] = {"dimensions": DIMENSIONS} if "-3-" in model else {}
        with TRACER.start_as_current_span(f"embeddings {model}", kind=SpanKind.CLIENT):
            async with self._translated():
                answer = await client.embeddings.create(
                    model=model, input=texts, timeout=EMBED_SECONDS, **sized
                )
                vectors = [
                    item.embedding for item in sorted(answer.data, key=lambda item: item.index)
                ]
        if len(vectors) != len(texts) or any(len(vector) != DIMENSIONS for vector in vectors):
            raise UpstreamError("upstream-malformed")
        return vectors

    async def _loaded(self) -> AsyncOpenAI:
        assert self._client is not None, "start() comes first"  # noqa: S101
        return self._client.result() if self._client.done() else await asyncio.shield(self._client)

    async def _load(self, after: Callable[[], bool]) -> AsyncOpenAI:
        for _ in range(LOAD_AFTER_TENTHS):
            await asyncio.sleep(0.1)
            if after():
                break
        return await asyncio.to_thread(self._make_client)

    def _make_client(self) -> AsyncOpenAI:
        import httpx2
        from openai import AsyncOpenAI, DefaultAioHttpClient

        settings = self._settings
        self._response = httpx2.Response
        # One answer costs one connection; embeddings and ingest come on top.
        connections = settings.streams_total + 50
        timeout = httpx2.Timeout(
            connect=settings.openai_connect_seconds,
            pool=settings.openai_connect_seconds,
            write=settings.openai_connect_seconds,
            read=max(settings.openai_first_token_seconds, settings.openai_between_tokens_seconds),
        )
        limits = httpx2.Limits(
            max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=15
        )
        return AsyncOpenAI(
            api_key=settings.openai_api_key.get_secret_value(),
            base_url=settings.openai_base_url or None,
            max_retries=0,  # it would retry where we must not
            timeout=timeout,
            http_client=DefaultAioHttpClient(
                limits=limits, timeout=timeout, follow_redirects=False
            ),
        )

    @contextlib.asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Raise failures of the SDK and of its HTTP client as UpstreamError."""
        import httpx2
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise self._status_error(error) from None
        except (httpx2.ReadTimeout, openai.APITimeoutError) as error:
            # aiohttp's "server disconnected" arrives as a time-out of connecting.
            late = isinstance(
                error.__cause__ if isinstance(error, openai.APITimeoutError) else error,
                httpx2.ReadTimeout,
            )
            raise UpstreamError("upstream-timeout" if late else "upstream-unreachable") from None
        except openai.APIConnectionError:
            raise UpstreamError("upstream-unreachable") from None
        except (httpx2.HTTPError, httpx2.StreamError):
            raise UpstreamError("upstream-broken") from None
        except (openai.OpenAIError, ValueError):  # no JSON, or not the promised one
            raise UpstreamError("upstream-malformed") from None

    def _status_error(self, error: Any) -> UpstreamError:
        status: int = error.status_code
        # Names of the service's own; its message may hold names of keys, or what was asked.
        code, kind = (
            value if isinstance(value, str) and NAME.fullmatch(value) else ""
            for value in (error.code, error.type)
        )
        log.warning("the model's service answered %d (code %s, type %s)", status, code, kind)
        # A key that lacks the right to list models gets 401 too, and answers all the same.
        if status == 401 and (code == "invalid_api_key" or error.request.method == "POST"):
            self.refused = "key"
        if "insufficient_quota" in (code, kind):
            self.refused = "quota"
            return UpstreamError("upstream-quota", RETRY_AFTER_LONGEST)
        if status == 429:
            return UpstreamError("upstream-rate-limited", _retry_after(error.response.headers))
        return UpstreamError(
            "upstream-failing" if status >= 500 or status == 408 else "upstream-refused"
        )


async def _read(response: httpx2.Response) -> AsyncGenerator[Delta]:
    """Yield what a chat completion's response says, whole or as events. Raises UpstreamError, and the client's."""
    encoded = response.headers.get("content-encoding", "identity") != "identity"
    pieces = response.aiter_bytes() if encoded else response.aiter_raw()
    rest = b""
    begun = said = finished = done = whole = False
    async for piece in pieces:
        if done:
            continue  # the rest only lets the connection be used again
        rest = rest + piece if rest else piece
        if not begun:
            rest = rest.lstrip()
            if len(rest) < len(BYTE_ORDER_MARK):
                continue
            begun, rest = True, rest.removeprefix(BYTE_ORDER_MARK).lstrip()
            # It knows no streams. Its body tells: relays call either by the name of the other.
            whole = rest.startswith(b"{")
        if not whole:
            *lines, rest = rest.split(b"\n")
            delta = _delta(lines, said)
            said = said or bool(delta.text)
            finished = finished or delta.finish is not None
            done = delta.done
            if delta != NOTHING:
                yield delta
            if delta.error:
                raise UpstreamError(delta.error)
        if len(rest) > LONGEST_LINE:
            raise UpstreamError("upstream-malformed")
    if not done:
        delta = _delta([(b"data:" + rest.replace(b"\n", b" ")) if whole else rest], said)
        if delta != NOTHING:
            yield delta
        if delta.error or not (finished or delta.finish or delta.done):
            # The connection ended, the answer did not.
            raise UpstreamError(delta.error or "upstream-broken")
        if not delta.done:
            yield Delta(done=True)


def _delta(lines: list[bytes], said: bool) -> Delta:
    """Return what whole lines of an event stream say, up to the first that cannot be read.

    `said`: there was text before. A message then only repeats what its deltas have said.
    Services and relays differ in all that they need not say: what is missing, null, or of another shape is passed over.
    """
    text: list[str] = []
    thought = 0
    finish: str | None = None
    usage: Usage | None = None
    done = False
    error: str | None = None
    for line in lines:
        if not line.startswith(b"data:"):
            if line.startswith(b"error:") or (
                line.startswith(b"event:") and line[6:].strip() == b"error"
            ):
                error = "upstream-failing"
                break
            continue
        data = line[5:].strip()
        if not data:
            continue
        if data == b"[DONE]":
            done = True
            break
        chunk = _object(data)
        if chunk is None or _failed(chunk):
            # What came before it in the same read still counts.
            error = "upstream-malformed" if chunk is None else "upstream-failing"
            break
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict) or choice.get("index") not in (None, 0, "0"):
                continue
            delta = choice.get("delta")
            if not delta and not said and not text:
                delta = choice.get("message")
            if isinstance(delta, dict):
                if piece := _text(delta.get("content")) or _text(delta.get("refusal")):
                    text.append(piece)
                else:
                    thought += _thought(delta)
            if (reason := choice.get("finish_reason")) and isinstance(reason, str):
                finish = FINISHES.get(reason.lower(), "stop")
                if finish == "error":
                    finish, error = None, "upstream-failing"
        if counted := chunk.get("usage"):
            usage = _usage(counted) or usage
        if error:
            break
    # Postgres has no place for a NUL in a text.
    return Delta("".join(text).replace("\0", ""), thought, finish, usage, done, error)


def _object(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object of an event, None where it is none."""
    try:
        chunk = orjson.loads(data)
    except ValueError:
        # It is stricter than what some write: half of a surrogate pair, bytes that are no UTF-8.
        try:
            chunk = json.loads(data.decode(errors="replace"))
        except (ValueError, RecursionError):
            return None
    return chunk if isinstance(chunk, dict) else None


def _failed(chunk: dict[str, Any]) -> bool:
    """Tell whether an event is an error, as OpenAI says it or as vLLM, FastChat and Anthropic do."""
    named = "error" in (chunk.get("object"), chunk.get("type"))
    return named or bool(chunk.get("error") or chunk.get("error_code"))


def _thought(delta: dict[str, Any]) -> int:
    """Return how many characters a delta has of what is thought and not said; Mistral's are parts of the content."""
    content = delta.get("content")
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []  # fmt: skip
    thinking = "".join(_text(part.get("thinking") or part.get("text")) for part in parts)
    return len(_text(delta.get("reasoning_content") or delta.get("reasoning")) or thinking)


def _text(content: Any) -> str:
    """Return the text of a delta's content: a string, or a list of parts of which some have text."""
    if isinstance(content, list):
        texts = (
            part.get("text")
            for part in content
            if isinstance(part, dict) and part.get("type") not in ("reasoning", "thinking")
        )
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str):
        return ""
    # Half of a character cannot be sent on.
    return content if content.isascii() else content.encode(errors="replace").decode()


def _usage(counted: Any) -> Usage | None:
    """Return the tokens, None where the service does not say both numbers: a guess is not a bill."""

    def number(value: Any) -> int | None:
        return value if type(value) is int and 0 <= value < 2**31 else None

    if not isinstance(counted, dict):
        return None
    prompt = number(counted.get("prompt_tokens"))
    completion = number(counted.get("completion_tokens"))
    total = number(counted.get("total_tokens"))
    if prompt is not None and completion is None and total is not None:
        completion = number(total - prompt)
    if prompt is None or completion is None:
        return None
    details = counted.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    cached = min(number(details.get("cached_tokens")) or 0, prompt)
    written = min(number(details.get("cache_write_tokens")) or 0, prompt - cached)
    return Usage(prompt, completion, cached, written)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a refusal asks to wait, in whichever way it says so; RETRY_AFTER where it does not."""
    text = headers.get("retry-after", "")
    seconds = math.nan
    with contextlib.suppress(ValueError):
        seconds = float(headers.get("retry-after-ms", "")) / 1000
    if math.isnan(seconds):
        with contextlib.suppress(ValueError):
            seconds = float(text)
    if math.isnan(seconds):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    return RETRY_AFTER if math.isnan(seconds) else min(max(seconds, 0.0), RETRY_AFTER_LONGEST)


def _retryable(error: UpstreamError) -> bool:
    return KINDS[error.kind][2] and (error.retry_after or 0) <= RETRY_AFTER_MAX


async def _pause(attempt: int, error: UpstreamError) -> None:
    spread = 0.25 * 2**attempt * (0.5 + random.random())  # noqa: S311 - no secret
    await asyncio.sleep(max(error.retry_after or 0.0, spread))
