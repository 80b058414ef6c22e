"""local/openai as OpenAI's own client meets it, and its switches."""

from __future__ import annotations

import contextlib
import datetime
import operator
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import httpx2
import openai
import pytest

from local.clouds import CLOUDS
from local.waiting import eventually, free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 60
PROMPT = [
    {"role": "system", "content": "Answer from the passages."},
    {
        "role": "user",
        "content": '<passage number="1" source="w">\n# Warranty\nThe warranty lasts two years. Shipping is free.\n'
        "</passage>\n\n<question>\nHow long is the warranty?\n</question>",
    },
]
ANSWER = "According to [1]: The warranty lasts two years."


@contextlib.contextmanager
def stand_in() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    cloud = CLOUDS["openai"]
    process = subprocess.Popen(cloud.command({"openai": port}, ROOT), cwd=ROOT)
    try:
        eventually(lambda: cloud.answers(port), "the stand-in answers", process=process)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with stand_in() as (url, _):
        yield url


@pytest.fixture
def url(address: str) -> Iterator[str]:
    httpx.delete(f"{address}/stand-in/calls")
    yield address
    httpx.delete(f"{address}/stand-in/behaviour")
    httpx.put(f"{address}/stand-in/shutdowns", json={})


def client(url: str, **options: object) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE, **options)


def product(one: list[float], other: list[float]) -> float:
    return sum(map(operator.mul, one, other))


def behave(url: str, **behaviour: object) -> None:
    httpx.put(f"{url}/stand-in/behaviour", json=behaviour).raise_for_status()


def calls(url: str) -> dict[str, object]:
    return httpx.get(f"{url}/stand-in/calls").json()


def ask(url: str, **options: object) -> object:
    return client(url, max_retries=0).chat.completions.create(
        model="gpt-6-luna", messages=PROMPT, **options
    )


def test_an_answer_quotes_the_passages_and_a_stream_says_the_same(url: str) -> None:
    whole = ask(url)
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(ask(url, stream=True, stream_options={"include_usage": True}))
    told = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(told) == ANSWER
    assert len([part for part in told if part]) == whole.usage.completion_tokens > 5
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_without_a_passage_it_says_so_in_the_language_of_the_question(url: str) -> None:
    for question, answer in {
        "How long is the warranty?": "No document",
        "Qual é o prazo da garantia?": "Nenhum documento",
        "Wie lange ist die Garantie?": "Kein Dokument",
    }.items():
        made = client(url).chat.completions.create(
            model="gpt-6-luna", messages=[{"role": "user", "content": question}]
        )
        assert made.choices[0].message.content.startswith(answer)


def test_an_answer_is_cut_at_the_limit(url: str) -> None:
    made = ask(url, max_completion_tokens=3)
    assert made.choices[0].finish_reason == "length"
    assert made.usage.completion_tokens == 3
    assert ANSWER.startswith(made.choices[0].message.content)


def test_responses_are_answered_too(url: str) -> None:
    whole = client(url).responses.create(model="gpt-6-luna", input=PROMPT)
    assert whole.output_text == ANSWER
    events = list(client(url).responses.create(model="gpt-6-luna", input=PROMPT, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert events[-1].response.usage == whole.usage
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_texts_that_share_words_are_near_each_other(url: str) -> None:
    texts = ["How long is the warranty?", "The warranty lasts two years", "Bananas grow in Brazil"]
    made = client(url).embeddings.create(model="text-embedding-3-small", input=texts)
    question, near, far = [item.embedding for item in made.data]  # the client asks for base64
    plain = client(url).embeddings.create(
        model="text-embedding-3-small", input=texts[0], encoding_format="float"
    )
    assert plain.data[0].embedding == pytest.approx(question)
    assert len(question) == 1536
    assert product(question, question) == pytest.approx(1)
    assert product(question, near) > 0.3 > 0.1 > product(question, far)
    short = client(url).embeddings.create(
        model="text-embedding-3-small", input="warranty", dimensions=256
    )
    assert len(short.data[0].embedding) == 256
    assert calls(url) == {
        "total": 3,
        "paths": {"/v1/embeddings": 3},
        "embedded_texts": 5,
        "open_streams": 0,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": []},
        {"input": ["a", ""]},
        {"input": "word " * 9000},
        {"input": ["a"] * 2049},
        {"input": "a", "dimensions": 1537},
    ],
)
def test_embeddings_that_openai_refuses_are_refused(url: str, wrong: dict[str, object]) -> None:
    with pytest.raises(openai.BadRequestError):
        client(url).embeddings.create(model="text-embedding-3-small", **wrong)


def test_what_reasoning_models_do_not_know_is_refused(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="max_completion_tokens"):
        ask(url, max_tokens=10)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(url, temperature=0.2)


@pytest.mark.parametrize(
    ("effort", "code"), [("minimal", "unsupported_value"), ("little", "invalid_value")]
)
def test_an_effort_that_the_model_does_not_take_is_refused(
    url: str, effort: str, code: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="'none', ") as caught:
        ask(url, reasoning_effort=effort)
    assert (caught.value.code, caught.value.param) == (code, "reasoning_effort")
    with pytest.raises(openai.BadRequestError) as caught:
        client(url).responses.create(model="gpt-6-luna", input=PROMPT, reasoning={"effort": effort})
    assert (caught.value.code, caught.value.param) == (code, "reasoning.effort")
    assert ask(url, reasoning_effort="none").choices[0].message.content == ANSWER


@pytest.mark.parametrize("model", ["gpt-5-mini", "gpt-6", "text-embedding-3-small"])
def test_what_is_no_model_for_a_chat_is_refused(url: str, model: str) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist") as caught:
        client(url).chat.completions.create(model=model, messages=PROMPT)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client(url).embeddings.create(model="gpt-6-luna", input="a")


def test_models_are_listed_with_the_day_of_their_end_and_end_on_it(url: str) -> None:
    def shut_down(**dates: str) -> httpx.Response:
        days = {name.replace("_", "-"): day for name, day in dates.items()}
        return httpx.put(f"{url}/stand-in/shutdowns", json=days)

    def listed() -> dict[str, str | None]:
        return {model.id: model.shutdown_date for model in client(url).models.list()}

    assert set(listed().values()) == {None}
    tomorrow = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)).date()
    shut_down(gpt_6_luna=f"{tomorrow}")
    assert listed()["gpt-6-luna"] == f"{tomorrow}"
    assert ask(url).choices[0].message.content == ANSWER
    shut_down(gpt_6_luna="2026-01-01")
    assert "gpt-6-luna" not in listed()
    with pytest.raises(openai.NotFoundError):
        ask(url)
    for wrong in ({"gpt_6_luna": "soon"}, {"gpt_7": "2027-01-01"}):
        assert shut_down(**wrong).status_code == 400


def test_a_key_is_wanted(url: str) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", json={})
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_rate_limit_says_how_long_and_ends_after_so_many_times(url: str) -> None:
    behave(url, kind="rate_limited", times=2, retry_after=0.25)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(url)
    assert caught.value.response.headers["retry-after"] == "0.25"
    assert caught.value.code == "rate_limit_exceeded"
    # The client's own retries: one more refusal, then the answer.
    answered = client(url, max_retries=1).chat.completions.create(
        model="gpt-6-luna", messages=PROMPT
    )
    assert answered.choices[0].message.content == ANSWER
    assert calls(url)["paths"] == {"/v1/chat/completions": 3}


def test_a_failure_can_be_had_on_one_path_only(url: str) -> None:
    behave(url, kind="failing", status=503, paths=["/v1/embeddings"])
    with pytest.raises(openai.InternalServerError):
        client(url, max_retries=0).embeddings.create(model="text-embedding-3-small", input="a")
    assert ask(url).choices[0].message.content == ANSWER


def test_a_broken_stream_ends_without_its_end(url: str) -> None:
    stream = ask(url, stream=True, extra_headers={"X-Stand-In": "broken; after=4"})
    for _ in range(4):
        next(stream)
    with pytest.raises((openai.APIError, httpx2.RemoteProtocolError)):
        next(stream)
    assert ask(url).choices[0].message.content == ANSWER  # only that request


def test_a_malformed_stream_is_not_json(url: str) -> None:
    behave(url, kind="malformed", times=1, after=2)
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        list(ask(url, stream=True))


def test_a_question_can_carry_the_behaviour_through_somebody_elses_api(url: str) -> None:
    question = [{"role": "user", "content": "Hello [stand-in: failing; status=500]"}]
    with pytest.raises(openai.InternalServerError):
        client(url, max_retries=0).chat.completions.create(model="gpt-6-luna", messages=question)


@pytest.mark.parametrize(
    "wrong", [{"kind": "odd"}, {"kind": "slow", "first": "x"}, {"sort": "slow"}, {"delay": -1}]
)
def test_an_unknown_behaviour_is_refused_and_changes_nothing(
    url: str, wrong: dict[str, object]
) -> None:
    assert httpx.put(f"{url}/stand-in/behaviour", json=wrong).status_code == 400
    assert httpx.get(f"{url}/stand-in/behaviour").json()["kind"] == "normal"


def test_an_endless_stream_stops_when_its_client_has_left(url: str) -> None:
    behave(url, kind="endless", delay=0.001)
    with ask(url, stream=True) as stream:
        for _, _chunk in zip(range(300), stream, strict=False):  # far longer than the answer
            pass
        assert calls(url)["open_streams"] == 1
    eventually(lambda: calls(url)["open_streams"] == 0, "its streams end")


def test_a_client_that_waits_for_the_first_token_may_leave_too(url: str) -> None:
    behave(url, kind="slow", first=3600)
    with pytest.raises(openai.APITimeoutError):
        client(url, max_retries=0).with_options(timeout=0.3).chat.completions.create(
            model="gpt-6-luna", messages=PROMPT, stream=True
        )
    eventually(lambda: calls(url)["open_streams"] == 0, "its streams end")


def test_sigterm_ends_it_although_streams_are_open() -> None:
    with stand_in() as (url, process):
        behave(url, kind="endless", delay=0.001)
        with ask(url, stream=True) as stream:
            next(iter(stream))
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
