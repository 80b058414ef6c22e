"""What answers of a month cost, by user and model.

Usage: [MONTH=YYYY-MM] python -m tools.database.usage [--csv]

MONTH is one of UTC, this one where nothing is said. The database is the one that `make migrate` would take; nothing
is changed in it. A table for people goes to stdout, or with `--csv` one for programs.
Exit codes: 0 done; 1 the database failed; 2 refused before anything was asked.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import re
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import psycopg
import yaml

from tools.database.address import ROOT, Refused, database_url, hide_secrets, told

COLUMNS = ("user", "model", "answers", "estimated", "prompt", "cached", "completion", "embedding", "USD")  # fmt: skip
QUERY = """
select coalesce(u.email, s.user_id::text, 'deleted accounts'), s.model, sum(s.answers)::bigint,
  sum(s.estimated)::bigint, sum(s.prompt_tokens)::bigint, sum(s.cached_tokens)::bigint,
  sum(s.completion_tokens)::bigint, sum(s.embedding_tokens)::bigint, sum(s.cost)::bigint
from private.spending s left join auth.users u on u.id = s.user_id
where s.day >= %(first)s and s.day < %(next)s
group by s.user_id, u.email, s.model order by sum(s.cost) desc, 1, 2
"""
MILLION = 1_000_000

Row = tuple[Any, ...]  # as COLUMNS; the last in USD


def month(text: str) -> tuple[datetime.date, datetime.date]:
    """Return the first day of the month and that of the next. Raises Refused."""
    today = datetime.datetime.now(datetime.UTC).date()
    text = text.strip() or f"{today:%Y-%m}"
    if not re.fullmatch(r"2[0-9]{3}-(0[1-9]|1[0-2])", text, re.ASCII):
        raise Refused(f"MONTH={text!r} is no month. Next: MONTH={today:%Y-%m}")
    first = datetime.date.fromisoformat(f"{text}-01")
    return first, (first + datetime.timedelta(days=32)).replace(day=1)


def spent(
    connection: psycopg.Connection, first: datetime.date, following: datetime.date
) -> list[Row]:
    """Return a row for each user and model of the month, the dearest first."""
    rows = connection.execute(QUERY, {"first": first, "next": following}).fetchall()
    return [(*row[:-1], Decimal(row[-1]) / MILLION) for row in rows]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table for people, numbers to the right, and their sum below."""
    sums = [sum(row[at] for row in rows) for at in range(2, len(COLUMNS))]
    shown = [
        COLUMNS,
        *([*row[:2], *(f"{number:,}" for number in row[2:-1]), f"{row[-1]:,.6f}"] for row in rows),
        ["all", "", *(f"{number:,}" for number in sums[:-1]), f"{sums[-1]:,.6f}"],
    ]
    widths = [max(len(line[at]) for line in shown) for at in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in shown
    )


def cell(value: Any) -> str:
    """Return a value as a CSV cell; a spreadsheet must not take a text for a formula."""
    if isinstance(value, Decimal):
        return f"{value:.6f}"
    text = str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--csv", action="store_true", help="for programs")
    arguments = parser.parse_args()
    hide_secrets("stdout", "stderr")
    try:
        first, following = month(os.environ.get("MONTH", ""))
        url = database_url()
    except Refused as reason:
        print(f"usage: {reason}", file=sys.stderr)
        return 2
    try:
        with psycopg.connect(
            url, autocommit=True, application_name="cimt usage", connect_timeout=30
        ) as connection:
            rows = spent(connection, first, following)
    except psycopg.errors.UndefinedTable:
        print("usage: the database keeps no costs yet. Next: make migrate", file=sys.stderr)
        return 1
    except psycopg.Error as error:
        print(f"usage: {told(error)}", file=sys.stderr)
        return 1
    if arguments.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("month", *COLUMNS))
        writer.writerows((f"{first:%Y-%m}", *map(cell, row)) for row in rows)
        return 0
    declared = yaml.safe_load((ROOT / "services/settings.yaml").read_text())["settings"]
    cap = os.environ.get("BUDGET_MONTH_USD") or declared["BUDGET_MONTH_USD"]["default"]
    print(f"{first:%Y-%m} (UTC); the month's budget, as set here: {cap} USD\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
