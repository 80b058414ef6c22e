"""The application: `application()` reads the environment and puts everything together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic.json_schema import models_json_schema
from starlette.middleware.cors import CORSMiddleware

from . import __version__
from .answers.bill import Till
from .answers.registry import Answers
from .http import problems
from .http.auth import Authenticator
from .http.edge import Edge
from .lifetimes import Lifetimes
from .metrics import Metrics, Watched
from .model import Upstream
from .routes import chat, conversations, documents, health, keys, openai, schemas
from .routes.dependencies import Services
from .settings import Settings, load
from .store.chats import Chats
from .store.database import Database
from .store.keys import Keys
from .store.money import Money
from .store.places import Places
from .store.retrieval import Retriever

# Written when the image is built. A file and not a variable: the panel's environment must not be able to shadow it.
REVISION_FILE = Path(__file__).resolve().parents[1] / "revision"
DAY_SECONDS = 86_400.0
RETENTION_FIRST_SECONDS = 300.0  # not while a release is being watched
# Groups of routes, as the document explains them.
TAGS = {
    "Chat": "Questions and their answers, as JSON or as events; docs/clients.md has snippets.",
    "OpenAI": "The same answers for OpenAI's clients, by a token or an API key.",
    "Mine": "The signed-in user: conversations, ratings, profile.",
    "Keys": "API keys for programs that ask in their user's name.",
    "Documents": "The knowledge base, by INGEST_KEY.",
    "Health": "For monitors.",
}

log = logging.getLogger("cimt_api")


def revision(path: Path = REVISION_FILE) -> str:
    """Return the git revision that this image was built from, or `unknown` outside an image."""
    try:
        return path.read_text(encoding="ascii").strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


def application(settings: Settings | None = None) -> Edge:
    """Build the whole ASGI application, which starts with every dependency down. Raises SettingsError."""
    settings = settings or load()
    registry = CollectorRegistry()
    built_from = revision()
    app = create_app(settings, Metrics(registry), built_from)
    answers: Answers = app.state.answers
    return Edge(
        CORSMiddleware(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            # A list breaks with each SDK's next one; no cookie is ever looked at.
            allow_headers=["*"],
            expose_headers=[
                "X-Answer-Id",
                "X-Conversation-Id",
                "X-Request-Id",
                "X-Should-Retry",
                "Retry-After",
                "RateLimit",
                "RateLimit-Policy",
            ],
            max_age=3600,
        ),
        registry,
        max_body_bytes=settings.max_body_bytes,
        max_document_bytes=settings.max_document_bytes,
        stop_in=answers.stop_in,
        version=__version__,
        revision=built_from,
    )


def create_app(settings: Settings, metrics: Metrics, built_from: str) -> FastAPI:
    """Build the routes and the services that they use, without the outer layers."""
    database = Database(settings)
    upstream = Upstream(settings, metrics)
    chats = Chats(database)
    retriever = Retriever(database, settings)
    till = Till(settings)
    money = Money(database, settings, metrics, least=till.most())
    metrics.registry.register(money)
    places = Places(database, settings, money)
    metrics.registry.register(places)
    services = Services(
        settings=settings,
        database=database,
        authenticator=Authenticator(settings),
        places=places,
        chats=chats,
        keys=Keys(database),
        retriever=retriever,
        upstream=upstream,
        till=till,
    )
    answers = Answers(settings, chats, retriever, upstream, metrics, money, places, till)
    breaker = upstream.breaker
    watched = Watched(answers.generating, answers.unsaved, lambda: breaker.open, database.stats)
    metrics.registry.register(watched)
    lifetimes = Lifetimes(settings, upstream)
    metrics.registry.register(lifetimes)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # None of these waits for anybody: the port opens at once, whatever is down.
        await database.open()
        await services.authenticator.start()
        await upstream.start()
        await answers.start()
        expiry = asyncio.create_task(_retention(chats, settings.chat_retention_days, metrics))
        watches = [asyncio.create_task(each.watch()) for each in (lifetimes, money)]
        yield
        for watch in watches:
            watch.cancel()
        expiry.cancel()
        await answers.close()
        await upstream.close()
        await services.authenticator.close()
        await database.close()

    # No interactive pages: they load scripts from elsewhere. /openapi.json stays, for generating clients.
    app = FastAPI(
        title="CIMT API",
        version=__version__,
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,  # what generated clients call it
        lifespan=lifespan,
        # Traces leave only where OTEL_EXPORTER_OTLP_ENDPOINT names a collector; without it no exporter is even loaded.
        telemetry={
            "auto_configure": True,
            "metrics": False,  # Prometheus has them
            "logs": False,  # they would carry what people wrote
            "operation_spans": False,
            "exclude": lambda scope: scope["path"] in ("/healthz", "/readyz"),
        },
    )
    app.state.services = services
    app.state.answers = answers
    app.state.metrics = metrics
    problems.install(app)
    app.state.health = {"status": "ok", "version": __version__, "revision": built_from}
    for routes in (chat, openai, conversations, keys, documents, health):
        app.include_router(routes.router)
    _complete_document(app)
    return app


def _complete_document(app: FastAPI) -> None:
    """Give the OpenAPI document the schemas that the routes name without FastAPI seeing it."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            _, extra = models_json_schema(
                [
                    (chat.ChatRequest, "validation"),
                    (chat.UIRequest, "validation"),
                    (openai.CompletionRequest, "validation"),
                    (schemas.CompletionChunk, "validation"),
                    (schemas.StreamError, "validation"),
                    (schemas.UIPart, "validation"),
                    (problems.ProblemDocument, "validation"),
                    (problems.OpenAIError, "validation"),
                ],
                ref_template="#/components/schemas/{model}",
            )
            parts = document.setdefault("components", {})
            parts.setdefault("schemas", {}).update(extra["$defs"])
            parts["securitySchemes"] = {
                **parts.get("securitySchemes", {}),
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            }
            _without_null_defaults(document)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _without_null_defaults(part: Any) -> None:
    """Take `default: null` out of a document: to generators what has a default is always there."""
    if isinstance(part, dict):
        if part.get("default", part) is None:
            del part["default"]
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            _without_null_defaults(each)


async def _retention(chats: Chats, days: int, metrics: Metrics) -> None:
    """Delete the answers that are older than this many days, once a day; 0 days keeps them all."""
    if not days:
        return
    await asyncio.sleep(RETENTION_FIRST_SECONDS)
    while True:
        try:
            deleted = await chats.expire(days)
            if last := await chats.last_expiry():
                metrics.retention_run.set(last[0])
                metrics.retention_deleted.set(last[1])
        except problems.Problem as problem:
            log.warning("retention: not done (%s)", problem.kind)
        else:
            log.info("retention: %d answers older than %d days deleted", deleted, days)
        await asyncio.sleep(DAY_SECONDS)
