"""The switches of the stand-in, below /stand-in: counters, key sets that fail, new keys, sessions without a mail."""

from __future__ import annotations

from collections import Counter

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import accounts
from .errors import AuthError
from .keys import Keys
from .requests import EMAIL, read_body
from .sessions import Sessions

JWKS = ("ok", "failing", "hanging", "empty")


class Switches:
    """What tests turn, and read."""

    def __init__(self, database: str, keys: Keys, sessions: Sessions) -> None:
        self._database = database
        self._keys = keys
        self._sessions = sessions
        self.calls: Counter[str] = Counter()  # by path below /auth/v1
        self.jwks = "ok"

    def routes(self) -> list[Route]:
        """Paths below /stand-in."""
        return [
            Route("/stand-in/calls", self.read_calls, methods=["GET", "DELETE"]),
            Route("/stand-in/behaviour", self.set_behaviour, methods=["PUT"]),
            Route("/stand-in/rotate", self.rotate, methods=["POST"]),
            Route("/stand-in/token", self.mint, methods=["POST"]),
        ]

    async def read_calls(self, request: Request) -> Response:
        """How often each path was asked; DELETE counts from zero."""
        if request.method == "DELETE":
            self.calls.clear()
            return Response(status_code=204)
        return JSONResponse({"total": self.calls.total(), "paths": dict(self.calls)})

    async def set_behaviour(self, request: Request) -> Response:
        """``{"jwks": "failing"}``: the key set answers 500, hangs, or is empty."""
        wanted = (await read_body(request)).get("jwks")
        if wanted not in JWKS:
            raise AuthError(400, "validation_failed", f"jwks is one of: {', '.join(JWKS)}")
        self.jwks = wanted
        return JSONResponse({"jwks": self.jwks})

    async def rotate(self, request: Request) -> Response:
        """A new signing key; ?revoke=1 makes all former tokens void."""
        revoke = request.query_params.get("revoke", "") not in ("", "0")
        return JSONResponse({"kid": self._keys.rotate(revoke=revoke)})

    async def mint(self, request: Request) -> Response:
        """A session for ``{"email"}`` without a mail, with other ``claims`` if wanted (null leaves one out)."""
        body = await read_body(request)
        email, claims = str(body.get("email") or "").lower(), body.get("claims") or {}
        if not EMAIL.fullmatch(email) or not isinstance(claims, dict):
            raise AuthError(400, "validation_failed", "email is an address, claims an object")
        async with accounts.connect(self._database) as connection:
            user = await accounts.user_by_email(connection, email, create=True, data={})
            session_id, refresh_token = await accounts.start_session(connection, str(user["id"]))
        return JSONResponse(self._sessions.answer(user, session_id, refresh_token, **claims))
