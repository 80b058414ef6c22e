"""What a transaction of the API costs on the way to a database that is far away, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from services.api.cimt_api.http.auth import User, person
from services.api.cimt_api.http.problems import Problem
from services.api.cimt_api.settings import load
from services.api.cimt_api.store.database import Database
from testbed.api import Clouds

SYNC = b"S\x00\x00\x00\x04"  # as a message of PostgreSQL's protocol
WRITE = "insert into public.conversations (user_id, title) values (%s, %s)"


class Wire:
    """A relay in front of Postgres that counts how often the client waits for the server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.trips = 0
        self.syncs = 0
        self._asked = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Yield the address to connect to."""
        async with await asyncio.start_server(self._connected, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            yield self.url.replace(f":{urlsplit(self.url).port}/", f":{port}/")

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at = urlsplit(self.url)
        theirs, ours = await asyncio.open_connection(at.hostname, at.port)
        await asyncio.gather(
            self._pass(reader, ours, asks=True), self._pass(theirs, writer, asks=False)
        )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asks: bool
    ) -> None:
        try:
            while data := await reader.read(65536):
                self.syncs += data.count(SYNC) if asks else 0
                if not asks and self._asked:
                    self.trips += 1
                self._asked = asks
                writer.write(data)
        finally:
            writer.close()


def with_database(
    clouds: Clouds,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[Database, Wire], Awaitable[None]],
) -> None:
    """Run `act` with a pool of one connection, over a wire."""
    for name, value in clouds.environment().items():
        monkeypatch.setenv(name, value)
    wire = Wire(clouds.postgres.url)

    async def run() -> None:
        async with wire.running() as url:
            monkeypatch.setenv("DATABASE_URL", url)
            monkeypatch.setenv("DATABASE_POOL", "1")
            database = Database(load())
            await database.open()
            try:
                await database.ping(10)
                await act(database, wire)
            finally:
                await database.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_transaction_is_one_round_trip_to_one_sync(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(database: Database, wire: Wire) -> None:
        trips, syncs = wire.trips, wire.syncs
        async with database.as_nobody() as connection:
            first = await connection.execute("select current_setting('request.jwt.claims')")
            second = await connection.execute("select current_setting('statement_timeout')")
        # Supabase's pooler lends a connection from the first message to the answer of the first Sync.
        assert (wire.trips - trips, wire.syncs - syncs) == (1, 1)
        assert await first.fetchall() == [('{"role": "anon"}',)]
        assert await second.fetchall() == [("10s",)]
        async with database.as_nobody() as connection:
            rows = await connection.execute("select txid_current_if_assigned()")
        assert await rows.fetchall() == [(None,)]

    with_database(clouds, monkeypatch, act)


async def written(database: Database, user: User, owners: Iterable[object], title: str) -> None:
    """Make a conversation of this title for each owner, as the user, in one transaction."""
    async with database.as_user(user) as connection:
        for owner in owners:
            await connection.execute(WRITE, (owner, title))


def test_what_is_given_up_in_between_leaves_nothing(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    clouds.sign_in.token("ann@example.com")
    ((account,),) = clouds.postgres.rows(
        "select id::text from auth.users where email = 'ann@example.com'"
    )
    ann = person(account)

    def gives_up() -> Iterator[str]:
        yield account
        raise LookupError

    async def act(database: Database, _: Wire) -> None:
        await written(database, ann, [account], "kept")
        with pytest.raises(LookupError):
            await written(database, ann, gives_up(), "given up")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await written(database, ann, [account, uuid4()], "also for another")
        # What the client itself cannot send, the server has heard nothing of.
        with pytest.raises(Problem):
            await written(database, ann, [account, "\0"], "unsendable")
        # It is the first mistake that is told, not what follows from it.
        with pytest.raises(Problem) as refused:
            await written(database, ann, ["no uuid", *[account] * 20], "of nobody")
        assert refused.value.status == 422
        begun = asyncio.Event()

        async def waiting() -> None:
            async with database.as_user(ann) as connection:
                await connection.execute(WRITE, (account, "cancelled"))
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(waiting())
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await written(database, ann, [account], "kept too")  # by the same connection

    with_database(clouds, monkeypatch, act)
    found = clouds.postgres.rows(
        "delete from public.conversations where user_id = %s returning title", account
    )
    assert {title for (title,) in found} >= {"kept", "kept too"}
    assert not {title for (title,) in found} & {
        *("given up", "also for another", "unsendable", "of nobody", "cancelled")
    }
