"""Writes docs/schema.md from the live catalogue of a database that has all migrations.

Usage: python -m tools.database.schema [--check]

The database is an embedded Postgres that lives for as long as this runs. With --check nothing is written; exit
code 1 says that the file is stale.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import psycopg

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs/schema.md"

TABLES = """
select c.oid, n.nspname || '.' || c.relname, coalesce(obj_description(c.oid, 'pg_class'), ''), c.relrowsecurity
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname in ('public', 'private') and c.relkind in ('r', 'p') order by 2"""
COLUMNS = """
select a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
  case when a.attgenerated <> '' then 'computed' when a.attidentity <> '' then 'numbered'
    else coalesce(pg_get_expr(d.adbin, d.adrelid), '') end,
  coalesce(col_description(a.attrelid, a.attnum), ''),
  exists (select from pg_constraint k where k.conrelid = a.attrelid and k.contype = 'p' and a.attnum = any (k.conkey)),
  exists (select from pg_constraint k where k.conrelid = a.attrelid and k.contype = 'f' and a.attnum = any (k.conkey))
from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attrelid = %s and a.attnum > 0 and not a.attisdropped order by a.attnum"""
REFERENCES = """
select k.conrelid, f.relnamespace::regnamespace || '.' || f.relname, pg_get_constraintdef(k.oid),
  (select bool_or(u.contype in ('p', 'u')) from pg_constraint u where u.conrelid = k.conrelid and u.conkey = k.conkey)
from pg_constraint k join pg_class f on f.oid = k.confrelid
where k.contype = 'f' and k.conrelid = %s order by 2, 3"""
INDEXES = (
    "select indexdef from pg_indexes where (schemaname || '.' || tablename) = %s order by indexname"
)
CHECKS = """
select pg_get_constraintdef(oid) from pg_constraint where conrelid = %s and contype = 'c' order by 1"""
POLICIES = """
select policyname, cmd, array_to_string(roles, ', '), coalesce(qual, ''), coalesce(with_check, '')
from pg_policies where (schemaname || '.' || tablename) = %s order by 1"""
# By column only what does not hold for the whole table.
GRANTS = """
with rights as (
  select grantee::regrole::text as role, privilege_type as right, '' as field
  from pg_class c, aclexplode(c.relacl) where c.oid = %(table)s and grantee <> c.relowner and grantee <> 0
  union all
  select grantee::regrole::text, privilege_type, a.attname
  from pg_attribute a, aclexplode(a.attacl) where a.attrelid = %(table)s and grantee <> 0)
select role, string_agg(lower("right") || case when field = '' then '' else ' (' || field || ')' end, ', '
  order by field, "right") from rights group by role order by role"""
FUNCTIONS = """
select n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
  pg_get_function_result(p.oid), coalesce(obj_description(p.oid, 'pg_proc'), ''),
  case when p.prosecdef then 'its owner' else 'its caller' end,
  coalesce((select string_agg(grantee::regrole::text, ', ' order by grantee::regrole::text)
    from aclexplode(p.proacl) where grantee <> p.proowner and grantee <> 0), 'nobody')
from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('public', 'private') order by 1"""
INTRODUCTION = """\
# The database

Made by `make schema` from the live catalogue: edit the migrations, not this page. Rows and rights come from
`migrations/`; `auth.users` is Supabase's. Every table has row level security; what a role may do at all is its
right, which rows it sees is its policy's business. The owner and `service_role` pass by all policies.
"""


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _code(text: object) -> str:
    return f"`{_cell(text)}`" if text else ""


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["", *(f"| {' | '.join(line)} |" for line in lines), ""]


def page(connection: psycopg.Connection) -> str:
    """The whole page, in Markdown."""
    tables = connection.execute(TABLES).fetchall()
    picture = ["```mermaid", "erDiagram"]
    body: list[str] = []
    for oid, name, comment, secured in tables:
        columns = connection.execute(COLUMNS, (oid,)).fetchall()
        references = connection.execute(REFERENCES, (oid,)).fetchall()
        for _, target, definition, single in references:
            label = definition.split("(", 1)[1].split(")", 1)[0]
            picture.append(f'  "{target}" ||--{"o|" if single else "o{"} "{name}" : "{label}"')
        picture.append(f'  "{name}" {{')
        for column, kind, *_, primary, foreign in columns:
            keys = ", ".join(key for key, is_one in (("PK", primary), ("FK", foreign)) if is_one)
            short = kind.rpartition(".")[2].replace(" ", "_").replace("(", "_").replace(")", "")
            picture.append(f"    {short} {column} {keys}".rstrip())
        picture.append("  }")
        body += [
            f"## {name}",
            "",
            comment,
            *([] if secured else ["", "**Row level security is off.**"]),
        ]
        body += _table(
            ["column", "type", "null", "default", "what it is"],
            [
                [_code(column), _code(kind), "no" if full else "yes", _code(default), _cell(text)]
                for column, kind, full, default, text, *_ in columns
            ],
        )
        rights = connection.execute(GRANTS, {"table": oid}).fetchall()
        body += ["Rights:", *_table(["role", "may"], [[_code(r), _cell(m)] for r, m in rights])]
        policies = connection.execute(POLICIES, (name,)).fetchall()
        body += ["Policies:", *_table(
            ["policy", "for", "roles", "rows", "new rows"],
            [[_code(p), c.lower(), _cell(r), _code(q), _code(w)] for p, c, r, q, w in policies],
        )]  # fmt: skip
        definitions = [definition for _, _, definition, _ in references]
        definitions += [row[0] for row in connection.execute(CHECKS, (oid,))]
        definitions += [row[0] for row in connection.execute(INDEXES, (name,))]
        body += ["Constraints and indexes:", "", *(f"- {_code(text)}" for text in definitions), ""]
    functions = [
        [_code(name), _code(result), who, _cell(callers), _cell(text)]
        for name, result, text, who, callers in connection.execute(FUNCTIONS)
    ]
    body += [
        "## Functions",
        *_table(["function", "returns", "rights of", "callers", "what it does"], functions),
    ]
    return "\n".join([INTRODUCTION, *picture, "```", "", *body]).rstrip() + "\n"


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when stale")
    arguments = parser.parse_args()
    from testbed.postgres import apply, server

    with server() as made:
        apply(made.url())
        with psycopg.connect(made.url()) as connection:
            text = page(connection)
    if arguments.check and (not PAGE.exists() or PAGE.read_text() != text):
        print("schema: docs/schema.md is stale. Next: make schema", file=sys.stderr)
        return 1
    if not arguments.check:
        PAGE.write_text(text)
        print(f"schema: wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
