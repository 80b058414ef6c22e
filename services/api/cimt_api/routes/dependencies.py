"""What the routes work with: made once at start, reached by `Depends`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute

from ..answers.bill import Till
from ..http.auth import Authenticator, User
from ..settings import Settings
from ..store.chats import Chats
from ..store.database import Database
from ..store.keys import Keys
from ..store.places import Places
from ..store.retrieval import Retriever

if TYPE_CHECKING:
    from ..model import Upstream

INGESTS = 3  # documents being embedded at a time: each may hold some 30 MB of embeddings


@dataclass(slots=True)
class Services:
    """The services of one application, at `app.state.services` from before the first request until after the last."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    places: Places
    chats: Chats
    keys: Keys
    retriever: Retriever
    upstream: Upstream
    till: Till
    ingests: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(INGESTS))


def services_of(request: Request) -> Services:
    """Return the services of the application that got this request."""
    found: Services = request.app.state.services
    return found


async def current_user(request: Request) -> User:
    """Return who asks, by the bearer token. Raises Problem 401 or 503."""
    return await services_of(request).authenticator.user(request.headers.get("authorization"))


def admitting(check: Callable[[Request], Awaitable[object]]) -> type[APIRoute]:
    """Make the `route_class` of a router whose requests must pass the check before any of their body is read.

    What the check returns is at `request.state.admitted`.

    FastAPI reads and parses a body before it runs the first dependency: as one, the check would let strangers have
    megabytes of JSON parsed. A client that waits for `100 Continue` need not even send them.
    """

    class AdmittingRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def admitted(request: Request) -> Response:
                request.state.admitted = await check(request)
                return await handle(request)

            return admitted

    return AdmittingRoute


ServicesOf = Annotated[Services, Depends(services_of)]
CurrentUser = Annotated[User, Depends(current_user)]
# `openapi_extra` of the routes that need a token; the application's document says what `bearer` is.
WITH_TOKEN: dict[str, Any] = {"security": [{"bearer": []}]}
