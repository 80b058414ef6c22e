"""Postgres: one pool, and transactions that see what the user who asks may see (row-level security)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from ..http.problems import Problem

if TYPE_CHECKING:
    from ..http.auth import User
    from ..settings import Settings

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

WAIT_SECONDS = 5.0  # for a free connection
STATEMENT_SECONDS = 10.0
PING_KEPT_SECONDS = 1.0
WAITING = 500  # requests queued for a connection, at most
SERVICE = json.dumps({"role": "service_role"})
NOBODY = json.dumps({"role": "anon"})

log = logging.getLogger(__name__)


def unavailable(detail: str) -> Problem:
    """Make the Problem 503 of a database that does not answer, or not in time."""
    return Problem(
        503,
        "The database does not answer",
        detail,
        kind="database-unavailable",
        headers={"Retry-After": "2"},
    )


class Database:
    """A pool that connects in the background: the API starts and lives without a database."""

    def __init__(self, settings: Settings) -> None:
        # Keep-alives and the user time-out end a connection whose other side is gone without a word.
        address = make_conninfo(
            settings.database_url.get_secret_value(),
            connect_timeout=5,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=15_000,
            application_name="cimt-api",
        )
        self._size = settings.database_pool
        self._pool = AsyncConnectionPool(
            address,
            min_size=min(2, settings.database_pool),
            max_size=settings.database_pool,
            max_waiting=WAITING,
            timeout=WAIT_SECONDS,
            # Supavisor in transaction mode has no prepared statements.
            kwargs={"prepare_threshold": None, "autocommit": True},
            reconnect_timeout=10,
            open=False,
            name="cimt-api",
        )
        self._ping: asyncio.Task[bool] | None = None  # the last one, or the one under way
        self._pinged = 0.0  # when it ended (monotonic)

    async def open(self) -> None:
        """Begin to connect, without waiting for it."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    def as_user(self, user: User) -> contextlib.AbstractAsyncContextManager[Connection]:
        """Open a transaction that sees and changes what this user may.

        It is a pipeline: fetch after the `async with` where you can, then all of it is one round trip.
        Raises Problem 503 when the database does not answer.
        """
        return self._transaction(user.claims, STATEMENT_SECONDS)

    def as_service(
        self, seconds: float = STATEMENT_SECONDS
    ) -> contextlib.AbstractAsyncContextManager[Connection]:
        """Open a transaction with the rights of the ingest routes; `seconds` bounds each statement."""
        return self._transaction(SERVICE, seconds)

    def as_nobody(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        """Open a transaction that sees nobody's rows, for who has yet to show who they are."""
        return self._transaction(NOBODY, STATEMENT_SECONDS)

    async def ping(self, seconds: float) -> None:
        """Make one round trip. Raises Problem 503 when it fails or takes longer than this."""
        try:
            async with asyncio.timeout(seconds), self._transaction(NOBODY, seconds, wait=seconds):
                pass
        except TimeoutError:
            raise unavailable(f"No answer within {seconds:g} s.") from None

    async def answers(self, seconds: float) -> bool:
        """Tell whether a ping gets through; however often this is called, the database is asked once a second."""
        if self._ping is None or (
            self._ping.done() and time.monotonic() - self._pinged > PING_KEPT_SECONDS
        ):
            self._ping = asyncio.create_task(self._check(seconds))
        return await asyncio.shield(self._ping)

    async def _check(self, seconds: float) -> bool:
        try:
            await self.ping(seconds)
        except Problem:
            return False
        finally:
            self._pinged = time.monotonic()
        return True

    def stats(self) -> dict[str, int]:
        """Return counts of the pool: `pool_size`, `pool_available`, `requests_waiting` and more, see psycopg_pool."""
        return self._pool.get_stats()

    @contextlib.asynccontextmanager
    async def _transaction(
        self, claims: str, seconds: float, wait: float = WAIT_SECONDS
    ) -> AsyncIterator[Connection]:
        settings = "select set_config('request.jwt.claims', %s, true), set_config('statement_timeout', %s, true)"
        try:
            # What is sent up to the end of a pipeline is one transaction. BEGIN and COMMIT would be waited for.
            async with self._connection(wait) as connection, connection.pipeline():
                try:
                    # In the transaction alone, so that it also holds behind a pooler that shares connections.
                    await connection.execute(settings, (claims, f"{seconds * 1000:.0f}"))
                    yield connection
                except BaseException:
                    # The end of the pipeline would commit what was sent before it. Where it is the server's own word,
                    # that has ended the transaction already.
                    with contextlib.suppress(psycopg.Error):
                        await connection.execute("rollback")
                    raise
        except (PoolTimeout, TooManyRequests):
            raise unavailable("Every connection is in use, or none can be made.") from None
        except psycopg.DataError as error:
            log.warning("database: %s", type(error).__name__)
            raise Problem(
                422,
                "The database cannot hold this",
                "A text or number is not one that Postgres knows.",
                kind="invalid-request",
            ) from None
        except psycopg.OperationalError as error:
            # Its text may hold the server's address, which is for our log only.
            log.warning("database: %s: %s", type(error).__name__, str(error).strip()[:300])
            raise unavailable("The request was not carried out.") from None

    @contextlib.asynccontextmanager
    async def _connection(self, wait: float) -> AsyncIterator[Connection]:
        """Lend a connection whose server has not hung up, which takes no round trip to find out."""
        deadline = time.monotonic() + wait
        while True:
            connection = await self._pool.getconn(max(deadline - time.monotonic(), 0.01))
            try:
                connection.pgconn.consume_input()
                connection.pgconn.consume_input()  # the first may have read the server's last words
            except psycopg.OperationalError:
                await self._pool.putconn(connection)  # which throws it away and makes another
                continue
            break
        try:
            yield connection
        finally:
            await self._pool.putconn(connection)
