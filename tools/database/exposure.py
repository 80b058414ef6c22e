"""What lies open, or is not as it should be, in a database: by its catalogue, and by looking as a stranger.

`supabase db advisors` looks too; what stands here is what it lacks, or what must be said of the statement that did it.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from tools.database.bodies import nodes
from tools.database.catalogue import Facts, Key, expression, parts

# Whoever has a key of the project, or signs up, may be one of these.
STRANGERS = ("anon", "authenticated")
DISTANCE = {"<=>": "_cosine_ops", "<->": "_l2_ops", "<#>": "_ip_ops", "<+>": "_l1_ops"}
WRITTEN_BY_USERS = re.compile(
    r"user_metadata|raw_user_meta_data|request\.(?:header|cookie)s?", re.IGNORECASE
)

FAULTS = pathlib.Path(__file__).with_suffix(".sql").read_bytes()


def faults(admin: psycopg.Connection, facts: Facts) -> dict[Key, str]:
    """What is wrong, by (rule, object): a sentence. `admin` is a superuser's connection with an empty search_path."""
    found: dict[Key, str] = {(rule, name): text for rule, name, text in admin.execute(FAULTS)}
    for (kind, *names), fact in facts.items():
        if kind == "policy":
            found |= dict(_policy(names, fact, facts))
        elif kind == "function":
            for operator, operators in DISTANCE.items():
                classes = _vector_classes(admin) if operator in fact["source"] else set()
                if classes and not any(name.endswith(operators) for name in classes):
                    found["vector-opclass", names[0]] = (
                        f"no vector index serves {operator} ({operators})"
                    )
    return found


def _vector_classes(admin: psycopg.Connection) -> set[str]:
    """Operator classes of the vector indexes."""
    query = (
        "select opcname from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m on m.oid = c.relam "
        "join pg_opclass o on o.oid = i.indclass[0] where m.amname in ('hnsw', 'ivfflat')"
    )
    return {name for (name,) in admin.execute(query)}


@functools.cache
def _asked(text: str) -> tuple[list[str], bool, set[str]]:
    """(functions of `auth` that are called for every row, whether each way in asks of the row, all it calls)."""
    tree = expression(text)
    per_row, called = (
        [".".join(part["sval"] for part in call["funcname"]) for call in calls]
        for calls in (nodes(tree, "FuncCall", outside="SubLink"), nodes(tree, "FuncCall"))
    )
    asks = all(any(nodes(part, "ColumnRef")) for part in parts(tree, "OR_EXPR"))
    return [name for name in per_row if name.startswith("auth.")], asks, set(called)


def _policy(names: list[str], policy: Any, facts: Facts) -> Iterator[tuple[Key, str]]:
    called = f"policy {names[1]} of {names[0]}"
    for text in filter(None, (policy["qual"], policy["check"])):
        per_row, asks, functions = _asked(text)
        for function in per_row:
            told = f"{function}() is called for every row. Next: (select {function}())"
            yield ("policy-per-row", called), told
        # Any part that asks nothing of the row lets through all of them.
        if policy["permissive"] and not asks:
            yield ("open-policy", called), f"{called} asks nothing of the row: {text}"
        # What a policy calls counts as a part of it.
        bodies = (fact["source"] for key, fact in facts.items()
                  if key[0] == "function" and fact["called"] in functions)  # fmt: skip
        if any(WRITTEN_BY_USERS.search(one) for one in (text, *bodies)):
            yield (
                ("user-metadata", called),
                f"{called} trusts what users write themselves (user_metadata, headers)",
            )


def seen_by_strangers(admin: psycopg.Connection, facts: Facts) -> dict[Key, str]:
    """Tables and views that show somebody the rows that `plant` made, which are another's; by (rule, object)."""
    found: dict[Key, str] = {}
    claims = {"sub": "00000000-0000-4000-8000-000000000000", "role": "authenticated"}
    for key, relation in facts.items():
        if key[0] != "relation" or relation["kind"] == "S":
            continue
        name = sql.SQL(".").join(map(sql.Identifier, key[1].split(".", 1)))
        for role in STRANGERS:
            if not any(one[:4] == ("right", role, key[1], "select") for one in facts):
                continue
            try:
                with admin.transaction(force_rollback=True):
                    admin.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
                    admin.execute(
                        "select set_config('request.jwt.claims', %s, true)",
                        (json.dumps(claims | {"role": role}),),
                    )
                    row = admin.execute(sql.SQL("select from {} limit 1").format(name)).fetchone()
            except psycopg.Error:
                continue
            if row is not None:
                found["open-policy", key[1], role] = (
                    f"{role} may read rows of {key[1]} that are another's"
                )
    return found
