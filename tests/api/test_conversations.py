"""A user's own conversations and profile: pages, names, deletion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from local.waiting import eventually
from testbed.api import Api, Clouds


@pytest.fixture
def dora(shared_api: Api, clouds: Clouds) -> Iterator[httpx.Client]:
    """Signed in, with nothing asked."""
    with shared_api.client(clouds.sign_in.token("dora@example.com")) as client:
        client.delete("/conversations")
        yield client


def ask(client: httpx.Client, message: str, conversation: str | None = None) -> dict[str, str]:
    answer = client.post("/chat", json={"message": message, "conversation_id": conversation})
    assert answer.status_code == 200, answer.text
    found: dict[str, str] = answer.json()["cimt"]
    return found


def pages(client: httpx.Client, path: str, limit: int) -> list[list[str]]:
    """Ids of all pages."""
    found: list[list[str]] = []
    cursor = None
    while True:
        answer = client.get(path, params={"limit": limit, **({"cursor": cursor} if cursor else {})})
        assert answer.status_code == 200, answer.text
        found.append([item["id"] for item in answer.json()["items"]])
        cursor = answer.json()["next"]
        if cursor is None:
            return found


def test_pages_hold_everything_once_the_newest_first(dora: httpx.Client) -> None:
    made = [ask(dora, f"Question number {number}")["conversation_id"] for number in range(5)]
    ask(dora, "And another thing", made[1])  # which makes it the newest
    expected = [made[1], *(made[number] for number in (4, 3, 2, 0))]
    assert pages(dora, "/conversations", 2) == [expected[:2], expected[2:4], expected[4:]]
    assert pages(dora, "/conversations", 5) == [expected]


def test_a_conversation_is_named_after_its_question_and_remembers(dora: httpx.Client) -> None:
    first = ask(dora, "How do I   reset\nmy password? " + "please " * 50)
    second = ask(dora, "And then?", first["conversation_id"])
    found = dora.get(f"/conversations/{first['conversation_id']}").json()
    assert found["title"].startswith("How do I reset my password? please")
    assert len(found["title"]) <= 81
    assert [item["id"] for item in found["items"]] == [second["answer_id"], first["answer_id"]]
    assert pages(dora, f"/conversations/{first['conversation_id']}", 1) == [
        [second["answer_id"]],
        [first["answer_id"]],
    ]
    eventually(
        lambda: (
            {"complete"}
            == {
                item["status"]
                for item in dora.get(f"/conversations/{first['conversation_id']}").json()["items"]
            }
        ),
        "both answers are stored",
    )


def test_the_model_is_told_what_was_said_before(dora: httpx.Client, clouds: Clouds) -> None:
    first = ask(dora, "My cat is called Minka")
    eventually(
        lambda: dora.get(f"/chat/{first['answer_id']}").json()["choices"][0]["message"]["content"],
        "the answer is stored",
    )
    ask(dora, "What is her name?", first["conversation_id"])
    sent = [sent["body"] for sent in clouds.model.prompts() if "messages" in sent["body"]]
    said = [message["content"] for message in sent[-1]["messages"]]
    assert "My cat is called Minka" in said
    assert "What is her name?" in said[-1]


def test_what_is_deleted_is_gone(dora: httpx.Client, clouds: Clouds) -> None:
    kept, gone = ask(dora, "Keep this"), ask(dora, "Forget this")
    path = f"/conversations/{gone['conversation_id']}"
    assert dora.delete(path).status_code == 204
    assert dora.get(path).status_code == dora.delete(path).status_code == 404
    assert dora.get(f"/chat/{gone['answer_id']}").status_code == 404
    assert not clouds.postgres.rows(
        "select 1 from public.chat_logs where id = %s", gone["answer_id"]
    )
    assert pages(dora, "/conversations", 20) == [[kept["conversation_id"]]]
    assert dora.delete("/conversations").json() == {"conversations": 1}
    assert pages(dora, "/conversations", 20) == [[]]


def test_the_profile(dora: httpx.Client) -> None:
    assert dora.patch("/me", json={"display_name": "Dora ✨"}).json()["display_name"] == "Dora ✨"
    found = dora.get("/me").json()
    assert (found["email"], found["display_name"]) == ("dora@example.com", "Dora ✨")
    wrongs: tuple[Any, ...] = (
        {},
        {"display_name": "x" * 201},
        {"display_name": "a\0b"},
        {"email": "x"},
        [],
    )
    for wrong in wrongs:
        assert dora.patch("/me", json=wrong).status_code == 422
    assert dora.get("/me").json()["display_name"] == "Dora ✨"
    assert dora.patch("/me", json={"display_name": None}).json()["display_name"] is None


def test_a_cursor_of_ones_own_making_is_refused(dora: httpx.Client) -> None:
    for cursor in ("x", "MjAyNg", "' or true --", "%00", "é"):
        assert dora.get("/conversations", params={"cursor": cursor}).status_code == 422


def test_names_search_feedback_and_export(dora: httpx.Client, clouds: Clouds) -> None:
    one = ask(dora, "How do I reset my password, 100%?")
    other = ask(dora, "What is a warranty?")

    def found(q: str) -> list[str]:
        return [item["id"] for item in dora.get("/conversations", params={"q": q}).json()["items"]]

    assert found("PASSWORD") == found("100%") == [one["conversation_id"]]
    assert found("%") == [one["conversation_id"]]
    assert found("_") == found("nothing like it") == []
    path = f"/conversations/{other['conversation_id']}"
    assert dora.patch(path, json={"title": "Guarantees"}).json()["title"] == "Guarantees"
    assert found("guarantee") == found("warranty") == [other["conversation_id"]]
    for wrong in ({}, {"title": ""}, {"title": " \n"}, {"title": "x" * 201}, {"title": "a\0b"}):
        assert dora.patch(path, json=wrong).status_code == 422
    said = f"/chat/{one['answer_id']}/feedback"
    for rating in ("up", "down"):
        assert dora.put(said, json={"rating": rating, "words": "Too short"}).status_code == 204
    assert dora.put(said, json={"rating": "sideways"}).status_code == 422
    row = "select rating, feedback from public.chat_logs where id = %s"
    assert clouds.postgres.rows(row, one["answer_id"]) == [("down", "Too short")]
    (shown,) = dora.get(f"/conversations/{one['conversation_id']}").json()["items"]
    assert shown["rating"] == "down"
    export = dora.get("/me/export").json()["conversations"]
    assert [conversation["title"] for conversation in export][1] == "Guarantees"
    assert export[0]["items"][0]["feedback"] == "Too short"
