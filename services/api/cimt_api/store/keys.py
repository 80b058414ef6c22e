"""Keys by which programs ask in their user's name. A key is shown once; kept is its hash."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any
from uuid import UUID

from psycopg import errors
from psycopg.rows import dict_row

from ..http.auth import User, person, refusal
from ..http.problems import Problem
from .database import Database

PREFIX = "cimt_"  # by which a key is told from a token, and found by scanners of secrets
MOST = 20  # of one user


class Keys:
    """Makes, lists, takes and revokes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def user(self, key: str) -> User:
        """Return the user of a key. Raises Problem 401 for one that is not known, or not any more."""
        async with self._database.as_nobody() as connection:
            found = await connection.execute("select private.use_api_key(%s)", (_hash(key),))
        row = await found.fetchone()
        if row is None or row[0] is None:
            raise refusal("The key is not known, or was revoked.")
        return person(str(row[0]))

    async def make(self, user: User, name: str) -> dict[str, Any]:
        """Return a new key, with its text under `key`. Raises Problem 409 when the user has MOST of them."""
        key = PREFIX + secrets.token_urlsafe(32)
        try:
            async with self._database.as_user(user) as connection:
                made = connection.cursor(row_factory=dict_row)
                await made.execute(
                    "insert into public.api_keys (user_id, name, hash, hint) select %s, %s, %s, %s "
                    "where (select count(*) from public.api_keys where user_id = %s) < %s "
                    "returning id, name, hint, created_at, last_used_at",
                    (user.id, name, _hash(key), key[-4:], user.id, MOST),
                )
        except errors.ForeignKeyViolation:
            raise refusal("The account does not exist any more.") from None
        row = await made.fetchone()
        if row is None:
            raise Problem(
                409, "You have too many keys", f"Revoke one: {MOST} at most.", kind="too-many-keys"
            )
        return {**row, "key": key}

    async def list(self, user: User) -> list[dict[str, Any]]:
        """Return the user's keys, without their texts, the newest first."""
        async with self._database.as_user(user) as connection:
            rows = connection.cursor(row_factory=dict_row)
            await rows.execute(
                "select id, name, hint, created_at, last_used_at from public.api_keys where user_id = %s "
                "order by created_at desc, id",
                (user.id,),
            )
        return await rows.fetchall()

    async def revoke(self, user: User, key_id: UUID) -> None:
        """Delete a key: it counts for no request any more. Raises Problem 404."""
        async with self._database.as_user(user) as connection:
            gone = await connection.execute(
                "delete from public.api_keys where id = %s and user_id = %s", (key_id, user.id)
            )
        if gone.rowcount == 0:
            raise Problem(404, "There is no such key", kind="key-not-found")


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()
