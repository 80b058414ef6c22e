"""The nightly backup, run as on the droplet: real restic, a real SQLite and a real Postgres 17 with writers on them."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from local.postgres import server as postgres
from testbed.backup import Host, rows
from testbed.postgres import Server, apply, server
from tools.database.address import Refused
from tools.database.restore import restore

ANN = "11111111-1111-4111-8111-111111111111"
HISTORY = """
create schema supabase_migrations;
create table supabase_migrations.schema_migrations (version text primary key);
"""
APPLIED = "insert into supabase_migrations.schema_migrations values ('20261124000000')"
SEED = f"""{HISTORY}{APPLIED};
insert into auth.users (id, email) values ('{ANN}', 'ann@example.com');
insert into public.vectors (source, chunk, content, content_hash, embedding_model, embedding)
  select 'guia', 0, E'fé\\t\\\\\\n', repeat('0', 64), 'm', ('[1' || repeat(',0', 1535) || ']')::extensions.halfvec;
"""  # noqa: S608
# One transaction: whoever sees the conversation sees its question.
WRITE_POSTGRES = f"""
with made as (insert into public.conversations (user_id) values ('{ANN}') returning id)
insert into public.chat_logs (conversation_id, user_id, question, model) select id, '{ANN}', 'why?', 'm' from made
"""  # noqa: S608
REPEAT = """
import psycopg, sys, time
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    while True:
        connection.execute(sys.argv[2])
        time.sleep(0.01)
"""
TABLES = ["public.*", "private.*", "auth.users", "auth.identities", "supabase_migrations.*"]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path, str(tmp_path / "repository"))
    with made.writers():
        yield made


@pytest.fixture(scope="module")
def database() -> Iterator[tuple[Server, str]]:
    """Postgres 17 with all migrations and some rows."""
    with server(17) as made:
        name = made.database()
        apply(made.url(name))
        with psycopg.connect(made.url(name), autocommit=True) as connection:
            connection.execute(SEED.encode())
        yield made, name


def test_a_night_beside_writers_comes_back_row_by_row_and_byte_by_byte(
    host: Host, database: tuple[Server, str], tmp_path: Path
) -> None:
    postgres_server, name = database
    (host.secrets / "backup.database").write_text(postgres_server.url(name, "cimt_backup"))
    programs = str(postgres.programs(17))
    host.said["database"] = {"programs": programs, "tables": TABLES, "ca_file": ""}
    with psycopg.connect(postgres_server.url(name), autocommit=True) as connection:
        for _ in range(50):
            connection.execute(WRITE_POSTGRES.encode())
        url = postgres_server.url(name)
        writer = subprocess.Popen([sys.executable, "-c", REPEAT, url, WRITE_POSTGRES])
        try:
            stamp = host.good()
        finally:
            writer.kill()
            writer.wait()
    assert {part for part, size in stamp["parts"].items() if size["bytes"]} == {
        "n8n",
        "panel",
        "host",
        "postgres",
    }
    assert (host.folder / "bin/asked").read_text().split() == ["pause", "unpause"]

    back = host.good("restore", "copy", "latest")
    assert back["snapshot"] == stamp["snapshot"]
    whole = Path(back["folder"])
    copies = Path(back["dump"]).parent
    copied = rows(copies / "n8n/database.sqlite")
    assert copied == stamp["counts"]["n8n"]["execution_entity"]
    assert copied % 2 == 0
    assert 100 <= copied <= rows(host.volume / "database.sqlite")
    for path in (
        host.volume / "config",
        host.volume / "binaryData/one",
        host.state / "releases.jsonl",
    ):
        assert (whole / str(path)[1:]).read_bytes() == path.read_bytes()
    assert list(whole.rglob("database.sqlite*")) == [copies / "n8n/database.sqlite"]
    first, second = (
        int((copies / "panel/data" / name).read_text()) for name in ("first", "second")
    )
    assert first - second in (0, 1)

    # Into a new project, as `make migrate` leaves it. A trigger would make a second profile of ann.
    fresh = postgres_server.url(postgres_server.database())
    apply(fresh)
    seen = "select md5(string_agg(t::text, '|' order by t::text)) from {} t"
    with (
        psycopg.connect(fresh, autocommit=True) as target,
        psycopg.connect(postgres_server.url(name)) as source,
    ):
        target.execute(HISTORY.encode())
        with pytest.raises(Refused, match="20261124000000"):
            restore(target, copies / "postgres.sql")
        target.execute(APPLIED.encode())
        restored = restore(target, copies / "postgres.sql")
        assert restored == {
            k: v for k, v in stamp["counts"]["postgres"].items() if not k.startswith("supabase_")
        }
        for table in (
            "auth.users",
            "public.users",
            "public.vectors",
            "private.passage_words",
            "private.vocabulary",
        ):
            one, other = (
                c.execute(seen.format(table).encode()).fetchone() for c in (target, source)
            )
            assert one == other, table
        pairs = target.execute(
            "select (select count(*) from public.conversations), (select count(*) from public.chat_logs)"
        ).fetchone()
        assert pairs
        assert pairs[0] == pairs[1] >= 50
        columns = "select id, conversation_id, question, created_at from public.chat_logs"
        assert set(target.execute(columns)) <= set(source.execute(columns))
        with pytest.raises(Refused, match="has rows"):
            restore(target, copies / "postgres.sql")


def test_the_backup_s_role_reads_every_row_and_writes_none(database: tuple[Server, str]) -> None:
    made, name = database
    with psycopg.connect(made.url(name, "cimt_backup"), autocommit=True) as connection:
        assert connection.execute("select count(*) from auth.users, public.users").fetchone() == (
            1,
        )
        connection.execute("set default_transaction_read_only = off")  # a habit, not what keeps it
        forbidden = [
            "update public.users set display_name = 'x'",
            "delete from public.chat_logs",
            "insert into public.conversations (user_id) select id from auth.users",
            "truncate public.vectors",
            "create table public.mine (id int)",
            "create temporary table mine (id int)",
            "select private.delete_expired_chats(1)",
            "set role postgres",
            "alter role cimt_backup createrole",
        ]
        for statement in forbidden:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_where_postgres_may_not_give_its_rights_away_the_migration_says_what_to_do() -> None:
    with server(17) as made:
        made.admin("revoke pg_read_all_data from postgres cascade")
        made.admin("drop role if exists cimt_backup")
        with pytest.raises(
            psycopg.errors.RaiseException,
            match=r"cimt_backup cannot be made.*\n.*upgrade the project",
        ):
            apply(made.url(made.database()))


def test_other_keys_of_the_storage_are_tried_and_nothing_is_changed(host: Host) -> None:
    host.good()
    host.said["keys"] = {"AWS_ACCESS_KEY_ID": "backup.key-id", "RESTIC_PASSWORD": "backup.password"}
    assert "Next: make provision" in host.bad("opens", told="{}"), "none of this host is there"
    (host.secrets / "backup.key-id").write_text("old")
    assert host.run("opens", told='{"AWS_ACCESS_KEY_ID": "new"}').returncode == 0
    (host.secrets / "backup.password").write_text("another")
    assert host.bad("opens", told='{"AWS_ACCESS_KEY_ID": "new"}')


def test_it_waits_for_a_job_that_the_host_can_bear_only_one_of(host: Host) -> None:
    lock = host.volume / "job.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert f"another job has held {lock} for 2 s. Next: fuser -v" in host.bad()
    lock.unlink()
    lock.symlink_to(host.volume / "config")
    assert "Next: " in host.bad()


def test_a_new_password_opens_the_repository_beside_the_old_one_and_then_alone(host: Host) -> None:
    old, new = (host.secrets / "backup.password").read_text(), "a-password-of-tomorrow"
    add, end = json.dumps({"add": new}), json.dumps({"end": old})
    assert "no backup in that repository yet. Next: make backup" in host.bad("passwords", told=add)
    host.good()
    assert host.run("passwords", told=add).returncode == 0
    assert host.run("passwords", told=add).returncode == 0, "again, after a call that was cut short"
    host.good()
    assert "make provision" in host.bad("passwords", told=end), "it would shut this host out"
    (host.secrets / "backup.password").write_text(new)
    host.good()
    assert host.run("passwords", told=end).returncode == 0
    assert host.run("passwords", told=end).returncode == 0
    host.good()
    (host.secrets / "backup.password").write_text(old)
    assert "password" in host.bad()
    assert [path.name for path in host.secrets.iterdir()] == ["backup.password"]
