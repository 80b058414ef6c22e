"""What a person may ask for: all that is kept about them, or that it is deleted.

Usage: USER_ID=… [CONFIRM=yes] python -m tools.database.person export|erase

USER_ID is the account's id or e-mail address: in the environment, where no shell reads it. The database is the
one that `make migrate` would take. `export` prints one JSON document; `erase` prints how many rows of each kind are
gone, and needs `CONFIRM=yes`.
Exit codes: 0 done; 1 nobody is called so, or the database failed; 2 refused before anything was asked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid

import psycopg

from tools.database.address import Refused, database_url, hide_secrets, told


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
    except Refused as reason:
        print(f"user-{arguments.action}: {reason}", file=sys.stderr)
        return 2
    try:
        with psycopg.connect(url, application_name="cimt person", connect_timeout=30) as connection:
            found = account(connection, user)
            call = f"select private.{arguments.action}_user(%s)".encode()
            row = connection.execute(call, (found,)).fetchone()
    except (psycopg.Error, LookupError) as error:
        print(f"user-{arguments.action}: {told(error)}", file=sys.stderr)
        return 1
    print(json.dumps(row and row[0], indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
