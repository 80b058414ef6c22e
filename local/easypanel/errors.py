"""Errors that the panel answers with, independent of the dialect that carries them."""

from __future__ import annotations


class PanelError(Exception):
    """An answer other than success: HTTP ``status``, the panel's ``code`` and a message."""

    status = 500
    code = "INTERNAL_SERVER_ERROR"

    def __init__(self, message: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields


class BadRequest(PanelError):
    """The request cannot be served as it is; ``fields`` maps a field to its problem."""

    status, code = 400, "BAD_REQUEST"


class Unauthorized(PanelError):
    """No token, or one that is not valid any more."""

    status, code = 401, "UNAUTHORIZED"


class NotFound(PanelError):
    """No such operation, or an object of another type."""

    status, code = 404, "NOT_FOUND"


class Internal(PanelError):
    """The panel could not do what was asked."""


def invariant(condition: object) -> None:
    """Refuse the way the panel does when an object that must exist does not."""
    if not condition:
        raise BadRequest("Invariant failed")
