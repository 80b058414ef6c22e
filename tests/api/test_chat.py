"""Asking and being answered: whole, as events in both formats, repeated, broken off and resumed."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import httpx_sse._decoders as httpx_sse
import openai._streaming as openai
import pytest

from local.waiting import eventually
from services.api.cimt_api.routes.chat import QUESTION_LENGTH
from testbed.api import (
    Api,
    Clouds,
    Model,
    Streamed,
    api,
    events,
    read,
)

QUESTION = "How long is the warranty?"
SLOW = {"first": 0.2, "delay": 0.05, "chunks": 60}  # about three seconds


@pytest.fixture
def ann(shared_api: Api, clouds: Clouds) -> Iterator[httpx.Client]:
    """Signed in."""
    with shared_api.client(clouds.sign_in.token("ann@example.com")) as client:
        yield client


@pytest.fixture(scope="module")
def impatient(clouds: Clouds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API whose times are short and whose answers may be long."""
    environment = {"RESUME_SECONDS": "2", "PING_SECONDS": "0.5", "ANSWER_TOKENS": "20000"}
    folder = tmp_path_factory.mktemp("impatient") / "api"
    with api(folder, clouds.environment() | environment, until="/readyz") as made:
        yield made


@pytest.fixture
def bob(impatient: Api, clouds: Clouds) -> Iterator[httpx.Client]:
    """Signed in there."""
    with impatient.client(clouds.sign_in.token("bob@example.com")) as client:
        yield client


def row(clouds: Clouds, answer_id: str) -> dict[str, Any]:
    """What is stored of an answer; empty when nothing is."""
    found = clouds.postgres.rows(
        "select to_jsonb(l) from public.chat_logs l where id = %s", answer_id
    )
    return dict(found[0][0]) if found else {}


def stored(clouds: Clouds, answer_id: str, status: str) -> dict[str, Any]:
    """As `row`, when the answer has this status."""
    return eventually(
        lambda: (r := row(clouds, answer_id)) and r["status"] == status and r,
        f"answer is stored as {status}",
    )


def test_an_answer_in_one_piece(ann: httpx.Client, model: Model, clouds: Clouds) -> None:
    answer = ann.post("/chat", json={"message": QUESTION})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    text = body["choices"][0]["message"]["content"]
    assert text
    assert body["object"] == "chat.completion"
    assert body["cimt"]["answer_id"] == answer.headers["x-answer-id"]
    kept = stored(clouds, body["cimt"]["answer_id"], "complete")
    assert (kept["question"], kept["answer"], kept["model"]) == (QUESTION, text, "gpt-6-luna")
    assert kept["embedding_model"] == "text-embedding-3-small"
    assert kept["conversation_id"] == body["cimt"]["conversation_id"]
    assert body["usage"]["prompt_tokens"] == kept["prompt_tokens"] > 0
    assert kept["completion_tokens"] > 0
    assert kept["first_token_ms"] <= kept["duration_ms"]
    assert model.calls() == 1


def test_an_answer_as_openai_chunks(ann: httpx.Client, model: Model, clouds: Clouds) -> None:
    model.behave("slow", first=0.1, delay=0.01)
    parts = list(events(ann, "POST", "/chat", json={"message": QUESTION}))
    first, last, end = parts[0], parts[-2], parts[-1]
    assert first.json()["choices"][0]["delta"]["role"] == "assistant"
    assert first.json()["cimt"]["sources"] == []  # before the text
    pieces = [part.json()["choices"][0]["delta"]["content"] for part in parts[1:-2]]
    assert len(pieces) > 3
    assert all(pieces)
    # The id of an event is how much of the answer has come, so it is an integer that only grows.
    lengths = [int(part.id) for part in parts[1:-2]]
    assert lengths == [sum(map(len, pieces[: n + 1])) for n in range(len(pieces))]
    assert last.json()["choices"][0]["finish_reason"] == "stop"
    assert last.json()["usage"]["completion_tokens"] > 3
    assert end.data == "[DONE]"
    answer_id = first.json()["id"].removeprefix("chatcmpl-")
    assert stored(clouds, answer_id, "complete")["answer"] == "".join(pieces)


def test_an_answer_as_ui_message_stream(ann: httpx.Client, model: Model) -> None:
    model.behave("slow", first=0.1, delay=0.01)
    parts = list(events(ann, "POST", "/chat?format=ui", json={"message": QUESTION}))
    assert parts[-1].data == "[DONE]"
    data = [part.json() for part in parts[:-1]]
    kinds = [part["type"] for part in data]
    assert [kind for n, kind in enumerate(kinds) if kind not in kinds[:n]] == [
        "start",
        "start-step",
        "data-cimt",
        "text-start",
        "text-delta",
        "text-end",
        "finish-step",
        "finish",
    ]
    assert data[-1]["messageMetadata"]["usage"]["completion_tokens"] > 3
    texts = {part["id"] for part in data if part["type"].startswith("text-")}
    assert texts == {data[0]["messageId"]}
    answer = ann.get(f"/chat/{data[0]['messageId']}").json()
    said = "".join(part["delta"] for part in data if part["type"] == "text-delta")
    assert said == answer["choices"][0]["message"]["content"]


def test_the_ui_format_is_asked_for_by_header_too(ann: httpx.Client, model: Model) -> None:
    with ann.stream(
        "POST",
        "/chat",
        json={"message": QUESTION},
        headers={"x-vercel-ai-ui-message-stream": "v1"},
    ) as answer:
        assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert '"type":"start"' in "".join(answer.iter_text())


def test_a_question_may_have_its_characters_in_every_language(
    ann: httpx.Client, model: Model
) -> None:
    """96,000 bytes, and more tokens than can be embedded."""
    assert ann.post("/chat", json={"message": "问" * QUESTION_LENGTH}).status_code == 200


def test_a_conversation_is_remembered(ann: httpx.Client, model: Model) -> None:
    first = ann.post("/chat", json={"message": "My name is Ann, remember it."}).json()
    conversation = first["cimt"]["conversation_id"]
    second = ann.post("/chat", json={"message": "Who am I?", "conversation_id": conversation})
    assert second.json()["cimt"]["conversation_id"] == conversation
    prompt = str(model.prompts()[-1]["body"]["messages"])
    assert "My name is Ann, remember it." in prompt
    assert first["choices"][0]["message"]["content"] in prompt


def test_a_stream_that_breaks_goes_on_where_it_broke(ann: httpx.Client, model: Model) -> None:
    model.behave("slow", **SLOW)
    body = {"message": QUESTION, "id": str(uuid4())}
    got = read(ann, "POST", "/chat", json=body, until=20)
    assert not got.done
    after = {"Last-Event-ID": str(got.last_id)}
    # By the same request, and by the answer's address.
    again = read(ann, "POST", "/chat", json=body, headers=after, until=20)
    rest = read(ann, "GET", f"/chat/{body['id']}", headers=after)
    assert rest.done
    assert rest.text.startswith(again.text)
    whole = ann.get(f"/chat/{body['id']}").json()
    assert got.text + rest.text == whole["choices"][0]["message"]["content"]
    assert whole["usage"]["completion_tokens"] == 60
    assert model.calls() == 1


def test_the_same_id_is_never_asked_twice(ann: httpx.Client, model: Model) -> None:
    model.behave("slow", **SLOW)
    body = {"message": QUESTION, "id": str(uuid4())}
    texts: list[str] = []

    def ask() -> None:
        texts.append(read(ann, "POST", "/chat", json=body).text)

    users = [threading.Thread(target=ask) for _ in range(5)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    texts.append(ann.post("/chat", json=body).json()["choices"][0]["message"]["content"])
    assert len(texts) == 6
    assert len(set(texts)) == 1
    assert (model.calls(), model.calls("/v1/embeddings")) == (1, 1)


def test_another_process_replays_and_follows(
    ann: httpx.Client, clouds: Clouds, model: Model, folder: Path
) -> None:
    """As in a redeploy: the old process still writes, the new one is asked."""
    model.behave("slow", first=0.2, delay=0.1, chunks=60)
    body = {"message": QUESTION, "id": str(uuid4())}
    got = read(ann, "POST", "/chat", json=body, until=10)
    with (
        api(folder, clouds.environment(), until="/readyz") as other,
        other.client(clouds.sign_in.token("ann@example.com")) as client,
    ):
        after = {"Last-Event-ID": str(got.last_id)}
        rest = read(client, "POST", "/chat", json=body, headers=after)
        assert rest.done
        assert rest.finish == "stop"
        whole = read(client, "GET", f"/chat/{body['id']}")
        assert got.text + rest.text == whole.text
        assert whole.usage == rest.usage
    assert stored(clouds, body["id"], "complete")["answer"] == whole.text
    assert model.calls() == 1


def test_a_killed_process_leaves_what_it_had_and_a_clear_end(
    ann: httpx.Client, clouds: Clouds, model: Model, folder: Path
) -> None:
    model.behave("slow", first=0.1, delay=0.1, chunks=600)
    body = {"message": QUESTION, "id": str(uuid4())}
    with (
        api(folder, clouds.environment(), until="/readyz") as other,
        other.client(clouds.sign_in.token("ann@example.com")) as client,
    ):
        read(client, "POST", "/chat", json=body, until=20)
        eventually(lambda: row(clouds, body["id"])["answer"], "a part is stored")
        other.process.kill()
        other.process.wait()
    got = read(ann, "POST", "/chat", json=body)
    assert (got.done, got.error) == (True, "interrupted")
    assert got.text == row(clouds, body["id"])["answer"] != ""
    assert model.calls() == 1


def test_an_answer_nobody_waits_for_is_cancelled_and_kept(
    impatient: Api, bob: httpx.Client, clouds: Clouds, model: Model
) -> None:
    model.behave("endless", delay=0.05, paths=["/v1/chat/completions"])
    body = {"message": QUESTION, "id": str(uuid4())}
    read(bob, "POST", "/chat", json=body, until=20)
    kept = stored(clouds, body["id"], "cancelled")
    assert len(kept["answer"]) >= 20
    eventually(lambda: model.state()["open_streams"] == 0, "the model is told to stop")
    got = read(bob, "GET", f"/chat/{body['id']}")
    assert (got.text, got.error) == (kept["answer"], "cancelled")


def test_a_slow_reader_gets_everything_in_larger_pieces(
    bob: httpx.Client, clouds: Clouds, model: Model
) -> None:
    model.behave("normal", chunks=20_000)
    body = {"message": QUESTION, "id": str(uuid4())}
    seen = events(bob, "POST", "/chat", json=body)
    next(seen)
    stored(clouds, body["id"], "complete")  # the model was not held up by who reads nothing
    pieces = [event.json()["choices"] for event in seen if event.data != "[DONE]"]
    text = "".join(choice[0]["delta"].get("content", "") for choice in pieces if choice)
    assert text == row(clouds, body["id"])["answer"]
    assert len(pieces) < 2000


def test_an_idle_stream_is_kept_alive(bob: httpx.Client, model: Model) -> None:
    """Before the first word too; and two readers of events that are in many clients see no event in a ping."""
    model.behave("slow", first=1.5, delay=1.5, chunks=2, paths=["/v1/chat/completions"])
    with bob.stream("POST", "/chat", json={"message": QUESTION, "stream": True}) as answer:
        lines = list(answer.iter_lines())
    first_word = next(n for n, line in enumerate(lines) if line[:4] == "id: " and line != "id: 0")
    assert any(line.startswith(":") for line in lines[:first_word])
    assert sum(line.startswith(":") for line in lines) >= 3
    assert lines[-2] == "data: [DONE]"
    for reader in (openai.SSEDecoder(), httpx_sse.SSEDecoder()):
        seen = [event.data for line in lines if (event := reader.decode(line)) is not None]
        assert seen.pop() == "[DONE]"
        assert all(json.loads(data)["choices"] for data in seen)


def test_without_storage_it_relays_and_resumes_in_the_process(
    clouds: Clouds, model: Model, folder: Path
) -> None:
    environment = clouds.environment() | {"CHAT_LOG": "off", "RETRIEVAL_COUNT": "0"}
    body = {"message": QUESTION, "id": str(uuid4())}
    with (
        api(folder, environment, until="/readyz") as own,
        own.client(clouds.sign_in.token("ann@example.com")) as client,
    ):
        got = read(client, "POST", "/chat", json=body)
        assert got.done
        again = read(client, "POST", "/chat", json=body)
        assert again.text == got.text
        assert client.get(f"/chat/{uuid4()}").status_code == 404
    assert row(clouds, body["id"]) == {}
    assert (model.calls(), model.calls("/v1/embeddings")) == (1, 0)


@pytest.mark.parametrize(
    "body",
    [
        "no json",
        '"a string"',
        "{}",
        '{"message": ""}',
        '{"message": "  "}',
        '{"message": "\\u0000"}',
        '{"message": "a\\u0000b"}',
        '{"message": "x", "filter": {"a": "\\u0000"}}',
        '{"message": "x", "replaces": "47ef7537-252a-4728-b1d2-6ad549fa51a3"}',
        '{"id": "chat", "messages": []}',
        '{"id": "chat", "messages": [{"role": "assistant", "parts": [{"type": "text", "text": "x"}]}]}',
        '{"id": "chat", "messages": [{"role": "user", "parts": [{"type": "text", "text": " "}]}]}',
        '{"message": 1}',
        '{"message": "x", "id": "not a uuid"}',
        '{"message": "x", "surprise": 1}',
        '{"message": "x", "sources": "a"}',
        '{"message": "' + "x" * (QUESTION_LENGTH + 1) + '"}',
    ],
)
def test_what_does_not_fit_is_refused_and_asks_nobody(
    ann: httpx.Client, model: Model, body: str
) -> None:
    answer = ann.post("/chat", content=body)
    assert answer.status_code == 422
    if '"messages"' in body:  # of the AI SDK, which shows errors as they come
        assert answer.text.startswith("The request does not fit: messages: ")
    else:
        assert answer.json()["type"] == "urn:cimt:problem:invalid-request"
    assert model.calls() == 0


def test_the_metrics_say_how_it_goes(shared_api: Api, ann: httpx.Client, model: Model) -> None:
    before = shared_api.metric('cimt_answers_total{status="complete"}')
    ann.post("/chat", json={"message": QUESTION})
    eventually(
        lambda: shared_api.metric('cimt_answers_total{status="complete"}') == before + 1,
        "the answer is counted",
    )
    assert shared_api.metric("cimt_first_token_seconds_count") > 0
    assert shared_api.metric("cimt_retrieval_seconds_count") > 0
    assert shared_api.metric('cimt_tokens_total{kind="completion"}') > 0
    assert shared_api.metric('cimt_database_connections{state="open"}') > 0
    assert shared_api.metric("cimt_upstream_breaker_open") == 0


def test_sigterm_lets_fifty_streams_end(clouds: Clouds, folder: Path) -> None:
    """Those that end in time end whole; the others end with a clear error and what they had is stored."""
    environment = clouds.environment() | {"DRAIN_SECONDS": "0.5", "SHUTDOWN_SECONDS": "8"}
    token = clouds.sign_in.token("ann@example.com")
    got = {str(uuid4()): Streamed() for _ in range(50)}
    endless = set(list(got)[::5])

    def ask(own: Api, answer_id: str) -> None:
        kind = "endless; delay=0.2" if answer_id in endless else "slow; delay=0.1; chunks=30"
        body = {"message": f"[stand-in: {kind}] {QUESTION}", "id": answer_id}
        with own.client(token) as client:
            for event in events(client, "POST", "/chat", json=body):
                got[answer_id].take(event)

    with api(folder, environment, until="/readyz") as own:
        users = [threading.Thread(target=ask, args=(own, answer_id)) for answer_id in got]
        for user in users:
            user.start()
        eventually(lambda: all(each.text for each in got.values()), "all streams have begun")
        own.process.send_signal(signal.SIGTERM)
        for user in users:
            user.join()
        own.process.wait(timeout=30)
    for answer_id, each in got.items():
        kept = row(clouds, answer_id)
        assert each.done
        assert each.text == kept["answer"] != ""
        ended = ("failed", "interrupted") if answer_id in endless else ("complete", None)
        assert (kept["status"], each.error) == ended


def test_a_stream_nobody_listens_to_is_finished_before_the_process_ends(
    ann: httpx.Client, clouds: Clouds, model: Model, folder: Path
) -> None:
    """A redeploy in which the client's connection is lost: the new process has the whole answer."""
    model.behave("slow", first=0.1, delay=0.1, chunks=30)
    body = {"message": QUESTION, "id": str(uuid4())}
    with (
        api(folder, clouds.environment() | {"DRAIN_SECONDS": "0"}, until="/readyz") as old,
        old.client(clouds.sign_in.token("ann@example.com")) as client,
    ):
        got = read(client, "POST", "/chat", json=body, until=10)
        old.process.send_signal(signal.SIGTERM)
        rest = read(ann, "POST", "/chat", json=body, headers={"Last-Event-ID": str(got.last_id)})
        old.process.wait(timeout=30)
    assert rest.done
    assert rest.error is None
    assert got.text + rest.text == stored(clouds, body["id"], "complete")["answer"]
    assert model.calls() == 1
