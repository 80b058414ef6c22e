"""From a document to its passages: split, embed what is new, and bring the stored ones to the same state."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from psycopg import errors
from psycopg.types.json import Jsonb

from ..http.problems import Problem
from ..model import UpstreamError
from .database import Connection, Database

Embed = Callable[[list[str], str], Awaitable[list[list[float]]]]  # texts, model

# Characters of a passage: full from the first, never more than the second (about 200 to 300 tokens of English).
CHUNK = (800, 1200)
BATCH = 64  # passages in one request for embeddings, and in one statement
PARALLEL = 3  # requests for embeddings of one document at a time
PATIENCE = (2.0, 5.0, 10.0, 20.0)  # seconds between attempts where the rate limit names none
ATTEMPTS = 3  # when another writer removes what we counted on
WRITE_SECONDS = 60.0  # one statement of BATCH passages: each goes into the vector index

# Everything of one document is under one lock, so that two writers never mix: the later one's state stays whole.
LOCK = "select pg_advisory_xact_lock(hashtextextended(%(source)s || ' ' || %(owner)s, 0))"
STORED = (
    "select chunk, content_hash, embedding_model = %(model)s, language = %(language)s and "
    "metadata = case chunk when 0 then %(first)s::jsonb else %(metadata)s::jsonb end "
    "from public.vectors where source = %(source)s and owner_id is not distinct from %(owner_id)s"
)
WRITE = (
    "select private.upsert_vectors(%(source)s, %(owner_id)s, %(language)s, %(first)s, %(metadata)s, %(model)s, "
    "%(chunks)s::integer[], %(contents)s::text[], %(hashes)s::text[], %(embeddings)s::text[])"
)


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was sent."""

    source: str
    owner_id: UUID | None
    content: str
    title: str | None
    language: str
    metadata: dict[str, Any]
    model: str  # that embeds it
    sha256: str = field(init=False, default="")

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.content.encode()).hexdigest()
        object.__setattr__(self, "sha256", digest)

    def values(self) -> dict[str, Any]:
        """Return the parameters of the statements above. The first passage also says which content this was."""
        metadata = {**self.metadata, **({"title": self.title} if self.title else {})}
        return {
            "source": self.source,
            "owner": str(self.owner_id or ""),
            "owner_id": self.owner_id,
            "language": self.language,
            "model": self.model,
            "metadata": Jsonb(metadata),
            "first": Jsonb({**metadata, "sha256": self.sha256}),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """A stored passage."""

    chunk: int
    content_hash: str
    same_model: bool
    same_rest: bool  # language and metadata


def split(content: str) -> list[str]:
    """Split Markdown or plain text into passages, where headings, paragraphs or sentences end."""
    from semantic_text_splitter import MarkdownSplitter  # 18 MB that only who ingests needs

    return [chunk for chunk in MarkdownSplitter(CHUNK).chunks(content) if chunk.strip()]


async def ingest(database: Database, embed: Embed, document: Document) -> dict[str, int]:
    """Bring the stored passages to the state of `document`, and count {chunks, embedded, unchanged, removed}.

    All of it becomes visible at once, or nothing. Raises Problem 404 when the owner has no account, 409 when
    other writers of the same document are always quicker, and what `embed` and the database raise.
    """
    contents = await asyncio.to_thread(split, document.content)
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in contents]
    texts = dict(zip(hashes, contents, strict=True))
    values = document.values()
    async with database.as_service() as connection:
        stored = await _stored(connection, values)
    embeddings: dict[str, str] = {}
    for _ in range(ATTEMPTS):
        known = {row.content_hash for row in stored if row.same_model} | embeddings.keys()
        missing = [digest for digest in texts if digest not in known]
        embeddings |= await _embed(
            embed, document.model, {digest: texts[digest] for digest in missing}
        )
        try:
            async with database.as_service(WRITE_SECONDS) as connection:
                await connection.execute(LOCK, values)
                stored = await _stored(connection, values)
                available = {row.content_hash for row in stored if row.same_model}
                if not texts.keys() <= available | embeddings.keys():
                    continue  # another writer has removed some since
                await _write(connection, values, contents, hashes, stored, embeddings)
        except errors.ForeignKeyViolation:
            raise Problem(
                404, "There is no such account", "owner_id: nobody has it.", kind="owner-not-found"
            ) from None
        embedded = sum(digest in embeddings for digest in hashes)
        return {
            "chunks": len(hashes),
            "embedded": embedded,
            "unchanged": len(hashes) - embedded,
            "removed": sum(row.content_hash not in texts for row in stored),
        }
    raise Problem(
        409, "Others write this document at the same time", "Send it again.", kind="document-busy"
    )


async def _stored(connection: Connection, values: dict[str, Any]) -> list[Row]:
    rows = await connection.execute(STORED, values)
    return [Row(*row) for row in await rows.fetchall()]


async def _embed(embed: Embed, model: str, texts: dict[str, str]) -> dict[str, str]:
    """Embed texts by their hashes, into what Postgres reads: a list of floats would take six times the memory."""
    hashes = list(texts)
    batches = [hashes[start : start + BATCH] for start in range(0, len(hashes), BATCH)]
    gate = asyncio.Semaphore(PARALLEL)

    async def embed_batch(batch: list[str]) -> dict[str, str]:
        async with gate:
            vectors = await _patiently(embed, model, [texts[digest] for digest in batch])
        return dict(zip(batch, map(halfvec, vectors), strict=True))

    done: dict[str, str] = {}
    tasks = [asyncio.create_task(embed_batch(batch)) for batch in batches]
    try:
        for task in tasks:
            done |= await task
    finally:
        for task in tasks:
            task.cancel()
    return done


def halfvec(embedding: Sequence[float]) -> str:
    """Write an embedding as an array of texts takes it; half precision keeps three to four digits, no more travel.

    A list of pgvector's own types would travel as text too, and takes three times as long to write.
    """
    return "[" + ",".join([f"{number:.5g}" for number in embedding]) + "]"


async def _patiently(embed: Embed, model: str, texts: list[str]) -> list[list[float]]:
    """Embed, and wait where the rate limit is met: what is embedded by then must not be paid for again."""
    for wait in PATIENCE:
        try:
            return await embed(texts, model)
        except UpstreamError as error:
            if error.kind != "upstream-rate-limited":
                raise
            await asyncio.sleep(min(error.retry_after or wait, PATIENCE[-1]))
    return await embed(texts, model)


async def _write(
    connection: Connection,
    values: dict[str, Any],
    contents: list[str],
    hashes: list[str],
    stored: list[Row],
    embeddings: dict[str, str],
) -> None:
    at = {row.chunk: row for row in stored}
    changed = [
        chunk
        for chunk, digest in enumerate(hashes)
        if not (
            (row := at.get(chunk))
            and row.content_hash == digest
            and row.same_model
            and row.same_rest
        )
    ]
    # Those that moved first, all in one statement: it reads their embeddings where they were.
    moved = [chunk for chunk in changed if hashes[chunk] not in embeddings]
    new = [chunk for chunk in changed if hashes[chunk] in embeddings]
    steps = [moved, *(new[start : start + BATCH] for start in range(0, len(new), BATCH))]
    for step in filter(None, steps):
        await connection.execute(
            WRITE,
            {
                **values,
                "chunks": step,
                "contents": [contents[chunk] for chunk in step],
                "hashes": [hashes[chunk] for chunk in step],
                "embeddings": [embeddings.get(hashes[chunk]) for chunk in step],
            },
        )
    if any(row.chunk >= len(hashes) for row in stored):
        await connection.execute(
            "delete from public.vectors where source = %(source)s "
            "and owner_id is not distinct from %(owner_id)s and chunk >= %(chunks)s",
            {**values, "chunks": len(hashes)},
        )
