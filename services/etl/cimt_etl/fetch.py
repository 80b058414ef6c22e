"""Fetch over HTTP: only checked addresses, bounded in size and time, polite to hosts, patient with busy ones."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.utils
import ipaddress
import itertools
import os
import re
import socket
import time
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx
from protego import Protego

AGENT = "CIMT-Seed-ETL"
CONNECT_SECONDS = 10.0
TOTAL_SECONDS = 60.0  # of one request with its redirects, however slowly it drips (`--patience`)
REDIRECTS = 5
ATTEMPTS = 3
BACKOFF = (1.0, 4.0)  # seconds between attempts when the server names none
PATIENCE_SECONDS = 60.0  # that a Retry-After may ask for
AT_ONCE = 4  # requests to one host
CRAWL_DELAY_SECONDS = 10.0  # of robots.txt, at most
GIVE_UP_AFTER = 5  # failures of one host in a row: the rest of a run does without it
GIT_SECONDS = 300  # of one repository
ROBOTS_BYTES = 512 * 1024  # RFC 9309 wants at least 500 KiB

# In front of a command: what a run starts ends with it, also when the run is killed.
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")

FILES = re.compile(
    r"\.(?:md|mdx|markdown|txt|html?|pdf|docx)$", re.IGNORECASE
)  # of folders and repositories


class Failed(Exception):
    """What could not be fetched or read, in words for people, with its address."""


class Refused(Failed):
    """An address that nothing here may be fetched from."""


class Again(Failed):
    """A failure that may pass: after `seconds`, where the server named them."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Reach:
    """Where a source may be fetched from: public addresses, but for our own names, and what is allowed by name."""

    allow: frozenset[str] = frozenset()  # "host" or "host:port"
    own: frozenset[str] = frozenset()  # names of ours in public

    def allows(self, host: str, port: int) -> bool:
        """Whether this host was allowed by name."""
        return not self.allow.isdisjoint((host, f"{host}:{port}"))

    def addresses(self, host: str, port: int) -> list[str]:
        """Resolve a name, and answer the addresses that a connection may go to. Raises Refused and OSError."""
        host = host.rstrip(".").lower()
        allowed = self.allows(host, port)
        if host in self.own and not allowed:
            raise Refused(f"{host} is a name of ours")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        for address in addresses if not allowed else ():
            if not public(address):
                raise Refused(f"{host} is at {address}, which is not a public address")
        return addresses


def public(address: str) -> bool:
    """Whether an IP address belongs to the internet, whatever it is wrapped in."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = int(ip) >> 32 == 0x0064FF9B << 64
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if nat64 else inner
        if inner is not None:
            return public(str(inner))
    return ip.is_global and not ip.is_multicast


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that were checked: a name cannot be resolved to others afterwards."""

    def __init__(self, reach: Reach) -> None:
        self._reach, self._real = reach, httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first of the checked addresses that answers."""
        try:
            addresses = await asyncio.to_thread(self._reach.addresses, host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} is not known: {error.strerror}") from None
        for last, address in enumerate(addresses, 1 - len(addresses)):
            try:
                return await self._real.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if last == 0:
                    raise
        raise httpcore.ConnectError(f"{host} has no address")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class SyncCheckedNetwork(httpcore.NetworkBackend):
    """The same for a process that does one thing at a time."""

    def __init__(self, reach: Reach) -> None:
        self._reach, self._real = reach, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first of the checked addresses."""
        return self._real.connect_tcp(
            self._reach.addresses(host, port)[0], port, timeout, local_address, socket_options
        )


@dataclass
class Host:
    """What a run has learned of one host."""

    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    delay: float = 0.0
    free_at: float = 0.0  # when the next request may begin
    failures: int = 0  # in a row
    robots: asyncio.Task[Protego] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A file that was fetched; of an unchanged one (304) without a path."""

    url: str  # after redirects
    path: Path | None
    type: str  # Content-Type as it was sent
    etag: str | None
    modified: str | None


class Fetcher:
    """Fetches for one source into `folder`. Hosts are shared by the sources of a run."""

    def __init__(
        self,
        reach: Reach,
        folder: Path,
        hosts: dict[str, Host],
        *,
        robots: bool = True,
        seconds: float = TOTAL_SECONDS,
    ) -> None:
        self.reach, self.folder, self.hosts, self.robots = reach, folder, hosts, robots
        self.seconds = seconds
        transport = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=8)
        )
        # httpx has no parameter for it; the version is locked, and a test of refusals fails should this stop working.
        transport._pool._network_backend = CheckedNetwork(reach)
        self.client = httpx.AsyncClient(
            transport=transport,
            trust_env=False,  # a proxy would connect to what nobody checked
            headers={"User-Agent": AGENT, "Accept-Encoding": "gzip"},
            timeout=httpx.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)),
        )
        self._numbers = itertools.count()

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def get(
        self,
        url: str,
        *,
        most: int,
        etag: str | None = None,
        modified: str | None = None,
        declared: bool = False,
        token: str = "",
    ) -> Answer:
        """Fetch an address, unless it still has this ETag or time. Raises Failed with the reason.

        `most` bytes after decompression; what is `declared` by us (a list) does not ask robots.txt. A `token` is shown
        to this address alone: it does not follow a redirect.
        """
        asked = {
            **({"Authorization": basic(token)} if token else {}),
            **({"If-None-Match": etag} if etag else {}),
            **({"If-Modified-Since": modified} if modified else {}),
        }
        for attempt in range(ATTEMPTS):
            try:
                return await self._once(url, most, asked, declared)
            except Again as failure:
                wait = failure.seconds
                if attempt == ATTEMPTS - 1 or (wait or 0) > PATIENCE_SECONDS:
                    raise Failed(f"{failure} (tried {attempt + 1} times)") from None
                await asyncio.sleep(BACKOFF[attempt] if wait is None else wait)
        raise AssertionError

    async def _once(self, url: str, most: int, asked: Mapping[str, str], declared: bool) -> Answer:
        host = self._host(url)
        if host.failures >= GIVE_UP_AFTER:
            raise Failed(f"{url}: its host has failed {host.failures} times in a row")
        try:
            async with asyncio.timeout(self.seconds):
                answer = await self._follow(url, most, asked, declared)
        except TimeoutError:
            host.failures += 1
            raise Again(f"{url}: not complete after {self.seconds:g} s") from None
        except httpx.TransportError as error:
            host.failures += 1
            raise Again(f"{url}: {str(error) or type(error).__name__}") from None
        except Again:
            host.failures += 1
            raise
        host.failures = 0
        return answer

    async def _follow(
        self, url: str, most: int, asked: Mapping[str, str], declared: bool
    ) -> Answer:
        now = url
        for _ in range(REDIRECTS + 1):
            check(now)
            if self.robots and not declared and not await self._may(now):
                raise Failed(f"{now}: its robots.txt asks us not to")
            async with self._turn(now), self.client.stream("GET", now, headers=asked) as response:
                if response.has_redirect_location and "Authorization" not in asked:
                    now = urljoin(now, response.headers.get("location", ""))
                    continue
                if response.status_code == 304 and asked:
                    # It is empty; but only one that was read leaves its connection to the next page.
                    await response.aread()
                    return _answer(response, now, None)
                if response.status_code != 200:
                    raise _refusal(response, url)
                path = self.folder / f"{next(self._numbers)}"
                await _save(response, path, most, url)
                return _answer(response, now, path)
        raise Failed(f"{url}: more than {REDIRECTS} redirects")

    def _host(self, url: str) -> Host:
        return self.hosts.setdefault(urlsplit(url).netloc.lower(), Host())

    @contextlib.asynccontextmanager
    async def _turn(self, url: str) -> AsyncIterator[None]:
        host = self._host(url)
        async with host.gate:
            if host.delay:
                now = time.monotonic()
                begin = max(now, host.free_at)
                host.free_at = begin + host.delay
                await asyncio.sleep(begin - now)
            yield

    async def _may(self, url: str) -> bool:
        host = self._host(url)
        if host.robots is None:
            host.robots = asyncio.create_task(self._robots(url))
        try:  # shielded: the time limit of one page must not end what the others wait for
            rules = await asyncio.shield(host.robots)
        except Exception:
            host.robots = None  # the next attempt asks again
            raise
        return bool(rules.can_fetch(url, AGENT))

    async def _robots(self, url: str) -> Protego:
        """What robots.txt says; none, or none of ours to read, allows all (RFC 9309). Raises Failed."""
        where = urljoin(url, "/robots.txt")
        text = ""
        async with asyncio.timeout(self.seconds):
            for _ in range(REDIRECTS + 1):
                check(where)
                async with self.client.stream("GET", where) as response:
                    if response.has_redirect_location:
                        where = urljoin(where, response.headers.get("location", ""))
                        continue
                    if response.status_code >= 500 or response.status_code == 429:
                        raise Again(
                            f"{where}: HTTP {response.status_code}, so nothing is asked of it"
                        )
                    if response.status_code == 200:
                        path = self.folder / f"{next(self._numbers)}"
                        await _save(response, path, ROBOTS_BYTES, where)
                        text = path.read_bytes().decode(errors="replace")
                        path.unlink()
                    break
        rules = Protego.parse(text)
        self._host(url).delay = min(rules.crawl_delay(AGENT) or 0.0, CRAWL_DELAY_SECONDS)
        return rules


def check(url: str) -> None:
    """Raise Refused unless this is an address of the web without a password in it."""
    try:
        parts = urlsplit(url)
        proper = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        proper = False
    if not proper:
        raise Refused(f"{url[:200]}: not an address of the web")
    if parts.username or parts.password:
        raise Refused(f"{parts.scheme}://…@{parts.hostname}{parts.path}: a password in an address")


def _answer(response: httpx.Response, url: str, path: Path | None) -> Answer:
    headers = response.headers
    return Answer(
        url,
        path,
        headers.get("content-type", ""),
        headers.get("etag"),
        headers.get("last-modified"),
    )


def _refusal(response: httpx.Response, url: str) -> Failed:
    status = response.status_code
    if status in (408, 425, 429) or status >= 500:
        return Again(f"{url}: HTTP {status}", _seconds(response.headers.get("retry-after")))
    return Failed(f"{url}: HTTP {status}")


def _seconds(text: str | None) -> float | None:
    """Read Retry-After, seconds or a date."""
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


async def _save(response: httpx.Response, path: Path, most: int, url: str) -> None:
    """Write a body into a file, decompressed here because a bomb must stop at the limit, not after it."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", "x-gzip", ""):
        raise Failed(f"{url}: sent as {coding}, which was not asked for")
    unzip = zlib.decompressobj(47) if "gzip" in coding else None
    size = 0
    try:
        with path.open("wb") as file:
            async for raw in response.aiter_raw(65536):
                rest = raw
                while rest:
                    part = unzip.decompress(rest, 1 << 20) if unzip else rest
                    rest = unzip.unconsumed_tail if unzip else b""
                    size += file.write(part)
                    if size > most:
                        raise Failed(f"{url}: larger than {most:,} bytes")
        if unzip and not unzip.eof:
            raise Again(f"{url}: its compressed body is cut short")
    except zlib.error as error:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - a local file
        raise Failed(f"{url}: its compressed body is broken: {error}") from None
    except BaseException:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - a local file
        raise


def ref_names(ref: str) -> list[str]:
    """Return by which names a git server may list a branch or tag, in their order; ^{} is the commit of a tag."""
    return [ref, f"refs/heads/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}"]


def basic(token: str) -> str:
    """Return an Authorization header by which GitHub, GitLab and Gitea take a token."""
    return "Basic " + base64.b64encode(f"x-access-token:{token}".encode()).decode()


def tokens(text: str) -> dict[str, str]:
    """Read `host=token` pairs, with commas or spaces between them."""
    pairs: Iterable[list[str]] = (one.split("=", 1) for one in text.replace(",", " ").split())
    return {pair[0].lower(): pair[1] for pair in pairs if len(pair) == 2}


def own_names(environment: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Return the names of ours in public (OWN_NAMES), which are no sources."""
    return frozenset(environment.get("OWN_NAMES", "").replace(",", " ").lower().split())
