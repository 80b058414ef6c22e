"""How much one user, and all together, may ask."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from .settings import Settings


class Limits:
    """Counts in memory: one process serves."""

    def __init__(self, settings: Settings) -> None: ...

    def admit(self, user_id: str) -> AbstractContextManager[Mapping[str, str]]:
        """Count one question; held while its stream is open. Yields the RateLimit headers of the answer.

        Problem 429 (with Retry-After) for too many of this user, 503 for too many of all.
        """
        raise NotImplementedError
