"""The whole page: both languages, phone and desktop, what goes wrong. `make e2e`; pictures in .local/screenshots."""

from __future__ import annotations

from collections.abc import Callable


def test_a_person_does_everything_with_it(node: Callable[[str], None]) -> None:
    node("whole.test.mjs")
