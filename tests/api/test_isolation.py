"""Bob tries to read, change, continue and forge what is Ann's, through every route; Postgres is asked what is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from local.waiting import eventually
from testbed.api import INGEST_KEY, Api, Clouds

SECRET = "the-vault-code-is-plum"
ANN, BOB = "ann@isolation.example", "bob@isolation.example"
QUESTION = f"Remember that {SECRET}"


@pytest.fixture(scope="module")
def people(shared_api: Api, clouds: Clouds) -> Iterator[dict[str, httpx.Client]]:
    """Ann and Bob, signed in; Bob's token would like to be more than it is.

    Nobody else may be them: the files of this folder share one database in whatever order they run, and some
    leave answers behind that were cancelled.
    """
    greedy = {"app_metadata": {"role": "service_role"}, "user_role": "service_role"}
    with (
        shared_api.client(clouds.sign_in.token(ANN)) as ann,
        shared_api.client(clouds.sign_in.token(BOB, **greedy)) as bob,
        shared_api.client(INGEST_KEY) as etl,
    ):
        yield {"ann": ann, "bob": bob, "etl": etl}


@pytest.fixture(scope="module")
def anns(people: dict[str, httpx.Client], clouds: Clouds) -> dict[str, Any]:
    """A conversation of Ann's with one answer, and a document that only she may find."""
    ann = people["ann"]
    answer = ann.post("/chat", json={"message": QUESTION})
    assert answer.status_code == 200, answer.text
    account = ann.get("/me").json()["id"]
    stored = people["etl"].put(
        "/documents/anns-diary.md",
        json={"content": f"Dear diary, {SECRET} and nobody knows.", "owner_id": account},
    )
    assert stored.status_code == 200, stored.text
    found = {**answer.json()["cimt"], "account": account}
    eventually(lambda: snapshot(clouds, account)[0][2] == "complete", "the answer is stored")
    return found


def snapshot(clouds: Clouds, account: str) -> list[tuple[Any, ...]]:
    """All that is Ann's."""
    return clouds.postgres.rows(
        "select id::text, question, status, answer, conversation_id::text from public.chat_logs "
        "where user_id = %s order by created_at",
        account,
    ) + clouds.postgres.rows(
        "select id::text, title from public.conversations where user_id = %s order by created_at",
        account,
    )


def test_bob_sees_changes_and_deletes_nothing_of_anns(
    people: dict[str, httpx.Client], anns: dict[str, Any], clouds: Clouds
) -> None:
    bob, before = people["bob"], snapshot(clouds, anns["account"])
    conversation, answer = anns["conversation_id"], anns["answer_id"]
    attempts: list[tuple[str, str, dict[str, Any], int]] = [
        ("GET", f"/conversations/{conversation}", {}, 404),
        ("DELETE", f"/conversations/{conversation}", {}, 404),
        ("GET", f"/chat/{answer}", {}, 404),
        ("POST", f"/chat/{answer}/stop", {}, 404),
        ("GET", f"/chat/{conversation}/stream", {}, 204),
        ("PUT", f"/chat/{answer}/feedback", {"json": {"rating": "down"}}, 404),
        ("PATCH", f"/conversations/{conversation}", {"json": {"title": "Bobs"}}, 404),
        (
            "POST",
            "/chat",
            {"json": {"message": "hi", "conversation_id": conversation, "replaces": answer}},
            404,
        ),
        (
            "GET",
            f"/chat/{answer}",
            {"headers": {"Accept": "text/event-stream", "Last-Event-ID": "0"}},
            404,
        ),
        # To hang a question on her conversation, to take her answer's id, and both.
        ("POST", "/chat", {"json": {"message": "hi", "conversation_id": conversation}}, 404),
        ("POST", "/chat", {"json": {"message": QUESTION, "id": answer}}, 409),
        (
            "POST",
            "/chat",
            {"json": {"message": QUESTION, "id": answer, "conversation_id": conversation}},
            409,
        ),
        ("PATCH", "/me", {"json": {"display_name": "Bob", "id": anns["account"]}}, 422),
        ("GET", "/documents", {}, 401),
        ("PUT", "/documents/anns-diary.md", {"json": {"content": "gone"}}, 401),
        ("DELETE", f"/documents/anns-diary.md?owner_id={anns['account']}", {}, 401),
    ]
    for method, path, request, expected in attempts:
        got = bob.request(method, path, **request)
        assert (method, path, got.status_code) == (method, path, expected), got.text
        assert SECRET not in got.text
        assert anns["account"] not in got.text
    mine = bob.get("/conversations").json()
    assert conversation not in [item["id"] for item in mine["items"]]
    assert bob.get("/me").json()["email"] == BOB
    # What Bob deletes of his own is his own; refused questions left nothing behind.
    bob.delete("/conversations")
    assert snapshot(clouds, anns["account"]) == before


def test_bob_does_not_find_anns_document(
    people: dict[str, httpx.Client], anns: dict[str, Any]
) -> None:
    def sources(who: str, **narrowed: Any) -> list[str]:
        answer = people[who].post(
            "/chat", json={"message": f"What does the diary say of {SECRET}?", **narrowed}
        )
        assert answer.status_code == 200, answer.text
        return [source["source"] for source in answer.json()["cimt"]["sources"]]

    assert "anns-diary.md" in sources("ann")
    assert "anns-diary.md" not in sources("bob")
    assert sources("bob", sources=["anns-diary.md"]) == []


def test_ids_of_others_and_ids_of_nobody_look_the_same(
    people: dict[str, httpx.Client], anns: dict[str, Any]
) -> None:
    bob = people["bob"]
    for there, nowhere in (
        (f"/conversations/{anns['conversation_id']}", f"/conversations/{uuid4()}"),
        (f"/chat/{anns['answer_id']}", f"/chat/{uuid4()}"),
    ):
        one, other = bob.get(there), bob.get(nowhere)
        assert (one.status_code, one.json()) == (other.status_code, other.json())


def test_an_account_that_was_deleted_has_lost_its_token(shared_api: Api, clouds: Clouds) -> None:
    token = clouds.sign_in.token("carol@isolation.example")
    with shared_api.client(token) as carol:
        assert carol.get("/me").status_code == 200
        clouds.postgres.rows("delete from auth.users where email = 'carol@isolation.example'")
        assert carol.get("/me").status_code == 401
        assert carol.post("/chat", json={"message": "hi"}).status_code == 401
