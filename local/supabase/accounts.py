"""Accounts, one-time tokens and sessions, in the `auth` schema of the local Postgres."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from .errors import AuthError

Connection = psycopg.AsyncConnection[dict[str, Any]]
Row = dict[str, Any]
TOKEN_SECONDS = 3600  # a link or a code is good for so long
REUSE_SECONDS = 10  # a client that lost the answer may use its refresh token once more
FLOW_SECONDS = 300


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    """One transaction. A new connection each: the database may be restarted at any time."""
    connection = await psycopg.AsyncConnection.connect(url, row_factory=dict_row, connect_timeout=5)
    async with connection:
        yield connection


async def prepare(url: str) -> None:
    """Bring the `auth` schema up to date; two at once wait for each other."""
    async with connect(url) as connection:
        await connection.execute("select pg_advisory_xact_lock(hashtext('local.supabase'))")
        await connection.execute((Path(__file__).parent / "schema.sql").read_bytes())


async def _one(connection: Connection, sql: str, *values: Any) -> Row | None:
    return await (await connection.execute(sql.encode(), values)).fetchone()


async def user_by_id(connection: Connection, user_id: str) -> Row | None:
    """The account, or None."""
    return await _one(connection, "select * from auth.users where id = %s", user_id)


async def user_by_email(connection: Connection, email: str, *, create: bool, data: Row) -> Row:
    """The account of an address. Raises AuthError when there is none and none shall be made."""
    if create:
        await connection.execute(
            "insert into auth.users (email, raw_user_meta_data) values (%s, %s) on conflict (email) do nothing",
            (email, Jsonb(data)),
        )
    # Locked: two requests for the same address are limited as one after the other.
    user = await _one(connection, "select * from auth.users where email = %s for update", email)
    if user is None:
        raise AuthError(422, "otp_disabled", "Signups not allowed for otp")
    return user


def token_hash(email: str, token: str) -> str:
    """What stands in a link instead of the code."""
    return hashlib.sha224((email + token).encode()).hexdigest()


async def issue_one_time(
    connection: Connection, user: Row, challenge: str, method: str, seconds: float
) -> tuple[str, str, str]:
    """Code, hash and kind of a new one-time token; the former ones are void.

    Raises AuthError when the last one is younger than `seconds`.
    """
    kind = "magiclink" if user["email_confirmed_at"] else "signup"
    column = "recovery_sent_at" if kind == "magiclink" else "confirmation_sent_at"
    if user[column]:
        wait = seconds - (datetime.now(UTC) - user[column]).total_seconds()
        if wait > 0:
            raise AuthError(
                429,
                "over_email_send_rate_limit",
                f"For security purposes, you can only request this after {max(1, round(wait))} seconds.",
            )
    code = f"{secrets.randbelow(10**6):06d}"
    hashed = token_hash(user["email"], code)
    if challenge:
        hashed = f"pkce_{hashed}"
    await connection.execute("delete from auth.one_time_tokens where user_id = %s", (user["id"],))
    await connection.execute(
        "insert into auth.one_time_tokens (token_hash, user_id, kind, code_challenge, challenge_method)"
        " values (%s, %s, %s, %s, %s)",
        (hashed, user["id"], kind, challenge or None, method or None),
    )
    await connection.execute(
        f"update auth.users set {column} = now() where id = %s".encode(),  # noqa: S608 - one of two names
        (user["id"],),
    )
    return code, hashed, kind


async def redeem(connection: Connection, hashes: list[str], kinds: list[str], refusal: str) -> Row:
    """Use a one-time token up. Returns its row; raises AuthError 403 with the text `refusal`."""
    used = await _one(
        connection,
        "delete from auth.one_time_tokens where token_hash = any(%s) and kind = any(%s) returning *,"
        " created_at < now() - make_interval(secs => %s) as expired",
        hashes,
        kinds,
        TOKEN_SECONDS,
    )
    if used is None or used["expired"]:
        raise AuthError(403, "otp_expired", refusal)
    await connection.execute(
        "update auth.users set email_confirmed_at = coalesce(email_confirmed_at, now()) where id = %s",
        (used["user_id"],),
    )
    return used


async def issue_code(connection: Connection, used: Row) -> str:
    """The code that a client with a verifier exchanges for a session (PKCE)."""
    code = secrets.token_urlsafe(24)
    await connection.execute(
        "insert into auth.flow_state (auth_code, user_id, code_challenge, challenge_method) values (%s, %s, %s, %s)",
        (code, used["user_id"], used["code_challenge"], used["challenge_method"]),
    )
    return code


async def exchange_code(connection: Connection, code: str, verifier: str) -> str:
    """The user's id for a code and its verifier. Raises AuthError."""
    flow = await _one(
        connection,
        "delete from auth.flow_state where auth_code = %s returning *,"
        " created_at < now() - make_interval(secs => %s) as expired",
        code,
        FLOW_SECONDS,
    )
    if flow is None:
        raise AuthError(
            404, "flow_state_not_found", "invalid flow state, no valid flow state found"
        )
    if flow["expired"]:
        raise AuthError(403, "flow_state_expired", "invalid flow state, flow state has expired")
    made = verifier
    if flow["challenge_method"].lower() == "s256":
        digest = hashlib.sha256(verifier.encode()).digest()
        made = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    if not hmac.compare_digest(made.encode(), flow["code_challenge"].encode()):
        raise AuthError(
            400, "bad_code_verifier", "code challenge does not match previously saved code verifier"
        )
    return str(flow["user_id"])


async def start_session(connection: Connection, user_id: str) -> tuple[str, str]:
    """Session id and refresh token of a new session."""
    await connection.execute(
        "update auth.users set last_sign_in_at = now() where id = %s", (user_id,)
    )
    row = await _one(
        connection, "insert into auth.sessions (user_id) values (%s) returning id", user_id
    )
    assert row is not None  # noqa: S101 - an insert returns its row
    return str(row["id"]), await _refresh_token(connection, str(row["id"]), None)


async def _refresh_token(connection: Connection, session_id: str, parent: str | None) -> str:
    token = secrets.token_urlsafe(12)
    await connection.execute(
        "insert into auth.refresh_tokens (token, session_id, parent) values (%s, %s, %s)",
        (token, session_id, parent),
    )
    return token


async def refresh(connection: Connection, token: str) -> tuple[Row, str, str] | AuthError:
    """User, session id and new refresh token.

    A token that was used before ends its session, unless it is the last one's parent or was used a moment ago.
    The error is returned, not raised: the end of the session is to be kept.
    """
    found = await _one(
        connection,
        "select s.id, s.user_id from auth.sessions s join auth.refresh_tokens t on t.session_id = s.id"
        " where t.token = %s for update of s",
        token,
    )
    # Read only now: whoever held the session before us may have used the token up.
    row = await _one(
        connection,
        "select *, updated_at > now() - make_interval(secs => %s) as just_now"
        " from auth.refresh_tokens where token = %s",
        REUSE_SECONDS,
        token,
    )
    if found is None or row is None:
        return AuthError(
            400, "refresh_token_not_found", "Invalid Refresh Token: Refresh Token Not Found"
        )
    user = await user_by_id(connection, found["user_id"])
    assert user is not None  # noqa: S101 - a session goes with its user
    session_id = str(found["id"])
    if row["revoked"]:
        active = await _one(
            connection,
            "select token, parent from auth.refresh_tokens where session_id = %s and not revoked",
            session_id,
        )
        if active and active["parent"] == token:
            return user, session_id, active["token"]
        if not row["just_now"]:
            await connection.execute(
                "update auth.refresh_tokens set revoked = true, updated_at = 'epoch' where session_id = %s",
                (session_id,),
            )
            return AuthError(
                400, "refresh_token_already_used", "Invalid Refresh Token: Already Used"
            )
    await connection.execute(
        "update auth.refresh_tokens set revoked = true, updated_at = now() where session_id = %s and not revoked",
        (session_id,),
    )
    return user, session_id, await _refresh_token(connection, session_id, token)


async def session_exists(connection: Connection, session_id: str) -> bool:
    """Whether a session has not been ended."""
    found = await _one(connection, "select 1 from auth.sessions where id::text = %s", session_id)
    return found is not None


async def change_data(connection: Connection, user_id: str, data: Row) -> Row:
    """The account with its own data changed; a null removes an entry."""
    changed = await _one(
        connection,
        "update auth.users set raw_user_meta_data = jsonb_strip_nulls(raw_user_meta_data || %s),"
        " updated_at = now() where id = %s returning *",
        Jsonb(data),
        user_id,
    )
    assert changed is not None  # noqa: S101 - it was there in this transaction
    return changed


async def delete_user(connection: Connection, user_id: str) -> None:
    """Delete the account; what refers to it says what becomes of that."""
    await connection.execute("delete from auth.users where id = %s", (user_id,))


async def end_sessions(connection: Connection, user_id: str, session_id: str, scope: str) -> None:
    """Sign out: `global` everywhere, `local` here, `others` everywhere else."""
    condition = {"global": "true", "local": "id = %(session)s", "others": "id <> %(session)s"}[
        scope
    ]
    await connection.execute(
        f"delete from auth.sessions where user_id = %(user)s and {condition}".encode(),  # noqa: S608
        {"user": user_id, "session": session_id},
    )


def as_json(user: Row) -> dict[str, Any]:
    """The account as Auth shows it."""

    def time(name: str) -> str | None:
        return user[name].isoformat().replace("+00:00", "Z") if user[name] else None

    shown = {
        "id": str(user["id"]),
        "aud": user["aud"],
        "role": user["role"],
        "email": user["email"],
        "email_confirmed_at": time("email_confirmed_at"),
        "phone": "",
        "confirmation_sent_at": time("confirmation_sent_at"),
        "confirmed_at": time("email_confirmed_at"),
        "recovery_sent_at": time("recovery_sent_at"),
        "last_sign_in_at": time("last_sign_in_at"),
        "app_metadata": user["raw_app_meta_data"],
        "user_metadata": user["raw_user_meta_data"],
        "identities": [],
        "created_at": time("created_at"),
        "updated_at": time("updated_at"),
        "is_anonymous": False,
    }
    return {key: value for key, value in shown.items() if value is not None}
