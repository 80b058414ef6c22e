"""Lost requests behind the proxy: the API's connections run idle, and the API is replaced, while people ask.

Usage: python -m bench.api.proxy [--caddy PROGRAM] [--rounds N]

The stand-in's own configuration of Caddy (keep-alive and retries as Traefik has them), and the one that it had before
(a new connection for each request, refused ones tried for five seconds), each before the real API. Between them a
relay does what Swarm's virtual address does: new connections go to the new task, old ones stay where they are.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx

from local.easypanel.proxy import configuration
from local.waiting import free_port
from testbed.api import Api, api

USERS = 40
IDLE_SECONDS = 5  # uvicorn's default for a connection that nobody uses
ALONE = {
    "DATABASE_URL": "postgresql://cimt_api@127.0.0.1:1/postgres",
    "SUPABASE_URL": "http://127.0.0.1:1",
    "OPENAI_API_KEY": "sk-none",
    "INGEST_KEY": "x" * 40,
}


class Address:
    """A port that stays; whoever connects gets to the task of that moment, and stays with it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.task = 0

    async def serve(self) -> asyncio.Server:
        """Listen until closed."""
        return await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.task)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, back_writer), self._pass(back_reader, writer))

    @staticmethod
    async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()


def caddy_configuration(address: int, port: int, folder: Path, kinder: bool) -> dict[str, Any]:
    """The stand-in's configuration for one domain, on a port of loopback; ``kinder``: as it was before."""
    domain = {
        "host": "127.0.0.1",
        "path": "/",
        "https": False,
        "wildcard": False,
        "destinationType": "custom",
        "customDestination": {"servers": [{"url": f"http://127.0.0.1:{address}"}]},
    }
    made = configuration([domain], folder)
    made["apps"] = {"http": {"servers": {"plain": made["apps"]["http"]["servers"]["plain"]}}}
    plain = made["apps"]["http"]["servers"]["plain"]
    plain["listen"] = [f"127.0.0.1:{port}"]
    if kinder:
        handler = plain["routes"][0]["handle"][-1]
        handler["transport"] = {
            "protocol": "http",
            "keep_alive": {"enabled": False},
            "dial_timeout": "2s",
        }
        handler["load_balancing"] = {"try_duration": "5s", "try_interval": "100ms"}
    return made


@contextlib.contextmanager
def caddy_serves(caddy: str, made: dict[str, Any], folder: Path) -> Iterator[None]:
    """Caddy runs with this configuration."""
    (folder / "run").mkdir()
    (folder / "caddy.json").write_text(json.dumps(made))
    command = [caddy, "run", "--config", str(folder / "caddy.json")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.asynccontextmanager
async def proxied(caddy: str, kinder: bool) -> AsyncIterator[tuple[Address, str]]:
    """Caddy before an address: the address, and where people ask."""
    address, port = Address(), free_port()
    server = await address.serve()
    with tempfile.TemporaryDirectory() as name:
        made = caddy_configuration(address.port, port, Path(name), kinder)
        with caddy_serves(caddy, made, Path(name)):
            yield address, f"http://127.0.0.1:{port}/chat"
    server.close()


def port_of(task: Api) -> int:
    """The port of loopback that it listens on."""
    return httpx.URL(task.url).port or 0


async def ask(client: httpx.AsyncClient, url: str, seen: collections.Counter[str]) -> None:
    """One question, as a person's browser asks it: once."""
    try:
        answer = await client.post(url)
        seen[str(answer.status_code)] += 1
    except httpx.HTTPError as error:
        seen[type(error).__name__] += 1


async def idle(
    client: httpx.AsyncClient, url: str, rounds: int, seen: collections.Counter[str]
) -> None:
    """Everybody asks at once, and again when the API may be about to let go of their connections."""
    for _ in range(rounds):
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(ask(client, url, seen) for _ in range(USERS)))
        rest = IDLE_SECONDS - (asyncio.get_running_loop().time() - started)
        await asyncio.sleep(rest + random.uniform(-0.01, 0.02))  # noqa: S311 - a pause


async def replaced(
    client: httpx.AsyncClient,
    address: Address,
    url: str,
    environment: dict[str, str],
    first: Api,
    rounds: int,
    seen: collections.Counter[str],
) -> None:
    """People ask all the while; a new task starts, gets the address, and the old one is told to end."""
    over = asyncio.Event()

    async def person() -> None:
        while not over.is_set():
            await ask(client, url, seen)
            await asyncio.sleep(random.uniform(0, 0.5))  # noqa: S311 - a pause

    people = [asyncio.create_task(person()) for _ in range(USERS)]
    old = first
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as tasks:
        for number in range(rounds):
            started = api(Path(name, str(number)), environment)
            new: Api = await asyncio.to_thread(tasks.enter_context, started)
            address.task = port_of(new)
            old.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(old.process.wait, 60)
            old = new
        over.set()
        await asyncio.gather(*people)


async def measure(caddy: str, rounds: int) -> None:
    """Print one line for each proxy, each time that the API keeps an idle connection, and each event."""
    cases = (
        ("new connections, 5 s of retries", True, IDLE_SECONDS),
        ("as Traefik", False, IDLE_SECONDS),
        ("as Traefik", False, 120),
    )
    for name, kinder, kept in cases:
        environment = ALONE | {"KEEP_ALIVE_SECONDS": f"{kept:g}"}
        for event in ("idle", "replaced"):
            seen: collections.Counter[str] = collections.Counter()
            async with (
                proxied(caddy, kinder) as (address, url),
                httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=USERS)) as client,
            ):
                with (
                    tempfile.TemporaryDirectory() as folder,
                    api(Path(folder), environment) as first,
                ):
                    address.task = port_of(first)
                    await ask(client, url, collections.Counter())
                    if event == "idle":
                        await idle(client, url, rounds, seen)
                    else:
                        await replaced(client, address, url, environment, first, rounds, seen)
            lost = sum(seen.values()) - seen["200"]
            told = f"{name} | {kept:g} s | {event} | {lost} of {sum(seen.values())} lost"
            print(f"{told} | {dict(seen)}", flush=True)


def main() -> None:
    """Measure, as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--caddy", default="caddy", help="the program; Debian's package caddy has it"
    )
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    asyncio.run(measure(given.caddy, given.rounds))


if __name__ == "__main__":
    main()
