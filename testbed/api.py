"""The real API as a process, beside a real Postgres and the stand-ins for what is elsewhere: all on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import psycopg
from httpx_sse import ServerSentEvent, connect_sse

from local.postgres import server as wheel
from local.waiting import WAIT_SECONDS, eventually, free_port
from services.api.cimt_api.settings import Settings, load
from testbed.postgres import Server, apply, server

ROOT = Path(__file__).parents[1]
SERVICE = ROOT / "services/api"
REVISION = "0123456789abcdef0123456789abcdef01234567"
INGEST_KEY = "an-ingest-key-for-tests-of-at-least-32-characters"
CHAT_MODEL: str = Settings.model_fields["chat_model"].default
EMBEDDING_MODEL: str = Settings.model_fields["embedding_model"].default


def settings_from(env: Mapping[str, str]) -> Settings:
    """Return what the API reads from these variables and no others. Raises SettingsError."""
    with patch.dict(os.environ, env, clear=True):
        return load()


@contextlib.contextmanager
def process(
    command: list[str], log: Path, *, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that is gone after the block, whatever happens."""
    with log.open("ab") as stream:
        started = subprocess.Popen(
            command, cwd=cwd, env=os.environ | (env or {}), stdout=stream, stderr=stream
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def answers(url: str, started: subprocess.Popen[bytes], log: Path, below: int = 500) -> None:
    """Wait until the address is served with a status below `below`; fails with the log when the process ends."""

    def served() -> bool:
        try:
            return httpx.get(url, timeout=5).status_code < below
        except httpx.TransportError:
            return False

    try:
        eventually(served, url, process=started)
    except TimeoutError as error:
        raise AssertionError(log.read_text()) from error


class Postgres:
    """A cluster with our migrations applied, which can go away and come back."""

    def __init__(self, cluster: Server) -> None:
        self.cluster = cluster
        self.started: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """Return the address by which the API connects."""
        return self.cluster.url(user="cimt_api")

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run SQL as a superuser and return its rows: what is really there."""
        url = self.cluster.url(user="supabase_admin")
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def stop(self) -> None:
        """Shut it down fast: every connection is cut."""
        pid_file = self.cluster.folder / "data/postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGINT)
        eventually(lambda: not pid_file.exists(), "Postgres stops")

    def start(self) -> None:
        """Start it again on the same port, with the same data."""
        data = self.cluster.folder / "data"
        command = wheel.command(wheel.programs(), data, self.cluster.port)
        with (self.cluster.folder / "log").open("ab") as log:
            self.started.append(subprocess.Popen(command, cwd="/", stdout=log, stderr=log))

        eventually(lambda: wheel.answers(self.cluster.port), "Postgres starts")


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a new cluster of its own."""
    with server() as cluster:
        apply(cluster.url())
        made = Postgres(cluster)
        try:
            yield made
        finally:
            for again in made.started:
                again.terminate()
                again.wait()


class Model:
    """The stand-in for OpenAI."""

    def __init__(self, url: str) -> None:
        self.url = url

    def behave(self, kind: str, **options: Any) -> None:
        """Change how it answers from now on; see `python -m local.openai --help`."""
        answer = httpx.put(f"{self.url}/stand-in/behaviour", json={"kind": kind, **options})
        assert answer.status_code == 200, answer.text

    def reset(self) -> None:
        """Let it behave well again, with its counters at zero."""
        httpx.delete(f"{self.url}/stand-in/behaviour")
        httpx.delete(f"{self.url}/stand-in/calls")
        self.shut_down({})

    def shut_down(self, dates: dict[str, str]) -> None:
        """Announce the last day of each of these models, and of no others."""
        httpx.put(f"{self.url}/stand-in/shutdowns", json=dates).raise_for_status()

    def calls(self, path: str = "/v1/chat/completions") -> int:
        """Return how many requests of this path it had so far."""
        return int(self.state()["paths"].get(path, 0))

    def state(self) -> dict[str, Any]:
        """Return all its counters."""
        state: dict[str, Any] = httpx.get(f"{self.url}/stand-in/calls").json()
        return state

    def prompts(self) -> list[dict[str, Any]]:
        """Return the last requests that it got, with their bodies."""
        requests: list[dict[str, Any]] = httpx.get(f"{self.url}/stand-in/requests").json()
        return requests


class SignIn:
    """The stand-in for Supabase Auth."""

    def __init__(self, url: str) -> None:
        self.url = url

    def token(self, email: str, /, **claims: Any) -> str:
        """Return an access token of this person, whose account is made when it is new."""
        asked = json.dumps({"email": email, "claims": claims})  # escaped: half a character, too
        answer = httpx.post(
            f"{self.url}/stand-in/token",
            content=asked,
            headers={"Content-Type": "application/json"},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def behave(self, jwks: str) -> None:
        """Change how the key set is served: ok, failing, hanging or empty."""
        assert httpx.put(f"{self.url}/stand-in/behaviour", json={"jwks": jwks}).is_success


@dataclass
class Clouds:
    """Everything that is elsewhere in production."""

    postgres: Postgres
    model: Model
    sign_in: SignIn

    def environment(self) -> dict[str, str]:
        """Return the variables that the API needs."""
        return {
            "DATABASE_URL": self.postgres.url,
            "SUPABASE_URL": self.sign_in.url,
            "OPENAI_API_KEY": "sk-for-the-stand-in",
            "OPENAI_BASE_URL": f"{self.model.url}/v1",
            "INGEST_KEY": INGEST_KEY,
        }


@contextlib.contextmanager
def stand_in(folder: Path, name: str, *options: str) -> Iterator[str]:
    """Run a stand-in of `local` and give its address once it answers."""
    port, log = free_port(), folder / f"{name}.log"
    command = [sys.executable, "-m", f"local.{name}", "--port", str(port), *options]
    with process(command, log) as started:
        url = f"http://127.0.0.1:{port}"
        answers(url, started, log)
        yield url


@contextlib.contextmanager
def sign_in(folder: Path, database: Postgres) -> Iterator[SignIn]:
    """Run the stand-in for Supabase Auth, with keys of its own."""
    admin = database.cluster.url(user="supabase_admin")
    options = ("--database", admin, "--state", str(folder / "supabase"))
    with stand_in(folder, "supabase", *options) as url:
        yield SignIn(url)


@contextlib.contextmanager
def clouds(folder: Path) -> Iterator[Clouds]:
    """Run Postgres and both stand-ins."""
    with (
        postgres() as database,
        stand_in(folder, "openai") as model,
        sign_in(folder, database) as signed,
    ):
        yield Clouds(database, Model(model), signed)


@dataclass
class Api:
    """A running API process, its public and its metrics address, and the file its log goes to."""

    process: subprocess.Popen[bytes]
    url: str
    metrics_url: str
    log: Path

    def client(self, token: str = "", seconds: float = WAIT_SECONDS) -> httpx.Client:
        """Make an HTTP client, signed in where there is a token."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=seconds)

    def lines(self) -> list[dict[str, Any]]:
        """Return the log as the JSON objects of its lines, without one that is being written."""
        return [json.loads(line) for line in self.log.read_text().rpartition("\n")[0].splitlines()]

    def metrics(self) -> str:
        """Return the metrics as a scraper reads them."""
        return httpx.get(f"{self.metrics_url}/metrics").text

    def metric(self, line: str) -> float:
        """Return the value of one sample, 0 where there is none."""
        for found in self.metrics().splitlines():
            if found.startswith(f"{line} "):
                return float(found.rsplit(" ", 1)[1])
        return 0.0


@contextlib.contextmanager
def api(
    folder: Path,
    env: dict[str, str],
    *,
    revision: str | None = REVISION,
    until: str = "/healthz",
    ports: tuple[int, int] | None = None,
) -> Iterator[Api]:
    """Run the API from a copy of the package, as the image holds it; `revision` None is outside an image.

    The block begins when the path `until` answers 200; /readyz is for tests that want no answer late. `ports`, the
    public one and that of the metrics, are for an API that comes back where it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        SERVICE / "cimt_api", folder / "cimt_api", ignore=shutil.ignore_patterns("__pyc*")
    )
    if revision:
        (folder / "revision").write_text(f"{revision}\n")
    port, metrics = ports or (free_port(), free_port())
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "METRICS_PORT": str(metrics),
        "RATE_PER_MINUTE": "100000",
        "STREAMS_PER_USER": "1000",
        "BUDGET_MONTH_USD": "100000",
        "BUDGET_USER_DAY_USD": "100000",
        **env,
    }
    log = folder / "log"
    with process([sys.executable, "-m", "cimt_api"], log, cwd=folder, env=settings) as started:
        url = f"http://127.0.0.1:{port}"
        answers(f"{url}{until}", started, log, below=300)
        yield Api(started, url, f"http://127.0.0.1:{metrics}", log)


def events(
    client: httpx.Client, method: str, path: str, **request: Any
) -> Iterator[ServerSentEvent]:
    """Yield the events of a stream, by a standard reader. Fails unless the request is answered by a stream."""
    headers = {"Accept": "text/event-stream", **request.pop("headers", {})}
    with connect_sse(client, method, path, headers=headers, **request) as source:
        if source.response.status_code != 200:
            source.response.read()
            raise AssertionError(f"{source.response.status_code} {source.response.text}")
        yield from source.iter_sse()


@dataclass
class Streamed:
    """What a client put together from a stream in OpenAI's format."""

    text: str = ""
    last_id: int = 0
    done: bool = False  # [DONE] came
    finish: str | None = None
    usage: dict[str, int] | None = None
    error: str | None = None
    cimt: dict[str, Any] | None = None

    def take(self, event: ServerSentEvent) -> None:
        """Take one more event."""
        if event.data == "[DONE]":
            self.done = True
            return
        assert int(event.id) >= self.last_id
        self.last_id = int(event.id)
        data = event.json()
        if "error" in data:
            self.error = data["error"]["code"]
            return
        assert data["object"] == "chat.completion.chunk"
        self.cimt = {**(self.cimt or {}), **data.get("cimt", {})}
        self.usage = data.get("usage") or self.usage
        for choice in data["choices"]:
            self.text += choice["delta"].get("content") or ""
            self.finish = choice["finish_reason"] or self.finish


def read(
    client: httpx.Client, method: str, path: str, *, until: int | None = None, **request: Any
) -> Streamed:
    """Read a whole stream, or as much as brings `until` characters, after which the client leaves."""
    streamed = Streamed()
    for event in events(client, method, path, **request):
        streamed.take(event)
        if until is not None and len(streamed.text) >= until:
            break
    return streamed
