"""Nobody becomes who he is not through a function with its owner's rights, be he as able as can be.

All of it is found in the catalogue: a new function, trigger, type or operator is tried without being named here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest
from pglast import scan
from psycopg import sql

from testbed.postgres import MAJORS, apply, server
from tools.database import bodies, catalogue

# In every schema that is neither the server's nor an extension's.
DEFINERS = """
select p.oid, p.oid::regprocedure::text, p.oid::regproc::text, l.lanname, p.proconfig, p.proowner::regrole::text,
  coalesce(pg_get_function_sqlbody(p.oid), p.prosrc), p.prorettype = 'trigger'::regtype,
  p.proargtypes::regtype[]::text[], p.pronargs - p.pronargdefaults
from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
where p.prosecdef and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and not exists (
  select from pg_depend where classid = 'pg_proc'::regclass and objid = p.oid and deptype = 'e')
order by 2"""
# May do everything but become another: what functions let through, he reaches.
ATTACKER = """
create role attacker login bypassrls;
grant temporary, create on database supabase to attacker;
do $$
declare
  place name;
begin
  for place in select nspname from pg_namespace where nspname !~ '^pg_' loop
    execute format('grant all on schema %I to attacker', place);
    execute format('grant all on all tables in schema %I to attacker', place);
    execute format('grant all on all sequences in schema %I to attacker', place);
    execute format('grant all on all functions in schema %I to attacker', place);
  end loop;
end $$;
"""
# In the way of whoever looks into pg_temp: a domain for the name of every type, a table for that of every relation, and
# for each function and operator that some body names one that takes the same. All run this, and tell who runs it.
TRAP = """
create function pg_temp.spring() returns boolean language plpgsql as $$
begin
  if current_user <> session_user then
    raise notice 'sprung as %', current_user;
  end if;
  return true;
end $$;
create function pg_temp.spring_instead() returns trigger language plpgsql as $$
begin
  perform pg_temp.spring();
  return new;
end $$;
do $$
declare
  of record;
  made integer := 0;
begin
  for of in
    select distinct on (t.typname) t.typname as name, t.oid::regtype as type from pg_type t
    where t.typtype in ('b', 'd', 'e', 'r', 'm') and t.typcategory <> 'A'
      and t.typnamespace::regnamespace::text !~ '^pg_t'
  loop
    execute format('create domain pg_temp.%I as %s check (pg_temp.spring())', of.name, of.type);
    made := made + 1;
  end loop;
  for of in
    select distinct on (relname) relname as name, oid::regclass as relation from pg_class
    where relkind in ('r', 'p', 'v', 'm') and relnamespace::regnamespace::text !~ '^pg_|information_schema'
  loop
    execute format('create temporary view %I as select (null::%s).* where pg_temp.spring()', of.name, of.relation);
    execute format('create trigger spring instead of insert or update or delete on pg_temp.%I for each row '
      'execute function pg_temp.spring_instead()', of.name);
    execute format('grant all on pg_temp.%I to public', of.name);
    made := made + 1;
  end loop;
  for of in
    select p.proname as name, pg_get_function_identity_arguments(p.oid) as taken, p.prorettype::regtype as type,
      p.proretset as many
    from pg_proc p where p.prokind = 'f' and p.proname = any (%(words)s) and p.prorettype::regtype::text <> 'trigger'
      and p.pronamespace::regnamespace::text !~ '^pg_t'
  loop
    begin
      execute format('create function pg_temp.%%I(%%s) returns %%s %%s language plpgsql as %%L', of.name, of.taken,
        case when of.many then 'setof' end, of.type, 'begin perform pg_temp.spring(); return; end');
      made := made + 1;
    exception when others then
      null;  -- one that takes what no language of ours can
    end;
  end loop;
  for of in
    select o.oprname as name, o.oprleft::regtype as one, o.oprright::regtype as other, o.oprresult::regtype as type,
      row_number() over () as number
    from pg_operator o where o.oprname = any (%(signs)s) and o.oprleft <> 0
      and o.oprnamespace::regnamespace::text !~ '^pg_t'
  loop
    begin
      execute format('create function pg_temp.sign%%s(%%s, %%s) returns %%s language plpgsql as %%L', of.number, of.one,
        of.other, of.type, 'begin perform pg_temp.spring(); return null; end');
      execute format('create operator pg_temp.%%s (leftarg = %%s, rightarg = %%s, function = pg_temp.sign%%s)', of.name,
        of.one, of.other, of.number);
      made := made + 1;
    exception when others then
      null;
    end;
  end loop;
  raise notice 'made %%', made;
end $$;
"""
UUID = "'5eed5eed-5eed-4eed-8eed-5eed5eed5eed'"
EXAMPLES = {
    "uuid": UUID,
    "uuid[]": f"array[{UUID}]",
    "integer": "1",
    "bigint": "1",
    "boolean": "true",
    "text": "'a passage'",
    "jsonb": "'{}'",
    "text[]": "array['a passage']",
    "integer[]": "array[1]",
    "extensions.halfvec": "array_fill(1, array[1536])::extensions.halfvec",
}
# Functions that must not pass: what the trap is worth.
HOLES = {
    "a type": "set search_path = '' as $$ select 'x'::text $$",
    "a type, in a body that runs later": "set search_path = '' as $$ select x::text from (values (1)) as v (x) $$",
    "a table": "set search_path = pg_catalog, pg_temp, public as $$ select id::pg_catalog.text from conversations $$",
    "a table that is written": (
        "set search_path = pg_catalog, pg_temp, public as "
        "$$ insert into conversations (user_id) values (null) returning id::pg_catalog.text $$"
    ),
    "a function that is called": "set search_path = '' as $$ select public.inner() $$",
    "all of it first": "set search_path = pg_temp, pg_catalog, public as $$ select id::pg_catalog.text from users $$",
    "no path": "as $$ select 'x'::text $$",
}


@dataclass
class Prey:
    """A database with a row in every table, and what is in it that has its owner's rights."""

    url: str
    admin: psycopg.Connection

    def definers(self) -> list[tuple]:
        return self.admin.execute(DEFINERS).fetchall()

    def sprung(
        self, tried: dict[str, list[sql.Composable]]
    ) -> dict[str, tuple[set[str], list[str]]]:
        """By name: as whom the trap was run, and what the statements failed with. Nothing of it stays."""
        tokens = {
            (row[6][one.start : one.end + 1], one.name)
            for row in self.definers()
            for one in scan(row[6])
        }
        words = sorted({word for word, _ in tokens if re.fullmatch(r"[a-z_]\w*", word)})
        signs = sorted({word for word, _ in tokens if re.fullmatch(r"[-+*/<>=~!@#%^&|`?]+", word)})
        trap = TRAP.replace("%(words)s", "{words}").replace("%(signs)s", "{signs}")
        laid = sql.SQL(trap.replace("%%", "%"))
        claims = '{"sub": "5eed5eed-5eed-4eed-8eed-5eed5eed5eed", "role": "service_role"}'
        notices: list[str] = []
        found: dict[str, tuple[set[str], list[str]]] = {}
        with psycopg.connect(self.url, user="attacker") as connection:
            connection.add_notice_handler(lambda note: notices.append(note.message_primary or ""))
            connection.execute(laid.format(words=sql.Literal(words), signs=sql.Literal(signs)))
            made = next(int(note.split()[1]) for note in notices if note.startswith("made "))
            assert made > 150, "the trap was not laid"
            connection.execute("select set_config('request.jwt.claims', %s, true)", (claims,))
            for name, statements in tried.items():
                notices.clear()
                failures: list[str] = []
                with connection.transaction(force_rollback=True):
                    for statement in statements:
                        try:
                            with connection.transaction():
                                connection.execute(statement)
                        except psycopg.Error as error:
                            failures.append(str(error))
                risen = {note.split()[-1] for note in notices if note.startswith("sprung")}
                found[name] = risen, failures
            connection.rollback()
        return found

    def calls(self, name: str, types: list[str], least: int) -> list[sql.Composable]:
        """Calls with a value for each argument, with those alone that must be given, and with none of them known."""
        unknown = [kind for kind in types if kind not in EXAMPLES]
        assert unknown == [], f"{name}: add an example of {unknown} to EXAMPLES"
        values = [f"{EXAMPLES[kind]}::{kind}" for kind in types]
        nulls = [f"null::{kind}" for kind in types]
        lists = [values, values[:least], nulls, *([*values[:-1], one] for one in nulls[-1:])]
        called = (f"select * from {name}({', '.join(given)})" for given in lists)  # noqa: S608
        return [sql.SQL(call) for call in called]

    def changes(self, oid: int) -> list[sql.Composable]:
        """What fires a trigger of this function: each row is changed, taken away and put back."""
        found: list[sql.Composable] = []
        for table, columns in self.admin.execute(
            "select tgrelid::regclass::text, (select array_agg(attname::text) from pg_attribute "
            "where attrelid = tgrelid and attnum > 0 and not attisdropped and attgenerated = '') "
            "from pg_trigger where tgfoid = %s",
            (oid,),
        ):
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            whole = {"t": sql.SQL(table), "c": names, "one": sql.Identifier(columns[0])}
            found.append(sql.SQL("update {t} set {one} = {one}").format(**whole))
            found.append(
                sql.SQL(
                    "do $do$ declare kept pg_catalog.jsonb; begin "
                    "select jsonb_agg(to_jsonb(x)) into kept from {t} x; delete from {t}; "
                    "insert into {t} ({c}) overriding system value "
                    "select {c} from jsonb_populate_recordset(null::{t}, kept); end $do$"
                ).format(**whole)
            )
        return found


@pytest.fixture(scope="module", params=MAJORS, ids=[f"pg{major}" for major in MAJORS])
def prey(request: pytest.FixtureRequest) -> Iterator[Prey]:
    with server(request.param) as made:
        apply(made.url())
        superuser = made.url(user="supabase_admin")
        with psycopg.connect(superuser, autocommit=True, options="-c search_path=") as admin:
            catalogue.plant(admin, catalogue.snapshot(admin))
            admin.execute(ATTACKER)
            yield Prey(made.url(), admin)


def test_nobody_rises_through_any_function_though_he_may_make_temporary_things(prey: Prey) -> None:
    tried = {
        whole: prey.changes(oid) if fires else prey.calls(name, types, least)
        for oid, whole, name, _, _, _, _, fires, types, least in prey.definers()
    }
    assert tried
    for whole, (risen, failures) in prey.sprung(tried).items():
        assert tried[whole], f"{whole}: nothing fires it"
        assert risen == set(), whole
        assert len(failures) < len(tried[whole]), (whole, failures)  # it was run


def test_the_trap_springs_where_there_is_a_hole(prey: Prey) -> None:
    with psycopg.connect(prey.url) as owner:
        owner.execute("create schema holes; grant usage on schema holes to attacker")
        owner.execute(
            "create function public.inner() returns text language sql as $$ select 'x'::text $$"
        )
        owner.execute("set check_function_bodies = off")
        for number, body in enumerate(HOLES.values()):
            head = f"create function holes.h{number}() returns setof text language sql security definer"
            owner.execute(f"{head} {body}".encode())
    try:
        calls = {hole: prey.calls(f"holes.h{n}", [], 0) for n, hole in enumerate(HOLES)}
        found = prey.sprung(calls)
    finally:
        prey.admin.execute("drop schema holes cascade; drop function public.inner()")
    assert [hole for hole, (risen, _) in found.items() if risen != {"postgres"}] == [], found


def test_every_name_in_them_says_where_it_is_found(prey: Prey) -> None:
    """Also in branches that no call above takes."""
    catalog = {
        name
        for (name,) in prey.admin.execute("select typname from pg_type where typnamespace = 11")
    }
    for _, whole, _, language, settings, _, source, *_ in prey.definers():
        assert "search_path=pg_catalog, pg_temp" in (settings or []), whole
        statements, unknown = bodies.read(language, source)
        assert unknown == [], whole
        tree = [bodies.plain(node) for node in statements]
        own = {one["ctename"] for one in bodies.nodes(tree, "CommonTableExpr")} | {
            "new_rows",
            "old_rows",
        }
        loose = {
            one["relname"]
            for one in bodies.nodes(tree, "RangeVar")
            if "schemaname" not in one and one["relname"] not in own
        }
        loose |= {
            one["names"][0]["sval"]
            for one in bodies.nodes(tree, "TypeName")
            if len(one["names"]) == 1 and one["names"][0]["sval"] not in catalog
        }
        assert loose == set(), whole
        # Words in front of which no schema stands are found in pg_catalog, before anything of the caller's.
        words = [
            source[one.start : one.end + 1] for one in scan(source) if "COMMENT" not in one.name
        ]
        temporary = [b for a, b in itertools.pairwise(words) if a == "." and b == "pg_temp"]
        assert temporary == [], whole


def test_their_owners_own_little(prey: Prey) -> None:
    """Those that need what only `postgres` has are for the service's credential, or ask who reads."""
    owners = {name: owner for _, _, name, _, _, owner, *_ in prey.definers()}
    assert {name for name, owner in owners.items() if owner == "postgres"} <= {
        "private.erase_user",
        "private.export_user",
        "public.search_vectors",
    }
    assert set(owners.values()) == {"postgres", "cimt_definer"}
    little = prey.admin.execute(
        "select rolcanlogin, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolreplication from pg_roles "
        "where rolname = 'cimt_definer'"
    ).fetchall()
    assert little == [(False,) * 6]


def test_who_calls_them_is_known(prey: Prey) -> None:
    callers = prey.admin.execute(
        f"select d.regproc, r from ({DEFINERS}) as d (oid, whole, regproc), "  # noqa: S608
        "unnest(array['anon', 'authenticated']) r where has_function_privilege(r, d.oid, 'execute') "
        "and has_schema_privilege(r, (select pronamespace from pg_proc where oid = d.oid), 'usage')"
    ).fetchall()
    assert callers == [("public.search_vectors", "authenticated")]  # it asks auth.uid() itself


def test_ours_make_nothing_temporary_and_all_others_still_may(prey: Prey) -> None:
    may = dict(
        prey.admin.execute(
            "select rolname, has_database_privilege(oid, current_database(), 'temporary') from pg_roles "
            "where rolname !~ '^pg_' and rolname <> 'attacker' and not rolsuper"
        ).fetchall()
    )
    ours = {"cimt_api", "cimt_api_b", "cimt_backup", "cimt_definer"}
    assert {role for role, allowed in may.items() if not allowed} == ours
    assert {"anon", "authenticator", "supabase_auth_admin", "postgres"} <= {
        role for role in may if may[role]
    }
    prey.admin.execute("create role newcomer")
    late = "select has_database_privilege('newcomer', current_database(), 'temporary')"
    assert prey.admin.execute(late).fetchone() == (False,)
    prey.admin.execute("drop role newcomer")
