"""The model, through OpenAI's SDK: its client, without an object per token.

The SDK is imported beside the running server: that takes seconds, half a minute on an emulated host, and
nobody's health check should wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from pydantic import BaseModel

from .metrics import Metrics
from .problems import Problem
from .settings import Settings

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

DIMENSIONS = 1536  # of the column that embeddings are stored in
LONGEST_LINE = 1_000_000  # bytes of one event
FAILURES = 5  # in a row, until the breaker opens
OPEN_SECONDS = 5.0  # the first time; doubles up to
OPEN_SECONDS_MAX = 60.0
RETRY_AFTER_MAX = 2.0  # seconds that a retry may be put off; longer ones are the client's to wait
EMBED_SECONDS = 10.0
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
    "upstream-malformed": (502, "The model's answer cannot be read", True, True),
    "upstream-broken": (502, "The model's answer broke off", True, True),
    "upstream-resting": (503, "The model has failed repeatedly and is not asked now", False, False),
}


class UpstreamError(Exception):
    """The model did not answer, or not to the end. Holds nothing of what its service said."""

    def __init__(self, kind: str, retry_after: float | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.retry_after = retry_after  # seconds

    def problem(self) -> Problem:
        """Return what the client is told when nothing of the answer was sent yet."""
        status, title, _, _ = KINDS[self.kind]
        wait = {"Retry-After": f"{max(1, round(self.retry_after or 5))}"} if status == 503 else {}
        return Problem(status, title, kind=self.kind, headers=wait)


class ServedModel(BaseModel):
    """What the list of models says about one of them."""

    id: str
    shutdown_date: datetime.date | None = None


class ServedModels(BaseModel):
    """The list of models."""

    data: list[ServedModel]


class Delta(NamedTuple):
    """What one read from the model's stream brought."""

    text: str
    finish: str | None  # why the model stopped: stop, length, content_filter
    usage: tuple[int, int] | None  # tokens of prompt and answer
    done: bool  # nothing comes after this
    error: str | None = None  # kind of failure that follows what is here


class Breaker:
    """Opens after failures in a row; then lets one request through at a time until one succeeds."""

    def __init__(self) -> None:
        self._failures = 0
        self._seconds = OPEN_SECONDS
        self._until = 0.0  # monotonic

    @property
    def open(self) -> bool:
        """Tell whether requests are refused now."""
        return self._failures >= FAILURES

    def check(self) -> None:
        """Raise UpstreamError while open, except for one request when it is time to try again."""
        if not self.open:
            return
        now = time.monotonic()
        if now < self._until:
            raise UpstreamError("upstream-resting", self._until - now)

    def enter(self) -> None:
        """Do as `check`; the request that passes while open is the one that tries."""
        self.check()
        if self.open:
            now = time.monotonic()
            self._until = now + self._seconds  # the others wait for the outcome, or for this long

    def success(self) -> None:
        """Close the breaker, and forget the failures."""
        self._failures = 0
        self._seconds = OPEN_SECONDS

    def failure(self) -> None:
        """Count a failure, and open the breaker when it is one too many, for longer each time."""
        self._failures += 1
        if self._failures == FAILURES:
            log.error("the model failed %d times in a row: not asked for a while", FAILURES)
        if self.open:
            self._until = time.monotonic() + self._seconds
            self._seconds = min(self._seconds * 2, OPEN_SECONDS_MAX)


class Upstream:
    """Chat completions as a stream, and embeddings."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._client: asyncio.Future[AsyncOpenAI] | None = None
        self._response: type[httpx2.Response] | None = None
        self.breaker = Breaker()
        self.embedding_breaker = Breaker()  # of its own: either may fail while the other works

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
        """Tell whether the SDK is loaded and the breaker closed."""
        return self._client is not None and self._client.done() and not self.breaker.open

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
        attempts = self._settings.openai_retries
        begun = False
        while True:
            self.breaker.enter()
            try:
                async with contextlib.aclosing(self._attempt(body)) as deltas:
                    async for delta in deltas:
                        begun = begun or bool(delta.text)
                        if delta.done:
                            self.breaker.success()
                        yield delta
                return
            except UpstreamError as error:
                self._count(error, self.breaker)
                if begun or not attempts or not _retryable(error):
                    raise
                await _pause(self._settings.openai_retries - attempts, error)
                attempts -= 1

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """Return one vector of 1,536 numbers per text. Raises UpstreamError after bounded attempts."""
        attempts = self._settings.openai_retries
        while True:
            self.embedding_breaker.enter()
            try:
                vectors = await self._embed_once(texts)
            except UpstreamError as error:
                self._count(error, self.embedding_breaker)
                if not attempts or not _retryable(error):
                    raise
                await _pause(self._settings.openai_retries - attempts, error)
                attempts -= 1
            else:
                self.embedding_breaker.success()
                return vectors

    async def shutdown_dates(self) -> dict[str, datetime.date | None]:
        """Return the last day of every model that is served, None: not announced. Raises UpstreamError, tries once."""
        client = await self._loaded()
        assert self._response is not None  # noqa: S101 - set with the client
        async with _translated():
            response = await client.get(
                "/models", cast_to=self._response, options={"timeout": LIST_SECONDS}
            )
            listed = ServedModels.model_validate_json(response.content)
        return {model.id: model.shutdown_date for model in listed.data}

    async def _attempt(self, body: dict[str, Any]) -> AsyncGenerator[Delta]:
        client = await self._loaded()
        assert self._response is not None  # noqa: S101 - set with the client
        async with _translated():
            # The SDK's own way to a path that it does not know; with this type it hands the response over unread.
            response = await client.post(
                "/chat/completions",
                cast_to=self._response,
                body=body,
                stream=True,
                stream_cls=None,
            )
        try:
            rest = b""
            finished = done = False
            async with _translated():
                async for piece in response.aiter_raw():
                    if done:
                        continue
                    *lines, rest = (rest + piece if rest else piece).split(b"\n")
                    delta = _delta(lines)
                    finished = finished or delta.finish is not None
                    done = delta.done
                    if delta.text or delta.finish or delta.usage or done:
                        yield delta
                    if delta.error or len(rest) > LONGEST_LINE:
                        raise UpstreamError(delta.error or "upstream-malformed")
            if not done:
                if not finished:  # the connection ended, the answer did not
                    raise UpstreamError("upstream-broken")
                yield Delta("", None, None, True)
        finally:
            await response.aclose()

    async def _embed_once(self, texts: list[str]) -> list[list[float]]:
        client = await self._loaded()
        model = self._settings.embedding_model
        # Only the third generation can be told how long its vectors are.
        sized: dict[str, Any] = {"dimensions": DIMENSIONS} if "-3-" in model else {}
        with TRACER.start_as_current_span(f"embeddings {model}", kind=SpanKind.CLIENT):
            async with _translated():
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

    def _count(self, error: UpstreamError, breaker: Breaker) -> None:
        self._metrics.upstream_errors.labels(error.kind).inc()
        if KINDS[error.kind][3]:
            breaker.failure()


def _delta(lines: list[bytes]) -> Delta:
    """Return what whole lines of an event stream say, up to the first that cannot be read."""
    text: list[str] = []
    finish: str | None = None
    usage: tuple[int, int] | None = None
    done = False
    error: str | None = None
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            done = True
            break
        try:
            chunk = orjson.loads(data)
            for choice in chunk["choices"]:
                delta = choice["delta"]
                if piece := delta.get("content") or delta.get("refusal"):
                    text.append(piece)
                finish = choice.get("finish_reason") or finish
            if counted := chunk.get("usage"):
                usage = (counted["prompt_tokens"], counted["completion_tokens"])
        except (ValueError, KeyError, TypeError, AttributeError):
            error = _error_kind(data)  # what came before it in the same read still counts
            break
    # Postgres has no place for a NUL in a text.
    return Delta("".join(text).replace("\0", ""), finish, usage, done, error)


def _error_kind(data: bytes) -> str:
    """Return the kind of failure of a line that is no chunk: the service may report an error in its stream."""
    try:
        reported = "error" in orjson.loads(data)
    except (ValueError, TypeError):
        reported = False
    return "upstream-failing" if reported else "upstream-malformed"


@contextlib.asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Raise failures of the SDK and of its HTTP client as UpstreamError."""
    import httpx2
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        raise _status_error(error) from None
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
    except (openai.OpenAIError, ValueError):  # an answer that is no JSON, or not the promised one
        raise UpstreamError("upstream-malformed") from None


def _status_error(error: Any) -> UpstreamError:
    status: int = error.status_code
    log.warning("the model's service answered %d", status)
    if status == 429:
        try:
            seconds = float(error.response.headers.get("retry-after", ""))
        except ValueError:
            seconds = 5.0
        return UpstreamError("upstream-rate-limited", min(max(seconds, 0.0), 3600.0))
    return UpstreamError(
        "upstream-failing" if status >= 500 or status == 408 else "upstream-refused"
    )


def _retryable(error: UpstreamError) -> bool:
    return KINDS[error.kind][2] and (error.retry_after or 0) <= RETRY_AFTER_MAX


async def _pause(attempt: int, error: UpstreamError) -> None:
    spread = 0.25 * 2**attempt * (0.5 + random.random())  # noqa: S311 - no secret
    await asyncio.sleep(max(error.retry_after or 0.0, spread))
