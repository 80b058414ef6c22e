"""What is kept: documents at the API, and in one SQLite file what a next run need not ask again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from .fetch import Failed

ATTEMPTS = 5
BACKOFF = (0.5, 2.0, 5.0, 15.0)
PUT_SECONDS = 300.0  # a long document is embedded meanwhile
REMEMBERED_RUNS = 50
TABLES = """
create table if not exists pages (
  source text, url text, name text, etag text, modified text, version text, sha256 text, rest text, asked real,
  primary key (source, url)) without rowid;
create table if not exists sources (name text primary key, state text);
create table if not exists runs (id integer primary key, report text);
create table if not exists told (fingerprint text primary key);
"""


class ApiFailed(Exception):
    """The API did not answer as it should: no run is possible."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A document at the API."""

    sha256: str
    model: str  # that embedded it
    updated_at: str


class Api:
    """The documents of the API, by its own routes."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"}
        self.client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=PUT_SECONDS)

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(ATTEMPTS):
            try:
                answer = await self.client.request(method, path, **options)
            except httpx.TransportError as error:
                said, wait = f"{type(error).__name__} {error}".strip(), None
            else:
                if answer.status_code in (401, 403):
                    raise ApiFailed(f"{self.url} does not take this INGEST_KEY")
                if answer.status_code not in (409, 429, 502, 503, 504):
                    return answer
                said, wait = (
                    f"HTTP {answer.status_code}: {answer.text[:200]}",
                    answer.headers.get("retry-after"),
                )
                if attempt == ATTEMPTS - 1:
                    return answer
            if attempt == ATTEMPTS - 1:
                break
            await asyncio.sleep(
                min(float(wait), 60.0) if wait and wait.isdigit() else BACKOFF[attempt]
            )
        raise ApiFailed(f"{self.url} does not answer: {said}")

    async def documents(self) -> dict[str, Stored]:
        """Return the documents that all users may find, by name. Raises ApiFailed."""
        found, after = {}, None
        while True:
            answer = await self._ask(
                "GET", "/documents", params={"limit": 1000, **({"after": after} if after else {})}
            )
            if answer.is_error:
                raise ApiFailed(
                    f"{self.url}/documents: HTTP {answer.status_code}: {answer.text[:200]}"
                )
            page = answer.json()
            for one in page["items"]:
                if one["owner_id"] is None:
                    found[one["source"]] = Stored(
                        one["sha256"] or "",
                        one.get("embedding_model", ""),
                        one.get("updated_at", ""),
                    )
            after = page["next"]
            if not after:
                return found

    async def put(self, name: str, document: dict[str, Any]) -> int:
        """Store a document; the number of passages that were embedded. Raises Failed, ApiFailed."""
        answer = await self._ask("PUT", f"/documents/{quote(name, safe='')}", json=document)
        if answer.is_error:
            raise Failed(
                f"the API does not take it: HTTP {answer.status_code}: {answer.text[:200]}"
            )
        return int(answer.json()["embedded"])

    async def remove(self, name: str) -> None:
        """Remove a document, unless somebody has. Raises Failed, ApiFailed."""
        answer = await self._ask("DELETE", f"/documents/{quote(name, safe='')}")
        if answer.is_error and answer.status_code != 404:
            raise Failed(
                f"the API does not remove it: HTTP {answer.status_code}: {answer.text[:200]}"
            )


@dataclass(slots=True)
class Page:
    """What is remembered of an address."""

    name: str
    etag: str | None = None
    modified: str | None = None
    version: str | None = None
    sha256: str = ""
    rest: str = ""  # hash of title, language and metadata
    asked: float = 0.0  # when its content was last looked at, or confirmed by its server


class State:
    """A shortcut, but for removals that wait: without it the next run asks for everything and sends nothing twice."""

    def __init__(self, path: Path | None) -> None:
        self.database = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=30)
        try:
            self.database.executescript(
                "pragma journal_mode=wal; pragma synchronous=normal;" + TABLES
            )
        except sqlite3.DatabaseError as error:
            torn = error.sqlite_errorcode in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
            if path is None or not torn:
                raise
            self.database.close()
            path.unlink()  # a torn file is worth no more than none
            self.database = sqlite3.connect(path, isolation_level=None, timeout=30)
            self.database.executescript(TABLES)

    def pages(self, source: str) -> dict[str, Page]:
        """Return what is remembered of a source's addresses."""
        rows = self.database.execute(
            "select url, name, etag, modified, version, sha256, rest, asked from pages where source = ?",
            (source,),
        )
        return {url: Page(*values) for url, *values in rows}

    def remember(self, source: str, pages: Iterable[tuple[str, Page]]) -> None:
        """Remember addresses of a source."""
        self.database.execute("begin")
        self.database.executemany(
            "insert or replace into pages values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (source, url, p.name, p.etag, p.modified, p.version, p.sha256, p.rest, p.asked)
                for url, p in pages
            ),
        )
        self.database.execute("commit")

    def forget(self, source: str, urls: Iterable[str]) -> None:
        """Forget addresses of a source."""
        self.database.execute("begin")
        self.database.executemany(
            "delete from pages where source = ? and url = ?", ((source, url) for url in urls)
        )
        self.database.execute("commit")

    def source(self, name: str) -> dict[str, Any]:
        """Return what is remembered of a source as a whole: {read_at, version, waiting}."""
        row = self.database.execute("select state from sources where name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else {}

    def keep_source(self, name: str, state: dict[str, Any]) -> None:
        """Remember a source as a whole."""
        self.database.execute(
            "insert or replace into sources values (?, ?)", (name, json.dumps(state))
        )

    def sources(self) -> list[str]:
        """Return the names of the sources that were ever read."""
        return [row[0] for row in self.database.execute("select name from sources order by name")]

    def drop_source(self, name: str) -> None:
        """Forget a source that is declared no more."""
        self.database.execute("delete from pages where source = ?", (name,))
        self.database.execute("delete from sources where name = ?", (name,))

    def keep_run(self, report: dict[str, Any]) -> None:
        """Remember a run's report; the oldest are forgotten."""
        self.database.execute("insert into runs (report) values (?)", (json.dumps(report),))
        self.database.execute(
            "delete from runs where id <= (select max(id) from runs) - ?", (REMEMBERED_RUNS,)
        )

    def runs(self) -> list[dict[str, Any]]:
        """Return the reports, the last one first."""
        return [
            json.loads(row[0])
            for row in self.database.execute("select report from runs order by id desc")
        ]

    def told(self) -> str:
        """Return the fingerprint of the message that somebody was last told; "": that all is well."""
        row = self.database.execute("select fingerprint from told").fetchone()
        return row[0] if row else ""

    def tell(self, told: str) -> None:
        """Remember that somebody was told."""
        self.database.execute("delete from told")
        self.database.execute("insert into told values (?)", (told,))


def fingerprint(value: Any) -> str:
    """Return a short hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def now() -> float:
    """Return seconds since 1970."""
    return time.time()
