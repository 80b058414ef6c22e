"""Keys for programs: made, listed, revoked by their user, who is signed in by a token and not by a key."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from ..http.fields import Text
from ..http.problems import documented
from .dependencies import WITH_TOKEN, CurrentUser, ServicesOf, admitting, current_user

router = APIRouter(tags=["Keys"], route_class=admitting(current_user))


class NewKey(BaseModel):
    """What a new key is for."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[Text, Field(min_length=1, max_length=100)] = Field(examples=["Open WebUI"])


class Key(BaseModel):
    """A key, without its text."""

    id: UUID
    name: str = Field(examples=["Open WebUI"])
    hint: str = Field(description="Its last characters.", examples=["x7Qe"])
    created_at: datetime
    last_used_at: datetime | None = Field(description="To the minute.")


class MadeKey(Key):
    """A key that was just made."""

    key: str = Field(description="Its text, shown this once.", examples=["cimt_…"])


class KeyList(BaseModel):
    """All of them, the newest first."""

    items: list[Key]


@router.get(
    "/keys",
    summary="My API keys",
    response_model=KeyList,
    responses=documented(401, 503),
    openapi_extra=WITH_TOKEN,
)
async def list_keys(user: CurrentUser, services: ServicesOf) -> dict[str, Any]:
    """List them without their texts, which are kept nowhere."""
    return {"items": await services.keys.list(user)}


@router.post(
    "/keys",
    summary="Make an API key",
    status_code=201,
    response_model=MadeKey,
    responses=documented(400, 401, 409, 413, 415, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def make_key(body: NewKey, user: CurrentUser, services: ServicesOf) -> dict[str, Any]:
    """Make a key for /v1: a program that has it asks in your name, by your limits, and can do nothing else."""
    return await services.keys.make(user, body.name)


@router.delete(
    "/keys/{key_id}",
    summary="Revoke an API key",
    status_code=204,
    responses=documented(401, 404, 422, 503),
    openapi_extra=WITH_TOKEN,
)
async def revoke_key(key_id: UUID, user: CurrentUser, services: ServicesOf) -> None:
    """Revoke it: from the next request on it does not count."""
    await services.keys.revoke(user, key_id)
