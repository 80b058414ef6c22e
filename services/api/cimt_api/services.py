"""What the routes work with: made once at start, reached by `Depends`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

from .auth import Authenticator, User
from .chats import Chats
from .database import Database
from .limits import Limits
from .retrieval import Retriever
from .settings import Settings

if TYPE_CHECKING:
    from .upstream import Upstream

INGESTS = 3  # documents being embedded at a time: each may hold some 30 MB of embeddings


@dataclass(slots=True)
class Services:
    """Stands at `app.state.services` from before the first request until after the last."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    limits: Limits
    chats: Chats
    retriever: Retriever
    upstream: Upstream
    ingests: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(INGESTS))


def services(request: Request) -> Services:
    """The services of the application that got this request."""
    found: Services = request.app.state.services
    return found


async def current_user(request: Request) -> User:
    """Who asks, by the bearer token; Problem 401 or 503."""
    return await services(request).authenticator.user(request.headers.get("authorization"))


ServicesOf = Annotated[Services, Depends(services)]
CurrentUser = Annotated[User, Depends(current_user)]
# `openapi_extra` of the routes that need a token; the application's document says what `bearer` is.
WITH_TOKEN: dict[str, Any] = {"security": [{"bearer": []}]}
