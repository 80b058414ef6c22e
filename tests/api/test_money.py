"""What answers cost: counted, kept below the caps by several processes together, refused with a reason that is true."""

from __future__ import annotations

import csv
import datetime
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest

from local.waiting import eventually
from services.api.cimt_api.answers.answer import Question
from services.api.cimt_api.answers.bill import Till
from services.api.cimt_api.http.auth import person
from services.api.cimt_api.model import Usage
from services.api.cimt_api.prices import Prices, micro_usd
from testbed.api import (
    CHAT_MODEL,
    EMBEDDING_MODEL,
    ROOT,
    Api,
    Clouds,
    Model,
    api,
    read,
    settings_from,
)

QUESTION = "How long is the warranty?"
CHAT = ["/v1/chat/completions"]
MILLION = 1_000_000


class Spender:
    """A person of a test's own, with what the database says of their money."""

    def __init__(self, api: Api, clouds: Clouds, name: str) -> None:
        self.token = clouds.sign_in.token(f"{name}-{uuid4().hex[:8]}@money.example")
        self.client = api.client(self.token)
        self.id = self.client.get("/me").json()["id"]
        self._sql = clouds.postgres.rows

    def spent(self) -> list[tuple[Any, ...]]:
        """Answers, of these estimated, tokens by kind, cost; empty when nothing was spent."""
        return self._sql(
            "select answers, estimated, prompt_tokens, cached_tokens, completion_tokens, embedding_tokens, cost "
            "from private.spending where user_id = %s",
            self.id,
        )

    def held(self) -> int:
        """How many reservations there are."""
        ((count,),) = self._sql(
            "select count(*) from private.reservations where user_id = %s", self.id
        )
        return int(count)

    def settled(self) -> list[tuple[Any, ...]]:
        """The same as `spent`, once nothing is held any more."""
        eventually(lambda: self.held() == 0, "what was held is settled")
        return self.spent()

    def has_spent(self, usd: Decimal) -> None:
        """Let so much have been spent today."""
        self._sql(
            "insert into private.spending (user_id, day, model, answers, estimated, prompt_tokens, cached_tokens, "
            "completion_tokens, embedding_tokens, cost) "
            "values (%s, (now() at time zone 'utc')::date, %s, 1, 0, 0, 0, 0, 0, %s)",
            *(self.id, f"earlier {uuid4()}", int(usd * MILLION)),
        )


def cost(prompt: int, completion: int, embedding: int, cached: int = 0) -> int:
    """In millionths of a US dollar, by today's prices of the models that are set."""
    today = datetime.datetime.now(datetime.UTC).date()
    prices = Prices()
    chat = prices.of("chat", CHAT_MODEL, today).of(Usage(prompt, completion, cached))
    return micro_usd(chat + prices.of("embedding", EMBEDDING_MODEL, today).of(Usage(embedding, 0)))


def seconds_of_today() -> int:
    """How many have passed, of UTC's day."""
    now = datetime.datetime.now(datetime.UTC)
    return now.hour * 3600 + now.minute * 60 + now.second


@pytest.fixture(scope="module")
def most(clouds: Clouds) -> Decimal:
    """What is held for QUESTION, in US dollars."""
    asked = Question(user=person(str(uuid4())), id=uuid4(), conversation_id=uuid4(), text=QUESTION)
    return Decimal(Till(settings_from(clouds.environment())).most(asked)) / MILLION


@pytest.fixture
def alone(clouds: Clouds) -> Iterator[None]:
    """Nothing was spent before, and it stays today: tests of this folder share the database, and its month."""
    eventually(lambda: seconds_of_today() < 86_400 - 240, "the day is over", seconds=300)
    clouds.postgres.rows("delete from private.spending")
    clouds.postgres.rows("delete from private.reservations")
    yield
    clouds.postgres.rows("delete from private.spending")


def test_an_answer_is_paid_for_once_and_coming_back_for_it_is_free(
    shared_api: Api, clouds: Clouds, model: Model
) -> None:
    ann = Spender(shared_api, clouds, "ann")
    body = {"message": QUESTION, "id": str(uuid4())}
    before = shared_api.metric(f'cimt_cost_usd_total{{model="{CHAT_MODEL}"}}')
    got = read(ann.client, "POST", "/chat", json=body)
    assert got.usage is not None
    prompt, completion = got.usage["prompt_tokens"], got.usage["completion_tokens"]
    ((answers, estimated, *tokens, paid),) = ann.settled()
    embedding = -(-len(QUESTION) // 3)
    assert (answers, estimated, tokens) == (1, 0, [prompt, 0, completion, embedding])
    assert paid == cost(prompt, completion, embedding)
    stored = (
        "select prompt_tokens, embedding_tokens, cost_micro_usd from public.chat_logs where id = %s"
    )
    assert clouds.postgres.rows(stored, body["id"]) == [(prompt, embedding, paid)]
    counted = shared_api.metric(f'cimt_cost_usd_total{{model="{CHAT_MODEL}"}}') - before
    assert counted == pytest.approx(paid / MILLION)
    for sent in ("0", "5"):
        read(ann.client, "POST", "/chat", json=body, headers={"Last-Event-ID": sent})
    ann.client.get(f"/chat/{body['id']}")
    assert ann.spent() == [(answers, estimated, *tokens, paid)]
    # What is kept nowhere is paid, too.
    key = ann.client.post("/keys", json={"name": "SDK"}).json()["key"]
    sdk = openai.OpenAI(base_url=f"{shared_api.url}/v1", api_key=key)
    asked: Any = [{"role": "user", "content": QUESTION}]
    sdk.chat.completions.create(model="cimt", messages=asked)
    eventually(lambda: ann.spent()[0][0] == 2, "the second one is settled")
    assert ann.held() == 0


def test_what_ended_early_costs_what_was_used(
    shared_api: Api, clouds: Clouds, model: Model
) -> None:
    """The model's service says no usage then: the prompt and what came of the answer are counted."""
    stopped, broken, refused = (
        Spender(shared_api, clouds, name) for name in ("stopped", "broken", "refused")
    )
    model.behave("endless", delay=0.02, paths=CHAT)
    body = {"message": QUESTION, "id": str(uuid4())}
    text = read(stopped.client, "POST", "/chat", json=body, until=40).text
    stopped.client.post(f"/chat/{body['id']}/stop")
    ((answers, estimated, prompt, cached, completion, embedding, paid),) = stopped.settled()
    assert (answers, estimated, cached) == (1, 1, 0)
    assert prompt > 100
    assert completion >= len(text) // 3
    # At most as if the service had put all of the prompt into its cache, at a quarter more.
    assert cost(prompt, completion, embedding) < paid <= 1.3 * cost(prompt, completion, embedding)
    stored = "select prompt_tokens, cost_micro_usd from public.chat_logs where id = %s"
    assert clouds.postgres.rows(stored, body["id"]) == [(None, paid)]

    model.behave("broken", after=4, paths=CHAT)
    assert read(broken.client, "POST", "/chat", json={"message": QUESTION}).error
    assert broken.settled()[0][:2] == (1, 1)

    model.behave("rate_limited", retry_after=7, paths=CHAT)
    assert refused.client.post("/chat", json={"message": QUESTION}).status_code == 503
    ((_, estimated, prompt, _, completion, embedding, paid),) = refused.settled()
    assert (estimated, prompt, completion) == (0, 0, 0), "only the question was embedded"
    assert paid == cost(0, 0, embedding)


def test_two_processes_keep_below_a_cap_together(
    clouds: Clouds, model: Model, folder: Path, most: Decimal, alone: None
) -> None:
    environment = clouds.environment() | {"BUDGET_USER_DAY_USD": str(round(3.5 * float(most), 6))}
    model.behave("slow", first=1, delay=0.1, chunks=30, paths=CHAT)
    with (
        api(folder / "one", environment, until="/readyz") as one,
        api(folder / "two", environment, until="/readyz") as two,
    ):
        ann = Spender(one, clouds, "ann")

        def ask(process: Api) -> httpx.Response:
            with process.client(ann.token) as client:
                return client.post("/chat", json={"message": QUESTION})

        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, [one, two] * 6))
        codes = [answer.status_code for answer in answers]
        assert sorted(codes) == [200] * 3 + [429] * 9
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["cap"] == "user-day"
        assert (
            refused.json()["title"] == "Answers that are being written hold the rest of the budget"
        )
        assert refused.headers["retry-after"] == "5"
        # Held was the most that they could cost; what they did cost leaves room.
        model.reset()
        assert ann.settled()[0][0] == 3
        assert ask(two).status_code == 200
        # A process that is killed holds what it held until its answers would have ended.
        model.behave("endless", delay=0.05, paths=CHAT)
        with one.client(ann.token) as client:
            read(client, "POST", "/chat", json={"message": QUESTION}, until=5)
            one.process.kill()
            one.process.wait()
        assert ann.held() == 1
        left = "select extract(epoch from expires_at - now())::float8 from private.reservations"
        ((seconds,),) = clouds.postgres.rows(left)
        assert 0 < seconds <= 600 + 90


def test_a_refusal_says_which_cap_and_when_it_is_free_again(
    clouds: Clouds, model: Model, folder: Path, alone: None
) -> None:
    environment = clouds.environment() | {"BUDGET_MONTH_USD": "3", "BUDGET_USER_DAY_USD": "1"}
    with api(folder, environment, until="/readyz") as own:
        ann = Spender(own, clouds, "ann")
        key = ann.client.post("/keys", json={"name": "SDK"}).json()["key"]
        body = {"message": QUESTION, "id": str(uuid4())}
        first = read(ann.client, "POST", "/chat", json=body)
        ann.settled()
        conversations = ann.client.get("/conversations").json()["items"]
        model.reset()

        ann.has_spent(Decimal("0.9999"))
        now = datetime.datetime.now(datetime.UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        tomorrow = midnight + datetime.timedelta(days=1)
        refused = ann.client.post("/chat", json={"message": QUESTION})
        assert refused.status_code == 429
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json() == {
            "type": "urn:cimt:problem:budget-user-day",
            "title": "Your budget of today is used up",
            "status": 429,
            "detail": "Your questions of a day (UTC) may cost 1 USD. "
            f"It is free again at {tomorrow:%Y-%m-%d} 00:00 UTC.",
            "cap": "user-day",
            "free_at": f"{tomorrow:%Y-%m-%d}T00:00:00Z",
            "answer_id": refused.json()["answer_id"],
        }
        wait = int(refused.headers["retry-after"])
        after = datetime.datetime.now(datetime.UTC)
        assert (tomorrow - after).total_seconds() <= wait <= (tomorrow - now).total_seconds() + 1
        # The AI SDK shows an error's body as it is.
        message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": QUESTION}]}
        plain = ann.client.post("/chat", json={"id": "chat", "messages": [message]})
        assert (plain.status_code, plain.headers["content-type"]) == (
            429,
            "text/plain; charset=utf-8",
        )
        assert plain.text.startswith("Your budget of today is used up: ")
        # OpenAI's SDK knows that trying again is no use, and does not.
        asked = 'cimt_budget_refusals_total{cap="user-day"}'
        before = own.metric(asked)
        with pytest.raises(openai.RateLimitError) as error:
            openai.OpenAI(base_url=f"{own.url}/v1", api_key=key).chat.completions.create(
                model="cimt", messages=[{"role": "user", "content": QUESTION}]
            )
        assert (error.value.code, error.value.type) == ("budget_user_day", "insufficient_quota")
        assert own.metric(asked) == before + 1
        # A refusal asks nobody and leaves nothing; what was answered before is there.
        assert (model.calls(), model.calls("/v1/embeddings"), ann.held()) == (0, 0, 0)
        assert ann.client.get("/conversations").json()["items"] == conversations
        again = read(ann.client, "POST", "/chat", json=body, headers={"Last-Event-ID": "0"})
        assert again.text == first.text

        bob = Spender(own, clouds, "bob")
        assert bob.client.post("/chat", json={"message": QUESTION}).status_code == 200
        bob.settled()
        assert own.metric("cimt_budget_month_reached") == 0
        assert own.metric("cimt_budget_month_usd") == 3
        Spender(own, clouds, "cid").has_spent(Decimal(2))
        for spender in (bob, ann):
            over = spender.client.post("/chat", json={"message": QUESTION})
            assert (over.status_code, over.json()["type"]) == (429, "urn:cimt:problem:budget-month")
        following = (midnight.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
        assert over.json()["free_at"] == f"{following:%Y-%m-%d}T00:00:00Z"
        assert "USD" not in over.text, "how much the product may cost is nobody's business here"
        assert own.metric("cimt_budget_month_used_ratio") == pytest.approx(1, abs=0.01)
        assert own.metric("cimt_budget_month_reached") == 1
        # It was no reason to keep the question from being asked again, once there is money.
        clouds.postgres.rows("delete from private.spending")
        later = {"message": QUESTION, "id": over.json()["answer_id"]}
        assert ann.client.post("/chat", json=later).status_code == 200


def test_no_answer_takes_longer_than_money_is_held_and_no_price_is_unknown_in_silence(
    clouds: Clouds, model: Model, folder: Path
) -> None:
    environment = {"ANSWER_SECONDS": "2", "EMBEDDING_MODEL": "of-a-relay", "RETRIEVAL_COUNT": "0"}
    model.behave("endless", delay=0.05, paths=CHAT)
    with api(folder, clouds.environment() | environment, until="/readyz") as own:
        ready = own.client().get("/readyz").json()
        assert ready["status"] == "ready"
        assert ready["parts"]["prices"] == {
            "ok": True,
            "why": "not known of of-a-relay: counted as the dearest that is known",
        }
        said = [line for line in own.lines() if "no price of of-a-relay" in str(line)]
        assert len(said) == 1
        ann = Spender(own, clouds, "ann")
        assert (
            read(ann.client, "POST", "/chat", json={"message": QUESTION}).error
            == "upstream-timeout"
        )
        assert ann.settled()[0][:2] == (1, 1)


def test_people_see_who_spent_what(shared_api: Api, clouds: Clouds, model: Model) -> None:
    ann = Spender(shared_api, clouds, "usage")
    email = ann.client.get("/me").json()["email"]
    read(ann.client, "POST", "/chat", json={"message": QUESTION})
    ((answers, estimated, prompt, cached, completion, embedding, paid),) = ann.settled()
    month = f"{datetime.datetime.now(datetime.UTC):%Y-%m}"

    def usage(*arguments: str, month: str = month) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "tools.database.usage", *arguments],
            cwd=ROOT,
            env=os.environ
            | {
                "ENV": "production",
                "SUPABASE_DB_URL": clouds.postgres.cluster.url(),
                "MONTH": month,
            },
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    code, text = usage()
    assert code == 0, text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["user"][1:3] == ["model", "answers"]
    assert lines[email][1:4] == [CHAT_MODEL, "1", "0"]
    assert lines[email][-1] == f"{paid / MILLION:.6f}"
    assert float(lines["all"][-1].replace(",", "")) >= paid / MILLION
    code, text = usage("--csv")
    (row,) = [row for row in csv.DictReader(text.splitlines()) if row["user"] == email]
    numbers = [
        str(number) for number in (answers, estimated, prompt, cached, completion, embedding)
    ]
    assert list(row.values()) == [month, email, CHAT_MODEL, *numbers, f"{paid / MILLION:.6f}"]
    assert email not in usage(month="2020-02")[1]
    code, text = usage(month="2026-13")
    assert (code, text.count("\n")) == (2, 1)
    assert "Next: MONTH=" in text
