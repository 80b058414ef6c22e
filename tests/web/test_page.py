"""The shortest way through the page that a person would call using it. A part of `make check`."""

from __future__ import annotations

from collections.abc import Callable


def test_one_signs_in_asks_loses_the_connection_and_stops(node: Callable[[str], None]) -> None:
    node("short.test.mjs")
