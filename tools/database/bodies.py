"""The SQL inside a body of code (a DO block, a function): what runs when it is run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pglast import parse_plpgsql, parse_sql
from pglast.error import Error as SyntaxProblem
from pglast.parser import ParseError


class Unreadable(Exception):
    """The body is no PL/pgSQL and no SQL that the parser knows."""


def _expressions(value: Any, inside: str = "") -> Iterator[tuple[str, str]]:
    """(kind of PL/pgSQL statement, text of its query) for all below."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "PLpgSQL_expr":
                yield inside, str(item["query"])
            else:
                yield from _expressions(item, key if key.startswith("PLpgSQL_stmt") else inside)
    elif isinstance(value, list):
        for item in value:
            yield from _expressions(item, inside)


def _statements(sql: str) -> list[dict[str, Any]]:
    parsed: Any = parse_sql(sql)
    return [raw.stmt(skip_none=True) for raw in parsed]


def read(language: str, body: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(statements as the parser gives them, expressions whose text is run as SQL and known only then).

    Branches count as taken. Raises Unreadable.
    """
    try:
        if language == "sql":
            return _statements(body), []
        if language != "plpgsql":
            raise Unreadable(language)
        quoted = body.replace("'", "''")
        wrapped = f"create function block() returns void language plpgsql as '{quoted}'"
        statements: list[dict[str, Any]] = []
        made_at_run_time: list[str] = []
        for kind, text in _expressions(parse_plpgsql(wrapped)):
            if kind in ("PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_dynfors"):
                constant = _statements(f"select {text}")[0]["targetList"][0]["val"]
                if "sval" in (constant.get("val") or {}):
                    statements += _statements(constant["val"]["sval"])
                else:
                    made_at_run_time.append(text)
            elif kind in ("PLpgSQL_stmt_execsql", "PLpgSQL_stmt_perform", "PLpgSQL_stmt_fors"):
                statements += _statements(text)
    except (ParseError, SyntaxProblem, KeyError) as error:
        raise Unreadable(str(error)) from None
    return statements, made_at_run_time
