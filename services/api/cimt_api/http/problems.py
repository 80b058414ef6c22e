"""Errors as clients get them: application/problem+json, RFC 9457."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
BUSY_SECONDS = 5  # when to come back where nobody can say
LEFT = 499  # status of a request whose client left before it was answered: for the log alone
# As OpenAI calls them, by status.
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Those of them that no waiting for a moment helps, as clients of OpenAI know it.
USED_UP = ("budget-month", "budget-user-day")
NO_HEADERS: Mapping[str, str] = {}


class Problem(Exception):
    """An error that the client is told: `kind` names it for programs, `title` and `detail` for people.

    Neither holds what an upstream service said, nor what a person wrote.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str = "",
        *,
        kind: str,
        headers: Mapping[str, str] = NO_HEADERS,
        **extra: Any,
    ) -> None:
        super().__init__(f"{status} {kind}: {title}")
        self.status = status
        self.title = title
        self.detail = detail
        self.kind = kind
        self.headers = headers
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """Return the JSON object of RFC 9457; members without a value are left out."""
        base = {"type": f"urn:cimt:problem:{self.kind}", "title": self.title, "status": self.status}
        return {**base, **({"detail": self.detail} if self.detail else {}), **self.extra}

    def response(self, request: Request) -> Response:
        """Return the HTTP response, in the words of the request's protocol: the AI SDK shows a body as it is."""
        content, media_type = orjson.dumps(self.body()), MEDIA_TYPE
        if request.url.path.startswith("/v1/"):
            content, media_type = orjson.dumps({"error": self.openai()}), "application/json"
        elif request.query_params.get("format") == "ui" or hasattr(request.state, "plain_errors"):
            text = f"{self.title}: {self.detail}" if self.detail else self.title
            content, media_type = text.encode(), "text/plain"
        return Response(content, self.status, dict(self.headers), media_type=media_type)

    def openai(self) -> dict[str, Any]:
        """Return the error object of OpenAI's API."""
        kind = ERROR_TYPES.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        if self.kind in USED_UP:
            kind = "insufficient_quota"
        return {
            "message": f"{self.title}: {self.detail}" if self.detail else self.title,
            "type": kind,
            "param": self.extra.get("param"),
            "code": self.kind.replace("-", "_"),
        }


class ProblemDocument(BaseModel):
    """The schema of every error, for the OpenAPI document."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["urn:cimt:problem:not-found"])
    title: str = Field(examples=["There is no such thing here"])
    status: int = Field(examples=[404])
    detail: str | None = None


class OpenAIErrorObject(BaseModel):
    """What was wrong."""

    message: str
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = None
    code: str | None = None


class OpenAIError(BaseModel):
    """The schema of an error below /v1, which is OpenAI's."""

    error: OpenAIErrorObject


def documented(*statuses: int, plain: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the `responses=` of a route that may end in these statuses; `plain`: for the AI SDK, as words alone."""
    words = {"text/plain": {"schema": {"type": "string"}}} if plain else {}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/ProblemDocument"},
                    "example": {
                        "type": f"urn:cimt:problem:{_kind(status)}",
                        "title": HTTPStatus(status).phrase,
                        "status": status,
                    },
                },
                **words,
            },
        }
        for status in statuses
    }


def documented_for_openai(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses=` of a route below /v1 that may end in these statuses."""
    schema = {"schema": {"$ref": "#/components/schemas/OpenAIError"}}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": schema},
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Answer every error of the application as a problem document."""

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)  # noqa: S101 - registered for this type alone
        return error.response(request)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
        return invalid_request(error.errors()).response(request)

    async def gone(_: Request, __: Exception) -> Response:  # in the middle of its body
        return Response(status_code=LEFT)

    async def plain(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - as above
        phrase = HTTPStatus(error.status_code).phrase
        detail = error.detail if error.detail != phrase else ""
        return Problem(
            error.status_code,
            phrase,
            detail,
            kind=_kind(error.status_code),
            headers=error.headers or {},
        ).response(request)

    async def unforeseen(
        request: Request, _: Exception
    ) -> Response:  # the server logs the traceback
        return Problem(
            500, "The server made a mistake", "It is in its log.", kind="internal"
        ).response(request)

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, unforeseen)


def invalid_request(errors: Any) -> Problem:
    """Make the Problem 422 of pydantic's errors: where and why, never the value, which a person wrote."""
    reasons = [
        {"at": ".".join(str(part) for part in error["loc"]), "why": error["msg"]}
        for error in list(errors)[:20]
    ]
    return Problem(
        422,
        "The request does not fit",
        "; ".join(f"{reason['at']}: {reason['why']}" for reason in reasons)[:500],
        kind="invalid-request",
        errors=reasons,
    )


def _kind(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "-").replace("'", "")
