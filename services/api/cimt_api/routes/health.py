"""GET /healthz: alive, for the image's health check. GET /readyz: whether all is there, for alerts and people."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from .dependencies import ServicesOf

router = APIRouter(tags=["Health"])

PING_SECONDS = 2.0

# Fixed texts: the reasons, with their addresses, are in the log.
WHY = {
    "database": "it does not answer",
    "sign_in": "no key of the sign-in service is known",
    "model": "its service fails again and again, and is given a pause; or its client is still loading",
    "key": "its service refuses our key: OPENAI_API_KEY",
    "quota": "the account with its service is used up",
}
# A part that is no reason to be red.
UNPRICED = "counted as the dearest that is known"


class Health(BaseModel):
    """Alive, and which one."""

    status: Literal["ok"]
    version: str = Field(examples=["1.0.0"])
    revision: str = Field(examples=["0fcd668"], description="The git commit, or unknown.")


class Part(BaseModel):
    """One thing that is needed."""

    ok: bool
    why: str | None = Field(default=None, examples=[WHY["database"]])


class Readiness(BaseModel):
    """All of them."""

    status: str = Field(examples=["ready"], description="ready or not ready")
    parts: dict[str, Part] = Field(examples=[{"database": {"ok": True}}])


@router.head("/healthz", include_in_schema=False)
@router.get(
    "/healthz", summary="Alive, and from which revision", responses={200: {"model": Health}}
)
async def healthz(request: Request) -> JSONResponse:
    """Tell version and git revision; nothing else is asked, so that a dead dependency is no reason to be killed."""
    return JSONResponse(request.app.state.health)


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="Whether everything that answers need is there",
    response_model=Readiness,
    response_model_exclude_none=True,
    responses={503: {"model": Readiness, "description": "A part is missing; `why` says which."}},
)
async def readyz(response: Response, services: ServicesOf) -> dict[str, Any]:
    """Tell whether the database answers, tokens can be verified, and the model's service is not failing."""
    working = {
        "database": await services.database.answers(PING_SECONDS),
        "sign_in": services.authenticator.ready,
        "model": services.upstream.ready,
    }
    ready = all(working.values())
    response.status_code = 200 if ready else 503
    why = WHY | {"model": WHY[services.upstream.refused or "model"]}
    parts = {name: {"ok": ok, "why": None if ok else why[name]} for name, ok in working.items()}
    if unpriced := services.till.unpriced:
        parts["prices"] = {"ok": True, "why": f"not known of {', '.join(unpriced)}: {UNPRICED}"}
    return {"status": "ready" if ready else "not ready", "parts": parts}
