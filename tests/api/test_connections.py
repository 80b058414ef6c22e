"""One contract for connections: an answer whose question has an id outlives them, one without ends with them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from local.waiting import eventually
from testbed.api import Api, Clouds, Model, api, events, read

QUESTION = "How long is the warranty?"
CHAT = ["/v1/chat/completions"]
ENDLESS = {"delay": 0.05, "paths": CHAT}


@pytest.fixture(scope="module")
def strict(clouds: Clouds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API that gives each user two places."""
    folder = tmp_path_factory.mktemp("strict") / "api"
    environment = {"STREAMS_PER_USER": "2", "ANSWER_TOKENS": "20000"}
    with api(folder, clouds.environment() | environment, until="/readyz") as made:
        yield made


@pytest.fixture
def ann(strict: Api, clouds: Clouds, model: Model) -> Iterator[httpx.Client]:
    """Signed in, with nothing being written."""
    eventually(lambda: strict.metric("cimt_answers_generating") == 0, "nothing is written")
    with strict.client(clouds.sign_in.token("ann@connections.example")) as client:
        yield client
    eventually(lambda: strict.metric("cimt_answers_generating") == 0, "nothing is left")


def row(clouds: Clouds, answer_id: str) -> dict[str, Any]:
    found = clouds.postgres.rows(
        "select to_jsonb(l) from public.chat_logs l where id = %s", answer_id
    )
    return dict(found[0][0]) if found else {}


def stop(client: httpx.Client, *answer_ids: str) -> None:
    for answer_id in answer_ids:
        assert client.post(f"/chat/{answer_id}/stop").status_code == 204


def text_of(client: httpx.Client, answer_id: str) -> str:
    return str(client.get(f"/chat/{answer_id}").json()["choices"][0]["message"]["content"])


def test_a_stream_takes_its_connection_with_it(ann: httpx.Client) -> None:
    """A proxy that had it back would send the next question to a process that perhaps ends with this stream."""
    with ann.stream("POST", "/chat", json={"message": QUESTION, "stream": True}) as streamed:
        streamed.read()
    assert streamed.headers.get_list("connection") == ["close"]
    assert "connection" not in ann.post("/chat").headers


@pytest.mark.parametrize("how", ["in its midst", "before its first word", "as JSON"])
def test_without_an_id_who_leaves_stops_the_model(
    ann: httpx.Client, clouds: Clouds, model: Model, how: str
) -> None:
    """Four times with two places: nobody is locked out by what they do not wait for."""
    if how == "before its first word":
        model.behave("slow", first=60, paths=CHAT)
    else:
        model.behave("endless", **ENDLESS)
    for _ in range(4):
        body = {"message": QUESTION, "stream": how != "as JSON"}
        if how == "in its midst":
            read(ann, "POST", "/chat", json=body, until=10)
        else:
            with pytest.raises(httpx.ReadTimeout):
                ann.post("/chat", json=body, timeout=0.7)
    eventually(lambda: model.state()["open_streams"] == 0, "the model is told to stop", 10)
    newest = clouds.postgres.rows("select id::text from public.chat_logs order by created_at desc limit 1")  # fmt: skip
    eventually(lambda: row(clouds, newest[0][0])["status"] == "cancelled", "what came is kept")


def test_coming_back_takes_no_place_and_costs_no_question(
    ann: httpx.Client, clouds: Clouds, model: Model
) -> None:
    model.behave("endless", **ENDLESS)
    bodies = [{"message": QUESTION, "id": str(uuid4()), "stream": True} for _ in range(2)]
    got = [read(ann, "POST", "/chat", json=body, until=10) for body in bodies]
    for _ in range(3):  # both places are taken
        for body, before in zip(bodies, got, strict=True):
            after = {"Last-Event-ID": str(before.last_id)}
            with ann.stream("POST", "/chat", json=body, headers=after) as answer:
                assert answer.status_code == 200
                assert "ratelimit" not in answer.headers
            more = read(ann, "GET", f"/chat/{body['id']}", headers=after, until=10)
            before.text, before.last_id = before.text + more.text, more.last_id
    assert model.calls() == 2
    # Who listens to both has no place for a third; who has left one has.
    listening = [events(ann, "GET", f"/chat/{body['id']}") for body in bodies]
    for each in listening:
        next(each)
    third = {"message": f"[stand-in: normal] {QUESTION}"}
    refused = ann.post("/chat", json=third)
    assert (refused.status_code, refused.json()["type"]) == (429, "urn:cimt:problem:too-many-streams")  # fmt: skip
    listening[0].close()  # type: ignore[attr-defined]
    eventually(lambda: ann.post("/chat", json=third).status_code == 200, "there is room again")
    eventually(lambda: row(clouds, bodies[0]["id"])["status"] == "cancelled", "the left one ends")
    assert row(clouds, bodies[1]["id"])["status"] == "streaming"
    stop(ann, bodies[1]["id"])
    for body, before in zip(bodies, got, strict=True):
        assert text_of(ann, body["id"]).startswith(before.text)


def test_coming_back_does_not_ask_who_may_ask(clouds: Clouds, model: Model, folder: Path) -> None:
    """With no question left in this minute, and a model that nobody asks: what was answered is there."""
    model.behave("normal")
    body = {"message": QUESTION, "id": str(uuid4())}
    with (
        api(folder, clouds.environment() | {"RATE_PER_MINUTE": "2"}, until="/readyz") as own,
        own.client(clouds.sign_in.token("cid@connections.example")) as cid,
    ):
        first = read(cid, "POST", "/chat", json=body)
        eventually(lambda: row(clouds, body["id"])["status"] == "complete", "it is stored")
        assert cid.post("/chat", json=body).json()["choices"][0]["message"]["content"] == first.text
        assert cid.post("/chat", json={"message": QUESTION}).headers["ratelimit"].startswith('"user";r=0;')  # fmt: skip
        assert cid.post("/chat", json={"message": QUESTION}).status_code == 429
        for sent in (5, 0):
            rest = read(cid, "POST", "/chat", json=body, headers={"Last-Event-ID": str(sent)})
            assert (rest.text, rest.done, rest.error) == (first.text[sent:], True, None)
        assert model.calls() == 2


def test_stopping_keeps_the_text_and_ends_every_listener(
    ann: httpx.Client, shared_api: Api, clouds: Clouds, model: Model
) -> None:
    model.behave("endless", **ENDLESS)
    whole: dict[str, Any] = {}
    body = {"message": QUESTION, "id": str(uuid4())}

    def wait() -> None:
        whole.update(ann.post("/chat", json=body).json())

    stream = events(ann, "POST", "/chat", json=body)
    text = ""
    while len(text) < 20:
        text += next(stream).json()["choices"][0]["delta"]["content"]
    waiting = threading.Thread(target=wait)
    waiting.start()
    with shared_api.client(clouds.sign_in.token("bob@connections.example")) as bob:
        assert bob.post(f"/chat/{body['id']}/stop").status_code == 404
    stop(ann, body["id"], body["id"])
    rest = [event.data for event in stream]
    waiting.join()
    assert rest[-1] == "[DONE]"
    assert '"finish_reason":"stop"' in rest[-2]
    kept = eventually(lambda: (r := row(clouds, body["id"]))["status"] == "cancelled" and r, "kept")  # fmt: skip
    assert kept["error"] == "stopped"
    assert kept["answer"].startswith(text)
    assert whole["choices"][0]["message"]["content"] == kept["answer"]
    assert whole["cimt"]["status"] == "cancelled"
    eventually(lambda: model.state()["open_streams"] == 0, "the model is told to stop")
    # Asked for again it stays stopped, as one that is complete stays complete.
    assert ann.post("/chat", json=body).json()["cimt"]["status"] == "cancelled"
    stop(ann, body["id"])
    done = ann.post("/chat", json={"message": f"[stand-in: normal] {QUESTION}"}).json()["cimt"]
    stop(ann, done["answer_id"])
    assert ann.get(f"/chat/{done['answer_id']}").json()["cimt"]["status"] == "complete"
    assert ann.post(f"/chat/{uuid4()}/stop").status_code == 404


def test_another_process_can_stop_it_too(
    ann: httpx.Client, shared_api: Api, clouds: Clouds, model: Model
) -> None:
    """As in a redeploy: the old one writes, the new one is asked."""
    model.behave("endless", **ENDLESS)
    body = {"message": QUESTION, "id": str(uuid4())}
    read(ann, "POST", "/chat", json=body, until=10)
    with shared_api.client(clouds.sign_in.token("ann@connections.example")) as elsewhere:
        path = f"/chat/{row(clouds, body['id'])['conversation_id']}/stream?format=openai"
        assert read(elsewhere, "GET", path, until=10).text
        stop(elsewhere, body["id"])
        assert elsewhere.get(path).status_code == 204
    eventually(lambda: model.state()["open_streams"] == 0, "the model is told to stop")
    assert row(clouds, body["id"])["error"] == "stopped"


def test_no_answer_is_spliced_of_two(ann: httpx.Client, model: Model) -> None:
    """What fetch-event-source does by itself when a connection breaks, and a client with an id that is lost."""
    after = {"Last-Event-ID": "20", "Accept": "text/event-stream"}
    refused = ann.post("/chat", json={"message": QUESTION}, headers=after)
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:cimt:problem:not-resumable")
    lost = {"message": QUESTION, "id": str(uuid4())}
    assert ann.post("/chat", json=lost, headers=after).status_code == 404
    assert model.calls() == 0
    first = ann.post("/chat", json=lost)
    for wrong in ({"message": "Another question"}, {"conversation_id": str(uuid4())}):
        other = ann.post("/chat", json=lost | wrong)
        assert (other.status_code, other.json()["type"]) == (409, "urn:cimt:problem:id-in-use")
    again = ann.post("/chat", json=lost)
    assert again.json()["choices"] == first.json()["choices"]
    assert model.calls() == 1


def ui(*turns: str, chat: str, **more: Any) -> dict[str, Any]:
    """What useChat sends; every other turn is the assistant's, as id."""
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        if number % 2:
            messages.append({"id": turn, "role": "assistant", "parts": [{"type": "step-start"}]})
        else:
            part = {"type": "text", "text": turn}
            messages.append({"id": f"message-{turn}", "role": "user", "parts": [part]})
    return {"id": chat, "messages": messages, "trigger": "submit-message", **more}


def said(client: httpx.Client, body: dict[str, Any]) -> tuple[str, str]:
    """Id and text of an answer as the AI SDK is sent it."""
    data = [event.json() for event in events(client, "POST", "/chat", json=body) if event.data != "[DONE]"]  # fmt: skip
    assert data[0]["type"] == "start", data
    assert data[-1]["type"] == "finish", data
    assert "finishReason" not in data[-1]
    return data[0]["messageId"], "".join(part.get("delta", "") for part in data)


def test_what_use_chat_sends_needs_no_glue(
    strict: Api, ann: httpx.Client, clouds: Clouds, model: Model
) -> None:
    chat = "xY3kd82LsmQ0aPz1"  # not a UUID: the default
    one, text = said(ann, ui("My name is Ann", chat=chat))
    assert said(ann, ui("My name is Ann", chat=chat)) == (one, text)  # asks nothing twice
    two, _ = said(ann, ui("Who am I?", one, "And you?", chat=chat))
    conversation = row(clouds, one)["conversation_id"]
    assert row(clouds, two)["conversation_id"] == conversation
    assert text in str(model.prompts()[-1]["body"]["messages"])
    assert model.calls() == 2

    def kept() -> list[str]:
        path = f"/conversations/{conversation}"
        return [item["id"] for item in ann.get(path).json()["items"]][::-1]

    # Asked again, and written anew: what followed is replaced.
    again, _ = said(ann, ui("My name is Ann", one, "And you?", chat=chat, trigger="regenerate-message"))  # fmt: skip
    assert kept() == [one, again]
    edited, _ = said(ann, ui("My name is Bea", chat=chat, messageId="message-My name is Ann"))
    assert kept() == [edited]
    assert "Ann" not in str(model.prompts()[-1]["body"]["messages"])
    native = ann.post(
        "/chat",
        json={"message": "My name is Cleo", "conversation_id": conversation, "replaces": edited},
    )
    assert kept() == [native.json()["cimt"]["answer_id"]]
    # resumeStream(): what runs, in full, or nothing.
    assert ann.get(f"/chat/{chat}/stream").status_code == 204
    model.behave("endless", **ENDLESS)
    running = events(ann, "POST", "/chat", json=ui("Go on", chat=chat))
    answer_id = next(running).json()["messageId"]
    running.close()  # type: ignore[attr-defined]
    resumed = events(ann, "GET", f"/chat/{chat}/stream")
    assert next(resumed).json()["messageId"] == answer_id
    assert ann.delete(f"/chat/{chat}/stream").status_code == 204
    parts = [event.json() for event in resumed if event.data != "[DONE]"]
    assert parts[-1]["type"] == "finish"
    assert "".join(part.get("delta", "") for part in parts) == text_of(ann, answer_id) != ""
    assert ann.get(f"/chat/{conversation}/stream").status_code == 204
    # Before its first event nobody knows the answer's own id.
    model.behave("slow", first=60, paths=CHAT)
    silent: list[tuple[str, str]] = []
    asking = threading.Thread(target=lambda: silent.append(said(ann, ui("Well?", chat=chat))))
    asking.start()
    eventually(lambda: strict.metric("cimt_answers_generating") == 1, "it is being written")
    assert ann.delete(f"/chat/{chat}/stream").status_code == 204
    asking.join()
    assert silent[0][1] == ""


def test_an_error_is_words_for_who_shows_them(
    ann: httpx.Client, model: Model, folder: Path
) -> None:
    """The AI SDK shows the body of an error as it is."""
    model.behave("failing", status=400, paths=CHAT)
    refused = ann.post("/chat?format=ui", json=ui("hi", chat="c" * 16))
    assert refused.status_code == 502
    assert refused.headers["content-type"].startswith("text/plain")
    assert refused.text == "The model's service refused the request"
    model.reset()
    wrong = ann.post("/chat?format=ui", json={"id": "c", "messages": []})
    assert wrong.status_code == 422
    assert wrong.text.startswith("The request does not fit: ")
