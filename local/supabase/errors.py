"""Supabase Auth's error answers."""

from __future__ import annotations

from typing import Any


class AuthError(Exception):
    """Becomes ``{"code", "error_code", "msg"}`` with this HTTP status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"code": self.status, "error_code": self.code, "msg": str(self)}


class OAuthError(AuthError):
    """The token endpoint's other shape: ``{"error", "error_description"}``, status 400."""

    def __init__(self, kind: str, description: str) -> None:
        super().__init__(400, kind, description)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": self.code, "error_description": str(self)}


class GatewayError(AuthError):
    """What the gateway in front of Auth answers when the API key is missing or wrong."""

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"message": str(self), "hint": self.code}
