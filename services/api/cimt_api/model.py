"""The model, by OpenAI's HTTP interface: chat completions as a stream, without an object per token, and embeddings."""

from __future__ import annotations

import array
import asyncio
import base64
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
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from typing import Any, NamedTuple

import aiohttp
import orjson
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from pydantic import BaseModel

from . import __version__
from .http.bodies import read_whole
from .http.problems import Problem
from .metrics import Metrics
from .settings import Settings

OPENAI = "https://api.openai.com/v1"
DIMENSIONS = 1536  # of the column that embeddings are stored in
LONGEST_LINE = 1_000_000  # bytes of one event
LONGEST_BODY = 64_000_000  # bytes of an answer that is read whole, such as a batch of vectors
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
LAST_SECONDS = 2.0  # after the end of an answer, for its usage and the end of the response; for an error's body
LIST_SECONDS = 30.0
KEEP_SECONDS = 15.0  # a connection that nobody needs

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
        self._url = settings.openai_base_url or OPENAI
        self._session: aiohttp.ClientSession | None = None
        self.breaker = Breaker()
        self.embedding_breaker = Breaker()  # of its own: either may fail while the other works
        self.refused: str | None = None  # key or quota: what its service will not take any more

    async def start(self) -> None:
        """Make the client, which connects when it is asked first."""
        settings = self._settings
        self._session = aiohttp.ClientSession(
            # One answer costs one connection; embeddings and ingest come on top.
            connector=aiohttp.TCPConnector(
                limit=settings.streams_total + 50, keepalive_timeout=KEEP_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=settings.openai_connect_seconds,
                sock_read=max(
                    settings.openai_first_token_seconds, settings.openai_between_tokens_seconds
                ),
            ),
            headers={
                "Authorization": f"Bearer {settings.openai_api_key.get_secret_value()}",
                "Content-Type": "application/json",
                "User-Agent": f"cimt-api/{__version__}",
            },
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    @property
    def ready(self) -> bool:
        """Tell whether the breaker is closed and our key taken."""
        return not self.breaker.open and self.refused is None

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
        answer = await self._whole("GET", "/models", None, LIST_SECONDS)
        try:
            listed = ServedModels.model_validate_json(answer)
        except ValueError:
            raise UpstreamError("upstream-malformed") from None
        return {model.id: model.shutdown_date for model in listed.data}

    async def _attempt(self, body: dict[str, Any]) -> AsyncGenerator[Delta]:
        async with self._translated("upstream-unreachable"):
            response = await self._ask("POST", "/chat/completions", body)
        deltas = _read(response.content.iter_any())
        ended = False
        try:
            async with self._translated("upstream-broken"):
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
            response.close()

    async def _embed_once(self, texts: list[str], model: str) -> list[list[float]]:
        body: dict[str, Any] = {"model": model, "input": texts, "encoding_format": "base64"}
        if "-3-" in model:  # only the third generation can be told how long its vectors are
            body["dimensions"] = DIMENSIONS
        with TRACER.start_as_current_span(f"embeddings {model}", kind=SpanKind.CLIENT):
            answer = await self._whole("POST", "/embeddings", body, EMBED_SECONDS)
        try:
            found = sorted(orjson.loads(answer)["data"], key=lambda item: item["index"])
            vectors = [_vector(item["embedding"]) for item in found]
        except (ValueError, LookupError, TypeError):
            raise UpstreamError("upstream-malformed") from None
        if len(vectors) != len(texts) or any(len(vector) != DIMENSIONS for vector in vectors):
            raise UpstreamError("upstream-malformed")
        return vectors

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> aiohttp.ClientResponse:
        """Return the response, whose body is not read yet. Raises UpstreamError where it is no success."""
        assert self._session is not None, "start() comes first"  # noqa: S101
        data = None if body is None else orjson.dumps(body)
        url = f"{self._url}{path}"
        response = await self._session.request(method, url, data=data, allow_redirects=False)
        if response.status // 100 == 2:
            return response
        text = b""
        try:
            # What it says only explains the status, which counts whether or not the rest comes.
            with contextlib.suppress(aiohttp.ClientError, OSError, ValueError):
                async with asyncio.timeout(LAST_SECONDS):
                    text = await read_whole(response, LONGEST_LINE)
        finally:
            response.close()
        raise self._status_error(response, text)

    async def _whole(
        self, method: str, path: str, body: dict[str, Any] | None, seconds: float
    ) -> bytes:
        """Return the body of an answer that comes in so many seconds. Raises UpstreamError."""
        async with self._translated("upstream-unreachable"), asyncio.timeout(seconds):
            response = await self._ask(method, path, body)
            try:
                return await read_whole(response, LONGEST_BODY)
            finally:
                response.close()

    @contextlib.asynccontextmanager
    async def _translated(self, otherwise: str) -> AsyncIterator[None]:
        """Raise failures of the client as UpstreamError: of that kind, where nothing says which."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError:
            raise UpstreamError("upstream-unreachable") from None
        except TimeoutError:
            raise UpstreamError("upstream-timeout") from None
        except (aiohttp.ClientError, OSError):
            raise UpstreamError(otherwise) from None
        except ValueError:  # too long, or what the client finds wrong with it
            raise UpstreamError("upstream-malformed") from None

    def _status_error(self, response: aiohttp.ClientResponse, text: bytes) -> UpstreamError:
        status = response.status
        said = _object(text) or {}
        said = error if isinstance(error := said.get("error"), dict) else said
        # Names of the service's own; its message may hold names of keys, or what was asked.
        code, kind = (
            value if isinstance(value, str) and NAME.fullmatch(value) else ""
            for value in (said.get("code"), said.get("type"))
        )
        log.warning("the model's service answered %d (code %s, type %s)", status, code, kind)
        # A key that lacks the right to list models gets 401 too, and answers all the same.
        if status == 401 and (code == "invalid_api_key" or response.method == "POST"):
            self.refused = "key"
        if "insufficient_quota" in (code, kind):
            self.refused = "quota"
            return UpstreamError("upstream-quota", RETRY_AFTER_LONGEST)
        if status == 429:
            return UpstreamError("upstream-rate-limited", _retry_after(response.headers))
        return UpstreamError(
            "upstream-failing" if status >= 500 or status == 408 else "upstream-refused"
        )


def _vector(embedding: Any) -> list[float]:
    """Return the numbers of an embedding: as base64 of 32-bit floats, or, from services that know no other, a list."""
    if isinstance(embedding, str):
        return array.array("f", base64.b64decode(embedding, validate=True)).tolist()
    return [float(number) for number in embedding]


async def _read(pieces: AsyncIterable[bytes]) -> AsyncGenerator[Delta]:
    """Yield what a chat completion's body says, whole or as events. Raises UpstreamError, and what its pieces raise."""
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
