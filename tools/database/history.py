"""What may not happen to a migration once it is applied: one rule for the database and for a pull request.

`make migrate` asks it about what the database has; `tools.database.safety --base` about what the branch has that is
merged into. So a pull request is told what `make migrate` would have to refuse after the merge.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pglast import scan
from pglast.parser import ParseError

from tools import revisions

FILE = re.compile(r"\d{14}_[a-z0-9_]+\.sql")


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
    try:
        return left == right or tokens(left) == tokens(right)
    except ParseError:
        return False


def refusals(
    applied: Mapping[str, str | None], files: Mapping[str, str], place: str, bring_back: str
) -> list[Refusal]:
    """What is wrong with `files` (name: SQL) where those of `applied` are in; None: its SQL is not known.

    `place` says where they are in, `bring_back` what to type when a file is not here.
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
            if other[:14] == name[:14] or (sql is not None and same(sql, files[other]))
        ]
        if now_called:
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


def read(folder: Path) -> dict[str, str]:
    """The files of a folder of migrations, by name."""
    if not folder.is_dir():
        return {}
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


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
        name: text
        for name in {*theirs, *ours}
        if (text := (ours if ours.get(name) != before.get(name) else theirs).get(name)) is not None
    }
    return refusals(theirs, merged, base, f"git checkout {base} -- migrations")
