"""What clients may send into the database: text and JSON that Postgres can hold, both bounded."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field

from .problems import Problem

FILTER_BYTES = 8192
LAST = (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds the character NUL, which Postgres cannot keep")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a lone surrogate)") from None
    return value


def _metadata(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, RecursionError):  # NaN, infinity, half a surrogate pair
        raise ValueError("holds what JSON cannot say") from None
    if size > FILTER_BYTES:
        raise ValueError(f"is larger than {FILTER_BYTES} bytes of JSON")
    if "\\u0000" in json.dumps(value):
        raise ValueError("holds the character NUL, which Postgres cannot keep")
    return value


Text = Annotated[str, AfterValidator(_text)]
Source = Annotated[
    Text,
    Field(
        min_length=1, max_length=2000, description="The document: its URL or path, percent-encoded."
    ),
]
Metadata = Annotated[dict[str, Any], AfterValidator(_metadata)]


def position_of(when: datetime, row_id: UUID) -> str:
    """Return the cursor of the row that ended a page. It is opaque to the client."""
    return base64.urlsafe_b64encode(f"{when.isoformat()} {row_id}".encode()).decode().rstrip("=")


def position(cursor: str | None) -> tuple[datetime, UUID]:
    """Return time and id of the row that a page follows, `LAST` without a cursor. Raises Problem 422 for others."""
    if cursor is None:
        return LAST
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        when, _, row_id = text.partition(" ")
        found = datetime.fromisoformat(when), UUID(row_id)
        if found[0].tzinfo is None:
            raise ValueError
    except (ValueError, binascii.Error):
        raise Problem(
            422,
            "The request does not fit",
            "cursor: not one that this service gave out",
            kind="invalid-request",
        ) from None
    return found
