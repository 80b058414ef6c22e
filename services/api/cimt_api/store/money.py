"""The budget, in Postgres: held before the model is asked, spent after it, by all processes together."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from psycopg import errors

from ..http.auth import User
from ..http.problems import BUSY_SECONDS, Problem
from ..metrics import Metrics
from ..settings import Settings
from .database import Connection, Database

# After an answer's time: to store its end, and for clocks that differ.
SETTLE_SECONDS = 90
LOOK_SECONDS = 60.0  # between two looks at what is spent, where no question asks for it
MILLION = 1_000_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Charge:
    """What an answer has cost, for its reservation; all zero: nothing, and what was held is free."""

    reservation: UUID
    micro_usd: int = 0
    prompt: int = 0  # tokens
    cached: int = 0
    completion: int = 0
    embedding: int = 0
    estimated: bool = False  # the service did not say its tokens: they are counted

    async def settle(self, connection: Connection) -> None:
        """Spend it in the transaction of this connection. A second time it changes nothing."""
        await connection.execute(
            "select private.settle_money(%s, %s, %s, %s, %s, %s, %s)",
            (
                self.reservation,
                self.micro_usd,
                self.prompt,
                self.cached,
                self.completion,
                self.embedding,
                self.estimated,
            ),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `private.begin_answer` says; the sums are missing where money was not even looked at."""

    verdict: str  # granted, or what refuses: streams, rate, money
    room: UUID | None  # the reservation of an answer that has to end for this one
    remaining: int  # questions that the user may still ask now
    again: int  # seconds until there are more
    month_spent: int  # in millionths of a US dollar, as all of these
    month_held: int
    day_spent: int
    day_held: int
    at: datetime.datetime


class Money(Collector):
    """Judges what may be held, settles it, and tells in the figures how much of the month's budget is spent."""

    def __init__(
        self, database: Database, settings: Settings, metrics: Metrics, *, least: int
    ) -> None:
        self._database = database
        self._least = least  # that is held for any question, in millionths of a US dollar
        self._metrics = metrics
        self.month = int(settings.budget_month_usd * MILLION)  # the caps
        self.day = int(settings.budget_user_day_usd * MILLION)
        self.seconds = settings.answer_seconds + SETTLE_SECONDS  # until what is held lapses
        self._spent: int | None = None  # this month, by all; None: not known yet

    def judge(self, row: Verdict, micro_usd: int) -> Problem | None:
        """Return why so much is not held: the Problem 429 of the cap that refuses. None: it is held."""
        self._spent = row.month_spent
        if row.verdict == "granted":
            return None
        today = row.at.astimezone(datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        tomorrow = today + datetime.timedelta(days=1)
        next_month = (today.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
        month = Cap("month", self.month, row.month_spent, row.month_held, next_month)
        day = Cap("user-day", self.day, row.day_spent, row.day_held, tomorrow)
        # Where both refuse, the one that does for longer.
        over = [cap for cap in (month, day) if cap.spent + cap.held + micro_usd > cap.most]
        cap = next((one for one in over if one.spent + micro_usd > one.most), over[0])
        self._metrics.budget_refusals.labels(cap.name).inc()
        return cap.problem(micro_usd, row.at)

    async def settle(self, user: User, charge: Charge) -> None:
        """Spend a charge, in one round trip. Raises Problem 503 when the database does not answer."""
        try:
            async with self._database.as_user(user) as connection:
                await charge.settle(connection)
        except errors.ForeignKeyViolation:
            log.warning("money: an account went while it was charged; what was held lapses")

    async def watch(self) -> None:
        """Look every minute at what is spent, until cancelled: other processes spend too, and months end."""
        while True:
            try:
                async with self._database.as_service() as connection:
                    rows = await connection.execute("select private.month_spent()")
                ((self._spent,),) = await rows.fetchall()
            except Problem as problem:
                log.warning("money: what is spent cannot be read (%s)", problem.kind)
            await asyncio.sleep(LOOK_SECONDS)

    def describe(self) -> Iterator[Metric]:
        """Describe nothing: registering must not ask."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the month's cap, and once it is known how much of it is spent."""
        yield GaugeMetricFamily(
            "cimt_budget_month_usd",
            "What may be spent on answers in a month (UTC), in US dollars.",
            value=self.month / MILLION,
        )
        if self._spent is not None:
            yield GaugeMetricFamily(
                "cimt_budget_month_used_ratio",
                "Of that, the part that was spent this month, by all processes.",
                value=self._spent / self.month,
            )
            yield GaugeMetricFamily(
                "cimt_budget_month_reached",
                "1 when what is left of it is too little for any question.",
                value=float(self._spent + self._least > self.month),
            )


@dataclass(frozen=True, slots=True)
class Cap:
    """A cap that refuses, in millionths of a US dollar, and when it is free again."""

    name: str  # month, user-day
    most: int
    spent: int
    held: int
    free_at: datetime.datetime

    def problem(self, micro_usd: int, at: datetime.datetime) -> Problem:
        """Make the Problem 429 of a question that may cost so much, asked at this moment."""
        kind = f"budget-{self.name}"
        if self.name == "month":  # how large it is, is the operators' business
            title, bound = "The budget of this month is used up", "It is one for all users"
        else:
            title = "Your budget of today is used up"
            bound = f"Your questions of a day (UTC) may cost {Decimal(self.most) / MILLION:f} USD"
        if micro_usd > self.most:
            return Problem(
                429,
                "This question may cost more than the budget",
                f"{bound}. Ask a shorter one.",
                kind=kind,
                headers={"X-Should-Retry": "false"},
                cap=self.name,
            )
        if self.spent + micro_usd <= self.most:
            return Problem(
                429,
                "Answers that are being written hold the rest of the budget",
                f"{bound}. What these do not use is free when they end.",
                kind=kind,
                headers={"Retry-After": str(BUSY_SECONDS)},
                cap=self.name,
            )
        seconds = max(int((self.free_at - at).total_seconds()) + 1, 1)
        return Problem(
            429,
            title,
            f"{bound}. It is free again at {self.free_at:%Y-%m-%d %H:%M} UTC.",
            kind=kind,
            # The second one is what OpenAI's SDKs look at: they would try again at once.
            headers={"Retry-After": str(seconds), "X-Should-Retry": "false"},
            cap=self.name,
            free_at=f"{self.free_at:%Y-%m-%dT%H:%M:%SZ}",
        )
