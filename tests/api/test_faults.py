"""When the model or the database fails: what the client is told, what is kept, and that it passes."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from local.waiting import eventually
from testbed.api import Api, Clouds, Model, Streamed, api, events, read

QUESTION = "How long is the warranty?"
CHAT = ["/v1/chat/completions"]
IMPATIENT = {
    "OPENAI_FIRST_TOKEN_SECONDS": "6",
    "OPENAI_BETWEEN_TOKENS_SECONDS": "2",
    "OPENAI_RETRIES": "1",
    "ANSWER_TOKENS": "20",
}


@pytest.fixture(scope="module")
def own(clouds: Clouds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API that does not wait long."""
    folder = tmp_path_factory.mktemp("faults") / "api"
    with api(folder, clouds.environment() | IMPATIENT, until="/readyz") as made:
        yield made


@pytest.fixture
def ann(own: Api, clouds: Clouds, model: Model) -> Iterator[httpx.Client]:
    """Signed in; the breaker is closed when she comes and when she leaves."""
    with own.client(clouds.sign_in.token("ann@example.com")) as client:

        def works() -> bool:
            return client.post("/chat", json={"message": QUESTION}).status_code == 200

        eventually(works, "the API answers before the test")
        model.reset()
        yield client
        model.reset()
        eventually(works, "the API answers after the test")


def kept(clouds: Clouds, answer_id: str, status: str = "") -> dict[str, Any]:
    """The row of an answer that has ended, with this status."""

    def ended() -> dict[str, Any] | None:
        found = clouds.postgres.rows(
            "select to_jsonb(l) from public.chat_logs l "
            "where id = %s and status <> 'streaming' and status = coalesce(nullif(%s, ''), status)",
            answer_id,
            status,
        )
        return dict(found[0][0]) if found else None

    row = eventually(ended, "the end of the answer is stored")
    assert row is not None
    return row


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "failing"},
        {"kind": "failing", "status": 503},
        {"kind": "rate_limited", "retry_after": 1},
        {"kind": "broken", "after": 0},
        {"kind": "malformed", "after": 0},
    ],
    ids=str,
)
def test_a_fault_before_the_first_token_is_tried_again(
    ann: httpx.Client, model: Model, fault: dict[str, Any]
) -> None:
    model.behave(**fault, times=1, paths=CHAT)
    got = read(ann, "POST", "/chat", json={"message": QUESTION})
    assert (got.done, got.error, got.finish) == (True, None, "stop")
    assert model.calls() == 2


@pytest.mark.parametrize(
    ("fault", "status", "kind", "calls"),
    [
        ({"kind": "failing"}, 502, "upstream-failing", 2),
        ({"kind": "failing", "status": 401}, 502, "upstream-refused", 1),
        ({"kind": "failing", "status": 400}, 502, "upstream-refused", 1),
        (
            {"kind": "failing", "status": 429, "code": "insufficient_quota"},
            503,
            "upstream-quota",
            1,
        ),
        (
            {"kind": "rate_limited", "retry_after": "Fri, 31 Dec 9999 23:59:59 GMT"},
            503,
            "upstream-rate-limited",
            1,
        ),
        ({"kind": "rate_limited", "retry_after": 30}, 503, "upstream-rate-limited", 1),
        ({"kind": "broken", "after": 0}, 502, "upstream-broken", 2),
        ({"kind": "malformed", "after": 0}, 502, "upstream-malformed", 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
def test_a_fault_that_stays_is_a_clear_problem(
    own: Api,
    ann: httpx.Client,
    clouds: Clouds,
    model: Model,
    fault: dict[str, Any],
    status: int,
    kind: str,
    calls: int,
    stream: bool,
) -> None:
    model.behave(**fault, paths=CHAT)
    body: dict[str, Any] = {"message": QUESTION, "id": str(uuid4()), "stream": stream}
    answer = ann.post("/chat", json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:cimt:problem:{kind}"
    assert ("retry-after" in answer.headers) == (status == 503)
    # The service's own words go to nobody: they may hold names of keys, or what was asked.
    for its_words in ("Sorry", "Rate limit", "server_error"):
        assert its_words not in answer.text
    assert model.calls() == calls
    row = kept(clouds, body["id"])
    assert (row["status"], row["error"], row["answer"]) == ("failed", kind, "")
    if kind == "upstream-quota" or fault.get("status") == 401:
        ready = ann.get("/readyz")
        assert (ready.status_code, ready.json()["parts"]["model"]["ok"]) == (503, False)
    if code := fault.get("code"):  # by which the operator tells a used-up account from a rate
        assert any(f"(code {code}," in line["message"] for line in own.lines())
    # Nothing was said, so the same id may be asked again as soon as it works.
    model.reset()
    again = ann.post("/chat", json=body | {"stream": False})
    assert again.status_code == 200, again.text
    assert again.json()["cimt"]["conversation_id"] == row["conversation_id"]
    row = kept(clouds, body["id"], "complete")
    assert row["answer"] == again.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "broken", "after": 6, "delay": 0.05}, "upstream-broken"),
        ({"kind": "malformed", "after": 6, "delay": 0.05}, "upstream-malformed"),
        # The role comes at once, the first text in time, the second does not.
        ({"kind": "slow", "first": 0.1, "delay": 5}, "upstream-timeout"),
    ],
    ids=str,
)
def test_a_fault_in_the_middle_ends_the_stream_and_keeps_what_came(
    ann: httpx.Client, clouds: Clouds, model: Model, fault: dict[str, Any], error: str
) -> None:
    model.behave(**fault, paths=CHAT)
    body = {"message": QUESTION, "id": str(uuid4())}
    got = read(ann, "POST", "/chat", json=body)
    assert (got.done, got.error) == (True, error)
    assert got.text
    row = kept(clouds, body["id"])
    assert (row["status"], row["error"], row["answer"]) == ("failed", error, got.text)
    assert model.calls() == 1


def test_a_model_that_says_nothing_is_not_waited_for(
    ann: httpx.Client, clouds: Clouds, model: Model
) -> None:
    model.behave("slow", first=60, paths=CHAT)
    answer_id = str(uuid4())
    answer = ann.post("/chat", json={"message": QUESTION, "id": answer_id})
    assert answer.status_code == 504
    assert kept(clouds, answer_id)["error"] == "upstream-timeout"
    eventually(lambda: model.state()["open_streams"] == 0, "the model is told to stop")
    assert model.calls() == 1


def test_a_model_that_does_not_stop_is_stopped(
    ann: httpx.Client, clouds: Clouds, model: Model
) -> None:
    model.behave("endless", delay=0.001, paths=CHAT)
    body = {"message": QUESTION, "id": str(uuid4())}
    got = read(ann, "POST", "/chat", json=body)
    assert (got.done, got.error, got.finish) == (True, None, "length")
    assert kept(clouds, body["id"])["answer"] == got.text
    eventually(lambda: model.state()["open_streams"] == 0, "the model is told to stop")


def test_embeddings_that_fail_are_the_same_kind_of_problem(
    ann: httpx.Client, clouds: Clouds, model: Model
) -> None:
    model.behave("failing", paths=["/v1/embeddings"])
    answer_id = str(uuid4())
    answer = ann.post("/chat", json={"message": QUESTION, "id": answer_id})
    assert (answer.status_code, model.calls()) == (502, 0)
    assert kept(clouds, answer_id)["error"] == "upstream-failing"
    model.behave("malformed", paths=["/v1/embeddings"])
    answer = ann.post("/chat", json={"message": QUESTION})
    assert answer.json()["type"] == "urn:cimt:problem:upstream-malformed"


class OddService:
    """A service that knows chat completions alone, and writes what it is told to, with pauses of so many seconds."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.pause = 0.0
        self.status = 200
        self.headers = {"Content-Type": "text/event-stream"}
        service = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                return

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(service.status)
                for name, value in service.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in service.pieces:
                    self.wfile.write(piece)
                    time.sleep(service.pause)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_other_services_have_their_own_ways(clouds: Clouds, folder: Path) -> None:
    """Azure and relays leave out what they need not say; models that think may do it for longer than be silent."""
    word = b'{"choices":[{"delta":{"content":"Two years"}}]}'
    stop = b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}'
    thought = b'{"choices":[{"delta":{"reasoning_content":"Hm."}}]}'
    with contextlib.closing(OddService()) as odd:
        environment = {"OPENAI_BASE_URL": odd.url, "RETRIEVAL_COUNT": "0", "OPENAI_RETRIES": "0"}
        environment |= {"OPENAI_FIRST_TOKEN_SECONDS": "3", "OPENAI_BETWEEN_TOKENS_SECONDS": "5"}
        with (
            api(folder, clouds.environment() | environment, until="/readyz") as own,
            own.client(clouds.sign_in.token("ann@example.com")) as ann,
        ):

            def asked(pause: float, *pieces: bytes) -> httpx.Response:
                odd.pause, odd.pieces = pause, [b"data: " + piece + b"\n\n" for piece in pieces]
                return ann.post("/chat", json={"message": QUESTION})

            for answer in (
                asked(
                    0,
                    b'{"choices":[],"prompt_filter_results":[]}',
                    b'{"choices":[{"delta":null,"content_filter_results":{}}]}',
                    word,
                    stop,
                ),
                asked(0.5, *[thought] * 10, word, b"[DONE]"),
                # It has ended, and its connection has not: for longer than it may be silent.
                asked(8, word + b"\n\ndata: " + stop),
            ):
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["message"]["content"] == "Two years"
                assert answer.json()["cimt"]["status"] == "complete"
            length = b'{"choices":[{"delta":{},"finish_reason":"length"}]}'
            used_up = asked(0, thought, length)
            assert used_up.status_code == 502
            assert used_up.json()["type"] == "urn:cimt:problem:upstream-empty"
            # Why it refuses does not come to its end: that it does is known all the same.
            odd.status = 429
            busy = asked(8, b"{", b"}")
            assert busy.json()["type"] == "urn:cimt:problem:upstream-rate-limited"
            assert busy.elapsed.total_seconds() < 8


def said(*texts: str, **more: Any) -> bytes:
    """Events that say these texts, and the one that ends them."""
    deltas = [{"delta": {"content": text}, "index": 0} for text in texts]
    chunks = [{"choices": [each]} for each in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"} | more]})
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


WHOLE = {"choices": [{"index": 0, "message": {"content": "Two years"}, "finish_reason": "stop"}]}
TWO_YEARS = said("Two", " years")
NO_END = said("Two", " years").rpartition(b"data: ")[0]
END = b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def odd(
    clouds: Clouds, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[OddService, httpx.Client]]:
    """A service of odd ways, and somebody who asks the API that asks it."""
    folder = tmp_path_factory.mktemp("odd") / "api"
    with contextlib.closing(OddService()) as service:
        environment = {"OPENAI_BASE_URL": service.url, "RETRIEVAL_COUNT": "0", "OPENAI_RETRIES": "0"}  # fmt: skip
        with (
            api(folder, clouds.environment() | environment, until="/readyz") as own,
            own.client(clouds.sign_in.token("ann@odd.example")) as client,
        ):
            yield service, client


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (TWO_YEARS.replace(b"\n", b"\r\n") + END, {}),
        (b"\xef\xbb\xbf" + TWO_YEARS + END, {}),
        (TWO_YEARS.replace(b"data: ", b"data:"), {}),
        (b": OPENROUTER PROCESSING\n\nretry: 5\n\nevent: ping\ndata: {}\n\n" + TWO_YEARS + END, {}),
        (TWO_YEARS + TWO_YEARS[TWO_YEARS.rindex(b"data:") :] * 2 + END, {}),
        (said("Two", " years", message={"content": "Two years"}), {}),
        (TWO_YEARS.replace(b'"index": 0', b'"index": "0"') + END, {}),
        (TWO_YEARS + b'data: {"choices":[],"usage":null}\n\n' + END + b"data: after the end\n\n", {}),
        (NO_END + END, {}),
        (b'data: {"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"text":"Hm"}]},'
         b'{"type":"reasoning","text":"Hm"},{"type":"text","text":"Two"}]}}]}\n\n' + said(" years"), {}),
        (json.dumps(WHOLE, indent=2).encode(), {"Content-Type": "application/json"}),
        (json.dumps(WHOLE, indent=2).encode(), {}),
        (TWO_YEARS + END, {"Content-Type": "application/json"}),
        (TWO_YEARS + END, {"Content-Type": "text/plain"}),
        (gzip.compress(TWO_YEARS + END), {"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}),
    ],
    ids=["CRLF", "BOM", "no space", "comments", "ends twice", "repeats all at its end", "index as text",
         "after the end", "no finish reason", "thinks in parts", "no stream", "no stream, mislabelled",
         "stream, mislabelled", "stream as text", "gzip"],
)  # fmt: skip
def test_an_answer_in_odd_ways_is_complete(
    odd: tuple[OddService, httpx.Client], body: bytes, headers: dict[str, str]
) -> None:
    service, client = odd
    service.headers = headers or {"Content-Type": "text/event-stream"}
    for size in (len(body), 5):  # in one piece, and in many that end anywhere
        service.pieces = [body[at : at + size] for at in range(0, len(body), size)]
        answer = client.post("/chat", json={"message": QUESTION})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == "Two years"
        assert answer.json()["cimt"]["status"] == "complete"


@pytest.mark.parametrize(
    "end",
    [
        b"",
        b'data: {"object":"error","message":"CUDA out of memory","code":500}\n\n' + END,
        b'event: error\ndata: {"message":"overloaded"}\n\n' + END,
        b'data: {"type":"error","message":"overloaded"}\n\n' + END,
        b'error: {"code":500,"message":"slot unavailable"}\n\n' + END,
        said(finish_reason="insufficient_system_resource") + END,
        said(finish_reason="abort") + END,
        b'data: {"choices":[{"delta":{"content":"\xc3',
    ],
)
def test_an_answer_that_is_not_complete_is_not_called_so(
    odd: tuple[OddService, httpx.Client], end: bytes
) -> None:
    service, client = odd
    service.headers = {"Content-Type": "text/event-stream"}
    service.pieces = [NO_END, end]
    got = read(client, "POST", "/chat", json={"message": QUESTION})
    assert (got.text, got.done, got.finish) == ("Two years", True, None)
    assert got.error in ("upstream-failing", "upstream-broken", "upstream-malformed")


def test_the_breaker_spares_a_model_that_fails(clouds: Clouds, model: Model, folder: Path) -> None:
    model.behave("failing", paths=CHAT)
    question = {"message": QUESTION, "id": str(uuid4())}
    with (
        api(folder, clouds.environment() | IMPATIENT, until="/readyz") as fresh,
        fresh.client(clouds.sign_in.token("ann@example.com")) as ann,
    ):
        # Two attempts each, but each question counts once: some bad luck is not yet everybody's.
        asked = [ann.post("/chat", json={"message": QUESTION}).status_code for _ in range(10)]
        assert asked == [502] * 10
        assert model.calls() == 20
        refused = ann.post("/chat", json=question)
        assert (refused.status_code, refused.json()["type"]) == (
            503,
            "urn:cimt:problem:upstream-resting",
        )
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert model.calls() == 20
        assert ann.get("/readyz").status_code == 503
        assert fresh.metric("cimt_upstream_breaker_open") == 1
        assert fresh.metric('cimt_upstream_errors_total{kind="upstream-failing"}') == 20
        model.reset()
        # With the id that was refused: a refusal asks nobody, so the id is not used up.
        eventually(
            lambda: ann.post("/chat", json=question).status_code == 200, "the breaker closes"
        )
        assert fresh.metric("cimt_upstream_breaker_open") == 0


def test_a_model_that_is_not_there(clouds: Clouds, folder: Any) -> None:
    environment = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "RETRIEVAL_COUNT": "0"}
    with (
        api(folder, clouds.environment() | environment, until="/readyz") as own,
        own.client(clouds.sign_in.token("ann@example.com")) as client,
    ):
        answer = client.post("/chat", json={"message": QUESTION})
        assert answer.status_code == 502
        assert answer.json()["type"] == "urn:cimt:problem:upstream-unreachable"


def test_answers_survive_a_restart_of_the_database(
    shared_api: Api, clouds: Clouds, model: Model
) -> None:
    """Ten streams run through it, nobody notices; who asks meanwhile gets a 503; afterwards all is well."""
    model.behave("slow", first=0.1, delay=0.1, chunks=80, paths=CHAT)
    token = clouds.sign_in.token("ann@example.com")
    got = {str(uuid4()): Streamed() for _ in range(10)}

    def ask(answer_id: str) -> None:
        with shared_api.client(token) as client:
            body = {"message": QUESTION, "id": answer_id}
            for event in events(client, "POST", "/chat", json=body):
                got[answer_id].take(event)

    users = [threading.Thread(target=ask, args=(answer_id,)) for answer_id in got]
    for user in users:
        user.start()
    eventually(lambda: all(each.text for each in got.values()), "all streams have begun")
    clouds.postgres.stop()
    with shared_api.client(token) as client:
        refused = client.post("/chat", json={"message": QUESTION})
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:cimt:problem:database-unavailable"
        assert int(refused.headers["retry-after"]) > 0
        clouds.postgres.start()
        for user in users:
            user.join()
        assert all(each.done and each.error is None for each in got.values())
        for answer_id, each in got.items():
            row = kept(clouds, answer_id)
            assert (row["status"], row["answer"]) == ("complete", each.text)
        model.reset()
        eventually(
            lambda: client.post("/chat", json={"message": QUESTION}).status_code == 200,
            "questions are answered again",
        )
