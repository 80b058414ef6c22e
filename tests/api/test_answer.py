"""The answer's state machine, and the model's words as its services really write them: without a process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest

from services.api.cimt_api.answers.answer import (
    EVENTS,
    RUNNING,
    Answer,
    Question,
    problem_of,
)
from services.api.cimt_api.http.auth import User
from services.api.cimt_api.model import (
    VOLUME,
    Breaker,
    Delta,
    UpstreamError,
    Usage,
    _read,
    _retry_after,
)

FIRE: dict[str, Callable[[Answer], bool]] = {
    "prompt": lambda answer: answer.prompt([{"id": 1}]),
    "found": lambda answer: answer.found(uuid4(), "m", []),
    "say": lambda answer: answer.say("more"),
    "complete": lambda answer: answer.complete("length"),
    "stop": lambda answer: answer.stop(),
    "abandon": lambda answer: answer.abandon(),
    "fail": lambda answer: answer.fail(problem_of("internal")),
}
# As drawn in answer.py: from asked, from followed, from writing.
DRAWN = {
    "prompt": ("writing", None, None),
    "found": ("followed", "followed", None),
    "say": (None, "followed", "writing"),
    "complete": (None, "complete", "complete"),
    "stop": ("stopped", "stopped", "stopped"),
    "abandon": ("abandoned", "abandoned", "abandoned"),
    "fail": ("failed", "failed", "failed"),
}
WAY = {"asked": [], "followed": ["found"], "writing": ["prompt"]}
ENDS = {
    "complete": ("complete", None),
    "stopped": ("cancelled", "stopped"),
    "abandoned": ("cancelled", "cancelled"),
    "failed": ("failed", "internal"),
}


def asked(*events: str) -> Answer:
    user = User(str(uuid4()), None, "{}")
    question = Question(user=user, id=uuid4(), conversation_id=uuid4(), text="why?")
    answer = Answer(question, "m")
    for event in events:
        assert FIRE[event](answer)
    return answer


def test_every_event_leads_where_the_drawing_says() -> None:
    assert FIRE.keys() == EVENTS.keys() == DRAWN.keys()
    assert set(WAY) == {state.value for state in RUNNING}
    for event, (start, way) in itertools.product(DRAWN, WAY.items()):
        answer = asked(*way)
        target = DRAWN[event][list(WAY).index(start)]
        if target is None:
            with pytest.raises(RuntimeError, match=event):
                FIRE[event](answer)
            assert answer.state == start
        else:
            assert FIRE[event](answer)
            assert answer.state == target


def test_an_end_is_final_and_says_why() -> None:
    for end, event in itertools.product(("complete", "stop", "abandon", "fail"), FIRE):
        answer = asked("prompt", "say", end)
        before = (answer.state, answer.text, answer.error, answer.finish, answer.problem)
        assert not FIRE[event](answer)
        assert before == (answer.state, answer.text, answer.error, answer.finish, answer.problem)
        assert (answer.status, answer.error) == ENDS[answer.state]
        assert answer.done
    # Without a word it may be asked for again, unless its user stopped it.
    assert [asked("prompt", end).void for end in ("complete", "stop", "abandon", "fail")] == [
        False, False, True, True,
    ]  # fmt: skip


def test_who_waits_is_woken_by_every_change() -> None:
    async def woken(event: str, *way: str) -> bool:
        answer = asked(*way)
        change = answer.change()
        FIRE[event](answer)
        return change.done()

    for event in FIRE:
        way = [] if event in ("prompt", "found") else ["prompt"]
        assert asyncio.run(woken(event, *way)), event


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    """What an HTTP client hands over, so many bytes at a time."""
    for at in range(0, len(body), size):
        yield body[at : at + size]


def read(body: bytes, size: int = 65536) -> tuple[str, str | None, Usage | None, int, str]:
    """Text, finish, usage, thought and how it ended: done, or a kind of failure."""
    deltas: list[Delta] = []

    async def collect() -> None:
        async for delta in _read(pieces(body, size)):
            deltas.append(delta)  # noqa: PERF401 - what came before an error counts

    how = "done"
    try:
        asyncio.run(collect())
    except UpstreamError as error:
        how = error.kind
    assert how != "done" or deltas[-1].done
    finish = [delta.finish for delta in deltas if delta.finish]
    usage = [delta.usage for delta in deltas if delta.usage]
    return (
        "".join(delta.text for delta in deltas),
        finish[-1] if finish else None,
        usage[-1] if usage else None,
        sum(delta.thought for delta in deltas),
        how,
    )


TWO = b'data: {"choices":[{"delta":{"content":"Two "}}]}\n\ndata: {"choices":[{"delta":{"content":"years"}}]}\n\n'
STOP = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
COMPLETE = ("Two years", "stop", None, 0, "done")


@pytest.mark.parametrize(
    "body",
    [
        TWO + STOP + DONE,
        (TWO + STOP + DONE).replace(b"\n", b"\r\n"),
        (TWO + STOP + DONE).replace(b"data: ", b"data:").rstrip(),
        TWO + STOP,  # relays that know no [DONE]
        TWO + STOP.rstrip(),
        b": OPENROUTER PROCESSING\n\nevent: message\nid: 1\nretry: 5\n" + TWO + b"data:\n\n" + STOP + DONE,
        # Azure: filters before the first word, and after the last.
        b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n' + TWO + STOP + DONE,
        TWO + b'data: {"choices":[{"index":0,"content_filter_offsets":{"check_offset":0}}]}\n\n' + STOP + DONE,
        *(
            TWO + b"data: " + odd + b"\n\n" + STOP + DONE
            for odd in (
                b"{}",
                b'{"choices":null}',
                b'{"choices":{}}',
                b'{"choices":[null, 1]}',
                b'{"choices":[{"delta":null,"finish_reason":null}]}',
                b'{"choices":[{"delta":"x"}]}',
                b'{"choices":[{"delta":{"content":7}}]}',
                b'{"choices":[{"delta":{"content":{"a":1},"tool_calls":[{}]}}]}',
                b'{"choices":[{"index":1,"delta":{"content":"another answer"}}]}',
                b'{"choices":[],"usage":{"prompt_tokens":7}}',
                b'{"choices":[],"usage":"many"}',
                b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":1e400}}',
                b'{"choices":[],"usage":{"prompt_tokens":true,"completion_tokens":-1}}',
                b'{"error":null}',
            )
        ),
        # It ended, and then something broke.
        TWO + STOP + b'data: {"choices":[{"delta":{"con',
    ],
)  # fmt: skip
def test_a_complete_answer_is_complete_however_a_service_writes_it(body: bytes) -> None:
    if body.endswith(b'"con'):
        assert read(body)[:2] == ("Two years", "stop")  # Upstream makes it complete
        return
    assert read(body) == read(body, 1) == COMPLETE


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (TWO, ("Two years", None, None, 0, "upstream-broken")),
        (b"", ("", None, None, 0, "upstream-broken")),
        (b"<html>Bad gateway</html>", ("", None, None, 0, "upstream-broken")),
        (TWO + b"data: nonsense\n\n" + STOP, ("Two years", None, None, 0, "upstream-malformed")),
        (TWO + b'data: "text"\n\n', ("Two years", None, None, 0, "upstream-malformed")),
        (TWO + b"data: " + b"[" * 100_000 + b"\n\n", ("Two years", None, None, 0, "upstream-malformed")),
        (TWO + b'data: {"error":{"message":"no"}}\n\n', ("Two years", None, None, 0, "upstream-failing")),
        (TWO + b'data: {"choices":[{"finish_reason":"error"}]}\n\n', ("Two years", None, None, 0, "upstream-failing")),
        (TWO + STOP.replace(b"stop", b"max_tokens"), ("Two years", "length", None, 0, "done")),
        (TWO + DONE, ("Two years", None, None, 0, "done")),
        *(
            (b'data: {"choices":[{"delta":{' + delta + b"}}]}\n\n" + STOP, (text, "stop", None, thought, "done"))
            for delta, text, thought in (
                (b'"reasoning_content":"Hm"', "", 2),
                (b'"content":[{"type":"text","text":"Two"},{"text":[[]]},1]', "Two", 0),
                (b'"content":"\\ud83d"', "?", 0),
                (b'"content":"a\\u0000b"', "ab", 0),
            )
        ),
        (
            TWO
            + b'data: {"choices":[],"usage":{"prompt_tokens":9,"total_tokens":12,'
            + b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
            + STOP,
            ("Two years", "stop", Usage(9, 3, 4), 0, "done"),
        ),
    ],
)  # fmt: skip
def test_other_ends_are_told_as_they_are(body: bytes, wanted: tuple[Any, ...]) -> None:
    assert read(body) == wanted
    whole = b'{"choices":[{"message":{"content":"Two years"},"finish_reason":"stop"}]}'
    assert read(whole) == COMPLETE


def test_a_refusal_may_say_in_any_way_when_to_come_back() -> None:
    def seconds(text: str, name: str = "retry-after") -> float:
        return _retry_after({name: text})

    wanted = {"7": 7, "0.5": 0.5, "-3": 0, "inf": 3600, "1e999": 3600, "nan": 5, "": 5, "soon": 5}
    assert {text: seconds(text) for text in wanted} == wanted
    assert seconds("1500", "retry-after-ms") == 1.5
    assert seconds(time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3600))) > 3590  # fmt: skip
    assert seconds("Fri, 31 Dec 9999 23:59:59 GMT") == 3600


def test_the_breaker_opens_for_many_and_lets_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    breaker = Breaker()
    for _ in range(VOLUME - 1):
        breaker.failure()
    assert not breaker.open
    now += 31  # what was long ago does not count
    breaker.failure()
    assert not breaker.open
    for _ in range(VOLUME):
        breaker.success()
        breaker.failure()
    assert breaker.open
    with pytest.raises(UpstreamError, match="resting"):
        breaker.enter()
    now += 5.1
    breaker.enter()  # the one that tries
    with pytest.raises(UpstreamError, match="resting"):
        breaker.enter()
    breaker.failure()
    breaker.failure()  # of one that was asked before it opened: nothing new
    now += 9
    with pytest.raises(UpstreamError, match="resting"):
        breaker.check()
    now += 1.1
    breaker.enter()
    breaker.success()
    assert not breaker.open
