"""The routes."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from . import __version__

GREETING = "Hello, CIMT!"  # what the smoke test expects of an empty POST /chat
# Written when the image is built. A file and not a variable: the panel's environment must not be able to shadow it.
REVISION_FILE = Path(__file__).resolve().parents[1] / "revision"


def revision(path: Path = REVISION_FILE) -> str:
    """The git revision that this image was built from, or `unknown` outside an image."""
    try:
        return path.read_text(encoding="ascii").strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


def create_app(built_from: str | None = None) -> FastAPI:
    """The application without its outer layer (limits, headers, log, metrics: see `edge`)."""
    # No interactive pages: they load scripts from elsewhere. /openapi.json stays, for generating clients.
    app = FastAPI(
        title="CIMT API", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    health = {"status": "ok", "version": __version__, "revision": built_from or revision()}

    @app.get("/healthz", summary="Alive, and from which revision")
    async def healthz() -> JSONResponse:
        return JSONResponse(health)

    @app.post("/chat", summary="Say something; an empty body is greeted")
    async def chat(request: Request) -> JSONResponse:
        # Reading the whole body is what enforces its limit. Its text is neither kept nor sent back.
        await request.body()
        return JSONResponse({"message": GREETING})

    return app
