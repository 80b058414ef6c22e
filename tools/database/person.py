"""What a person may ask for: all that is kept about them, or that it is deleted.

Usage: USER_ID=… [CONFIRM=yes] python -m tools.database.person export|erase

USER_ID is the account's id or e-mail address: in the environment, where no shell reads it. The database is the
one that `make migrate` would take. `export` prints one JSON document. `erase` has Supabase Auth delete the account
(SUPABASE_URL, SUPABASE_SECRET_KEY), with which everything else of theirs goes; it prints how many rows of each kind
are gone, says which copies are left and until when, and needs `CONFIRM=yes`.
Exit codes: 0 done; 1 nobody is called so, or Supabase failed; 2 refused before anything was asked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid

import psycopg

from tools.database.address import ROOT, Refused, database_url, hide_secrets, told

LEFT = """\
What is left of it, and until when:
- Supabase's backups of the database: 7 days on Pro, 14 on Team, 30 on Enterprise, longer where point-in-time recovery
  is set so; on Free nobody says. Restoring one brings the account back: erase it again then.
- What their answers cost, by day and model: in the sum of deleted accounts, without their name or id.
- Copies of yours (`pg_dump`, an export): until you delete them.
- Logs with addresses and times, of Supabase and of the droplet: until they expire. What OpenAI was asked: 30 days.
"""
COUNTS = (
    "select (select count(*) from auth.users where id = %(id)s) as account, "
    "(select count(*) from public.conversations where user_id = %(id)s) as conversations, "
    "(select count(*) from public.chat_logs where user_id = %(id)s) as chat_logs, "
    "(select count(*) from public.api_keys where user_id = %(id)s) as api_keys, "
    "(select count(*) from private.spending where user_id = %(id)s) as spending, "
    "(select count(*) from public.vectors where owner_id = %(id)s) as documents"
)


def account(connection: psycopg.Connection, user: str) -> uuid.UUID:
    """The account's id. Raises LookupError when there is none."""
    try:
        by, value = "id = %s", str(uuid.UUID(user))
    except ValueError:
        by, value = "lower(email) = lower(%s)", user
    rows = connection.execute(f"select id from auth.users where {by}".encode(), (value,)).fetchall()  # noqa: S608
    if len(rows) != 1:
        raise LookupError(
            f"{len(rows)} accounts are called {user!r}. Next: give the id, as the dashboard shows it"
        )
    return uuid.UUID(str(rows[0][0]))


def auth() -> tuple[str, str]:
    """Address of Supabase Auth, and the key that may do everything there. Raises Refused."""
    url, key = os.environ.get("SUPABASE_URL", ""), os.environ.get("SUPABASE_SECRET_KEY", "")
    if os.environ.get("ENV", "local") == "local" and not url:
        from local.clouds import SECRET_KEY

        ports = json.loads((ROOT / ".local/ports.json").read_text())
        url, key = f"http://127.0.0.1:{ports['supabase']}", key or SECRET_KEY
    missing = [
        name for name, value in (("SUPABASE_URL", url), ("SUPABASE_SECRET_KEY", key)) if not value
    ]
    if missing:
        raise Refused(
            f"not set: {', '.join(missing)}. Next: docs/setup.md says where each comes from"
        )
    return f"{url.rstrip('/')}/auth/v1", key


def erase(connection: psycopg.Connection, found: uuid.UUID, url: str, key: str) -> dict[str, int]:
    """Have the account deleted, and count what went with it. Raises LookupError when something is left."""
    import httpx
    from supabase_auth import SyncGoTrueAdminAPI
    from supabase_auth.errors import AuthError

    def counts() -> dict[str, int]:
        cursor = connection.execute(COUNTS, {"id": found})
        names = [column.name for column in cursor.description or ()]
        return dict(zip(names, cursor.fetchone() or (), strict=True))

    before = counts()
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    try:
        with httpx.Client(timeout=60) as client:
            SyncGoTrueAdminAPI(url=url, headers=headers, http_client=client).delete_user(str(found))
    except (AuthError, httpx.HTTPError) as error:
        raise LookupError(
            f"Supabase Auth did not delete it: {error}. Next: the same again"
        ) from None
    left = {kind: number for kind, number in counts().items() if number}
    if left:
        raise LookupError(
            f"Supabase Auth deleted it, but there is {left}. Next: is it the same project?"
        )
    return before


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=["export", "erase"])
    hide_secrets("stderr")  # what goes to stdout is the person's data, as it is
    arguments = parser.parse_args()
    user = os.environ.get("USER_ID", "").strip()
    try:
        if not user:
            raise Refused("whose? Next: USER_ID=… (the account's id or e-mail address)")
        if arguments.action == "erase" and os.environ.get("CONFIRM") != "yes":
            raise Refused(
                "this deletes the account and all that belongs to it, for good. Next: the same with CONFIRM=yes"
            )
        url = database_url()
        service = auth() if arguments.action == "erase" else ("", "")
    except Refused as reason:
        print(f"user-{arguments.action}: {reason}", file=sys.stderr)
        return 2
    try:
        with psycopg.connect(
            url, autocommit=True, application_name="cimt person", connect_timeout=30
        ) as connection:
            found = account(connection, user)
            if arguments.action == "erase":
                document: object = erase(connection, found, *service)
            else:
                row = connection.execute("select private.export_user(%s)", (found,)).fetchone()
                document = row and row[0]
    except (psycopg.Error, LookupError) as error:
        print(f"user-{arguments.action}: {told(error)}", file=sys.stderr)
        return 1
    print(json.dumps(document, indent=2, ensure_ascii=False))
    if arguments.action == "erase":
        print(LEFT, end="", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
