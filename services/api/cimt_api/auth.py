"""Who asks: Supabase's tokens, verified here against the keys that it publishes."""

from __future__ import annotations

from dataclasses import dataclass

from .settings import Settings


@dataclass(frozen=True, slots=True)
class User:
    """A signed-in person."""

    id: str  # UUID of auth.users, lower case
    email: str | None
    claims: str  # JSON for request.jwt.claims: what the policies read, nothing more


class Authenticator:
    """Holds the keys; `user` neither blocks nor asks anybody once there are some."""

    def __init__(self, settings: Settings) -> None: ...

    async def start(self) -> None:
        """Begin to fetch keys; does not wait for them."""

    async def close(self) -> None:
        """Stop fetching."""

    @property
    def ready(self) -> bool:
        """Whether a token can be verified."""
        raise NotImplementedError

    async def user(self, authorization: str | None) -> User:
        """Who the header `Authorization` names; Problem 401, or 503 when no key was ever had."""
        raise NotImplementedError
