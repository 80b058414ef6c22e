"""The safety class of a migration, its findings, and that docs/schema.md is what the migrations make."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from testbed.postgres import ROOT, Server, server
from tools.database import judge
from tools.database.safety import check, same_release

BASE = """
create table public.base (id uuid primary key, note text);
comment on table public.base is 'b';
comment on column public.base.id is 'b';
comment on column public.base.note is 'b';
alter table public.base enable row level security;
grant select on public.base to authenticated;
create policy own on public.base to authenticated using (id = (select auth.uid()));
"""

# A function that deletes when it is called, and takes nothing away by being there.
CLEANER = """
create function public.clean() returns void language plpgsql set search_path = '' as $$
begin delete from public.base where note is null; end $$;
"""
MENDED = "alter function public.clean() set search_path = pg_catalog, pg_temp;"
UNDONE = "alter function public.clean() set search_path = '';"


Judged = Callable[[str], tuple[str, set[str]]]


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with server() as made:
        yield made


@pytest.fixture(scope="module")
def template(running: Server) -> str:
    """A database that has what BASE makes."""
    name = running.database()
    with psycopg.connect(running.url(name)) as connection:
        connection.execute(BASE)
    return name


@pytest.fixture
def judged(tmp_path: Path, running: Server, template: str) -> Judged:
    """(class, rules found) of a migration that comes after BASE."""

    def read(sql: str) -> tuple[str, set[str]]:
        (tmp_path / "20200102000000_next.sql").write_text(sql)
        (report,) = judge.read(tmp_path, running, template)
        return report.safety, {finding.rule for finding in report.findings}

    return read


MISTAKES = [
    ("create table public.t (id int primary key);", "no-row-security"),
    ("create table public.t (id int primary key);", "no-grant"),
    ("create table public.t (id int primary key);", "no-comment"),
    ("alter table public.base add column x text;", "no-comment"),
    ("create policy p on public.base using (id = auth.uid());", "policy-per-row"),
    ("create table public.t (id uuid references public.base (id));", "foreign-key-index"),
    ("create extension vector version '0.8.0';", "extension-version"),
    ("create index i on public.base (note);", "index-not-concurrent"),
    (
        "create table public.t (e halfvec(3)); create index i on public.t using hnsw (e vector_cosine_ops);",
        "vector-opclass",
    ),
    (
        (
            "create table public.t (e halfvec(3)); create index i on public.t using hnsw (e halfvec_l2_ops);"
            "create function f(q halfvec) returns int language sql as 'select 1 from t order by e <=> q';"
        ),
        "vector-opclass",
    ),
    ("create function public.f() returns int language sql as 'select 1';", "search-path"),
    (
        "create function public.f() returns int language sql set search_path = '' as 'select 1';",
        "search-path",
    ),
    ("create function public.f() returns int language sql as 'select 1';", "public-function"),
    ("create tabel x;", "syntax"),
]
TAKES_AWAY = [
    "drop table public.base;",
    "alter table public.base drop column note;",
    "alter table public.base alter column note set not null;",
    "alter table public.base alter column note type integer using 1;",
    "alter table public.base add column must text not null;",
    "alter table public.base rename column note to text;",
    "alter table public.base add constraint c check (note <> '') not valid;",
    "create unique index concurrently i on public.base (note);",
    "truncate public.base;",
    "delete from public.base;",
    "revoke select on public.base from authenticated;",
    "drop policy own on public.base;",
    "alter policy own on public.base to anon;",
    "update public.base set note = 'x';",
    "with gone as (delete from public.base returning id) select count(*) from gone;",
    "do $$ begin execute 'drop table public.base'; end $$;",
    "do $$ begin if true then alter table public.base drop column note; end if; end $$;",
    "do $$ begin null; exception when others then delete from public.base; end $$;",
    "do $$ declare t text := 'base'; begin execute format('drop table %I', t); end $$;",
    CLEANER + "select public.clean();",
    CLEANER + "do $$ begin perform public.clean(); end $$;",
]
ADDS = [
    "alter table public.base add column more text; comment on column public.base.more is 'm';",
    "create index concurrently i on public.base (note);",
    "alter policy own on public.base to authenticated, anon;",
    "grant update on public.base to authenticated;",
    "alter table public.base alter column note drop not null;",
    "alter table public.base add column more text; update public.base set more = note;",
    CLEANER,  # nobody calls it yet
    "do $$ begin if true then alter table public.base add column more text; end if; end $$;",
    "do $$ begin raise notice 'we drop nothing, delete from nowhere'; end $$;",
    "do $$ declare drop_note text := 'alter table'; begin perform length(drop_note); end $$;",
]


@pytest.mark.parametrize(("sql", "rule"), MISTAKES)
def test_a_mistake_is_found(judged: Judged, sql: str, rule: str) -> None:
    assert rule in judged(sql)[1]


@pytest.mark.parametrize("sql", TAKES_AWAY)
def test_what_takes_away_is_a_contract(judged: Judged, sql: str) -> None:
    safety, rules = judged(sql)
    assert (safety, "destructive" in rules) == ("contract", True)


@pytest.mark.parametrize("sql", ADDS)
def test_what_only_adds_is_an_expansion(judged: Judged, sql: str) -> None:
    assert judged(sql)[0] == "expand"


def test_a_later_statement_mends_where_a_function_looks(judged: Judged) -> None:
    assert judged(CLEANER + MENDED) == ("expand", {"no-comment", "public-function"})
    assert "search-path" in judged(CLEANER + MENDED + UNDONE)[1]


def test_a_contract_waits_for_the_release_of_the_code(tmp_path: Path, running: Server) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    for folder in ("migrations", "services/api"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "services/api/app.py").write_text("old\n")
    (tmp_path / "migrations/20200101000000_base.sql").write_text(BASE)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "released")
    drop = "alter table public.base drop column note;"
    (tmp_path / "migrations/20200102000000_drop.sql").write_text(drop)
    git("add", ".")
    reports = check(tmp_path / "migrations", running)
    assert same_release(reports, "HEAD", tmp_path) == []
    (tmp_path / "services/api/app.py").write_text("new\n")
    found = same_release(reports, "HEAD", tmp_path)
    assert [finding.rule for finding in found] == ["same-release"]
    assert "release the code first" in found[0].text
    with pytest.raises(ValueError, match="git fetch"):
        same_release(reports, "nothing", tmp_path)


def test_the_schema_page_is_fresh() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tools.database.schema", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
