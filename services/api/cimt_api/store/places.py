"""Who may ask: rates and places of all replicas together, counted in Postgres where the money is held.

A place is a reservation that its process keeps alive. One that dies holds none any more after ALIVE_SECONDS.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID, uuid4

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from psycopg import errors
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from ..http.auth import User, refusal
from ..http.problems import BUSY_SECONDS, Problem
from ..settings import Settings
from .database import Database
from .money import Money, Verdict

WINDOW_SECONDS = 60
RENEW_SECONDS = 2.0  # so long a stop takes that another replica was told, at most
ALIVE_SECONDS = 10  # a replica that did not renew for so long is dead
LOST_SECONDS = 30  # after which a reservation that its process does not know holds no place
REFUSED = 10_000  # users whose refusal is remembered
# Counted by all replicas together: sample of one replica, and whether its labels are meant. By the name of the sum.
COUNTED: dict[str, tuple[str, Callable[[Mapping[str, str]], bool], str]] = {
    "cimt_all_server_errors": (
        "http_requests_total",
        lambda labels: labels.get("status", "").startswith("5"),
        "Requests that were answered with 5xx, by all replicas that ever ran.",
    ),
    "cimt_all_save_errors": (
        "cimt_save_errors_total",
        lambda _: True,
        "Attempts to store an answer that failed, by all replicas that ever ran.",
    ),
}

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Admission:
    """The right to have one answer written: its money is held, and its place taken until it is settled."""

    reservation: UUID
    user_id: str
    headers: Mapping[str, str]  # RateLimit…: what is left
    room: UUID | None  # the reservation of an answer that has to end for this one
    ended: bool = False  # not settled yet, but its place is free


@dataclass(frozen=True, slots=True)
class Counted:
    """What `private.count_question` says."""

    fits: bool
    seconds: int  # until there is more


@dataclass(frozen=True, slots=True)
class Others:
    """What `private.renew_replica` says."""

    alive: int  # replicas, this one too
    queued: int  # answers of the others that are not stored
    counted: dict[str, int]  # by all, ever
    stopped: list[UUID]  # reservations of answers of this replica that have to end
    abandoned: list[UUID]


class Writers(Protocol):
    """The answers of this process, as far as others must know of them."""

    def alone(self) -> list[UUID]:
        """Return the reservations of those that nobody listens to."""

    def unsaved(self) -> int:
        """Count the answers with text that is not stored."""

    def let_go(self, stopped: Sequence[UUID], abandoned: Sequence[UUID]) -> None:
        """End what these reservations are of."""


class Places(Collector):
    """Admits questions, keeps the places of this process, and tells in the figures what all replicas have."""

    def __init__(self, database: Database, settings: Settings, money: Money) -> None:
        self._database = database
        self._money = money
        self._replica = uuid4()
        self._rate = settings.rate_per_minute
        self._per_user = settings.streams_per_user
        self._total = settings.streams_total
        self._taken: dict[UUID, Admission] = {}  # here, by reservation, until they are settled
        self._refused: OrderedDict[str, float] = OrderedDict()  # users, until when (monotonic)
        self._told: dict[str, int] = {}  # what was counted here, as far as the others know it
        self._alive = 1
        self._queued = 0  # by the others
        self._unsaved: Callable[[], int] = lambda: 0
        self._counted: dict[str, int] = {}  # by all

    def check(self, user: User) -> None:
        """Raise the Problem of who is known not to be able to ask: nobody is asked, and nothing counted."""
        left = self._refused.get(user.id, 0.0) - time.monotonic()
        if left > 0:
            raise self._too_many(left)
        self._check_total()

    async def admit(
        self, user: User, answer_id: UUID, model: str, micro_usd: int, alone: list[UUID]
    ) -> Admission:
        """Count a question, take a place for its answer and hold its money, in one round trip.

        `alone` are reservations of answers of this process that nobody listens to: where its user has no place, the
        oldest of them, or of another replica's, gives way. Raises Problem 429 (this user's, or for money), 401 when
        the account is gone, and 503: too many answers are being written here, or the database does not answer.
        What cannot be counted is not asked.
        """
        self._check_total()
        admission = Admission(uuid4(), user.id, {}, None)
        self._taken[admission.reservation] = admission
        try:
            await self._begin(admission, user, answer_id, model, micro_usd, alone)
        except BaseException:
            self.settled(admission)
            raise
        return admission

    def settled(self, admission: Admission) -> None:
        """Forget an admission whose reservation is gone, or was never made."""
        admission.ended = True
        self._taken.pop(admission.reservation, None)

    async def count(self, user: User) -> None:
        """Count a question that is none. Raises Problem 429 for too many; without the database nothing is counted."""
        try:
            async with self._database.as_user(user) as connection:
                counted = connection.cursor(row_factory=class_row(Counted))
                await counted.execute(
                    "select fits, seconds from private.count_question(%s, true)",
                    (self._rate,),
                )
        except errors.ForeignKeyViolation:
            return
        except Problem:
            return
        row = await counted.fetchone()
        if row is not None and not row.fits:
            raise self._refuse(user, row.seconds)

    async def renew(self, writers: Writers, registry: CollectorRegistry) -> None:
        """Keep the places of this process, and do as the others say, until cancelled."""
        self._unsaved = writers.unsaved
        while True:
            try:
                await self._renew(writers, registry)
            except Problem as problem:
                log.warning("replicas: the others cannot be told (%s)", problem.kind)
            except Exception:
                log.exception("replicas")
            await asyncio.sleep(RENEW_SECONDS)

    def describe(self) -> Iterator[Metric]:
        """Describe nothing: registering must not ask."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield what all replicas have, as far as the database told it last."""
        own = GaugeMetricFamily("cimt_replica", "1: whose figures these are.", labels=["host"])
        own.add_metric([socket.gethostname()], 1.0)
        yield own
        yield GaugeMetricFamily("cimt_replicas", "That are alive.", value=self._alive)
        yield GaugeMetricFamily(
            "cimt_all_save_queue",
            "Answers with text that is not stored yet, of all replicas.",
            value=self._queued + self._unsaved(),
        )
        for name, (_, _, text) in COUNTED.items():
            yield CounterMetricFamily(name, text, value=self._counted.get(name, 0))

    async def _begin(
        self,
        admission: Admission,
        user: User,
        answer_id: UUID,
        model: str,
        micro_usd: int,
        alone: list[UUID],
    ) -> None:
        ended = [
            one.reservation for one in self._taken.values() if one.ended and one.user_id == user.id
        ]
        try:
            async with self._database.as_user(user) as connection:
                begun = connection.cursor(row_factory=class_row(Verdict))
                await begun.execute(
                    "select verdict, room, remaining, again, month_spent, month_held, day_spent, day_held, at "
                    "from private.begin_answer(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                    (
                        *(admission.reservation, answer_id, self._replica, ALIVE_SECONDS),
                        *(self._rate, self._per_user, ended, alone, model, micro_usd),
                        *(self._money.seconds, self._money.day, self._money.month),
                    ),
                )
        except errors.ForeignKeyViolation:
            raise refusal("The account does not exist any more.") from None
        row = await begun.fetchone()
        assert row is not None  # noqa: S101 - the function returns one
        admission.headers, admission.room = self._headers(row.remaining, row.again), row.room
        if row.verdict == "streams":
            raise Problem(
                429,
                "Too many of your answers are being written",
                f"At most {self._per_user} at a time: wait for one to end, or stop one.",
                kind="too-many-streams",
                headers={"Retry-After": str(BUSY_SECONDS)},
            )
        if row.verdict == "rate":
            raise self._refuse(user, row.again)
        problem = self._money.judge(row, micro_usd)
        if problem is not None:
            problem.headers = {**admission.headers, **problem.headers}
            problem.extra["answer_id"] = str(answer_id)
            raise problem

    async def _renew(self, writers: Writers, registry: CollectorRegistry) -> None:
        counted = _counted(registry)
        grown = {
            name: value - self._told.get(name, 0)
            for name, value in counted.items()
            if value != self._told.get(name, 0)
        }
        async with self._database.as_nobody() as connection:
            renewed = connection.cursor(row_factory=class_row(Others))
            await renewed.execute(
                "select alive, queued, counted, stopped, abandoned "
                "from private.renew_replica(%s, %s, %s, %s, %s, %s, %s)",
                (
                    *(self._replica, ALIVE_SECONDS, list(self._taken), writers.alone()),
                    # What is not taken after so long never will be: its request ended in between.
                    self._money.seconds - LOST_SECONDS,
                    *(writers.unsaved(), Jsonb(grown)),
                ),
            )
        row = await renewed.fetchone()
        assert row is not None  # noqa: S101 - the function returns one
        self._told = counted
        self._alive, self._queued, self._counted = row.alive, row.queued, row.counted
        writers.let_go(row.stopped, row.abandoned)

    def _check_total(self) -> None:
        if sum(not one.ended for one in self._taken.values()) >= self._total:
            raise Problem(
                503,
                "Too many answers are being written",
                kind="busy",
                headers={"Retry-After": str(BUSY_SECONDS)},
            )

    def _refuse(self, user: User, seconds: int) -> Problem:
        """Make the Problem 429 of a user, and remember it: meanwhile no body of theirs is read."""
        self._refused[user.id] = time.monotonic() + seconds
        if len(self._refused) > REFUSED:
            self._refused.popitem(last=False)
        return self._too_many(seconds)

    def _too_many(self, seconds: float) -> Problem:
        return Problem(
            429,
            "Too many questions",
            f"At most {self._rate} in a minute.",
            kind="too-many-requests",
            headers={**self._headers(0, seconds), "Retry-After": str(_seconds(seconds))},
        )

    def _headers(self, remaining: int, seconds: float) -> dict[str, str]:
        """Return the headers of the draft "RateLimit header fields for HTTP"."""
        return {
            "RateLimit-Policy": f'"user";q={self._rate};w={WINDOW_SECONDS}',
            "RateLimit": f'"user";r={remaining};t={_seconds(seconds)}',
        }


def _seconds(left: float) -> int:
    """Return whole seconds for a header: the window's at most, though its first second is counted whole."""
    return min(max(math.ceil(left), 1), WINDOW_SECONDS)


def _counted(registry: CollectorRegistry) -> dict[str, int]:
    """Return what this process has counted of COUNTED since it started."""
    found = dict.fromkeys(COUNTED, 0.0)
    for family in registry.collect():
        for sample in family.samples:
            for name, (wanted, meant, _) in COUNTED.items():
                if sample.name == wanted and meant(sample.labels):
                    found[name] += sample.value
    return {name: int(value) for name, value in found.items()}
