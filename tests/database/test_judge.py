"""What the judge says of migrations on top of ours: what breaks or destroys, what lays open, and what does no harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from testbed.postgres import Server, apply, server
from tools.database import catalogue, judge

TAKES_AWAY = [
    "alter sequence public.vectors_id_seq restart;",
    "drop table public.chat_logs; create table public.chat_logs (id uuid);",
    (
        "alter table public.users drop column display_name; "
        "alter table public.users add column display_name text;"
    ),
    "select cron.schedule('clean', '* * * * *', 'delete from public.chat_logs');",
    (
        "drop function private.delete_expired_chats(integer); "
        "create function private.delete_expired_chats(days integer) returns bigint language sql "
        "set search_path = pg_catalog, pg_temp as 'select 1::bigint';"
    ),
    "alter table public.vectors drop constraint vectors_owner_id_source_chunk_key;",
    "revoke insert on public.chat_logs from cimt_api;",
    "revoke all on function private.delete_expired_chats(integer) from cimt_api;",
    (
        "create table if not exists public.users (id uuid); alter table public.users drop column "
        "display_name;"
    ),
    "revoke usage on schema private from cimt_api;",
    "revoke connect on database postgres from public;",
    "alter role cimt_api nologin;",
    "alter role cimt_api connection limit 1;",
    "alter role cimt_api password 'x';",
    "alter role cimt_api set statement_timeout = '1ms';",
    "drop trigger create_profile on auth.users;",
    "drop trigger touch on public.chat_logs;",
    "alter table public.chat_logs disable trigger touch;",
    "drop index public.vectors_embedding;",
    "alter function private.delete_expired_chats(integer) security invoker;",
    "drop function private.touch() cascade;",
    (
        "alter function public.search_vectors(extensions.halfvec, text, integer, text[], jsonb, text) rename "
        "to find_vectors;"
    ),
    "alter table public.chat_logs alter column status drop default;",
    "alter table public.chat_logs alter column status set default 'complete';",
    (
        "alter table public.chat_logs drop constraint chat_logs_status_check; alter table public.chat_logs "
        "add constraint chat_logs_status_check check (status in ('complete'));"
    ),
    "alter table public.users force row level security;",
    "create policy p on public.users as restrictive using (id is not null);",
    (
        "create function public.no() returns trigger language plpgsql set search_path = pg_catalog, pg_temp "
        "as $$ begin raise exception 'no'; end $$; create trigger no before insert on public.chat_logs for "
        "each row execute function public.no();"
    ),
    "create rule r as on insert to public.chat_logs do instead nothing;",
    "alter table public.users alter column display_name type varchar(10);",
    "alter type public.nope add value 'x';",
    "drop policy chat_logs_own on public.chat_logs;",
    (
        "drop policy chat_logs_own on public.chat_logs; create policy other on public.chat_logs to "
        "authenticated using (user_id = (select auth.uid()));"
    ),
    (
        "do $$ begin if exists (select from public.users where display_name = 'nobody') then drop table "
        "public.chat_logs; end if; end $$;"
    ),
    "do $$ begin execute 'dr' || 'op table public.chat_logs'; end $$;",
    "do $$ declare s text := 'x'; begin execute s; end $$;",
    "do $$ begin execute replace('dxlete from public.chat_logs where false', 'dx', 'de'); end $$;",
    "select private.delete_expired_chats(1);",
    "with x as (update public.users set display_name = null returning 1) select * from x;",
    "merge into public.users u using (select 1) s on false when not matched then do nothing;",
    (
        "insert into public.users (id) values (gen_random_uuid()) on conflict (id) do update set display_name"
        " = 'x';"
    ),
    "select setval(pg_get_serial_sequence('public.vectors','id'), 1);",
    "prepare x as delete from public.users; execute x;",
    "explain analyze delete from public.users;",
    "copy public.users from stdin;",
    "alter table public.users rename to people;",
    "alter table public.users set schema private;",
    "alter table public.users owner to service_role;",
    "drop extension vector cascade;",
    "drop owned by cimt_api;",
    "alter table public.chat_logs add constraint u unique (user_id);",
    "create unique index concurrently i on public.chat_logs (user_id);",
    "alter table public.chat_logs add constraint c exclude (id with =);",
    "alter table public.chat_logs set unlogged;",
    (
        "create or replace view private.readable_vectors as select v.id, v.source, v.chunk, v.content, "
        "v.metadata, v.embedding, v.search from public.vectors v where v.owner_id is null;"
    ),
    "alter table public.chat_logs add column x text not null;",
    "alter database postgres set default_transaction_read_only = on;",
    (
        "create function public.search_vectors(query_embedding extensions.halfvec(1536), query_text text "
        "default '', match_count integer default 8) returns int language sql set search_path = pg_catalog, "
        "pg_temp as 'select 1';"
    ),
    (
        "create function private.gone() returns void language sql set search_path = pg_catalog, pg_temp begin"
        " atomic delete from public.chat_logs; end; select private.gone();"
    ),
    "do language plpgsql $$ declare n int; begin n := private.delete_expired_chats(1); end $$;",
    "call nothing();",
    "select query_to_xml('delete from public.users', true, false, '');",
    "truncate public.users cascade;",
    "alter policy users_read_own on public.users using (false);",
    "alter table public.vectors alter column language set not null, alter column language drop default;",
    "alter function private.touch() volatile strict;",
    "security label on table public.users is 'x';",
]
LAYS_OPEN: list[tuple[str, set[str]]] = [
    (
        (
            "create policy p on public.chat_logs for select to authenticated "
            "using (user_id is not null and current_setting('request.headers')::json ->> 'x-admin' = '1');"
        ),
        {"user-metadata"},
    ),
    (
        (
            "create policy p on public.chat_logs for select to authenticated using (exists (select from auth.users u "
            "where u.id = user_id and u.raw_user_meta_data ->> 'admin' = 'true'));"
        ),
        {"user-metadata"},
    ),
    (
        (
            "drop function private.export_user(uuid); create function private.export_user(account uuid) returns jsonb "
            "language sql stable security definer set search_path = pg_catalog, pg_temp as $$ select to_jsonb(u) "
            "from public.users u $$; revoke all on function private.export_user(uuid) from public; "
            "grant execute on function private.export_user(uuid) to service_role;"
        ),
        {"definer-replaced"},
    ),
    (
        "comment on table public.users is null;",
        {"no-comment"},
    ),
    (
        (
            "create view public.people as select id, email from auth.users; grant select on public.people to "
            "anon;"
        ),
        {"anon", "auth-exposed", "definer-view"},
    ),
    (
        (
            "create view private.a as select * from auth.users; create view public.people as select id from "
            "private.a; grant select on public.people to authenticated;"
        ),
        {"auth-exposed"},
    ),
    (
        "grant all on public.chat_logs to anon;",
        {"anon"},
    ),
    (
        "grant select on all tables in schema public to anon;",
        {"anon"},
    ),
    (
        "grant select on public.chat_logs to public;",
        {"anon"},
    ),
    (
        "grant execute on function private.export_user(uuid) to anon;",
        {"anon"},
    ),
    (
        "create policy p on public.chat_logs for select to authenticated using (true);",
        {"open-policy"},
    ),
    (
        "create policy p on public.chat_logs for select to authenticated using (1 = 1);",
        {"open-policy"},
    ),
    (
        (
            "create policy p on public.chat_logs for select to authenticated using ((select auth.uid()) is not "
            "null);"
        ),
        {"open-policy"},
    ),
    (
        (
            "create policy p on public.chat_logs for select to authenticated using (user_id = (select auth.uid())"
            " or true);"
        ),
        {"open-policy"},
    ),
    (
        "create policy p on public.chat_logs for select to authenticated using (user_id is not null);",
        {"open-policy"},
    ),
    (
        (
            "create policy p on public.chat_logs for insert to authenticated with check (true); grant insert on "
            "public.chat_logs to authenticated;"
        ),
        {"open-policy"},
    ),
    (
        (
            "create policy p on public.chat_logs for select to authenticated using (((select auth.jwt()) -> "
            "'user_metadata' ->> 'admin')::boolean or user_id = (select auth.uid()));"
        ),
        {"user-metadata"},
    ),
    (
        (
            "create function private.is_admin() returns boolean language sql stable set search_path = pg_catalog,"
            " pg_temp as $$ select (auth.jwt() -> 'user_metadata' ->> 'admin')::boolean $$; create policy p on "
            "public.chat_logs for select to authenticated using (private.is_admin() and user_id is not null);"
        ),
        {"user-metadata"},
    ),
    (
        "alter default privileges in schema public grant select on tables to anon;",
        {"default-privileges"},
    ),
    (
        (
            "create materialized view public.m as select * from public.chat_logs; grant select on public.m to "
            "authenticated;"
        ),
        {"materialized-view"},
    ),
    (
        (
            "create table public.copy as select * from public.chat_logs; grant select on public.copy to "
            "authenticated;"
        ),
        {"no-row-security"},
    ),
    (
        (
            "create table private.copy as select * from public.chat_logs; grant select on private.copy to "
            "authenticated;"
        ),
        {"no-row-security"},
    ),
    (
        (
            "create or replace function private.export_user(account uuid) returns jsonb language sql stable "
            "security definer set search_path = pg_catalog, pg_temp as $$ select to_jsonb(u) from public.users u "
            "$$;"
        ),
        {"definer-replaced"},
    ),
    (
        "alter function private.touch() security definer;",
        {"definer-replaced"},
    ),
    (
        (
            "grant execute on function private.export_user(uuid) to authenticated; grant usage on schema private "
            "to authenticated;"
        ),
        {"definer-callable"},
    ),
    (
        "alter role cimt_api bypassrls;",
        {"role-gains"},
    ),
    (
        "create role app; grant cimt_api to app;",
        {"role-gains"},
    ),
    (
        "grant create on schema public to authenticated;",
        {"schema-create"},
    ),
    (
        "alter table public.chat_logs disable row level security;",
        {"no-row-security"},
    ),
    (
        (
            "create function public.f() returns int language sql security definer set search_path = pg_catalog, "
            "pg_temp as 'select 1'; revoke all on function public.f() from public; grant execute on function "
            "public.f() to authenticated;"
        ),
        {"definer-callable"},
    ),
    (
        (
            "create function public.f() returns int language sql security definer set search_path = pg_catalog, "
            "public as 'select 1';"
        ),
        {"public-function", "search-path"},
    ),
    (
        (
            "alter view private.readable_vectors set (security_invoker = false); grant select on "
            "private.readable_vectors to authenticated;"
        ),
        {"definer-view"},
    ),
    (
        (
            "create or replace function public.search_vectors(query_embedding extensions.halfvec(1536), "
            "query_text text default '', match_count integer default 8, sources text[] default null, "
            "metadata_filter jsonb default null, query_language text default 'simple') returns table (id bigint, "
            "source text, chunk integer, content text, metadata jsonb, similarity real, score real) language sql "
            "stable set search_path = pg_catalog, pg_temp security definer as $$ select null::bigint, null::text,"
            " 1, null::text, null::jsonb, 1::real, 1::real $$;"
        ),
        {"definer-replaced"},
    ),
]
HARMLESS = [
    "notify pgrst, 'reload schema';",
    "alter table public.chat_logs validate constraint chat_logs_status_check;",
    "comment on table public.users is 'Profiles.'; select 1;",
    "create table public.later (id uuid primary key); drop table public.later;",
    (
        "drop policy chat_logs_own on public.chat_logs; create policy chat_logs_own on public.chat_logs to "
        "authenticated, cimt_api using (user_id = (select auth.uid())) with check (user_id = (select "
        "auth.uid()));"
    ),
    "alter policy chat_logs_own on public.chat_logs rename to renamed;",
    (
        "drop policy renamed on public.chat_logs; create policy a on public.chat_logs for select to "
        "authenticated, cimt_api using (user_id = (select auth.uid())); create policy b on public.chat_logs "
        "for insert to cimt_api, authenticated with check (user_id = (select auth.uid())); create policy c on"
        " public.chat_logs for update to authenticated, cimt_api using (user_id = (select auth.uid())) with "
        "check (user_id = (select auth.uid())); create policy d on public.chat_logs for delete to "
        "authenticated, cimt_api using (user_id = (select auth.uid()));"
    ),
    (
        "alter table public.chat_logs drop constraint chat_logs_status_check; alter table public.chat_logs "
        "add constraint chat_logs_status_check check (status in ('streaming', 'complete', 'cancelled', "
        "'failed', 'new')) not valid;"
    ),
    (
        "alter table public.users drop constraint users_display_name_check; alter table public.users add "
        "constraint users_display_name_check check (char_length(display_name) <= 400) not valid;"
    ),
    "alter table public.users drop constraint users_display_name_check;",
    (
        "alter table public.users add column age integer check (age > 0); comment on column public.users.age "
        "is 'a';"
    ),
    "alter table public.users add column of uuid references public.users (id);",
    (
        "create or replace function private.touch() returns trigger language plpgsql set search_path = "
        "pg_catalog, pg_temp as $$ begin new.updated_at := clock_timestamp(); return new; end $$;"
    ),
    "create trigger more before update on public.users for each row execute function private.touch();",
    (
        "drop trigger touch on public.users; create trigger touch before update on public.users for each row "
        "execute function private.touch();"
    ),
    "drop index public.vectors_source; create index vectors_source_2 on public.vectors (source, chunk);",
    "alter table public.users add column more text; update public.users set more = display_name;",
    (
        "create or replace view private.readable_vectors as select v.id, v.source, v.chunk, v.content, "
        "v.metadata, v.embedding, v.search, v.language from public.vectors v where v.owner_id is null or "
        "v.owner_id = (select auth.uid()) or (select auth.role()) = 'service_role';"
    ),
    (
        "do $$ declare t text; begin foreach t in array array['users'] loop execute format('alter table "
        "public.%I add column if not exists note text', t); end loop; end $$;"
    ),
    (
        "do $$ begin create type public.mood as enum ('a'); exception when duplicate_object then null; end "
        "$$;"
    ),
    "create schema app; create table app.t (id int); drop table app.t; drop schema app;",
    "grant update on public.chat_logs to authenticated;",
    "insert into public.users (id) select id from auth.users on conflict do nothing;",
    "set statement_timeout = '1min'; alter table public.users add column z text;",
    "alter table public.chat_logs alter column model drop not null;",
    "revoke select on public.users from authenticated; grant select on public.users to authenticated;",
    "select pg_sleep(0), now(), random(); analyze public.users;",
    (
        "create function private.quiet() returns void language plpgsql set search_path = pg_catalog, pg_temp "
        "as $$ begin delete from public.users; end $$;"
    ),
    "create index concurrently chat_logs_model on public.chat_logs (model);",
    "create sequence public.s; alter sequence public.s owned by none;",
    "create extension if not exists vector with schema extensions;",
    (
        "alter table public.vectors alter column content set storage external; alter table public.vectors set"
        " (fillfactor = 90);"
    ),
    "alter table public.users replica identity full;",
]


class Judge:
    """A server with a database that has our migrations; each case comes to a copy of it."""

    def __init__(self, running: Server) -> None:
        self._server = running
        self._template = running.database()
        apply(running.url(self._template))
        superuser = running.url(self._template, "supabase_admin")
        with psycopg.connect(superuser, autocommit=True, options="-c search_path=") as admin:
            catalogue.plant(admin, catalogue.snapshot(admin))

    def __call__(self, folder: Path, sql: str) -> tuple[str, set[str], list[str]]:
        """(class, rules found, what is lost)."""
        (folder / "20990101000000_case.sql").write_text(sql)
        (report,) = self.files(folder)
        return report.safety, {finding.rule for finding in report.findings}, report.reasons

    def files(self, folder: Path) -> list[judge.Report]:
        """All files of a folder, one after the other."""
        return judge.read(folder, self._server, self._template)

    def calm(self) -> None:
        """Roles are the server's, not a database's."""
        self._server.admin(
            "alter role cimt_api login nobypassrls connection limit 30;\nalter role cimt_api reset all;\n"
            "alter role cimt_api password null;"
        )


@pytest.fixture(scope="module")
def judged() -> Iterator[Judge]:
    with server() as made:
        yield Judge(made)


@pytest.fixture(autouse=True)
def roles(request: pytest.FixtureRequest, judged: Judge) -> Iterator[None]:
    yield
    if " role " in request.node.name:
        judged.calm()


@pytest.mark.parametrize("sql", TAKES_AWAY)
def test_what_breaks_the_code_that_runs_is_a_contract(
    judged: Judge, tmp_path: Path, sql: str
) -> None:
    safety, rules, reasons = judged(tmp_path, sql)
    assert safety == "contract"
    assert reasons
    assert rules & {"destructive", "fails"}, "nobody is asked"


@pytest.mark.parametrize(("sql", "expected"), LAYS_OPEN)
def test_what_lays_open_is_found(
    judged: Judge, tmp_path: Path, sql: str, expected: set[str]
) -> None:
    safety, rules, reasons = judged(tmp_path, sql)
    assert expected <= rules
    assert safety == "expand", reasons


def test_what_does_no_harm_is_an_expansion(judged: Judge, tmp_path: Path) -> None:
    """One after the other, in one database."""
    for number, sql in enumerate(HARMLESS, 10):
        (tmp_path / f"209901010000{number}_case.sql").write_text(sql)
    reports = judged.files(tmp_path)
    assert len(reports) == len(HARMLESS)
    for sql, report in zip(HARMLESS, reports, strict=True):
        assert (report.safety, report.reasons) == ("expand", []), sql
        rules = {one.rule for one in report.findings if not one.rule.startswith("squawk:")}
        assert rules <= {
            "no-comment",
            "definer-replaced",
            "foreign-key-index",
            "index-not-concurrent",
            "no-grant",
            "public-function",
        }, sql


def test_a_finding_stands_at_the_statement_that_did_it_and_is_waived_there(
    judged: Judge, tmp_path: Path
) -> None:
    sql = (
        "-- Não há mais ação.\nalter table public.users add column a text;\n{}\n"
        "alter table public.users drop column display_name;\n"
    )
    (tmp_path / "20990101000000_case.sql").write_text(sql.format("-- Nobody reads it."))
    found = judged(tmp_path, sql.format("-- Nobody reads it."))
    assert "destructive" in found[1]
    waived = judged(tmp_path, sql.format("-- allow: destructive: nobody has read it since 1.4"))
    assert (waived[0], "destructive" in waived[1]) == ("contract", False)
    elsewhere = judged(tmp_path, "-- allow: destructive: the wrong place\n" + sql.format(""))
    assert "destructive" in elsewhere[1]


def test_rows_are_seen_whatever_the_code_is_called(judged: Judge, tmp_path: Path) -> None:
    """What no text says: a loop that deletes by what it finds in the catalogue."""
    sql = """
    do $$ declare t record; begin
      for t in select c.oid::regclass as name from pg_class c where c.relname like 'chat%' and c.relkind = 'r' loop
        execute concat('del', 'ete from ', t.name);
      end loop;
    end $$;"""
    safety, _, reasons = judged(tmp_path, sql)
    assert safety == "contract"
    assert any("public.chat_logs" in reason and "gone in rows" in reason for reason in reasons)


def test_a_file_that_fails_where_there_are_rows(judged: Judge, tmp_path: Path) -> None:
    sql = "alter table public.users add column must text not null; alter table public.users add column more text;"
    safety, rules, reasons = judged(tmp_path, sql)
    assert safety == "contract"
    assert "fails" not in rules  # it goes on without rows, so that the rest is judged too
    assert ["may fail where there are rows" in reason for reason in reasons] == [True, False]
    assert "a row of public.users needs must now" in reasons


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("begin;\nalter table public.users add column a text;\ncommit;\n", "expand"),
        ("begin;\nalter table public.users drop column display_name;\ncommit;\n", "contract"),
        ("lock table public.users;\nalter table public.users add column a text;\n", "expand"),
        ("create table missing.a ();\ndrop table public.chat_logs;\n", "contract"),
    ],
)
def test_a_file_that_is_refused_is_judged_all_the_same(
    judged: Judge, tmp_path: Path, sql: str, expected: str
) -> None:
    safety, rules, _ = judged(tmp_path, sql)
    assert safety == expected
    assert rules & {"transaction", "fails"}


def test_a_later_file_mends_what_an_earlier_one_laid_open(judged: Judge, tmp_path: Path) -> None:
    (tmp_path / "20980101000000_open.sql").write_text("grant select on public.chat_logs to anon;")
    (tmp_path / "20990101000000_closed.sql").write_text(
        "-- allow: destructive: it was open for an hour\nrevoke select on public.chat_logs from anon;"
    )
    reports = judged.files(tmp_path)
    assert [finding.rule for report in reports for finding in report.findings] == []
