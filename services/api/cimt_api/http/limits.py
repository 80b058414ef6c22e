"""How much one user, and all together, may ask."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage  # the other one starts a thread per request
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from .problems import Problem
from .settings import Settings

BUSY_SECONDS = 5  # when to come back where nobody can say


class Limits:
    """Counts in memory: one process serves. After a restart everybody begins with a full budget."""

    def __init__(self, settings: Settings) -> None:
        self._rate = RateLimitItemPerMinute(settings.rate_per_minute)
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._per_user = settings.streams_per_user
        self._total = settings.streams_total
        self._open: Counter[str] = Counter()
        self._all = 0

    @contextlib.contextmanager
    def hold(self, user_id: str) -> Iterator[None]:
        """Count a stream while it is open. Raises Problem 429 for too many of this user, 503 for too many of all."""
        if self._all >= self._total:
            raise Problem(
                503,
                "Too many answers are being written",
                kind="busy",
                headers={"Retry-After": str(BUSY_SECONDS)},
            )
        if self._open[user_id] >= self._per_user:
            raise Problem(
                429,
                "Too many of your answers are being written",
                f"At most {self._per_user} at a time: wait for one to end.",
                kind="too-many-streams",
                headers={"Retry-After": str(BUSY_SECONDS)},
            )
        self._open[user_id] += 1
        self._all += 1
        try:
            yield
        finally:
            self._all -= 1
            self._open[user_id] -= 1
            if self._open[user_id] <= 0:
                del self._open[user_id]

    async def count(self, user_id: str) -> Mapping[str, str]:
        """Count a question and return the RateLimit headers of its answer. Raises Problem 429 for too many."""
        admitted = await self._windows.hit(self._rate, user_id)
        headers, seconds = await self._headers(user_id)
        if not admitted:
            raise Problem(
                429,
                "Too many questions",
                f"At most {self._rate.amount} in a minute.",
                kind="too-many-requests",
                headers={**headers, "Retry-After": str(seconds)},
            )
        return headers

    async def _headers(self, user_id: str) -> tuple[dict[str, str], int]:
        """Return the headers of the draft "RateLimit header fields for HTTP", and the seconds until there is more."""
        window = await self._windows.get_window_stats(self._rate, user_id)
        seconds = max(math.ceil(window.reset_time - time.time()), 1)
        headers = {
            "RateLimit-Policy": f'"user";q={self._rate.amount};w={self._rate.get_expiry()}',
            "RateLimit": f'"user";r={window.remaining};t={seconds}',
        }
        return headers, seconds
