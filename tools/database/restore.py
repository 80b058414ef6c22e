"""Puts the rows of a backup into a database that `make migrate` has made and nobody has filled.

Usage: python -m tools.database.restore FILE

FILE is `postgres.sql` of a backup (pg_dump, data only). The database is named by SUPABASE_DB_URL, which never reaches
the droplet. All rows or none: one transaction, triggers off, as they are when Supabase restores. Exit codes:
0 restored; 1 failed, nothing is changed; 2 refused.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tools.database.address import Refused, database_url, hide_secrets, told

# Which migrations the rows belong to: compared, not restored.
HISTORY = "supabase_migrations.schema_migrations"
APPLIED = "select version from supabase_migrations.schema_migrations"
END = b"\\.\n"


def tables(dump: Path) -> Iterator[tuple[str, str, Iterator[bytes]]]:
    """Of each table: its name, the COPY statement, its rows as lines. Then the sequences, as ("", statement, none).

    What is left of a table's lines is passed over before the next one comes.
    """
    with dump.open("rb") as lines:
        for line in lines:
            if line.startswith(b"COPY "):
                statement = line.decode().rstrip()
                rows = itertools.takewhile(lambda row: row != END, lines)
                yield statement.removeprefix("COPY ").split(" (", 1)[0], statement, rows
                for _ in rows:
                    pass
            elif line.startswith(b"SELECT pg_catalog.setval("):
                yield "", line.decode(), iter(())


def restore(connection: psycopg.Connection, dump: Path) -> dict[str, int]:
    """Rows by table. Raises Refused where the database is not as `make migrate` leaves a new one."""
    restored: dict[str, int] = {}
    with connection.transaction():
        applied = set(connection.execute(APPLIED))
        connection.execute("set local session_replication_role = replica")
        for name, statement, rows in tables(dump):
            if not name:
                connection.execute(statement.encode())
            elif name == HISTORY:
                lacking = {(row.split()[0].decode(),) for row in rows} - applied
                if lacking:
                    version = min(lacking)[0]
                    raise Refused(
                        f"the backup has migration {version}, which is missing here. Next: make migrate"
                    )
            else:
                found = connection.execute(f"select exists (select from {name})".encode())  # noqa: S608 - pg_dump quotes
                if found.fetchone() == (True,):
                    raise Refused(
                        f"{name} has rows, and none is overwritten. Next: a new project, make migrate, then this again"
                    )
                with connection.cursor().copy(statement.encode()) as copy:
                    restored[name] = 0
                    for row in rows:
                        copy.write(row)
                        restored[name] += 1
    return restored


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    hide_secrets("stdout", "stderr")
    given = parser.parse_args()
    try:
        with psycopg.connect(
            database_url(), autocommit=True, connect_timeout=30, application_name="cimt restore"
        ) as connection:
            restored = restore(connection, given.file)
    except Refused as reason:
        print(f"restore: {reason}", file=sys.stderr)
        return 2
    except (psycopg.Error, OSError) as error:
        print(f"restore: nothing was changed: {told(error)}", file=sys.stderr)
        return 1
    for name, rows in restored.items():
        print(f"restore: {name}: {rows} rows")
    print("Next: make migrate (the passwords of cimt_api and cimt_backup are not in a backup)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
