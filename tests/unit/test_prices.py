"""The price table and its arithmetic: every token is paid, none twice, and no model is free."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any

import pytest

from services.api.cimt_api.model import Usage
from services.api.cimt_api.prices import FILE, Prices, micro_usd
from services.api.cimt_api.settings import Settings

DAY = datetime.date(2026, 11, 26)
TABLE: dict[str, Any] = json.loads(FILE.read_text())
MADE_UP = {
    "chat": {
        "small": {
            "prices": [
                {"since": "2026-12-01", "input": "2", "cached": "1", "output": "8"},
                {"since": "2026-01-01", "input": "0.1", "cached": "0.01", "written": "0.125", "output": "0.5"},
            ],
            "long": {"above": 1000, "input": "2", "output": "1.5"},
        },
        "large": {"prices": [{"since": "2026-01-01", "input": "0.2", "output": "0.3"}]},
    },
    "embedding": {"e": {"prices": [{"since": "2026-01-01", "input": "0.02"}]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(1000, 0), "100"),
        (Usage(1000, 100), "150"),
        (Usage(1000, 100, cached=400), "114"),  # 600 at 0.1, 400 at 0.01, 100 at 0.5
        (Usage(1000, 100, cached=400, written=600), "129"),
        (Usage(1001, 100, cached=1), "275.02"),  # all of it twice and half as dear again
        (Usage(0, 0), "0"),
    ],
)
def test_each_token_is_paid_once_by_its_kind(usage: Usage, cost: str) -> None:
    assert Prices(MADE_UP).of("chat", "small", DAY).of(usage) == Decimal(cost)


def test_before_it_is_asked_a_prompt_costs_the_most_that_it_can() -> None:
    price = Prices(MADE_UP).of("chat", "small", DAY)
    assert price.at_most(1000, 100) == Decimal("175")
    for cached, written in ((0, 0), (500, 0), (0, 1000), (500, 500)):
        assert price.of(Usage(1000, 100, cached, written)) <= price.at_most(1000, 100)


def test_a_price_counts_from_its_day_on() -> None:
    prices = Prices(MADE_UP)
    inputs = [
        prices.of("chat", "small", datetime.date.fromisoformat(day)).input
        for day in ("2025-06-01", "2026-11-30", "2026-12-01", "2030-01-01")
    ]
    assert inputs == [Decimal("0.1"), Decimal("0.1"), Decimal(2), Decimal(2)]


def test_a_model_that_nobody_knows_is_as_dear_as_the_dearest() -> None:
    prices = Prices(MADE_UP)
    assert not prices.known("chat", "of-a-relay")
    assert not prices.known("chat", "e"), "a model of the other kind"
    unknown = prices.of("chat", "of-a-relay", DAY)
    assert [str(each) for each in (unknown.input, unknown.cached, unknown.output)] == [
        "0.2",
        "0.2",
        "0.5",
    ]
    for usage in (Usage(900, 90, 9), Usage(5000, 1, 0, 5000)):
        for model in ("small", "large"):
            assert unknown.of(usage) >= prices.of("chat", model, DAY).of(usage)
    assert prices.of("embedding", "of-a-relay", DAY).of(Usage(50, 0)) == 1


def test_a_dated_snapshot_costs_what_its_model_does() -> None:
    prices = Prices(MADE_UP)
    assert prices.known("chat", "small-2026-09-22")
    assert prices.of("chat", "small-2026-09-22", DAY) == prices.of("chat", "small", DAY)
    assert not prices.known("chat", "small-preview")


def test_sums_are_rounded_up_to_whole_millionths() -> None:
    sums = [micro_usd(Decimal(text)) for text in ("0", "0.02", "1", "1.000000001")]
    assert sums == [0, 1, 1, 2]


def test_every_price_says_where_and_when_it_was_seen() -> None:
    assert set(TABLE) == {"about", "chat", "embedding"}
    for kind in ("chat", "embedding"):
        for model, entry in TABLE[kind].items():
            assert entry["source"].startswith("https://"), model
            assert datetime.date.fromisoformat(entry["seen"])
            for price in entry["prices"]:
                assert datetime.date.fromisoformat(price["since"])
                values = {name: Decimal(text) for name, text in price.items() if name != "since"}
                assert all(0 < value < 1000 for value in values.values()), model
                assert ("output" in values) == (kind == "chat")
                assert values.get("cached", 0) <= values["input"] <= values.get("written", 1000)


def test_the_models_that_are_set_by_default_have_a_price() -> None:
    prices = Prices()
    assert prices.known("chat", Settings.model_fields["chat_model"].default)
    assert prices.known("embedding", Settings.model_fields["embedding_model"].default)
