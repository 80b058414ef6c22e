"""What may not happen to a migration once it is applied: one rule for the database and for a pull request.

`make migrate` asks it about what the database has; `tools.database.safety --base` about what the branch has that is
merged into. So a pull request is told what `make migrate` would have to refuse after the merge.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pglast import scan
from pglast.error import Error as SyntaxProblem
from pglast.parser import ParseError

from tools import revisions
from tools.database import bodies

FILE = re.compile(r"\d{14}_[a-z0-9_]+\.sql")
BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


@dataclass(frozen=True)
class Refusal:
    """Why these files are not applied; `text` ends with what to type."""

    file: str
    rule: str
    text: str


def tokens(sql: str) -> list[str]:
    """The SQL without what means nothing: comments, white space, semicolons."""
    return [
        sql[token.start : token.end + 1]
        for token in scan(sql)
        if token.name not in ("SQL_COMMENT", "C_COMMENT", "ASCII_59")
    ]


def same(left: str, right: str) -> bool:
    """Whether two texts are the same SQL; what is not SQL is compared as it stands."""
    # One that was applied with the line ends of Windows may be brought to those of everybody else.
    left, right = (one.replace("\r\n", "\n").removeprefix(BOM) for one in (left, right))
    try:
        return left == right or tokens(left) == tokens(right)
    except ParseError:
        return False


def statements(sql: str) -> list[Any]:
    """The parser's trees of the statements; none where it is no SQL, which whoever applies it says."""
    try:
        return bodies.statements(sql.removeprefix(BOM))
    except (ParseError, SyntaxProblem, UnicodeEncodeError):
        return []


def unfit(name: str, sql: str) -> Iterator[Refusal]:
    """Why the Supabase CLI would not apply a file as it stands, or could not apply it again after a failure."""

    def refusal(rule: str, what: str, then: str) -> Refusal:
        return Refusal(name, rule, f"{what}: migrations/{name}. Next: {then}")

    if "\r" in sql or sql.startswith(BOM):
        what = "it has a byte order mark" if sql.startswith(BOM) else "it has line ends of Windows"
        yield refusal(
            "bytes",
            what,
            f"save it as UTF-8 with line ends of Unix (git add --renormalize migrations/{name})",
        )
    if any("\ud800" <= sign <= "\udfff" for sign in sql):
        yield refusal("bytes", "it is no UTF-8", "save it as UTF-8")
        return
    nodes = statements(sql)
    for node in nodes:
        kind = node["@"]
        if kind == "TransactionStmt":
            what = f"it says {node['kind']['name'].removeprefix('TRANS_STMT_').lower().replace('_', ' ')}"
            yield refusal("transaction", what, "leave it out; each file is one transaction already")
        elif kind == "LockStmt":
            then = "write do $$ begin lock table … in … mode; end $$, which holds it to the end of the file"
            yield refusal("transaction", "the Supabase CLI refuses lock table", then)
        elif kind == "VariableSetStmt" and (
            node.get("is_local") or node.get("name") == "TRANSACTION"
        ):
            yield refusal(
                "transaction",
                "the Supabase CLI may ignore set local",
                "write set without local; it ends with the file",
            )
        elif (
            node.get("concurrent") or node.get("is_vacuumcmd")
            or any(option.get("defname") == "concurrently" for option in node.get("params", ()))
        ) and len(nodes) > 1:  # fmt: skip
            what = "what runs outside a transaction stands beside other statements"
            yield refusal(
                "transaction",
                what,
                "put it alone into a file of its own, so that it can be tried again",
            )
        if kind == "IndexStmt" and node["concurrent"] and not node.get("idxname"):
            then = "give it one, so that what a failed attempt leaves can be found"
            yield refusal(
                "transaction", "an index that is built outside a transaction has no name", then
            )


def refusals(
    applied: Mapping[str, str | None],
    files: Mapping[str, str],
    place: str,
    bring_back: str,
    *,
    was_here: bool = False,
) -> list[Refusal]:
    """What is wrong with `files` (name: SQL) where those of `applied` are in; None: its SQL is not known.

    `place` says where they are in, `bring_back` what to type when a file is not here; `was_here` that each of
    `applied` was among the files once.
    """
    found = [
        Refusal(
            name,
            "name",
            f"not a migration: migrations/{name}. "
            "Next: name it YYYYMMDDHHMMSS_what_it_does.sql, or move it elsewhere",
        )
        for name in sorted(files)
        if not FILE.fullmatch(name)
    ]
    new = sorted(name for name in files if name not in applied and FILE.fullmatch(name))
    found += [wrong for name in new for wrong in unfit(name, files[name])]
    newest = max((name[:14] for name in applied), default="")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d%H%M%S")
    number = max(now, *(str(int(name[:14]) + 1) for name in [*applied, *new])) if new else now

    def renumber(name: str) -> str:
        """The command that gives a file a free number; each call gives a later one."""
        nonlocal number
        told = f"git mv migrations/{name} migrations/{number}{name[14:]}"
        number = str(int(number) + 1)
        return told

    for name, sql in sorted(applied.items()):
        if name in files:
            if sql is not None and not same(sql, files[name]):
                found.append(
                    Refusal(
                        name,
                        "edited",
                        f"edited since it was applied: migrations/{name}. Next: put it back as it was "
                        "(git log -p -- migrations), and write the change as a new migration",
                    )
                )
            continue
        now_called = [
            other
            for other in new
            if (other[:14] == name[:14] and (was_here or sql is None))
            or (sql is not None and same(sql, files[other]))
        ]
        taken_by = [other for other in new if other[:14] == name[:14]]
        if taken_by and not now_called:
            text = (
                f"two migrations have the number {name[:14]}: {place} has {name.removesuffix('.sql')}, "
                f"here it is migrations/{taken_by[0]}. Next: {renumber(taken_by[0])}, and {bring_back}"
            )
            found.append(Refusal(taken_by[0], "duplicate", text))
            new = [other for other in new if other not in taken_by]
        elif now_called:
            new.remove(now_called[0])
            text = (
                f"renamed since it was applied: migrations/{name} is {now_called[0]} here. "
                f"Next: git mv migrations/{now_called[0]} migrations/{name}"
            )
            found.append(Refusal(now_called[0], "renamed", text))
        else:
            text = f"{place} has {name.removesuffix('.sql')}, this checkout has not. Next: {bring_back}"
            found.append(Refusal(name, "missing", text))
    taken = {name[:14] for name in applied if name in files}
    for name in new:
        if name[:14] in taken:
            other = next(one for one in sorted(files) if one[:14] == name[:14] and one != name)
            text = f"two migrations have the number {name[:14]}: migrations/{name} and {other}. Next: {renumber(name)}"
            found.append(Refusal(name, "duplicate", text))
        elif name[:14] < newest:
            text = (
                f"out of order: migrations/{name} is older than {newest}, which {place} has. "
                f"Next: {renumber(name)}"
            )
            found.append(Refusal(name, "late", text))
        taken.add(name[:14])
    return found


def text(content: bytes) -> str:
    """A file's text with each byte of it, also where it is no UTF-8."""
    return content.decode("utf-8", "surrogateescape")


def read(folder: Path) -> dict[str, str]:
    """The files of a folder of migrations, by name; a folder has no text."""
    if not folder.is_dir():
        return {}
    return {
        path.name: text(path.read_bytes()) if path.is_file() else ""
        for path in sorted(folder.iterdir())
    }


def alone(root: Path) -> list[Refusal]:
    """What is wrong with the files by themselves, whatever is applied."""
    return refusals({}, read(root / "migrations"), "", "")


def against(base: str, root: Path) -> list[Refusal]:
    """What `make migrate` would refuse once what lies here is merged into `base`. Raises UnknownRevision.

    Judged is what the merge makes of both: what only the base changed since they parted is no change of ours.
    """
    with revisions.exported(revisions.merge_base(base, root), root) as tree:
        before = read(tree / "migrations")
    with revisions.exported(base, root) as tree:
        theirs = read(tree / "migrations")
    ours = read(root / "migrations")
    merged = {
        name: sql
        for name in {*theirs, *ours}
        if (sql := (ours if ours.get(name) != before.get(name) else theirs).get(name)) is not None
    }
    bring_back = f"git checkout {base} -- migrations"
    return refusals(theirs, merged, base, bring_back, was_here=True)
