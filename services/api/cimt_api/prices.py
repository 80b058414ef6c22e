"""What tokens cost: the dated table of prices.json, and sums in millionths of a US dollar."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from .model import Usage

FILE = Path(__file__).with_name("prices.json")
SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")  # of a model, such as gpt-6-luna-2026-09-22

Kind = Literal["chat", "embedding"]


@dataclass(frozen=True, slots=True)
class Price:
    """A price in USD per million tokens, which is the same as millionths of a dollar per token."""

    input: Decimal
    cached: Decimal  # of the prompt, what the service had in its cache
    written: Decimal  # of the prompt, what the service put there
    output: Decimal
    long_above: int | None = None  # tokens; a larger prompt makes all of the answer dearer
    long_input: Decimal = Decimal(1)  # by so many times
    long_output: Decimal = Decimal(1)

    def of(self, usage: Usage) -> Decimal:
        """Return what these tokens cost, in millionths of a dollar."""
        fresh = usage.prompt - usage.cached - usage.written
        asked = self.input * fresh + self.cached * usage.cached + self.written * usage.written
        said = self.output * usage.completion
        if self.long_above is not None and usage.prompt > self.long_above:
            return asked * self.long_input + said * self.long_output
        return asked + said

    def at_most(self, prompt: int, completion: int) -> Decimal:
        """Return what a prompt of so many tokens and its answer cost where nothing of it is in the cache."""
        written = prompt if self.written > self.input else 0
        return self.of(Usage(prompt, completion, 0, written))


class Prices:
    """The table. A model that it does not know costs as much as the dearest of its kind, in each part."""

    def __init__(self, table: Mapping[str, Any] | None = None) -> None:
        self._table = json.loads(FILE.read_text(encoding="utf-8")) if table is None else table

    def known(self, kind: Kind, model: str) -> bool:
        """Tell whether the table has this model, or the one that it is a dated snapshot of."""
        return self._name(kind, model) is not None

    def of(self, kind: Kind, model: str, day: datetime.date) -> Price:
        """Return the price of a model on this day (UTC)."""
        name = self._name(kind, model)
        if name is not None:
            return _price(self._table[kind][name], day)
        all_of_them = [_price(entry, day) for entry in self._table[kind].values()]
        bounds = [price.long_above for price in all_of_them if price.long_above is not None]
        return Price(
            input=max(price.input for price in all_of_them),
            cached=max(price.cached for price in all_of_them),
            written=max(price.written for price in all_of_them),
            output=max(price.output for price in all_of_them),
            long_above=min(bounds, default=None),
            long_input=max(price.long_input for price in all_of_them),
            long_output=max(price.long_output for price in all_of_them),
        )

    def _name(self, kind: Kind, model: str) -> str | None:
        names = self._table[kind]
        return next((one for one in (model, SNAPSHOT.sub("", model)) if one in names), None)


def micro_usd(amount: Decimal) -> int:
    """Return a sum in whole millionths of a dollar, rounded up."""
    return math.ceil(amount)


def _price(entry: Mapping[str, Any], day: datetime.date) -> Price:
    """Return the price of an entry that counts on this day; before the first of them, the first."""
    prices = sorted(entry["prices"], key=lambda price: str(price["since"]))
    begun = [price for price in prices if price["since"] <= day.isoformat()]
    price = begun[-1] if begun else prices[0]
    long = entry.get("long", {})
    each = Decimal(price["input"])
    return Price(
        input=each,
        cached=Decimal(price.get("cached", each)),
        written=Decimal(price.get("written", each)),
        output=Decimal(price.get("output", 0)),
        long_above=long.get("above"),
        long_input=Decimal(long.get("input", 1)),
        long_output=Decimal(long.get("output", 1)),
    )
