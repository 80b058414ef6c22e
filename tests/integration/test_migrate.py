"""`make migrate` on a real Postgres with a password, as Supabase's is, by the real Supabase CLI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.database.server import Server, free_port
from tests.database.server import server as start_server

ROOT = Path(__file__).parents[2]
PASSWORD = "with/odd#signs@and:more"
QUOTED = "with%2Fodd%23signs%40and%3Amore"
FIRST = sorted(path.name for path in (ROOT / "migrations").glob("*.sql"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that lets nobody in without the password, with the roles and owners of Supabase."""
    with start_server() as made:
        made.lock_up(PASSWORD)
        yield made


class Checkout:
    """A copy of what `make migrate` uses, with a database of its own."""

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.migrations = root / "migrations"
        self.url = url
        shutil.copytree(ROOT / "supabase", root / "supabase", symlinks=True)
        shutil.copytree(ROOT / "migrations", self.migrations)

    def add(self, name: str, sql: str) -> None:
        (self.migrations / name).write_text(sql)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        path = f"{ROOT / 'node_modules/.bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            [sys.executable, "supabase/migrate.py", *arguments],
            cwd=self.root,
            env=os.environ
            | {"PATH": path, "ENV": "production", "SUPABASE_DB_URL": self.url}
            | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """(exit code, all output)."""
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=120)
        assert PASSWORD not in output
        assert QUOTED not in output
        return process.returncode, output

    def ask(self, sql: str) -> list[tuple]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql).fetchall()

    def history(self) -> list[str]:
        """File names of the applied migrations."""
        rows = self.ask(
            "select version || '_' || name || '.sql' from supabase_migrations.schema_migrations order by 1"
        )
        return [name for (name,) in rows]


@pytest.fixture
def checkout(server: Server, tmp_path: Path) -> Checkout:
    return Checkout(tmp_path, server.url(server.database(), password=QUOTED))


def test_the_plan_lists_and_applies_nothing(checkout: Checkout) -> None:
    code, output = checkout.run("--plan")
    assert code == 0
    assert all(name in output for name in FIRST)
    assert checkout.ask("select to_regclass('public.users') is null") == [(True,)]


def test_a_first_run_applies_all_and_a_second_nothing(checkout: Checkout) -> None:
    code, output = checkout.run()
    assert code == 0
    assert all(name in output for name in FIRST)
    assert checkout.history() == FIRST
    code, output = checkout.run()
    assert code == 0
    assert "up to date" in output
    assert checkout.history() == FIRST


def test_two_runners_at_once_take_turns(checkout: Checkout) -> None:
    checkout.add(
        "20990101000000_slow.sql", "select pg_sleep(3); create table public.slow (id int);"
    )
    runners = [checkout.start(), checkout.start()]
    outputs = [runner.communicate(timeout=120)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], outputs
    assert sum("waiting" in output for output in outputs) == 1, outputs
    assert sum("up to date" in output for output in outputs) == 1, outputs
    assert checkout.history() == [*FIRST, "20990101000000_slow.sql"]


def test_the_password_is_in_no_command_line(checkout: Checkout) -> None:
    checkout.add("20990101000000_slow.sql", "select pg_sleep(2);")
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                except OSError:
                    continue  # it has ended
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        code, output = checkout.run()
    finally:
        over.set()
        watcher.join()
    assert code == 0, output
    database = checkout.url.rpartition("/")[2]
    assert any("db push" in line and database in line for line in seen)
    assert not any(PASSWORD in line or QUOTED in line for line in seen)


def test_a_failing_migration_leaves_nothing(checkout: Checkout) -> None:
    checkout.add(
        "20990101000000_half.sql",
        "create table public.half (id int); select 1 / 0; select 'never';",
    )
    code, output = checkout.run()
    assert code == 1
    assert "division by zero" in output
    assert checkout.ask("select to_regclass('public.half') is null") == [(True,)]
    assert checkout.history() == FIRST
    # Repaired, it goes on from there.
    checkout.add("20990101000000_half.sql", "create table public.half (id int);")
    assert checkout.run()[0] == 0


@pytest.mark.parametrize("name", ["1_short.sql", "20990101000000_x.down.sql", "notes.md"])
def test_a_badly_named_file_is_refused(checkout: Checkout, name: str) -> None:
    checkout.add(name, "drop table public.users;")
    code, output = checkout.run()
    assert code == 2
    assert name in output
    assert "Next:" in output
    assert checkout.ask("select to_regclass('public.users') is null") == [(True,)]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"postgresql://postgres.ref:{QUOTED}@pooler.invalid:6543/postgres", "session pooler"),
        (f"postgresql://postgres:{PASSWORD}@db.invalid:5432/postgres", "%2F"),
        (f"postgresql://postgres@db.invalid:5432/postgres?password={QUOTED}", "question mark"),
        ("https://db.invalid/", "postgresql://"),
        ("", "SUPABASE_DB_URL"),
    ],
    ids=["transaction pooler", "password not quoted", "password in query", "scheme", "not set"],
)
def test_a_wrong_address_is_refused(tmp_path: Path, url: str, says: str) -> None:
    code, output = Checkout(tmp_path, "").run(SUPABASE_DB_URL=url)
    assert code == 2
    assert says in output
    assert "Next:" in output
    assert len(output.splitlines()) == 1


def test_a_database_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    url = f"postgresql://postgres:{QUOTED}@127.0.0.1:{free_port()}/none?sslmode=disable"
    code, output = Checkout(tmp_path, url).run()
    assert code == 1
    assert "Connection refused" in output
    assert len(output.splitlines()) == 1


def test_the_local_database_is_found_by_its_port(checkout: Checkout, server: Server) -> None:
    (checkout.root / ".local").mkdir()
    (checkout.root / ".local/ports.json").write_text(json.dumps({"postgres": server.port}))
    # Supabase's password comes from the environment here only because this server asks for one.
    code, output = checkout.run("--plan", ENV="local", SUPABASE_DB_URL="", PGPASSWORD=PASSWORD)
    assert code == 0, output
    assert FIRST[0] in output
