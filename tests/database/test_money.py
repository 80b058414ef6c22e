"""The budget in Postgres: caps hold for many at once, what is held lapses or is spent once, days are those of UTC."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import namedtuple_row

from local.waiting import eventually
from testbed.postgres import Server, apply, server

ANN, BOB = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
ROOMY = 10**9
RESERVE = "select * from private.reserve_money(%s, 'm', %s, %s, %s, %s)"
SETTLE = "select private.settle_money(%s, %s, 10, 4, 5, 3, %s)"


class Budget:
    """The functions as the API's role calls them."""

    def __init__(self, cluster: Server) -> None:
        name = cluster.database()
        self.api = cluster.url(name, "cimt_api")
        self.admin = cluster.url(name, "supabase_admin")
        apply(cluster.url(name))
        self.sql("insert into auth.users (id, email) values (%s, 'ann@example.com')", ANN)
        self.sql("insert into auth.users (id, email) values (%s, 'bob@example.com')", BOB)

    def sql(self, text: str, *values: Any) -> list[Any]:
        with psycopg.connect(self.admin, autocommit=True) as connection:
            cursor = connection.execute(text.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def call(self, who: str, text: str, *values: Any) -> Any:
        with psycopg.connect(self.api, row_factory=namedtuple_row) as connection:
            claims = json.dumps({"sub": who} if who else {})
            connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
            return connection.execute(text.encode(), values).fetchone()

    def reserve(
        self,
        amount: int,
        who: str = ANN,
        *,
        seconds: int = 600,
        day: int = ROOMY,
        month: int = ROOMY,
        id_: UUID | None = None,
    ) -> Any:
        return self.call(who, RESERVE, id_ or uuid4(), amount, seconds, day, month)

    def settle(self, id_: UUID, cost: int, *, guessed: bool = False) -> None:
        self.call(ANN, SETTLE, id_, cost, guessed)

    def spend(self, cost: int, day: datetime.date, who: str = ANN) -> None:
        self.sql(
            "insert into private.spending (user_id, day, model, answers, estimated, prompt_tokens, cached_tokens, "
            "completion_tokens, embedding_tokens, cost) values (%s, %s, %s, 1, 0, 0, 0, 0, 0, %s)",
            *(who, day, f"{uuid4()}", cost),
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Server]:
    with server() as made:
        yield made


@pytest.fixture
def budget(cluster: Server) -> Budget:
    def now() -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC)

    # What a test calls today stays so until it has ended.
    soon = datetime.timedelta(minutes=2)
    eventually(lambda: (now() + soon).date() == now().date(), "the day is over", seconds=180)
    return Budget(cluster)


def today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


@pytest.mark.parametrize("cap", ["day", "month"])
def test_many_at_once_stay_below_the_cap_together(budget: Budget, cap: str) -> None:
    """Twenty connections, each with ten attempts, half of which are settled for less, or for nothing."""
    most = 1000
    caps = {cap: most}
    start = threading.Barrier(20)
    highest: list[int] = []

    def ask(number: int) -> int:
        start.wait()
        granted = 0
        for attempt in range(10):
            id_ = uuid4()
            row = budget.reserve(70, id_=id_, **caps)
            highest.append(row.month_spent + row.month_held + 70 * row.granted)
            granted += row.granted
            if row.granted and attempt % 2:
                budget.settle(id_, (number % 2) * 30)
        return granted

    with ThreadPoolExecutor(20) as pool:
        granted = sum(pool.map(ask, range(20)))
    assert max(highest) <= most
    ((held, spent),) = budget.sql(
        "select (select coalesce(sum(held), 0) from private.reservations), "
        "(select coalesce(sum(cost), 0) from private.spending)"
    )
    assert held + spent <= most
    assert held + spent + 70 > most, "it was used up"
    assert granted >= most // 70


def test_the_caps_are_of_one_user_and_of_all(budget: Budget) -> None:
    assert budget.reserve(60, day=100, month=150).granted
    mine = budget.reserve(60, day=100, month=150)
    assert (mine.granted, mine.day_held, mine.month_held) == (False, 60, 60)
    assert budget.reserve(60, BOB, day=100, month=150).granted
    ours = budget.reserve(40, BOB, day=100, month=150)
    assert (ours.granted, ours.day_held, ours.month_held) == (False, 60, 120)


def test_what_is_held_lapses_with_its_process(budget: Budget) -> None:
    assert budget.reserve(90, seconds=0, day=100).granted
    again = budget.reserve(90, seconds=60, day=100)
    assert (again.granted, again.day_held) == (True, 0)
    assert not budget.reserve(90, day=100).granted


def test_it_is_spent_once_also_after_its_time(budget: Budget) -> None:
    late, fresh, nothing = uuid4(), uuid4(), uuid4()
    budget.reserve(90, seconds=0, id_=late)
    budget.reserve(90, id_=fresh)
    budget.reserve(90, id_=nothing)
    for _ in range(2):
        budget.settle(late, 40, guessed=True)
        budget.settle(fresh, 25)
        budget.settle(nothing, 0)
    spent = budget.sql(
        "select user_id::text, day, model, answers, estimated, prompt_tokens, cached_tokens, completion_tokens, "
        "embedding_tokens, cost from private.spending"
    )
    assert spent == [(ANN, today(), "m", 2, 1, 20, 8, 10, 6, 65)]
    assert budget.sql("select from private.reservations") == []
    assert budget.call(ANN, "select private.month_spent() as spent").spent == 65


def test_what_nobody_ever_settles_is_gone_a_day_later(budget: Budget) -> None:
    dead = uuid4()
    budget.reserve(1, id_=dead)
    budget.sql("update private.reservations set expires_at = now() - interval '25 hours'")
    budget.reserve(1)
    assert budget.sql("select from private.reservations where id = %s", dead) == []


def test_days_and_months_are_those_of_utc(budget: Budget) -> None:
    budget.sql("alter role cimt_api set timezone = 'Pacific/Kiritimati'")  # already tomorrow
    first = today().replace(day=1)
    budget.spend(7, first - datetime.timedelta(days=1))
    budget.spend(20, first)
    budget.spend(3, today())
    row = budget.reserve(0)
    assert row.month_spent == 23
    assert row.day_spent == (23 if today() == first else 3)
    budget.sql("alter role cimt_api reset timezone")


def test_an_answer_is_paid_by_the_day_on_which_it_was_asked(budget: Budget) -> None:
    id_, before = uuid4(), today() - datetime.timedelta(days=1)
    budget.reserve(90, id_=id_)
    budget.sql("update private.reservations set day = %s", before)
    assert budget.reserve(0).day_held == 0
    budget.settle(id_, 50)
    assert budget.sql("select day, cost from private.spending") == [(before, 50)]


def test_what_an_account_has_spent_stays_spent_without_it(budget: Budget) -> None:
    paid, running = uuid4(), uuid4()
    budget.reserve(90, id_=paid)
    budget.settle(paid, 50)
    budget.reserve(90, id_=running)
    budget.sql("delete from auth.users where id = %s", ANN)
    budget.settle(running, 30)
    assert budget.sql("select user_id, cost from private.spending order by cost") == [
        (None, 30),
        (None, 50),
    ]
    assert budget.reserve(0, BOB).month_spent == 80
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        budget.reserve(1)


def test_nobody_spends_in_the_name_of_nobody(budget: Budget) -> None:
    with pytest.raises(psycopg.errors.RaiseException):
        budget.reserve(1, "")
    with pytest.raises(psycopg.errors.CheckViolation):
        budget.reserve(-1)
