"""Ingest: the ETL puts whole documents here; only passages that changed are embedded and written."""

from __future__ import annotations

import hmac
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict, Field

from ..http.auth import bearer, refusal
from ..http.fields import Metadata, Source, Text
from ..http.problems import Problem, documented
from ..model import UpstreamError
from ..store.ingest import Document, ingest
from .dependencies import WITH_TOKEN, ServicesOf, admitting, services_of

MAX_DOCUMENT_CHARACTERS = 2 * 1024 * 1024
PAGE = 1000

Owner = Annotated[
    UUID | None, Query(description="Whose private document; none: one that all users may find.")
]


async def ingest_only(request: Request) -> None:
    """Raise Problem 401 unless the request brings the service credential."""
    token = bearer(request.headers.get("authorization"))
    settings = services_of(request).settings
    keys = [key.get_secret_value() for key in (settings.ingest_key, settings.ingest_key_old)]
    if not any(hmac.compare_digest(token.encode(), key.encode()) for key in keys if key):
        raise refusal("This needs the service credential (INGEST_KEY).")


router = APIRouter(tags=["Documents"], route_class=admitting(ingest_only))


class DocumentBody(BaseModel):
    """A document as the ETL has it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "content": "# Passwords\n\nReset yours on the sign-in page.",
                    "title": "Passwords",
                    "language": "en",
                    "metadata": {"team": "support"},
                }
            ]
        },
    )

    content: Annotated[Text, Field(max_length=MAX_DOCUMENT_CHARACTERS)] = Field(
        description="Markdown or plain text. Without any text the document is removed."
    )
    title: Annotated[Text, Field(max_length=500)] | None = None
    language: Literal["simple", "en", "pt", "es", "fr", "de", "it"] = Field(
        default="simple", description="As you know it; simple: not known. Search needs none."
    )
    metadata: Metadata = Field(
        default_factory=dict, description="What searches can be narrowed by."
    )
    owner_id: UUID | None = Field(
        default=None, description="Who alone may find it; none: every user."
    )


class Ingested(BaseModel):
    """What a document has become."""

    source: str
    sha256: str = Field(description="Of the content as it was sent, in UTF-8.")
    chunks: int = Field(description="Passages now.", examples=[12])
    embedded: int = Field(description="Of these, newly embedded.", examples=[1])
    unchanged: int = Field(description="Of these, with an embedding from before.", examples=[11])
    removed: int = Field(description="Passages of before that it has no more.", examples=[1])


class Listed(BaseModel):
    """A stored document."""

    source: str
    owner_id: UUID | None
    title: str | None
    language: str
    sha256: str | None = Field(
        description="Of its content as it was sent: equal to yours, then there is nothing to send."
    )
    chunks: int
    embedding_model: str
    updated_at: datetime


class Documents(BaseModel):
    """A page, ordered by source."""

    items: list[Listed]
    next: str | None = Field(description="`after` of the next page; null on the last one.")


class Removed(BaseModel):
    """What was removed."""

    removed: int = Field(description="Passages.", examples=[12])


@router.get(
    "/documents",
    summary="Stored documents",
    response_model=Documents,
    responses=documented(401, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def list_documents(
    services: ServicesOf,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 100,
    after: Annotated[Source | None, Query()] = None,
) -> dict[str, Any]:
    """List them by source. A page may hold a few more than `limit`: documents of one source stay together."""
    async with services.database.as_service() as connection:
        rows = connection.cursor(row_factory=dict_row)
        await rows.execute(
            "with sources as (select distinct source from public.vectors "
            "where (%(after)s::text is null or source > %(after)s) order by source limit %(limit)s) "
            "select source, owner_id, min(metadata->>'title') as title, min(language) as language, "
            "max(metadata->>'sha256') as sha256, count(*) as chunks, min(embedding_model) as embedding_model, "
            "max(updated_at) as updated_at from public.vectors join sources using (source) "
            "group by source, owner_id order by source, owner_id nulls first",
            {"after": after, "limit": limit},
        )
    items = await rows.fetchall()
    full = len({item["source"] for item in items}) == limit
    return {"items": items, "next": items[-1]["source"] if full else None}


@router.put(
    "/documents/{source:path}",
    summary="Store a document, or what it has become",
    response_model=Ingested,
    responses=documented(400, 401, 404, 409, 413, 415, 422, 502, 503, 504),
    openapi_extra=WITH_TOKEN,
)
async def put_document(source: Source, body: DocumentBody, services: ServicesOf) -> dict[str, Any]:
    """Store it, as often as you like: what has not changed is neither embedded nor written again."""
    document = Document(
        source=source,
        owner_id=body.owner_id,
        content=body.content,
        title=body.title,
        language=body.language,
        metadata=body.metadata,
        model=await services.retriever.model(),
    )
    async with services.ingests:
        try:
            counts = await ingest(services.database, services.upstream.embed, document)
        except UpstreamError as error:
            raise error.problem() from None
    return {"source": source, "sha256": document.sha256, **counts}


@router.delete(
    "/documents/{source:path}",
    summary="Remove a document",
    response_model=Removed,
    responses=documented(401, 404, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def delete_document(
    source: Source, services: ServicesOf, owner_id: Owner = None
) -> dict[str, int]:
    """Remove it with all its passages."""
    async with services.database.as_service() as connection:
        rows = await connection.execute(
            "delete from public.vectors where source = %s and owner_id is not distinct from %s",
            (source, owner_id),
        )
    if rows.rowcount == 0:
        raise Problem(404, "There is no such document", kind="document-not-found")
    return {"removed": rows.rowcount}
