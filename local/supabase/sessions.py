"""Sessions as a client holds them: a signed access token with a refresh token, and back to the account."""

from __future__ import annotations

import time
from typing import Any

import jwt
from starlette.requests import Request

from . import accounts
from .errors import AuthError
from .keys import Keys


class Sessions:
    """Makes and reads the tokens of one project."""

    def __init__(self, keys: Keys, issuer: str, seconds: int) -> None:
        self._keys = keys
        self._issuer = issuer
        self._seconds = seconds

    async def start(self, connection: accounts.Connection, user_id: str) -> dict[str, Any]:
        """The answer to a sign-in: a new session of this account."""
        session_id, refresh_token = await accounts.start_session(connection, user_id)
        user = await accounts.user_by_id(connection, user_id)
        assert user is not None  # noqa: S101 - its one-time token was there a moment ago
        return self.answer(user, session_id, refresh_token)

    def answer(
        self, user: accounts.Row, session_id: str, refresh_token: str, **other: Any
    ) -> dict[str, Any]:
        """Both tokens and the account. `other` are claims that differ; None leaves one out."""
        now = int(time.time())
        claims = {
            "iss": self._issuer,
            "sub": str(user["id"]),
            "aud": user["aud"],
            "exp": now + self._seconds,
            "iat": now,
            "email": user["email"],
            "phone": "",
            "app_metadata": user["raw_app_meta_data"],
            "user_metadata": user["raw_user_meta_data"],
            "role": user["role"],
            "aal": "aal1",
            "amr": [{"method": "otp", "timestamp": now}],
            "session_id": session_id,
            "is_anonymous": False,
        } | other
        return {
            "access_token": self._keys.sign(
                {name: value for name, value in claims.items() if value is not None}
            ),
            "token_type": "bearer",
            "expires_in": self._seconds,
            "expires_at": now + self._seconds,
            "refresh_token": refresh_token,
            "user": accounts.as_json(user),
        }

    async def bearer(
        self, request: Request, connection: accounts.Connection
    ) -> tuple[accounts.Row, str]:
        """The account and the session id of a request's token. Raises AuthError."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise AuthError(401, "no_authorization", "This endpoint requires a valid Bearer token")
        try:
            claims = self._keys.read(token, self._issuer)
        except jwt.InvalidTokenError as error:
            raise AuthError(
                403, "bad_jwt", f"invalid JWT: unable to parse or verify signature, {error}"
            ) from None
        user = await accounts.user_by_id(connection, claims["sub"])
        if user is None:
            raise AuthError(403, "user_not_found", "User from sub claim in JWT does not exist")
        session_id = str(claims.get("session_id", ""))
        if not await accounts.session_exists(connection, session_id):
            raise AuthError(
                403, "session_not_found", "Session from session_id claim in JWT does not exist"
            )
        return user, session_id
