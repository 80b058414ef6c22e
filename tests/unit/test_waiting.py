"""Waits end on their condition, with their process, or with what was waited for."""

import subprocess
import sys

import pytest

from local.waiting import eventually


def test_the_first_true_value_is_the_answer() -> None:
    answers = iter(["", [], "there"])
    assert eventually(lambda: next(answers), "an answer") == "there"


def test_it_says_what_did_not_come() -> None:
    with pytest.raises(TimeoutError, match=r"^the sun: not within 0\.1 s$"):
        eventually(lambda: False, "the sun", 0.1)


def test_nobody_waits_for_a_process_that_has_ended() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(TimeoutError, match="has ended with 3"):
        eventually(lambda: False, "an answer", process=ended)
