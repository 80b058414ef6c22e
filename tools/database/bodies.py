"""The SQL inside a body of code (a DO block, a function): what runs when it is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pglast import parse_plpgsql, parse_sql
from pglast.error import Error as SyntaxProblem
from pglast.parser import ParseError


class Unreadable(Exception):
    """The body is no PL/pgSQL and no SQL that the parser knows."""


def plain(node: Any) -> Any:
    """A parser's tree without where its parts stand in the text."""
    if isinstance(node, dict):
        return {
            name: plain(item) for name, item in node.items() if name not in ("location", "stmt_len")
        }
    return [plain(item) for item in node] if isinstance(node, (list, tuple)) else node


def nodes(tree: Any, kind: str, outside: str = "") -> Iterator[dict[str, Any]]:
    """Every node of a kind below, without those inside a node of the kind `outside`."""
    if isinstance(tree, dict):
        if outside and tree.get("@") == outside:
            return
        if tree.get("@") == kind:
            yield tree
        for item in tree.values():
            yield from nodes(item, kind, outside)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from nodes(item, kind, outside)


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


def statements(sql: str) -> list[dict[str, Any]]:
    """The parser's tree of each. Raises ParseError."""
    parsed: Any = parse_sql(sql)
    return [raw.stmt(skip_none=True) for raw in parsed]


def _made(node: Any) -> str:
    """The text of an expression as far as it is written out; what is filled in later is a name in it."""
    if node["@"] == "A_Const" and "sval" in (node.get("val") or {}):
        return str(node["val"]["sval"])
    if node["@"] == "A_Expr" and node["name"][0]["sval"] == "||":
        return _made(node["lexpr"]) + _made(node["rexpr"])
    if node["@"] == "FuncCall" and node["funcname"][-1]["sval"] == "format":
        return re.sub(
            r"%(?:\d+\$)?([sIL])",
            lambda one: "'_'" if one[1] == "L" else "_",
            _made(node["args"][0]),
        )
    return "_"


def _parsed(body: str) -> Any:
    """PL/pgSQL's tree. What `return` may say depends on what a function returns, which is not known here."""
    quoted = body.replace("'", "''")
    problems: list[ParseError] = []
    for returns in ("void", "setof text", "text", "trigger", "event_trigger"):
        head = f"create function block() returns {returns} language plpgsql as"
        try:
            return parse_plpgsql(f"{head} '{quoted}'")
        except ParseError as error:
            problems.append(error)
    raise problems[0]


def read(language: str, body: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(statements as the parser gives them, expressions whose text is run as SQL and not known before).

    Branches count as taken. Text that is put together counts as known where it is SQL with a name in each gap.
    Raises Unreadable.
    """
    found: list[dict[str, Any]] = []
    made_at_run_time: list[str] = []
    try:
        if language == "sql":
            atomic = re.fullmatch(r"\s*BEGIN ATOMIC\b(.*)\bEND\s*", body, re.DOTALL | re.IGNORECASE)
            text = atomic[1] if atomic else re.sub(r"^\s*RETURN\b", "SELECT", body)
            return statements(text), []
        if language != "plpgsql":
            raise Unreadable(language)
        for kind, text in _expressions(_parsed(body)):
            if kind in ("PLpgSQL_stmt_execsql", "PLpgSQL_stmt_perform", "PLpgSQL_stmt_fors"):
                found += statements(text)
                continue
            value = text.partition(":=")[2] if kind == "PLpgSQL_stmt_assign" else text
            dynamic = kind in ("PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_dynfors")
            try:
                selected = statements(f"select {value}")
            except ParseError:
                if dynamic:
                    made_at_run_time.append(text)
                continue
            found += selected
            if dynamic:
                try:
                    found += statements(_made(selected[0]["targetList"][0]["val"]))
                except (ParseError, KeyError):
                    made_at_run_time.append(text)
    except (ParseError, SyntaxProblem, KeyError) as error:
        raise Unreadable(str(error)) from None
    return found, made_at_run_time
