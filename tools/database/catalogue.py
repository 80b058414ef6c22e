"""What a database has, by its catalogue, and which of it is lost or narrowed from one moment to another.

A fact is a key (its kind, then the names of what it belongs to) and a value. What code of the last release may lean
on is a fact, and so is what holds it back (a constraint, a policy, a trigger).
"""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
from pglast import scan
from psycopg import sql

from tools.database.bodies import plain, statements

Key = tuple[str, ...]
Facts = Mapping[Key, Any]

FACTS = pathlib.Path(__file__).with_suffix(".sql").read_bytes()

# A row for each table, so that what a statement does to rows is seen too. By the kind of the column's type.
EXAMPLES = {
    "uuid": "'5eed5eed-5eed-4eed-8eed-5eed5eed5eed'",
    "S": "repeat('0', 64)",
    "N": "1",
    "B": "false",
    "D": "'2020-01-01'",
    "T": "'1 day'",
    "A": "'{}'",
    "json": "'{}'",
    "jsonb": "'{}'",
    "bytea": "''",
    "tsvector": "''",
}


def snapshot(admin: psycopg.Connection) -> dict[Key, Any]:
    """All facts; `admin` is a superuser's connection with an empty search_path, autocommitting."""
    facts: dict[Key, Any] = {tuple(key): value for key, value in admin.execute(FACTS)}
    # The values of each column, as hashes, of tables that are small: those of this process have a row or two.
    for _, table, *_ in [
        key for key, value in facts.items() if key[0] == "relation" and value["kind"] == "r"
    ]:
        name = sql.SQL(".").join(map(sql.Identifier, table.split(".", 1)))
        query = sql.SQL("select to_jsonb(t) from {} t limit 1000").format(name)
        rows = [row for (row,) in admin.execute(query)]
        for column in [key[2] for key in facts if key[:2] == ("column", table)]:
            facts["rows", table, column] = Counter(str(row[column]) for row in rows)
    return facts


def plant(admin: psycopg.Connection, facts: Facts) -> bool:
    """Put a row into every table that has none, without triggers and foreign keys; whether any took it."""
    planted = False
    for key, relation in facts.items():
        if key[0] != "relation" or relation["kind"] not in ("r", "p"):
            continue
        name = sql.SQL(".").join(map(sql.Identifier, key[1].split(".", 1)))
        if admin.execute(sql.SQL("select from {} limit 1").format(name)).fetchone() is not None:
            continue
        fields = admin.execute(
            "select a.attname, t.typname, t.typcategory, format_type(a.atttypid, a.atttypmod), a.attnotnull, "
            "a.atthasdef, a.atttypmod, (select quote_literal(min(enumlabel)) from pg_enum where enumtypid = t.oid) "
            "from pg_attribute a join pg_type t on t.oid = a.atttypid where a.attrelid = to_regclass(%s) "
            "and a.attnum > 0 and not a.attisdropped and a.attidentity = '' and a.attgenerated = ''",
            (name.as_string(admin),),
        ).fetchall()
        # All columns; or all without a default; or those alone that must be given.
        for attempt in range(3):
            chosen, values = [], []
            for column, kind, category, full, must, default, length, label in fields:
                value = label or EXAMPLES.get(kind) or EXAMPLES.get(category)
                if kind in ("vector", "halfvec"):
                    value = f"array_fill(0, array[{length}])::{full}"
                elif value and category == "S" and kind != "text":
                    value = f"({value})::{full}"
                if value and not (attempt and default) and (attempt < 2 or must):
                    chosen.append(sql.Identifier(column))
                    values.append(sql.SQL(value))
            given = sql.SQL("({}) values ({})").format(
                sql.SQL(", ").join(chosen), sql.SQL(", ").join(values)
            )
            row = sql.SQL("insert into {} {}").format(
                name, given if chosen else sql.SQL("default values")
            )
            try:
                with admin.transaction():
                    admin.execute("set local session_replication_role = replica")
                    admin.execute("set local search_path = extensions")
                    admin.execute(row)
                planted = True
                break
            except psycopg.Error:
                continue
    return planted


def uproot(admin: psycopg.Connection, facts: Facts) -> None:
    """Empty every table again."""
    tables = [
        key[1]
        for key, value in facts.items()
        if key[0] == "relation" and value["kind"] in ("r", "p")
    ]
    names = [sql.SQL(".").join(map(sql.Identifier, table.split(".", 1))) for table in tables]
    with admin.transaction():
        admin.execute("set local session_replication_role = replica")
        admin.execute(sql.SQL("truncate {} cascade").format(sql.SQL(", ").join(names)))


def expression(text: str) -> Any:
    """The parser's tree of an expression, without where its parts stand."""
    return plain(statements(f"select {text}")[0])["targetList"][0]["val"]


def parts(tree: Any, kind: str) -> list[Any]:
    """What an expression joins by `kind` (AND_EXPR, OR_EXPR): itself alone where it joins nothing."""
    joins = (
        isinstance(tree, dict) and tree.get("@") == "BoolExpr" and tree["boolop"]["name"] == kind
    )
    return [part for arg in tree["args"] for part in parts(arg, kind)] if joins else [tree]


def wider(old: str | None, new: str | None) -> bool:
    """Whether all that fulfils `old` fulfils `new`, as far as it can be told; None: nothing is asked."""
    if new is None or old == new:
        return True
    if old is None:
        return False
    before, after = expression(old), expression(new)
    return (
        after == {"@": "A_Const", "isnull": False, "val": {"@": "Boolean", "boolval": True}}
        or all(part in parts(after, "OR_EXPR") for part in parts(before, "OR_EXPR"))
        or all(part in parts(before, "AND_EXPR") for part in parts(after, "AND_EXPR"))
        or _looser(old, new)
    )


def _looser(old: str, new: str) -> bool:
    """Whether `new` is `old` with a longer list to choose from, or with wider bounds."""
    lists = [re.fullmatch(r"(.*\bARRAY\[)(.*)(\].*)", text, re.DOTALL) for text in (old, new)]
    if lists[0] and lists[1] and lists[0][1] == lists[1][1] and lists[0][3] == lists[1][3]:
        return set(lists[0][2].split(", ")) <= set(lists[1][2].split(", "))
    words = [[text[one.start : one.end + 1] for one in scan(text)] for text in (old, new)]
    if len(words[0]) != len(words[1]):
        return False
    for at, (was, now) in enumerate(zip(*words, strict=True)):
        sign = words[0][at - 1]
        if was != now and not (
            was.isdigit() and now.isdigit()
            and ((sign in ("<", "<=") and int(was) < int(now)) or (sign in (">", ">=") and int(was) > int(now)))
        ):  # fmt: skip
            return False
    return True


def _view(definition: str) -> tuple[list[Any], Any]:
    """(columns, all the rest) of a view's query."""
    tree = plain(statements(definition)[0])
    return list(tree.pop("targetList", ())), tree


def lost(before: Facts, after: Facts) -> dict[Key, str]:
    """What code that leans on `before` may miss in `after`, by key: a sentence about each."""
    gone = {key[1] for key in before if len(key) == 2 and key not in after}
    found: dict[Key, str] = {}
    for key, old in before.items():
        kind, *names = key
        called = " ".join([kind, *names])
        if len(key) > 2 and gone & set(names):
            continue  # with what it belongs to, which is told
        if key not in after:
            reason = _gone(key, old, after)
        elif old != after[key]:
            reason = _changed(key, old, after[key], after)
        else:
            continue
        if reason:
            found[key] = reason.replace("{}", called)
    for key, new in after.items():
        if key not in before and len(key) > 2 and (reason := _held_back(key, new, before, after)):
            found[key] = reason
        if key not in before and key[0] == "event trigger":
            found[key] = f"event trigger {key[1]} may refuse what was allowed"
        if key not in before and key[0] == "function":
            others = [
                one for other, one in before.items() if other[0] == "function" and other in after
            ]
            if any(
                one["called"] == new["called"] and one["least"] <= new["most"] and new["least"] <= one["most"]
                and one["most"] != new["most"]
                for one in others
            ):  # fmt: skip
                found[key] = f"a call of {new['called']} may not know which of two is meant"
    found |= dict(_policies(before, after))
    return found


def _gone(key: Key, old: Any, after: Facts) -> str:
    """Why it is a loss that a fact is no more; empty when it is none. {} stands for its name."""
    kind = key[0]
    if kind in ("default", "rule", "policy", "event trigger"):
        return ""
    if kind == "constraint":
        same = any(
            other[:2] == key[:2] and other[0] == kind and one["definition"] == old["definition"]
            for other, one in after.items()
        )
        return "" if old["type"] == "c" or (old["type"] == "f" and same) else "{} is dropped"
    if kind == "index":
        covered = any(
            other[:2] == key[:2] and one["valid"] and one["method"] == old["method"] and one["where"] == old["where"]
            and one["columns"][: len(old["columns"])] == old["columns"] and (not old["unique"] or (one["unique"]
            and one["columns"] == old["columns"]))
            for other, one in after.items() if other[0] == "index"
        )  # fmt: skip
        return "" if old["owned"] or not old["valid"] or covered else "{} is dropped"
    if kind == "right":
        _, role, name, right, *column = key
        if column and ("column", name, *column) not in after:
            return ""  # with the column, which is told
        return f"{role} may not {right} {' '.join([name, *column])} any more"
    if kind == "relation":
        kinds = {"r": "table", "p": "table", "v": "view", "m": "view", "S": "sequence"}
        return f"{kinds.get(old['kind'], kind)} {key[1]} is dropped"
    return "" if kind == "rows" else "{} is dropped"


def _changed(key: Key, old: Any, new: Any, after: Facts) -> str:
    """Why it is a loss that a fact has another value; empty when it is none."""
    kind = key[0]
    differ = {name for name in old if old[name] != new[name]} if isinstance(old, dict) else set()
    if kind == "relation":
        if {"secured", "forced"} & {name for name in differ if new[name]}:
            return f"{key[1]} shows only what a policy allows from now on"
        if "definition" in differ and old["definition"] and new["definition"]:
            (columns, rest), (more, others) = _view(old["definition"]), _view(new["definition"])
            if rest == others and more[: len(columns)] == columns:
                differ -= {"definition"}
        differ -= {"last"} if (new["last"] or 0) >= (old["last"] or 0) else set()
        differ -= {"secured", "forced"} | ({"invoker"} if old["invoker"] else set())
        return f"{{}} changes: {', '.join(sorted(differ))}" if differ else ""
    if kind == "column":
        grown = {"type"} if _longer(old["type"], new["type"]) else set()
        grown |= {"full"} if old["full"] else set()
        grown |= {"default"} if old["default"] is None and not new["made"].strip("d") else set()
        grown |= {"made"} if not old["made"] and new["made"] == "d" else set()
        return f"{{}} changes: {', '.join(sorted(differ - grown))}" if differ - grown else ""
    if kind == "type":
        fewer = [
            part
            for part, of in (old["parts"] or {}).items()
            if (new["parts"] or {}).get(part, "") != of
        ]
        return (
            f"{{}} changes: {', '.join(fewer or sorted(differ))}"
            if fewer or differ - {"parts"}
            else ""
        )
    if kind == "function":
        narrowed = differ & {"result", "kind"}
        narrowed |= (
            {"volatile"} if "isv".index(new["volatile"]) > "isv".index(old["volatile"]) else set()
        )
        names = old["names"] or []
        narrowed |= {"names"} if (new["names"] or [])[: len(names)] != names else set()
        narrowed |= {"arguments"} if new["least"] > old["least"] else set()
        narrowed |= {"strict"} if new["strict"] and not old["strict"] else set()
        narrowed |= {"definer"} if old["definer"] and not new["definer"] else set()
        return f"{{}} changes: {', '.join(sorted(narrowed))}" if narrowed else ""
    if kind == "role":
        fewer = [name for name, may in old["may"].items() if may and not new["may"][name]]
        endless = float("inf")
        fewer += (
            ["limit"]
            if (new["limit"] or endless) < (old["limit"] or endless)
            or new["limit"] == 0 != old["limit"]
            else []
        )
        fewer += ["until"] if new["until"] and new["until"] != old["until"] else []
        fewer += ["password"] if old["password"] and "password" in differ else []
        return f"{{}} has less: {', '.join(fewer)}" if fewer else ""
    if kind == "rows":
        # What a trigger writes into each row that is touched is no loss of anybody's.
        written = re.compile(rf"\bnew\.{re.escape(key[2])}\s*:?=", re.IGNORECASE)
        by_trigger = any(
            other[:2] == ("trigger", key[1]) and written.search(one["source"] or "")
            for other, one in after.items()
        )
        return (
            f"{key[1]}.{key[2]} is overwritten or gone in rows that exist"
            if old - new and not by_trigger
            else ""
        )
    if kind == "constraint":
        return "" if _admits(old, new) else "{} changes"
    if kind == "index":
        return (
            "{} changes"
            if differ - {"owned"} and (old["valid"], new["valid"]) != (False, True)
            else ""
        )
    if kind == "trigger" and differ <= {"source"}:
        said = _refuses(new, after)
        return f"{{}} may say no: {said}" if said and not _refuses(old, after) else ""
    return "" if kind in ("policy", "event trigger") else "{} changes"


def _held_back(key: Key, new: Any, before: Facts, after: Facts) -> str:
    """Why a new fact about something that was there is a loss; empty when it is none."""
    kind, of, *names = key
    name = names[-1]
    if kind == "setting":
        return (
            f"{of} has another {name} from now on"
            if ("role", of) in before or of == "everybody"
            else ""
        )
    if ("relation", of) not in before and ("type", of) not in before:
        return ""
    if kind == "column" and new["full"] and new["default"] is None and not new["made"]:
        return (
            f"a row of {of} needs {name} now"
            if before.get(("relation", of), {}).get("kind") != "v"
            else ""
        )
    if kind == "constraint" or (kind == "index" and new["unique"] and not new["owned"]):
        fields = [after.get(("column", of, column)) for column in new["columns"] or ()]
        fresh = all(field and ("column", of, column) not in before
                    for field, column in zip(fields, new["columns"] or (), strict=True))  # fmt: skip
        empty = fresh and not any(field["full"] or field["default"] for field in fields if field)
        if fresh and fields and (empty or new.get("type") in ("c", "f")):
            return ""  # of columns that nobody fills yet
        replaced = [one for other, one in before.items() if other[:2] == key[:2]]
        if kind == "constraint" and any(_admits(one, new) for one in replaced):
            return ""
        return f"rows that {of} took until now may be refused: {name}"
    if kind == "trigger" and (found := _refuses(new, before)):
        return f"trigger {name} of {of} may say no: {found}"
    if kind == "trigger":
        return ""
    return f"rule {name} rewrites what is done to {of}" if kind == "rule" else ""


def _refuses(trigger: Any, known: Facts) -> str:
    """What in a trigger's code may refuse a row, drop it or delete others; empty when nothing does."""
    words = (
        r"\braise\s+(?!notice|warning|info|log|debug)|\b(?:delete\s+from|truncate)\s+(?P<of>[\w.]+)"
    )
    words += r"|\breturn\s+(?:null|old)\b" if trigger["before"] else ""
    for found in re.finditer(words, trigger["source"] or "", re.IGNORECASE):
        of = found["of"] or ""
        if "." not in of or ("relation", of.lower()) in known:  # not one that comes with it
            return found[0].strip()
    return ""


def _admits(old: Any, new: Any) -> bool:
    """Whether a constraint lets through all that another did."""
    if old["definition"].removesuffix(" NOT VALID") == new["definition"].removesuffix(" NOT VALID"):
        return True
    checks = [re.sub(r"^CHECK | NOT VALID$", "", one["definition"]) for one in (old, new)]
    return bool(old["type"] == new["type"] == "c") and wider(*checks)


def _longer(old: str, new: str) -> bool:
    """Whether a type of text only takes longer ones."""
    sizes = [re.fullmatch(r"character varying(?:\((\d+)\))?|text", text) for text in (old, new)]
    if not sizes[0] or not sizes[1]:
        return False
    return not sizes[1][1] or (bool(sizes[0][1]) and int(sizes[0][1]) <= int(sizes[1][1]))


def _policies(before: Facts, after: Facts) -> Iterator[tuple[Key, str]]:
    """What policies do not let through any more, whatever they are called."""
    for key, old in before.items():
        if key[0] != "policy" or not after.get(("relation", key[1]), {}).get("secured"):
            continue
        if not old["permissive"]:
            continue
        now = [one for other, one in after.items() if other[:2] == key[:2] and one["permissive"]]
        for command in "rawd" if old["for"] == "*" else old["for"]:
            for role in old["roles"]:
                if not any(
                    one["for"] in ("*", command) and {role, "public"} & set(one["roles"])
                    and all(map(wider, _asks(old, command), _asks(one, command)))
                    for one in now
                ):  # fmt: skip
                    yield (
                        (*key, command, role),
                        f"policy {key[2]} of {key[1]} lets {role} do less than before",
                    )
    for key, new in after.items():
        if (
            key[0] == "policy"
            and not new["permissive"]
            and ("relation", key[1]) in before
            and before.get(key) != new
        ):
            yield key, f"{key[1]} shows less than before: policy {key[2]}"


def _asks(policy: Any, command: str) -> tuple[str | None, str | None]:
    """What a policy asks of rows that are there, and of those that are written."""
    written = policy["check"] if policy["check"] is not None else policy["qual"]
    return (None if command == "a" else policy["qual"], written if command in "aw" else None)
