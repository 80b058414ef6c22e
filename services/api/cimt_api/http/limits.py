"""How much one user, and all together, may ask."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage  # the other one starts a thread per request
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from ..settings import Settings
from .problems import Problem

BUSY_SECONDS = 5  # when to come back where nobody can say


class Admission:
    """The right to have one answer written: it counts among those of its user, and of all, until `end` is called."""

    def __init__(self, limits: Limits, user_id: str, headers: Mapping[str, str]) -> None:
        self.headers = headers  # RateLimit…: what is left
        self._limits: Limits | None = limits
        self._user_id = user_id

    def end(self) -> None:
        """Free the place."""
        limits, self._limits = self._limits, None
        if limits is not None:
            limits.leave(self._user_id)


class Limits:
    """Counts in memory: one process serves. After a restart everybody begins with a full budget."""

    def __init__(self, settings: Settings) -> None:
        self._rate = RateLimitItemPerMinute(settings.rate_per_minute)
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._per_user = settings.streams_per_user
        self._total = settings.streams_total
        self._places: Counter[str] = Counter()  # taken, by user

    def full(self, user_id: str) -> bool:
        """Tell whether this user has no place left."""
        return self._places[user_id] >= self._per_user

    async def check(self, user_id: str) -> None:
        """Raise the Problem that `admit` would, and count nothing."""
        self._check_places(user_id)
        if not await self._windows.test(self._rate, user_id):
            raise await self._too_many(user_id)

    async def admit(self, user_id: str) -> Admission:
        """Count a question and take a place for its answer. Raises Problem 429 (this user's) or 503 (all)."""
        self._check_places(user_id)
        self._places[user_id] += 1
        try:
            return Admission(self, user_id, await self.count(user_id))
        except BaseException:
            self.leave(user_id)
            raise

    async def count(self, user_id: str) -> Mapping[str, str]:
        """Count a question and return the RateLimit headers of its answer. Raises Problem 429 for too many."""
        if not await self._windows.hit(self._rate, user_id):
            raise await self._too_many(user_id)
        return (await self._headers(user_id))[0]

    def leave(self, user_id: str) -> None:
        """Free a place of this user."""
        self._places[user_id] -= 1
        if self._places[user_id] <= 0:
            del self._places[user_id]

    def _check_places(self, user_id: str) -> None:
        if self._places.total() >= self._total:
            raise Problem(
                503,
                "Too many answers are being written",
                kind="busy",
                headers={"Retry-After": str(BUSY_SECONDS)},
            )
        if self.full(user_id):
            raise Problem(
                429,
                "Too many of your answers are being written",
                f"At most {self._per_user} at a time: wait for one to end, or stop one.",
                kind="too-many-streams",
                headers={"Retry-After": str(BUSY_SECONDS)},
            )

    async def _too_many(self, user_id: str) -> Problem:
        headers, seconds = await self._headers(user_id)
        return Problem(
            429,
            "Too many questions",
            f"At most {self._rate.amount} in a minute.",
            kind="too-many-requests",
            headers={**headers, "Retry-After": str(seconds)},
        )

    async def _headers(self, user_id: str) -> tuple[dict[str, str], int]:
        """Return the headers of the draft "RateLimit header fields for HTTP", and the seconds until there is more."""
        window = await self._windows.get_window_stats(self._rate, user_id)
        seconds = max(math.ceil(window.reset_time - time.time()), 1)
        headers = {
            "RateLimit-Policy": f'"user";q={self._rate.amount};w={self._rate.get_expiry()}',
            "RateLimit": f'"user";r={window.remaining};t={seconds}',
        }
        return headers, seconds
