"""Three processes of the API on one Postgres, as three replicas are: limits, places and stop are of all together."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from local.waiting import eventually
from testbed.api import Api, Clouds, Model, api, events, read
from testbed.api import clouds as clouds_of_its_own

QUESTION = "How long is the warranty?"
CHAT = ["/v1/chat/completions"]
ENDLESS = {"delay": 0.05, "paths": CHAT}
RATE, PLACES = 8, 2


@pytest.fixture(scope="module")
def replicas(clouds: Clouds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Api]]:
    """Each user may ask eight times a minute, and has two places."""
    environment = clouds.environment() | {
        "RATE_PER_MINUTE": str(RATE),
        "STREAMS_PER_USER": str(PLACES),
        "ANSWER_TOKENS": "20000",
        "DATABASE_POOL": "3",
    }
    folder = tmp_path_factory.mktemp("replicas")
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(api(folder / f"{number}", environment, until="/readyz"))
            for number in range(3)
        ]


@pytest.fixture
def token(clouds: Clouds, model: Model) -> str:
    """Of somebody new, who has asked nothing."""
    return clouds.sign_in.token(f"{uuid4().hex}@replicas.example")


def row(clouds: Clouds, answer_id: str) -> dict[str, Any]:
    found = clouds.postgres.rows(
        "select to_jsonb(l) from public.chat_logs l where id = %s", answer_id
    )
    return dict(found[0][0]) if found else {}


def at_once(replicas: list[Api], token: str, number: int, **body: Any) -> Counter[str]:
    """Ask so often at the same moment, in turn at each replica; how often it went how."""
    start = threading.Barrier(number)
    clients = [each.client(token, seconds=60) for each in replicas]

    def ask(client: httpx.Client) -> str:
        start.wait()
        answer = client.post("/chat", json={"message": QUESTION} | body)
        return str(answer.json().get("type", answer.status_code)).rpartition(":")[2]

    with ThreadPoolExecutor(number) as pool:
        return Counter(pool.map(ask, itertools.islice(itertools.cycle(clients), number)))


def test_together_they_let_no_more_questions_through_than_one_would(
    replicas: list[Api], token: str, clouds: Clouds
) -> None:
    went: Counter[str] = Counter()
    for _ in range(10):  # a few at a time have a place
        went += at_once(replicas, token, 12)
        if went["too-many-requests"]:
            break
    assert set(went) <= {"200", "too-many-requests", "too-many-streams"}
    assert went["200"] >= RATE
    moments = [
        moment
        for (moment,) in clouds.postgres.rows(
            "select extract(epoch from l.created_at)::float8 from public.chat_logs l "
            "join auth.users u on u.id = l.user_id where u.email = %s order by 1",
            email(token, replicas),
        )
    ]
    assert len(moments) == went["200"]
    minutes = [later - earlier for earlier, later in zip(moments, moments[RATE:], strict=False)]
    assert all(minute > 59 for minute in minutes), moments
    # The one that has said no says it again, without reading a body.
    with replicas[0].client(token) as client:
        eventually(lambda: client.post("/chat", json={"message": 1}).status_code == 429, "no more")
        refused = client.post("/chat", json={"message": QUESTION})
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit"].startswith('"user";r=0;t=')


def test_what_is_no_question_counts_as_one_at_all_of_them(replicas: list[Api], token: str) -> None:
    went = at_once(replicas, token, 24, message=1)
    assert went == {"invalid-request": RATE, "too-many-requests": 24 - RATE}


def email(token: str, replicas: list[Api]) -> str:
    with replicas[0].client(token) as client:
        return str(client.get("/me").json()["email"])


def test_a_user_has_as_many_places_at_all_of_them_as_at_one(
    replicas: list[Api], token: str, clouds: Clouds, model: Model
) -> None:
    model.behave("endless", **ENDLESS)
    ids = [str(uuid4()) for _ in range(6)]
    streams: list[Iterator[Any]] = []
    clients = [each.client(token) for each in replicas]
    for client, answer_id in zip(itertools.cycle(clients), ids, strict=False):
        body = {"message": QUESTION, "id": answer_id}
        if len(streams) < PLACES:
            streams.append(events(client, "POST", "/chat", json=body))
            next(streams[-1])
        else:
            refused = client.post("/chat", json=body).json()
            assert refused["type"] == "urn:cimt:problem:too-many-streams"
    # Stopped at another replica, the place is free everywhere, and the writer knows within seconds.
    assert clients[2].post(f"/chat/{ids[0]}/stop").status_code == 204
    third = events(clients[2], "POST", "/chat", json={"message": QUESTION, "id": ids[2]})
    next(third)
    eventually(lambda: model.state()["open_streams"] == 2, "the model is told to stop", 6)
    assert (row(clouds, ids[0])["status"], row(clouds, ids[0])["error"]) == ("cancelled", "stopped")
    # One that nobody listens to gives way, wherever it is written.
    streams[1].close()  # type: ignore[attr-defined]
    fourth = {"message": f"[stand-in: normal] {QUESTION}", "id": ids[3]}
    eventually(lambda: clients[0].post("/chat", json=fourth).status_code == 200, "there is room")
    eventually(lambda: row(clouds, ids[1])["status"] == "cancelled", "the left one ends", 6)
    clients[0].post(f"/chat/{ids[2]}/stop")
    eventually(lambda: model.state()["open_streams"] == 0, "nothing is left", 6)


def test_an_answer_is_resumed_and_stopped_at_another_replica(
    replicas: list[Api], token: str, clouds: Clouds, model: Model
) -> None:
    model.behave("slow", first=0.1, delay=0.1, paths=CHAT)
    body = {"message": QUESTION, "id": str(uuid4()), "stream": True}
    one, other, third = (each.client(token) for each in replicas)
    first = read(one, "POST", "/chat", json=body, until=10)
    eventually(lambda: row(clouds, body["id"])["answer"] != "", "it is stored as it grows")
    rest = read(other, "POST", "/chat", json=body, headers={"Last-Event-ID": str(first.last_id)})
    eventually(lambda: row(clouds, body["id"])["status"] == "complete", "it ends")
    assert first.text + rest.text == row(clouds, body["id"])["answer"]
    assert model.calls() == 1
    # Before its first word, when only the row knows of it.
    model.behave("slow", first=60, paths=CHAT)
    silent = {"message": QUESTION, "id": str(uuid4())}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.post, "/chat", json=silent)
        eventually(lambda: row(clouds, silent["id"]) != {}, "it is asked")
        assert third.post(f"/chat/{silent['id']}/stop").status_code == 204
        assert waiting.result(10).json()["cimt"]["error"] == "stopped"
    eventually(lambda: model.state()["open_streams"] == 0, "the model is told to stop", 6)


def test_who_has_read_an_end_may_ask_on_at_another_replica(
    replicas: list[Api], clouds: Clouds, model: Model
) -> None:
    """What was said is part of the next prompt, and its place is free, however quickly one asks on elsewhere."""
    for number in range(6):
        token = clouds.sign_in.token(f"{uuid4().hex}@replicas.example")
        clients = [each.client(token) for each in replicas]
        body = {"message": f"{QUESTION} {number}", "conversation_id": str(uuid4())}
        said: list[str] = []
        for client in clients:
            got = read(client, "POST", "/chat", json=body)
            assert (got.done, got.error) == (True, None)
            prompt = model.prompts()[-1]["body"]["messages"]
            assert [each["content"] for each in prompt if each["role"] == "assistant"] == said
            said.append(got.text)


def test_the_places_of_a_replica_that_was_killed_come_back_by_themselves(
    clouds: Clouds, token: str, model: Model, folder: Path
) -> None:
    model.behave("endless", **ENDLESS)
    environment = clouds.environment() | {"STREAMS_PER_USER": "1", "ANSWER_TOKENS": "20000"}
    with (
        api(folder / "killed", environment, until="/readyz") as killed,
        api(folder / "other", environment, until="/readyz") as other,
        other.client(token) as client,
    ):
        body = {"message": QUESTION, "id": str(uuid4())}
        stream = events(killed.client(token), "POST", "/chat", json=body)
        next(stream)
        asked = {"message": f"[stand-in: normal] {QUESTION}"}
        assert (
            client.post("/chat", json=asked).json()["type"] == "urn:cimt:problem:too-many-streams"
        )
        eventually(lambda: other.metric("cimt_replicas") >= 2, "they know each other")
        killed.process.send_signal(signal.SIGKILL)
        killed.process.wait()
        eventually(
            lambda: client.post("/chat", json=asked).status_code == 200, "its place is free", 20
        )
        # What it had stored is there, and says how it ended.
        dead = client.get(f"/chat/{body['id']}").json()
        assert dead["cimt"]["status"] in ("streaming", "failed")
        eventually(lambda: other.metric("cimt_replicas") == alive(clouds), "it is not counted")


def alive(clouds: Clouds) -> int:
    ((count,),) = clouds.postgres.rows(
        "select count(*) from private.replicas where alive_until > clock_timestamp()"
    )
    return int(count)


def test_what_all_have_counted_is_told_by_each(replicas: list[Api], token: str) -> None:
    """A scraper reaches one of them; a replica that goes takes nothing of the sum with it."""
    before = replicas[0].metric("cimt_all_server_errors_total")
    with replicas[1].client(token) as client:
        wrong = client.post("/chat", json={"message": "[stand-in: failing] hi"})
    assert wrong.status_code >= 500, wrong.text
    eventually(
        lambda: all(each.metric("cimt_all_server_errors_total") > before for each in replicas),
        "all know of it",
    )
    assert replicas[2].metric("cimt_replicas") >= 3


def test_without_postgres_nothing_is_asked_and_afterwards_everything_goes_on(
    tmp_path: Path,
) -> None:
    """What cannot be counted is not asked: the answer could not be paid or stored either."""
    with (
        clouds_of_its_own(tmp_path) as own,
        api(tmp_path / "api", own.environment(), until="/readyz") as made,
        made.client(own.sign_in.token("ann@replicas.example")) as client,
    ):
        asked = {"message": QUESTION}
        assert client.post("/chat", json=asked).status_code == 200
        own.postgres.stop()
        refused = client.post("/chat", json=asked)
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:cimt:problem:database-unavailable"
        assert client.post("/chat", json={"message": 1}).status_code == 422
        own.postgres.start()
        eventually(lambda: client.post("/chat", json=asked).status_code == 200, "it is asked again")
