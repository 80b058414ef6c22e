"""Who sees, changes and calls what: every table and function of ours, on Postgres 17 and 18.

The catalogue drives it: a new table or function without an expectation here fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pglast import scan

from testbed.postgres import MAJORS, MIGRATIONS, Server, apply, server

ANN, BOB = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
RELEASED = sorted((Path(__file__).parent / "released").glob("*.sql"))
ZEROS = "('[1' || repeat(',0', 1535) || ']')::extensions.halfvec"
SEED = f"""
insert into auth.users (id, email) values ('{ANN}', 'ann@example.com'), ('{BOB}', 'bob@example.com')
  on conflict do nothing;
insert into public.conversations (user_id) values ('{ANN}'), ('{BOB}');
insert into public.chat_logs (conversation_id, user_id, question, model)
  select id, user_id, 'why?', 'm' from public.conversations;
insert into public.api_keys (user_id, name, hash, hint)
  select id, 'k', repeat(left(id::text, 1), 64), 'abcd' from auth.users where id in ('{ANN}', '{BOB}');
insert into public.vectors (owner_id, source, chunk, content, content_hash, embedding_model, embedding)
  select owner, 'doc', 0, 'a passage', repeat('0', 64), 'm', {ZEROS}
  from unnest(array['{ANN}', '{BOB}', null]::uuid[]) as owner;
select private.delete_expired_chats(90);
"""  # noqa: S608
# who: role in the database, claims of the request
ACTORS: dict[str, tuple[str, dict[str, str]]] = {
    "anon": ("anon", {"role": "anon"}),
    "ann": ("authenticated", {"sub": ANN, "role": "authenticated"}),
    "bob": ("authenticated", {"sub": BOB, "role": "authenticated"}),
    "api for ann": ("cimt_api", {"sub": ANN, "role": "authenticated"}),
    "api, no claims": ("cimt_api", {}),
    "api ingest": ("cimt_api", {"role": "service_role"}),
    "service": ("service_role", {"role": "service_role"}),
}
NO = "denied"
# What is tried: an update, an insert for ann, the same for bob.
STATEMENTS = {
    "public.users": (
        "update public.users set display_name = 'x'",
        "insert into public.users (id) values (%s)",
    ),
    "public.conversations": (
        "update public.conversations set title = 'x'",
        "insert into public.conversations (user_id) values (%s)",
    ),
    "public.chat_logs": (
        "update public.chat_logs set answer = 'x'",
        (
            "insert into public.chat_logs (conversation_id, user_id, question, model) "
            "select 'aaaaaaaa-0000-4000-8000-000000000000', %s, 'q', 'm'"
        ),
    ),
    "public.vectors": (
        "update public.vectors set content = 'x'",
        (
            "insert into public.vectors "
            "(owner_id, source, chunk, content, content_hash, embedding_model, embedding) "
            f"select %s, 'other', 0, 'c', repeat('0', 64), 'm', {ZEROS}"
        ),
    ),
    "public.api_keys": (
        "update public.api_keys set name = 'x'",
        (
            "insert into public.api_keys (user_id, name, hash, hint) "
            "select %s, 'k', repeat('3', 64), 'abcd'"
        ),
    ),
    "private.passage_words": (
        "update private.passage_words set words = ''",
        "insert into private.passage_words (id, words) select 0, to_tsvector(%s)",
    ),
    "private.vocabulary": (
        "update private.vocabulary set word = 'x'",
        "insert into private.vocabulary (word) values (%s)",
    ),
    "private.embeddings": (
        "update private.embeddings set model = 'x'",
        f"insert into private.embeddings select 1, %s, '', {ZEROS}",
    ),
    "private.retention_runs": (
        "update private.retention_runs set answers = 0",
        "insert into private.retention_runs select now(), length(%s), 0, 0",
    ),
    "private.reservations": (
        "update private.reservations set held = 0",
        "insert into private.reservations select gen_random_uuid(), %s, now(), 'm', 0, now()",
    ),
    "private.replicas": (
        "update private.replicas set save_queue = 0",
        "insert into private.replicas select gen_random_uuid(), now(), array[%s::uuid]",
    ),
    "private.asked": (
        "update private.asked set second = 0",
        "insert into private.asked select %s, 0, array[1]",
    ),
    "private.counters": (
        "update private.counters set value = 0",
        "insert into private.counters select %s, 0",
    ),
    "private.spending": (
        "update private.spending set cost = 0",
        "insert into private.spending (user_id, day, model) values (%s, now(), 'm')",
    ),
    "private.served_embeddings": (
        "update private.served_embeddings set model = 'x'",
        "insert into private.served_embeddings (model) values (%s)",
    ),
}
# Rows that each sees, updates, deletes, inserts for ann, inserts for bob. "broken": let through to the constraints.
BROKEN = "broken"
EXPECTED: dict[str, dict[str, tuple[int | str, ...]]] = {
    "public.users": {
        "anon": (NO, NO, NO, NO, NO),
        "ann": (1, 1, NO, NO, NO),
        "bob": (1, 1, NO, NO, NO),
        "api for ann": (1, 1, NO, NO, NO),
        "api, no claims": (0, 0, NO, NO, NO),
        "api ingest": (0, 0, NO, NO, NO),
        "service": (2, 2, 2, BROKEN, BROKEN),
    },
    "public.conversations": {
        "anon": (NO, NO, NO, NO, NO),
        "ann": (1, NO, 1, NO, NO),
        "bob": (1, NO, 1, NO, NO),
        "api for ann": (1, 1, 1, 1, NO),
        "api, no claims": (0, 0, 0, NO, NO),
        "api ingest": (0, 0, 0, NO, NO),
        "service": (2, 2, 2, 1, 1),
    },
    "public.chat_logs": {
        "anon": (NO, NO, NO, NO, NO),
        "ann": (1, NO, 1, NO, NO),
        "bob": (1, NO, 1, NO, NO),
        "api for ann": (1, 1, 1, BROKEN, NO),
        "api, no claims": (0, 0, 0, NO, NO),
        "api ingest": (0, 0, 0, NO, NO),
        "service": (2, 2, 2, BROKEN, BROKEN),
    },
    "public.vectors": {
        "anon": (NO, NO, NO, NO, NO),
        "ann": (2, NO, NO, NO, NO),
        "bob": (2, NO, NO, NO, NO),
        "api for ann": (2, 0, 0, NO, NO),
        "api, no claims": (1, 0, 0, NO, NO),
        "api ingest": (3, 3, 3, 1, 1),
        "service": (3, 3, 3, 1, 1),
    },
    "public.api_keys": {
        "anon": (NO, NO, NO, NO, NO),
        "ann": (NO, NO, NO, NO, NO),
        "bob": (NO, NO, NO, NO, NO),
        "api for ann": (1, NO, 1, 1, NO),
        "api, no claims": (0, NO, 0, NO, NO),
        "api ingest": (0, NO, 0, NO, NO),
        "service": (2, 2, 2, 1, 1),
    },
    **{
        f"private.{table}": dict.fromkeys(ACTORS, (NO, NO, NO, NO, NO))
        for table in (
            *("passage_words", "vocabulary", "embeddings", "served_embeddings"),
            *("reservations", "spending", "replicas", "asked", "counters"),
        )
    },
    "private.retention_runs": {
        actor: (1 if actor.startswith(("api", "service")) else NO, NO, NO, NO, NO)
        for actor in ACTORS
    },
}
CALLERS = {
    "public.search_vectors": {"authenticated", "cimt_api", "service_role"},
    "private.create_profile": set(),
    "private.touch": set(),
    "private.delete_expired_chats": {"cimt_api", "service_role"},
    "private.upsert_vectors": {"cimt_api", "service_role"},
    "private.use_api_key": {"cimt_api"},
    "private.reserve_money": {"cimt_api"},
    "private.settle_money": {"cimt_api"},
    "private.month_spent": {"cimt_api"},
    "private.count_question": {"cimt_api"},
    "private.begin_answer": {"cimt_api"},
    "private.store_question": {"cimt_api"},
    "private.let_go": {"cimt_api"},
    "private.renew_replica": {"cimt_api"},
    "private.export_user": {"service_role"},
    "private.erase_user": {"service_role"},
    "private.stemmed": set(),
    "private.stemmed_query": set(),
    "private.plain_words": set(),
    "private.keep_words": set(),
    "private.served_model": {"cimt_api", "service_role"},
    "private.search_passages": {"cimt_api", "service_role"},
}

# The oldest as a project of before 30 October 2026, the newest as one of today; one alone as both.
KINDS = [(MAJORS[0], "old"), (MAJORS[-1], "new")]


class Database:
    def __init__(self, url: str, admin: psycopg.Connection) -> None:
        self.url = url
        self.admin = admin

    def attempt(self, actor: str, sql: str, *values: str) -> int | str:
        """Number of rows; nothing of it stays."""
        role, claims = ACTORS[actor]
        try:
            with self.admin.transaction(force_rollback=True):
                self.admin.execute(
                    "select set_config('request.jwt.claims', %s, true)",
                    (json.dumps(claims) if claims else "",),
                )
                self.admin.execute(f"set local role {role}".encode())
                return self.admin.execute(sql.encode(), values).rowcount
        except psycopg.errors.InsufficientPrivilege:
            return NO
        except psycopg.errors.IntegrityError:
            return BROKEN

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql.encode()).fetchall()


def upgraded(url: str, released: Path) -> None:
    """The schema of a release with its data, then what came after it."""
    old = [file for file in MIGRATIONS if file.name[:14] <= released.stem]
    apply(url, old)
    with psycopg.connect(url) as connection:
        connection.execute(released.read_bytes())
    for file in MIGRATIONS[len(old) :]:
        apply(url, [file])  # each in a session of its own


@pytest.fixture(
    scope="module", params=KINDS, ids=[f"pg{major}, {age} project" for major, age in KINDS]
)
def cluster(request: pytest.FixtureRequest) -> Iterator[Server]:
    major, age = request.param
    with server(major, old_defaults=age == "old") as made:
        yield made


@pytest.fixture(scope="module", params=["fresh", *(file.stem for file in RELEASED)])
def database(cluster: Server, request: pytest.FixtureRequest) -> Iterator[Database]:
    name = cluster.database()
    url = cluster.url(name)
    if request.param == "fresh":
        apply(url)
    else:
        upgraded(url, Path(__file__).parent / f"released/{request.param}.sql")
    with psycopg.connect(url) as connection:
        connection.execute(SEED.encode())
    with psycopg.connect(cluster.url(name, "supabase_admin"), autocommit=True) as admin:
        yield Database(url, admin)


def test_every_table_and_every_role(database: Database) -> None:
    tables = database.ask(
        "select schemaname || '.' || tablename, rowsecurity from pg_tables where schemaname in ('public', 'private')"
    )
    assert dict(tables) == dict.fromkeys(EXPECTED, True)
    seen = {
        table: {
            actor: (
                database.attempt(actor, f"select 1 from {table}"),  # noqa: S608
                database.attempt(actor, STATEMENTS[table][0]),
                database.attempt(actor, f"delete from {table}"),  # noqa: S608
                database.attempt(actor, STATEMENTS[table][1], ANN),
                database.attempt(actor, STATEMENTS[table][1], BOB),
            )
            for actor in ACTORS
        }
        for table in EXPECTED
    }
    assert seen == EXPECTED


def test_every_function_has_its_callers_and_no_other(database: Database) -> None:
    rows = database.ask(
        "select n.nspname || '.' || p.proname, array(select r from "
        "unnest(array['anon', 'authenticated', 'cimt_api', 'service_role']) r "
        "where has_function_privilege(r, p.oid, 'execute') and has_schema_privilege(r, n.oid, 'usage')) "
        "from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('public', 'private')"
    )
    assert {name: set(roles) for name, roles in rows} == CALLERS


def test_every_function_looks_in_pg_temp_last_and_names_its_types_in_full(
    database: Database,
) -> None:
    functions = database.ask(
        "select n.nspname || '.' || p.proname, p.proconfig, p.prosrc "
        "from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('public', 'private')"
    )
    types = {
        name for (name,) in database.ask("select typname from pg_type where typtype in ('b', 'd')")
    }
    for name, settings, source in functions:
        assert "search_path=pg_catalog, pg_temp" in (settings or []), name
        tokens = [
            (source[token.start : token.end + 1], token.kind)
            for token in scan(source)
            if token.name not in ("SQL_COMMENT", "C_COMMENT")
        ]
        # Words such as `integer` are no names: the grammar knows them.
        bare = {
            word
            for (before, _), (word, kind) in pairwise(tokens)
            if word in types and kind != "COL_NAME_KEYWORD" and before != "."
        }
        assert bare == set(), name


def test_nobody_hangs_a_row_on_anothers_conversation(database: Database) -> None:
    of_bob = database.ask(
        f"select id::text from public.conversations where user_id = '{BOB}'"  # noqa: S608
    )
    insert = "insert into public.chat_logs (conversation_id, user_id, question, model) values (%s, %s, 'q', 'm')"
    assert database.attempt("api for ann", insert, of_bob[0][0], ANN) == BROKEN


def test_search_finds_own_and_shared_passages_only(database: Database) -> None:
    search = f"select * from public.search_vectors({ZEROS}, 'passage')"  # noqa: S608
    found = {actor: database.attempt(actor, search) for actor in ACTORS}
    assert found == {
        "anon": NO,
        "ann": 2,
        "bob": 2,
        "api for ann": 2,
        "api, no claims": 1,
        "api ingest": 3,
        "service": 3,
    }


def test_every_account_has_a_profile_and_keeps_its_own(database: Database) -> None:
    assert len(database.ask("select from public.users")) == 2
    upgraded_name = "select display_name from public.users where display_name is not null"
    assert database.ask(upgraded_name) in ([], [("Ann",)])


def test_the_apis_role_is_no_more_than_itself(database: Database) -> None:
    roles = database.ask(
        "select rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolinherit, "
        "(select coalesce(string_agg(roleid::regrole::text, ''), '') from pg_auth_members where member = r.oid) "
        "from pg_roles r where rolname in ('cimt_api', 'cimt_api_b') order by rolname"
    )
    nothing = (False, False, False, False, False, False)
    assert roles == [(*nothing, ""), (*nothing, "cimt_api")], (
        "its other login becomes it, and no more"
    )
