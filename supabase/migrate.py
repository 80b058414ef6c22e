"""Applies the pending migrations with the Supabase CLI, one runner at a time.

Usage: python supabase/migrate.py [--plan]

The database is named by SUPABASE_DB_URL (direct connection or session pooler); for ENV=local it is the one
of `make up`. Exit codes: 0 applied, or nothing to do; 1 failed; 2 refused before anything was asked.
The CLI has no lock of its own: two pushes at once race and one fails half way through its list.
The password travels in the environment (PGPASSWORD), never in a command line.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.parse

import psycopg

ROOT = pathlib.Path(__file__).parents[1]
FILE = re.compile(r"\d{14}_[a-z0-9_]+\.sql")
LOCK = 0x43494D54  # "CIMT": one number for every runner of this project
APPLICATION = "cimt migrate"
LOCK_WAIT = 300  # seconds that a second runner waits for the first


class Refused(Exception):
    """Nothing was asked of the database; the text says what to do."""


def database_url() -> str:
    """URL of the database to migrate, with its password."""
    url = os.environ.get("SUPABASE_DB_URL", "")
    if os.environ.get("ENV", "local") == "local" and not url:
        ports = ROOT / ".local/ports.json"
        if not ports.exists():
            raise Refused("there is no local database. Next: make up")
        port = json.loads(ports.read_text())["postgres"]
        return f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
    if not url:
        raise Refused(
            "not set: SUPABASE_DB_URL (the database, session pooler or direct). "
            "Next: docs/setup.md says where it comes from"
        )
    # The text of a parser's error is not shown: it may quote the password.
    try:
        parts = urllib.parse.urlsplit(url)
        port, whole = parts.port, bool(parts.hostname and parts.username)
    except ValueError:
        port, whole = None, False
    if not whole or parts.scheme not in ("postgres", "postgresql"):
        raise Refused(
            "SUPABASE_DB_URL is not postgresql://user:password@host:port/database. "
            "Next: copy it from the dashboard again; in the password, write / # ? @ : as %2F %23 %3F %40 %3A"
        )
    if "password=" in parts.query:
        raise Refused(
            "SUPABASE_DB_URL has its password after the question mark. "
            "Next: put it where it belongs, postgresql://user:password@host:port/database"
        )
    if port == 6543:
        raise Refused(
            "SUPABASE_DB_URL is the transaction pooler (port 6543), which keeps neither locks nor settings. "
            "Next: take the session pooler's URL (port 5432) from the dashboard: Connect, Session pooler"
        )
    return url


def check_names() -> None:
    """Refuse files that the CLI would pass over in silence, or apply though they are no migration."""
    wrong = sorted(
        file.name for file in (ROOT / "migrations").iterdir() if not FILE.fullmatch(file.name)
    )
    if wrong:
        raise Refused(
            f"not a migration: migrations/{', migrations/'.join(wrong)}. "
            "Next: name it YYYYMMDDHHMMSS_what_it_does.sql, or move it elsewhere"
        )


def without_password(url: str) -> tuple[str, dict[str, str]]:
    """The URL as it may stand in a process list, and the environment that completes it."""
    parts = urllib.parse.urlsplit(url)
    if parts.password is None:
        return url, {}
    host = parts.netloc.rpartition("@")[2]
    bare = parts._replace(netloc=f"{parts.username}@{host}")
    return urllib.parse.urlunsplit(bare), {"PGPASSWORD": urllib.parse.unquote(parts.password)}


def cli() -> str:
    """The locked Supabase CLI."""
    places = f"{ROOT / 'node_modules/.bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which("supabase", path=places)
    if not found:
        raise Refused("the Supabase CLI is not installed. Next: make setup")
    return found


def push(url: str, *flags: str) -> int:
    """Exit code of ``supabase db push``, 0 or 1; its output goes to the terminal."""
    bare, password = without_password(url)
    # The whole URL stays with us: a child inherits only what it needs.
    environment = {k: v for k, v in os.environ.items() if k != "SUPABASE_DB_URL"}
    # --skip-vault: secrets are not this command's business.
    result = subprocess.run(
        [cli(), "db", "push", f"--remote={bare}", "--skip-vault", *flags],
        cwd=ROOT,
        env=environment | password | {"SUPABASE_TELEMETRY_DISABLED": "1"},
        stdin=subprocess.DEVNULL,
    )
    return int(result.returncode != 0)


def lock(connection: psycopg.Connection) -> None:
    """Hold the advisory lock for as long as the connection lives; raises TimeoutError."""
    deadline = time.monotonic() + LOCK_WAIT
    told = False
    while True:
        row = connection.execute("select pg_try_advisory_lock(%s)", (LOCK,)).fetchone()
        if row and row[0]:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"another runner has held the migration lock for {LOCK_WAIT} s. Next: look in "
                "pg_stat_activity for application_name 'cimt migrate'"
            )
        if not told:
            print("migrate: another runner is at work; waiting for it", flush=True)
            told = True
        time.sleep(1)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plan", action="store_true", help="show what is pending; apply nothing")
    arguments = parser.parse_args()
    try:
        check_names()
        cli()
        url = database_url()
    except Refused as reason:
        print(f"migrate: {reason}", file=sys.stderr)
        return 2
    try:
        with psycopg.connect(
            url, autocommit=True, application_name=APPLICATION, connect_timeout=30
        ) as connection:
            if arguments.plan:
                return push(url, "--dry-run")
            lock(connection)
            return push(url, "--yes")
    except (psycopg.OperationalError, TimeoutError) as error:
        print(f"migrate: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
