"""One run: read every source, put what changed, remove what is surely gone, and say what came of each."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .fetch import ENDS_WITH_US, TOTAL_SECONDS, Failed, Fetcher, Host, Reach
from .sources import FILE_BYTES, HOURS, Item, Listing, listing, name_of, where
from .store import Api, ApiFailed, Page, State, Stored, fingerprint, now

READER = 1  # one more when reading changes what it makes of the same bytes: everything is then read again
SHARE = 0.2  # of a source's documents that a list may remove at once
AT_LEAST = 5  # documents that it may remove whatever the share
CONFIRM_SECONDS = 24 * 3600.0  # until the same removals, asked for again, are believed
TRUST_SECONDS = 7 * 24 * 3600.0  # that the time in a list is believed without asking the page
LOOKING = 8  # pages of one source at a time
READING = 2  # files read at a time
PUTTING = 4  # documents sent at a time
SOURCES = 3  # read at a time
READ_SECONDS = 60.0
REASONS = 100  # of one source that are kept; all are counted
TEXT_CHARACTERS = 3000  # of a message: the smallest channel takes 4096, escaped
LINES = 12


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is asked for."""

    base: Path  # folder of the file of sources
    accept: frozenset[str] = frozenset()  # sources whose removals are confirmed
    due: bool = False  # only sources whose schedule has come round
    own: frozenset[str] = frozenset()
    tokens: Mapping[str, str] = field(default_factory=dict)
    patience: float = TOTAL_SECONDS  # seconds for one request


@dataclass(slots=True)
class Counts:
    """What came of one source."""

    name: str
    outcome: str = "read"  # failed, not due
    listed: int = 0
    stored: int = 0
    unchanged: int = 0
    duplicates: int = 0  # other addresses of a page that is there
    removed: int = 0
    embedded: int = 0
    waiting: int = 0  # removals that nobody confirmed yet
    not_read: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)  # the first of these, with reasons
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def fail(self, document: str, reason: object) -> None:
        """One more that was not read, and why."""
        self.not_read += 1
        if len(self.failed) < REASONS:
            self.failed.append({"document": document, "reason": str(reason)[:500]})


@dataclass(slots=True)
class Look:
    """What one item turned out to be."""

    item: Item
    before: Page | None
    page: Page | None = None  # what to remember
    document: dict[str, Any] | None = None  # None: unchanged, or failed
    failed: str | None = None


class Reader:
    """Reads files in processes of their own; what forks them is started when the first file comes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._gate = asyncio.Semaphore(READING)
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    def stop(self) -> None:
        """End them."""
        for server in self._servers.values():
            server.kill()
            server.wait()

    async def __call__(self, path: Path, *, kind: str, **asked: Any) -> dict[str, Any]:
        """Return what the reader for `kind` says of a file. Raises Failed with the reason."""
        async with self._gate:
            reader, writer = await self._connect("documents" if kind == "document" else "lists")
            try:
                async with asyncio.timeout(READ_SECONDS):
                    writer.write(
                        json.dumps({"path": str(path), "kind": kind, **asked}).encode() + b"\n"
                    )
                    line = await reader.readline()
            except (TimeoutError, ConnectionError):
                line = b""
            finally:
                writer.close()
        if not line.endswith(b"\n"):
            raise Failed("takes more memory or time to read than a file may")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise Failed(said["error"])
        return said

    async def _connect(self, kind: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        socket = str(self._folder / kind)
        if kind not in self._servers:
            self._servers[kind] = subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time
                [*ENDS_WITH_US, sys.executable, "-m", "cimt_etl.read", socket, kind]
            )
        while self._servers[kind].poll() is None:
            try:
                return await asyncio.open_unix_connection(socket, limit=1 << 27)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.02)  # it loads its libraries
        raise Failed("the reader does not start: look above")


class SourceRun:
    """One source in one run."""

    def __init__(self, run: Run, source: Mapping[str, Any]) -> None:
        self.run, self.source, self.name = run, source, str(source["name"])
        self.counts = Counts(self.name)
        self.state = run.state.source(self.name)
        options = {
            key: value for key, value in source.items() if key not in ("schedule", "allow", "match")
        }
        self.options = fingerprint([READER, options])
        # Read in another way than before: nothing that is remembered says what it would be now.
        same = self.state.get("options") == self.options
        self.pages = run.state.pages(self.name) if same else {}
        self.owned = run.owned(self.name)
        self.kept: set[str] = set()  # documents that are listed, or may be
        self.missed: set[str] = set()  # of these, those that were not read
        self.claimed: dict[str, str] = {}  # name -> SHA-256 in this run
        self.nameless = False  # a listed page that was never read: its document may have any name
        self.deferred: list[Item] = []
        self.sending: set[asyncio.Task[None]] = set()
        self.remembered: list[tuple[str, Page]] = []

    async def read(self) -> Counts:
        """Read it; whatever happens to it stays its own. Raises ApiFailed."""
        started = time.monotonic()
        try:
            if (
                self.run.options.due
                and now() - self.state.get("read_at", 0)
                < HOURS[self.source.get("schedule", "hourly")] * 3600
            ):
                self.counts.outcome = "not due"
                # What is wrong with it is no less true meanwhile, and its end would be no news.
                for name, value in self.state.get("wrong", {}).items():
                    setattr(self.counts, name, value)
                return self.counts
            with tempfile.TemporaryDirectory(prefix="source-", dir=self.run.folder) as folder:
                reach = Reach(frozenset(self.source.get("allow", ())), self.run.options.own)
                options = {
                    "robots": self.source.get("robots", True),
                    "seconds": self.run.options.patience,
                }
                async with Fetcher(reach, Path(folder), self.run.hosts, **options) as self.fetcher:
                    await self._read()
        except Failed as error:
            self.counts.outcome = "failed"
            self.counts.fail(self.name, error)
        except ApiFailed:
            raise
        except Exception as error:  # noqa: BLE001 - one source must not stop another, whatever is wrong with it
            self.counts.outcome = "failed"
            self.counts.fail(self.name, f"{where(self.source)}: {type(error).__name__}: {error}")
        finally:
            self._flush()
            self.counts.seconds = round(time.monotonic() - started, 1)
            self.run.progress(self.counts, done=True)
        return self.counts

    async def _read(self) -> None:
        known = {
            page.name.partition("/")[2]: page.version
            for page in self.pages.values()
            if page.version and self._same(page)
        }
        commit = self.state.get("version") if len(known) == len(self.pages) and self.pages else None
        found = await listing(
            self.source,
            self.fetcher,
            self.run.reader,
            known,
            commit,
            self.run.options.tokens,
            self.run.options.base,
        )
        if found is None:
            self.counts.listed = self.counts.unchanged = len(self.pages)
            self.state["read_at"] = now()
            self.run.state.keep_source(self.name, self.state)
            return
        self.counts.listed = len(found.items)
        self.counts.notes += found.notes
        for note in found.notes:
            self.counts.fail(self.name, note)
        await self._items(found)
        if found.whole and not self.nameless:
            await self.run.remove(
                self.counts, self.state, self.owned - self.kept, len(self.owned), where(self.source)
            )
            self.run.state.forget(self.name, self.pages.keys() - {item.url for item in found.items})
        whole = not self.counts.not_read
        if not whole and not self.kept - self.missed:
            self.counts.outcome = "failed"
        self.state |= {
            "read_at": now(),
            "options": self.options,
            "version": found.version if whole else None,
            "wrong": {
                name: getattr(self.counts, name)
                for name in ("not_read", "failed", "waiting", "notes")
            },
        }
        self._flush()
        self.run.state.keep_source(self.name, self.state)

    def _same(self, page: Page) -> bool:
        """Whether the API has what this address gave the last time."""
        stored = self.run.stored.get(page.name)
        return bool(stored and stored.sha256 == page.sha256 and stored.model == self.run.model)

    async def _items(self, found: Listing) -> None:
        names = {item.name for item in found.items}
        work: list[Item] = []
        for item in found.items:
            before = self.pages.get(item.url)
            same = before and item.version and item.version == before.version and self._same(before)
            if before and same and (item.path or now() - before.asked < TRUST_SECONDS):
                self.claimed[before.name] = before.sha256
                self.kept.add(before.name)
                self.counts.unchanged += 1
                continue
            work.append(item)
        try:
            async for look in self._looks(work):
                await self._settle(look, names)
            async for look in self._looks(self.deferred):
                await self._settle(look, names, late=True)
        finally:
            done = await asyncio.gather(*self.sending, return_exceptions=True)
        for error in filter(None, done):
            raise error

    async def _looks(self, work: list[Item]) -> AsyncIterator[Look]:
        """Look at items, some at a time, and yield them in their order."""
        tasks: list[asyncio.Task[Look]] = []
        rest = iter(work)
        try:
            while True:
                while len(tasks) < LOOKING and (item := next(rest, None)) is not None:
                    tasks.append(asyncio.create_task(self._look(item)))
                if not tasks:
                    return
                yield await tasks.pop(0)
                self.run.progress(self.counts)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, item: Item) -> Look:
        """Fetch and read an item, unless its server says that it is as before."""
        before = self.pages.get(item.url)
        same = before is not None and self._same(before)
        path, url, type_, etag, modified = item.path, item.url, "", None, None
        try:
            if item.content is not None:
                path, type_ = (
                    self.fetcher.folder / fingerprint(item.name),
                    "text/html; charset=utf-8",
                )
                path.write_text(f"<html><body><main>{item.content}</main></body></html>")
            elif path is None:
                most = self.source.get("max_size", FILE_BYTES)
                tag, time_ = (before.etag, before.modified) if before and same else (None, None)
                answer = await self.fetcher.get(item.url, most=most, etag=tag, modified=time_)
                path, url, type_, etag, modified = (
                    answer.path,
                    answer.url,
                    answer.type,
                    answer.etag,
                    answer.modified,
                )
                if path is None and before:
                    kept = Page(
                        before.name,
                        before.etag,
                        before.modified,
                        item.version,
                        before.sha256,
                        before.rest,
                        now(),
                    )
                    return Look(item, before, kept)
                if urlsplit(url).path in ("", "/") and urlsplit(item.url).path not in ("", "/"):
                    raise Failed(f"leads to the front page, {url}")
            elif path.stat().st_size > self.source.get("max_size", FILE_BYTES):
                raise Failed(f"larger than {self.source.get('max_size', FILE_BYTES):,} bytes")
            assert path is not None  # noqa: S101 - an answer without a body was returned above
            hints = {key: self.source[key] for key in ("select", "exclude") if key in self.source}
            document = await self.run.reader(path, kind="document", url=url, type=type_, **hints)
            if item.path is None:
                path.unlink(missing_ok=True)
        except Failed as error:
            said = str(error)
            return Look(item, before, failed=said if item.url in said else f"{item.url}: {said}")
        page = Page(item.name, etag, modified, item.version, document["sha256"], "", now())
        document["canonical"] = self._canonical(item, url, document["canonical"])
        document["title"] = item.title or document["title"]
        return Look(item, before, page, document)

    def _canonical(self, item: Item, url: str, said: str | None) -> str:
        """Return the name of the document by what the page says of itself, else by where it was found."""
        if item.path or item.content is not None or item.name == self.name:
            return item.name
        host = (urlsplit(url).hostname or "").removeprefix("www.")
        try:
            near = said is not None and (urlsplit(said).hostname or "").removeprefix("www.") == host
            return name_of(self.name, said if near and said else url)
        except ValueError:  # of an address that is none
            return item.name

    async def _settle(self, look: Look, names: set[str], late: bool = False) -> None:
        """Take what was looked at into the counts, and send it when it is new."""
        item = look.item
        if look.failed is not None:
            self.counts.fail(item.name, look.failed)
            self.missed |= {item.name, *([look.before.name] if look.before else ())}
            self.kept |= self.missed
            self.nameless |= look.before is None and item.name not in self.run.stored
            return
        assert look.page is not None  # noqa: S101 - else it has failed
        if look.document is None:
            self.claimed.setdefault(look.page.name, look.page.sha256)
            self.kept.add(look.page.name)
            self.counts.unchanged += 1
            self.remembered.append((item.url, look.page))
            return
        name, sha256 = str(look.document["canonical"]), look.page.sha256
        if name != item.name and name in names and name not in self.claimed and not late:
            self.deferred.append(
                item
            )  # that page is listed too: looked at again when it has had its turn
            return
        if (
            name != item.name
            and self.claimed.get(name, None if name in names else sha256) != sha256
        ):
            name = item.name  # it calls itself by the address of another page, with another text
        duplicate = self.claimed.get(name) == sha256
        look.page.name, self.claimed[name] = name, sha256
        self.kept.add(name)
        if duplicate:
            self.counts.duplicates += 1
            self.remembered.append((item.url, look.page))
            return
        await self.run.putting.acquire()
        task = asyncio.create_task(self._put(look, look.page, look.document))
        self.sending.add(task)
        task.add_done_callback(self.sending.discard)

    async def _put(self, look: Look, page: Page, read: dict[str, Any]) -> None:
        try:
            language = self.source.get("language") or read["language"] or "simple"
            said = {"url": look.item.url, "collection": self.name}
            document = {
                "content": read["content"], "title": read["title"], "language": language,
                "metadata": read["metadata"] | said,
            }  # fmt: skip
            page.rest = fingerprint([document["title"], language, document["metadata"]])
            known = look.before.rest if look.before and look.before.name == page.name else page.rest
            if self._same(page) and known == page.rest:
                self.counts.unchanged += 1
            else:
                self.counts.embedded += await self.run.api.put(page.name, document)
                self.counts.stored += 1
            self.counts.notes += [f"{page.name}: {note}" for note in read["notes"]]
            self.remembered.append((look.item.url, page))
        except Failed as error:
            self.counts.fail(page.name, error)
        finally:
            self.run.putting.release()
        if len(self.remembered) >= 50:  # what a killed run has done need not be done again
            self._flush()

    def _flush(self) -> None:
        if self.remembered:
            self.run.state.remember(self.name, self.remembered)
            self.remembered = []


class Run:
    """One run over all sources."""

    def __init__(
        self,
        api: Api,
        state: State,
        folder: Path,
        options: Options,
        told: Callable[[dict[str, Any]], None],
    ) -> None:
        self.api, self.state, self.folder, self.options, self._told = (
            api,
            state,
            folder,
            options,
            told,
        )
        self.hosts: dict[str, Host] = {}
        self.reader = Reader(folder)
        self.putting = asyncio.Semaphore(PUTTING)
        self.stored: dict[str, Stored] = {}
        self.model = ""
        self._next_word = 0.0

    def owned(self, source: str) -> set[str]:
        """Return the names of the stored documents of a source."""
        return {name for name in self.stored if name.partition("/")[0] == source}

    def progress(self, counts: Counts, done: bool = False) -> None:
        """Say how far a source is, a few times a second at most."""
        if done or time.monotonic() >= self._next_word:
            self._next_word = time.monotonic() + 0.5
            self._told({**summary(counts), "done": done})

    async def __call__(self, sources: list[dict[str, Any]]) -> dict[str, Any]:
        """Read them and return the report; an API that does not answer ends it with `error`."""
        started, began = time.monotonic(), now()
        done: list[Counts] = []
        error = None
        gate = asyncio.Semaphore(SOURCES)

        async def one(source: dict[str, Any]) -> None:
            async with gate:
                done.append(await SourceRun(self, source).read())

        try:
            self.stored = await self.api.documents()
            # The model of what was stored last is the API's; what another one embedded is sent again.
            self.model = (
                max(self.stored.values(), key=lambda one: one.updated_at).model
                if self.stored
                else ""
            )
            async with asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(one(source))
            done += await self._undeclared({str(source["name"]) for source in sources})
        except* ApiFailed as failures:
            error = str(failures.exceptions[0])
        finally:
            self.reader.stop()
            await self.api.client.aclose()
        report = total(done) | {
            "started": began,
            "seconds": round(time.monotonic() - started, 1),
            "error": error,
        }
        report["message"] = message(report, self.state.told())
        self.state.keep_run(report)
        return report

    async def _undeclared(self, names: set[str]) -> list[Counts]:
        """Remove what belongs to sources that are declared no more."""
        found = []
        for name in set(self.state.sources()) - names:
            counts, state, owned = (
                Counts(name, outcome="no longer declared"),
                self.state.source(name),
                self.owned(name),
            )
            await self.remove(counts, state, owned, len(owned), name)
            if counts.waiting or counts.not_read:
                self.state.keep_source(name, state)
            else:
                self.state.drop_source(name)
            found.append(counts)
        return found

    async def remove(
        self, counts: Counts, state: dict[str, Any], gone: set[str], owned: int, listed_at: str
    ) -> None:
        """Remove documents that a whole list names no more; many of them only when somebody, or a day, confirms it."""
        waiting = state.pop("waiting", None)
        if not gone:
            return
        if len(gone) > max(AT_LEAST, SHARE * owned) and self.options.accept.isdisjoint(
            (counts.name, "all")
        ):
            what = fingerprint(sorted(gone))
            since = waiting["since"] if waiting and waiting["what"] == what else now()
            if now() - since < CONFIRM_SECONDS:
                state["waiting"] = {"what": what, "since": since}
                counts.waiting = len(gone)
                counts.notes.append(
                    f"{listed_at}: {len(gone)} of {owned} documents are listed no more, such as {min(gone)}. "
                    "They stay until the same "
                    f"is seen a day later. To remove them now: make seed ACCEPT={counts.name}"
                )
                return
        for name in sorted(gone):
            try:
                await self.api.remove(name)
                counts.removed += 1
            except Failed as error:
                counts.fail(name, error)


NUMBERS = ("listed", "stored", "unchanged", "duplicates", "removed", "embedded", "waiting")


def summary(counts: Counts) -> dict[str, Any]:
    """Return the numbers of a source."""
    return {
        "source": counts.name,
        "outcome": counts.outcome,
        **{name: getattr(counts, name) for name in (*NUMBERS, "seconds")},
        "failed": counts.not_read,
    }


def total(done: list[Counts]) -> dict[str, Any]:
    """Return the report of all sources: sums, the first failures with their reasons, notes, each source's numbers."""
    done = sorted(done, key=lambda one: one.name)
    return {
        **{name: sum(getattr(one, name) for one in done) for name in (*NUMBERS, "not_read")},
        "failed": [failure for one in done for failure in one.failed],
        "notes": [note for one in done for note in one.notes],
        "sources": [summary(one) for one in done],
    }


def message(report: dict[str, Any], told: str) -> dict[str, Any] | None:
    """Return {level, title, text, told} when there is news since the message `told`, cut as channels want."""
    lines = [f"{one['document']}: {one['reason']}" for one in report["failed"]]
    lines += [note for note in report["notes"] if "ACCEPT=" in note]
    if report["error"]:
        lines.insert(0, report["error"])
    # Numbers (times, sizes, counts of attempts) make no news.
    mark = fingerprint(sorted(re.sub(r"\d+", "#", line) for line in lines)) if lines else ""
    if mark == told:
        return None
    parts = [
        f"{number} {what}"
        for number, what in (
            (report["not_read"], "not read"),
            (report["waiting"], "waiting for removal"),
        )
        if number
    ]
    title = f"documents: {', '.join(parts)}" if parts else "the documents' API does not answer"
    more = len(lines) - LINES + report["not_read"] - len(report["failed"])
    each = TEXT_CHARACTERS // LINES - 10
    shown = [line[:each] for line in lines[:LINES]] + ([f"and {more} more"] if more > 0 else [])
    if not lines:
        return {
            "level": "recovery",
            "title": "all documents are read again",
            "text": "",
            "told": "",
        }
    return {"level": "alarm", "title": title, "text": "\n".join(shown), "told": mark}


async def run(
    sources: list[dict[str, Any]],
    api: Api,
    state: State,
    options: Options,
    told: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Run once, in a temporary folder that goes with it."""
    with tempfile.TemporaryDirectory(prefix="cimt-etl-") as folder:
        return await Run(api, state, Path(folder), options, told)(sources)
