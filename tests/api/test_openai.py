"""OpenAI's own SDK against /v1, signed in by a token or by a key that its user made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from local.waiting import eventually
from testbed.api import CHAT_MODEL, Api, Clouds, Model

QUESTION = "How long is the warranty?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
TOOLS: Any = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]  # fmt: skip


@pytest.fixture
def ann(shared_api: Api, clouds: Clouds) -> Iterator[httpx.Client]:
    with shared_api.client(clouds.sign_in.token("ann@openai.example")) as client:
        yield client


def sdk(api: Api, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def key(ann: httpx.Client) -> Iterator[str]:
    made = ann.post("/keys", json={"name": "SDK"}).json()
    yield made["key"]
    ann.delete(f"/keys/{made['id']}")


def test_the_sdk_works_by_its_base_url_alone(
    shared_api: Api, ann: httpx.Client, key: str, model: Model
) -> None:
    ann.delete("/conversations")
    for credential in (key, ann.headers["authorization"].removeprefix("Bearer ")):
        client = sdk(shared_api, credential)
        assert [one.id for one in client.models.list()] == ["cimt"]
        assert client.models.retrieve("cimt").id == "cimt"
        whole = client.chat.completions.create(model="cimt", messages=MESSAGES)
        said = whole.choices[0].message.content
        assert (whole.model, whole.choices[0].finish_reason) == (CHAT_MODEL, "stop")
        assert whole.usage is not None
        assert whole.usage.completion_tokens > 0
        # The loop that everybody writes.
        stream = client.chat.completions.create(model="cimt", messages=MESSAGES, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == said
        stream = client.chat.completions.create(
            model=CHAT_MODEL,
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
        )
        *chunks, last = list(stream)
        assert all(chunk.choices for chunk in chunks)
        assert (last.choices, last.usage and last.usage.total_tokens) == ([], whole.usage.total_tokens)  # fmt: skip
    # The client keeps the conversation, so we need not, unless it asks us to.
    assert ann.get("/conversations").json()["items"] == []
    client.chat.completions.create(model="cimt", messages=MESSAGES, store=True)
    assert [item["title"] for item in ann.get("/conversations").json()["items"]] == [QUESTION]


def test_the_clients_conversation_is_what_the_model_is_given(
    shared_api: Api, key: str, model: Model
) -> None:
    messages: Any = [
        {"role": "system", "content": "Answer in rhyme."},
        {"role": "assistant", "content": "Hello, I am here to help."},
        {"role": "user", "content": [{"type": "text", "text": "My name is "}, {"type": "text", "text": "Ann"}]},
        {"role": "assistant", "content": "Hello, Ann."},
        {"role": "user", "content": "Who am I?"},
    ]  # fmt: skip
    sdk(shared_api, key).chat.completions.create(
        model="cimt", messages=messages, max_completion_tokens=7
    )
    sent = model.prompts()[-1]["body"]
    assert sent["max_completion_tokens"] == 7
    system, *rest = sent["messages"]
    assert "You are the assistant of CIMT" in system["content"]
    assert system["content"].endswith("Answer in rhyme.")
    said = [message["content"] for message in rest]
    assert said[-3:] == ["My name is Ann", "Hello, Ann.", "Who am I?"]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"temperature": 0.2}, "temperature"),
        ({"n": 2}, "n"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "search"}}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"top_k": 3}}, "top_k"),
        ({"messages": [{"role": "assistant", "content": "Me first"}]}, "messages"),
        ({"messages": [*MESSAGES, {"role": "tool", "content": "x", "tool_call_id": "y"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "system", "content": "x" * 32_001}, *MESSAGES]}, "messages"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_not_honoured_is_refused_by_name(
    shared_api: Api, key: str, model: Model, wrong: dict[str, Any], param: str
) -> None:
    client: Any = sdk(shared_api, key)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**({"model": "cimt", "messages": MESSAGES} | wrong))
    assert refused.value.param == param
    assert param in refused.value.message
    assert model.calls() == 0


def test_what_says_nothing_is_taken(shared_api: Api, key: str, model: Model) -> None:
    """What UIs send from their forms, with nothing filled in."""
    neutral: Any = {
        "temperature": 1,
        "top_p": 1.0,
        "n": 1,
        "presence_penalty": 0,
        "tools": TOOLS,
        "tool_choice": "auto",
        "verbosity": "medium",
        "stop": None,
        "user": "x",
    }
    sdk(shared_api, key).chat.completions.create(model="cimt", messages=MESSAGES, **neutral)


def test_what_open_webui_sends_is_answered(
    shared_api: Api, key: str, model: Model, clouds: Clouds
) -> None:
    """Its requests as 0.12.4 sends them: some 36 tools with every question, its own tasks as questions."""
    title = "### Task:\nGenerate a concise title.\n### Chat History:\n<chat_history>\nUSER: Hi\n</chat_history>"
    # A chat that another model began, which called a tool and was stopped; a question that was sent twice.
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    before = [
        {"role": "user", "content": "Are you open today?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "The door is open until nine."},
        {"role": "assistant", "content": ""},
        *MESSAGES,
    ]
    with httpx.Client(base_url=shared_api.url, headers={"Authorization": f"Bearer {key}"}) as ui:
        for body in (
            {"stream": False, "messages": [{"role": "user", "content": title}], "max_tokens": 1000},
            {"stream": True, "messages": MESSAGES, "tools": TOOLS * 36},
            {"stream": True, "messages": before + MESSAGES, "tools": TOOLS, "tool_choice": "auto"},
        ):
            answer = ui.post("/v1/chat/completions", json={"model": "cimt", **body}, timeout=30)
            assert answer.status_code == 200, answer.text
            assert ("data: [DONE]" in answer.text) == body["stream"]
        sent = model.prompts()[-1]["body"]
        assert "tools" not in sent
        assert "The door is open until nine." in str(sent["messages"])
        assert sent["messages"][-1]["role"] == "user"
        # Errors in the same words, whether they come before the stream or in it.
        codes = []
        for fault in ({"after": 0}, {"after": 4}):
            model.behave("broken", **fault, paths=["/v1/chat/completions"])
            asked = {"model": "cimt", "messages": MESSAGES, "stream": True}
            failed = ui.post("/v1/chat/completions", json=asked, timeout=30)
            said = [line for line in failed.text.splitlines() if '"error":{' in line]
            codes.append(json.loads(said[0].removeprefix("data: "))["error"])
        assert codes[0] == codes[1]
        assert codes[0]["code"] == "upstream_broken"
        wrong = ui.get("/v1/models", headers={"Authorization": "Bearer sk-of-somebody-else"})
        assert wrong.status_code == 401
        assert "key" in wrong.json()["error"]["message"]


def test_errors_are_the_sdks_own(shared_api: Api, key: str, model: Model) -> None:
    client = sdk(shared_api, key)
    with pytest.raises(openai.AuthenticationError):
        sdk(shared_api, "cimt_" + "x" * 43).models.list()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-2", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    model.behave("rate_limited", retry_after=7, paths=["/v1/chat/completions"])
    with pytest.raises(openai.InternalServerError) as busy:
        client.chat.completions.create(model="cimt", messages=MESSAGES)
    assert (busy.value.status_code, busy.value.code) == (503, "upstream_rate_limited")
    assert busy.value.response.headers["retry-after"] == "7"
    model.behave("broken", after=4, paths=["/v1/chat/completions"])
    with pytest.raises(openai.APIError, match="broke off"):
        list(client.chat.completions.create(model="cimt", messages=MESSAGES, stream=True))


def test_who_leaves_stops_the_model(shared_api: Api, key: str, model: Model) -> None:
    model.behave("endless", delay=0.05, paths=["/v1/chat/completions"])
    stream = sdk(shared_api, key).chat.completions.create(
        model="cimt", messages=MESSAGES, stream=True
    )
    next(stream)
    stream.close()
    eventually(lambda: model.state()["open_streams"] == 0, "the model is told to stop")


def test_a_key_is_its_users_and_no_more(
    shared_api: Api, clouds: Clouds, ann: httpx.Client, key: str
) -> None:
    (listed,) = ann.get("/keys").json()["items"]
    assert key not in str(listed)
    assert key.endswith(listed["hint"])
    assert listed["last_used_at"] is None
    sdk(shared_api, key).models.list()
    assert ann.get("/keys").json()["items"][0]["last_used_at"]
    kept = clouds.postgres.rows("select to_jsonb(k)::text from public.api_keys k")
    assert key not in str(kept)
    # It asks, and does nothing else.
    with shared_api.client(key) as program:
        for path in ("/me", "/keys", "/conversations", "/documents"):
            assert program.get(path).status_code == 401
        assert program.post("/chat", json={"message": "hi"}).status_code == 401
    with shared_api.client(clouds.sign_in.token("bob@openai.example")) as bob:
        assert bob.get("/keys").json()["items"] == []
        assert bob.delete(f"/keys/{listed['id']}").status_code == 404
    assert ann.delete(f"/keys/{listed['id']}").status_code == 204
    with pytest.raises(openai.AuthenticationError):
        sdk(shared_api, key).models.list()
    assert ann.delete(f"/keys/{listed['id']}").status_code == 404
    made = [ann.post("/keys", json={"name": f"{n}"}).status_code for n in range(21)]
    assert made == [201] * 20 + [409]
    for each in ann.get("/keys").json()["items"]:
        ann.delete(f"/keys/{each['id']}")
