"""Applies the pending migrations with the Supabase CLI, one runner at a time.

Usage: python -m tools.database.migrate [--plan]

The database is named by SUPABASE_DB_URL (direct connection or session pooler); for ENV=local it is the one
of `make up`. Exit codes: 0 applied, or nothing to do; 1 failed; 2 refused before anything was changed.
The CLI has no lock of its own (two pushes at once race and one fails half way through its list), no
time-outs, does not notice that an applied file was edited or that nothing was recorded, and cannot build an index
again whose first attempt left an invalid one: that is added here.
The password travels in the environment (PGPASSWORD), never in a command line.
With API_DATABASE_PASSWORD the API's role, the one that API_DATABASE_URL names, gets that password at the end, and with
BACKUP_DATABASE_PASSWORD the backup's role `cimt_backup` that one.
A migration of class `contract` waits for `make backup`, unless ACCEPT_NO_BACKUP says why not; a first installation has
nothing to lose.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
import psycopg.sql

from tools.database import history, safety
from tools.database.address import Refused, database_url, hide_secrets, told, without_password
from tools.step import note

ROOT = pathlib.Path(__file__).parents[2]
LOCK = 0x43494D54  # "CIMT": one number for every runner of this project
APPLICATION = "cimt migrate"
LOCK_WAIT = 300  # seconds that a second runner waits for the first
# Seconds. While a migration waits for a lock, everybody else who wants the table waits behind it.
LOCK_SECONDS = int(os.environ.get("MIGRATE_LOCK_SECONDS", "10"))
# Of the Supabase CLI beside a database. It reads the whole of config.toml, where it wants a truth value.
CLI_ENVIRONMENT = {"ALLOW_SIGN_UP": "true", "SUPABASE_TELEMETRY_DISABLED": "1"}
STATEMENT_SECONDS = int(os.environ.get("MIGRATE_STATEMENT_SECONDS", "900"))


@dataclass(frozen=True)
class Pending:
    """A migration that is still to be applied."""

    name: str
    sql: str
    safety: str


def check_files(applied: Mapping[str, str | None]) -> dict[str, str]:
    """The migrations that are here, in order. Raises Refused when they do not go on from those that are applied."""
    files = history.read(ROOT / "migrations")
    back = "git pull, or check out the branch that holds it"
    wrong = history.refusals(applied, files, "the database", back)
    if wrong:
        raise Refused("\n".join(refusal.text for refusal in wrong))
    return files


def cli() -> str:
    """The locked Supabase CLI."""
    places = f"{ROOT / 'node_modules/.bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which("supabase", path=places)
    if not found:
        raise Refused("the Supabase CLI is not installed. Next: make setup")
    return found


def pending(connection: psycopg.Connection) -> list[Pending]:
    """Files that the database does not have yet, in order. Raises Refused when its history is not ours."""
    applied = recorded(connection)
    files = check_files(applied)
    new = [name for name in files if name not in applied]
    lost = safety.losses(ROOT / "migrations") if new else {}
    return [Pending(name, files[name], "contract" if lost.get(name) else "expand") for name in new]


def recorded(connection: psycopg.Connection) -> dict[str, str | None]:
    """What the database says is applied, by the names of files; None: it does not say what that was."""
    table = "supabase_migrations.schema_migrations"
    row = connection.execute("select to_regclass(%s) is not null", (table,)).fetchone()
    if not row or not row[0]:
        return {}
    here: dict[str, str] = {}
    for name in history.read(ROOT / "migrations"):
        here.setdefault(name[:14], name)
    applied: dict[str, str | None] = {}
    query = f"select version, name, statements from {table} order by version"  # noqa: S608
    for version, name, statements in connection.execute(query.encode()):
        # An entry without statements was written by `supabase migration repair`: there is nothing to compare.
        sql = ";\n".join(statements) if statements else None
        applied[f"{version}_{name}.sql" if name else here.get(version, f"{version}_.sql")] = sql
    return applied


def built_apart(todo: list[Pending]) -> list[psycopg.sql.Identifier]:
    """Indexes that are built outside a transaction, with their schemas."""
    return [
        psycopg.sql.Identifier(node["relation"].get("schemaname", "public"), node["idxname"])
        for migration in todo
        for node in history.statements(migration.sql)
        if node["@"] == "IndexStmt" and node["concurrent"]
    ]


def invalid(connection: psycopg.Connection, index: psycopg.sql.Identifier) -> bool:
    """Whether an index of this name is left over from a build that failed, and nobody is building it."""
    query = (
        "select from pg_index i where i.indexrelid = to_regclass(%s) and not i.indisvalid and not exists "
        "(select from pg_stat_progress_create_index p where p.index_relid = i.indexrelid)"
    )
    return connection.execute(query, (index.as_string(connection),)).fetchone() is not None


class Watcher:
    """Looks at the CLI's session from ours, and ends what takes too long.

    A pooler may drop the time-outs that the CLI's session asks for, so this one keeps them too. Whoever stands in
    the way is named: after the time-out he is no longer to be seen from the outside.
    """

    # Ours is whoever runs a statement of these files: a pooler shows its own name and its own address.
    _LOOK = """
        select s.pid, s.wait_event_type = 'Lock',
          extract(epoch from clock_timestamp() - s.query_start)::float8,
          (select string_agg(format('pid %%s (%%s, %%s, %%s since %%s): %%s', b.pid,
              coalesce(nullif(b.application_name, ''), 'no application_name'), b.usename,
              coalesce(b.state, 'state not visible to us'), to_char(b.state_change, 'YYYY-MM-DD HH24:MI:SSOF'),
              coalesce(nullif(left(regexp_replace(b.query, '\\s+', ' ', 'g'), 80), ''), 'query not visible')), '; ')
            from pg_stat_activity b where b.pid = any (pg_blocking_pids(s.pid)))
        from pg_stat_activity s
        where s.pid <> pg_backend_pid() and s.datname = current_database() and s.usename = current_user
          and s.state = 'active' and s.query <> '' and strpos(%s, s.query) > 0"""

    def __init__(self, url: str, todo: list[Pending]) -> None:
        self._url = url
        self._sql = "\n".join(migration.sql for migration in todo)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.blocker = ""
        self.ended = ""  # why a statement was ended from here

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            with psycopg.connect(
                self._url, autocommit=True, application_name=APPLICATION, connect_timeout=30
            ) as connection:
                while not self._over.wait(0.5):
                    for pid, waits, seconds, blocker in connection.execute(
                        self._LOOK, (self._sql,)
                    ):
                        self.blocker = (blocker or self.blocker) if waits else ""
                        if waits and seconds > LOCK_SECONDS + 2:
                            self.ended = f"waited for a lock for {seconds:.0f} s"
                        elif seconds > STATEMENT_SECONDS + 2:
                            self.ended = f"a statement ran for {seconds:.0f} s"
                        else:
                            continue
                        connection.execute("select pg_cancel_backend(%s)", (pid,))
        except psycopg.Error as error:
            # The migration goes on: it has time-outs of its own.
            print(
                f"migrate: the watcher has ended: {' '.join(str(error).split())}", file=sys.stderr
            )


def inherited() -> dict[str, str]:
    """Our environment without what opens the database: it stays with us, a child inherits only what it needs."""
    secrets = ("SUPABASE_DB_URL", "API_DATABASE_PASSWORD", "BACKUP_DATABASE_PASSWORD")
    return {name: value for name, value in os.environ.items() if name not in secrets}


def push(url: str, *flags: str) -> int:
    """Exit code of ``supabase db push``, 0 or 1; its output goes through ours, which shows no secret."""
    bare, password = without_password(url)
    environment = inherited()
    # The CLI's own session reads these, and a killed runner's locks go when its transaction is left alone.
    limits = {
        "lock_timeout": LOCK_SECONDS,
        "statement_timeout": STATEMENT_SECONDS,
        "idle_in_transaction_session_timeout": 60,
    }
    options = " ".join(f"-c {name}={seconds}s" for name, seconds in limits.items())
    options = f"{os.environ.get('PGOPTIONS', '')} {options}".strip()
    # --skip-vault: secrets are not this command's business.
    arguments = ["db", "push", f"--remote={bare}", "--skip-vault", *flags]
    given = environment | password | CLI_ENVIRONMENT | {"PGOPTIONS": options}
    return int(run_cli(arguments, given) != 0)


def run_cli(
    arguments: Sequence[str], environment: Mapping[str, str], heard: list[str] | None = None
) -> int:
    """Exit code of the Supabase CLI; its output goes through ours, its lines into ``heard`` too."""
    with subprocess.Popen(
        [cli(), *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if heard is not None:
                heard.append(line)
    return process.returncode


def apply(connection: psycopg.Connection, url: str, todo: list[Pending]) -> int:
    """Push, and say who stood in the way or what is not as it should be then; exit code 0 or 1."""
    indexes = built_apart(todo)
    for index in indexes:
        if invalid(connection, index):
            name = index.as_string(connection)
            print(
                f"migrate: {name} is left from a build that failed; it is dropped and built anew",
                flush=True,
            )
            connection.execute(f"set lock_timeout = '{LOCK_SECONDS}s'".encode())
            connection.execute(psycopg.sql.SQL("drop index concurrently {}").format(index))
    with Watcher(url, todo) as watcher:
        code = push(url, "--yes")
    if code and watcher.ended:
        print(
            f"migrate: {watcher.ended} and was ended; nothing of that file is left", file=sys.stderr
        )
    if code and watcher.blocker:
        print(
            f"migrate: it waited for a lock held by {watcher.blocker}. "
            "Next: wait until that has ended, or end it with pg_terminate_backend(pid), and run this again",
            file=sys.stderr,
        )
    if code == 0:
        applied = recorded(connection)
        wrong = [
            f"migrations/{one.name} was not recorded" for one in todo if one.name not in applied
        ]
        wrong += [
            f"the index {index.as_string(connection)} is not valid"
            for index in indexes
            if invalid(connection, index)
        ]
        for what in wrong:
            print(
                f"migrate: the Supabase CLI has ended well, but {what}. "
                "Next: see above what it said, look at the database, and run this again",
                file=sys.stderr,
            )
        code = int(bool(wrong))
    return code


def back_up(connection: psycopg.Connection, todo: list[Pending]) -> None:
    """Have a verified backup, an hour old at most, before something is taken away. Raises Refused.

    The local database can be made anew, and a first installation has nothing to lose.
    """
    contracts = [migration.name for migration in todo if migration.safety == "contract"]
    if not contracts or os.environ.get("ENV", "local") == "local" or not recorded(connection):
        return
    if reason := os.environ.get("ACCEPT_NO_BACKUP"):
        print(f"migrate: no backup is asked for: {reason}", flush=True)
        return
    command = ["make", "--no-print-directory", "backup", "MAX_AGE_HOURS=1"]
    if subprocess.run(command, cwd=ROOT, env=inherited()).returncode:
        raise Refused(
            f"nothing was changed: {', '.join(contracts)} takes something away, and there is no backup from before. "
            "Next: see above, then make migrate; or the same command with ACCEPT_NO_BACKUP='why not'"
        )


def api_login(url: str) -> str:
    """The login role of the API that its address names: cimt_api, or its other login, cimt_api_b."""
    match = re.match(r"\w+://(cimt_api(?:_b)?)[.:@]", url)
    return match[1] if match else "cimt_api"


def set_password(connection: psycopg.Connection, url: str, role: str, setting: str) -> None:
    """Give a role the password of its setting, when it has not got it already.

    What is sent is a SCRAM verifier: the password itself reaches no log of the server.
    """
    password = os.environ.get(setting, "")
    if not password:
        return
    parts = urllib.parse.urlsplit(url)
    # At the pooler a role's name carries the project's: postgres.ref.
    user = role + (parts.username or "")[len("postgres") :]
    try:
        # One address only: Supabase bans who fails twice. An unchanged password is left alone, because
        # poolers keep its verifier.
        psycopg.connect(
            parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
            user=user,
            password=password,
            hostaddr=connection.info.hostaddr,
            connect_timeout=30,
        ).close()
        return
    except psycopg.OperationalError:
        verifier = connection.pgconn.encrypt_password(
            password.encode(), role.encode(), b"scram-sha-256"
        )
    connection.execute(
        psycopg.sql.SQL("alter role {} password {}").format(
            psycopg.sql.Identifier(role), psycopg.sql.Literal(verifier.decode())
        )
    )
    print(f"migrate: {role} has the password of {setting} now")


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
    hide_secrets("stdout", "stderr")
    arguments = parser.parse_args()
    try:
        cli()
        url = database_url()
    except Refused as reason:
        print(f"migrate: {reason}", file=sys.stderr)
        return 2
    try:
        with psycopg.connect(
            url, autocommit=True, application_name=APPLICATION, connect_timeout=30
        ) as connection:
            if not arguments.plan:
                lock(connection)
            todo = pending(connection)
            for migration in todo:
                print(f"migrate: {migration.name} ({migration.safety})", flush=True)
            if arguments.plan:
                return push(url, "--dry-run")
            back_up(connection, todo)
            note(migrations=[[migration.name, migration.safety] for migration in todo])
            code = apply(connection, url, todo)
            if code == 0:
                api = api_login(os.environ.get("API_DATABASE_URL", ""))
                set_password(connection, url, api, "API_DATABASE_PASSWORD")
                set_password(connection, url, "cimt_backup", "BACKUP_DATABASE_PASSWORD")
            return code
    except Refused as reason:
        print(f"migrate: {reason}", file=sys.stderr)
        return 2
    except (psycopg.Error, TimeoutError) as error:
        print(f"migrate: {told(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
