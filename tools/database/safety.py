"""What each migration does to the code that runs now, and what is wrong with it; needs no database.

Usage: python -m tools.database.safety [--base REF | --contracts]

Class `expand`: code of the last release goes on working while the migration is in. Class `contract`: it takes
something away, so that the code that no longer needs it must have been released before.
With `--base REF` (the branch that is merged into) a contract migration that is new since it was left may not come
together with changes below services/, and none may be what `make migrate` refuses after the merge: older than one
that is in, edited, deleted, renamed, or of the same number. With `--contracts` the contract migrations are printed
as JSON, {name: what they take away}, and nothing else: `make rollback` asks. Exit codes: 0 nothing found, 1 something
found.
A finding is waived by a comment on the line above its statement: -- allow: RULE: reason
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pglast import parse_sql
from pglast.error import Error as SyntaxProblem
from pglast.parser import ParseError

from tools import revisions
from tools.database import bodies, history

ROOT = pathlib.Path(__file__).parents[2]
WAIVER = re.compile(r"--\s*allow:\s*([a-z0-9:-]+):\s*\S")
# Not squawk's business: the runner sets the time-outs; we look at tables that existed before; small numbers are small.
SQUAWK_LEFT_OUT = (
    "require-lock-timeout,require-statement-timeout,require-concurrent-index-creation,"
    "prefer-bigint-over-int,prefer-robust-stmts"
)
LOST = re.compile(
    r"\b(drop|truncate|revoke|rename|delete\s+from|update\s|alter\s+(table|column|type))",
    re.IGNORECASE,
)
# Commands of ALTER TABLE that code of the last release cannot notice, or only gains by.
HARMLESS = {
    "AT_SetStorage",
    "AT_SetStatistics",
    "AT_SetOptions",
    "AT_SetCompression",
    "AT_SetRelOptions",
    "AT_DropNotNull",
    "AT_DropConstraint",
    "AT_ValidateConstraint",
    "AT_ChangeOwner",
    "AT_ClusterOn",
    "AT_NoForceRowSecurity",
    "AT_EnableTrig",
}
DISTANCE = {"<=>": "_cosine_ops", "<->": "_l2_ops", "<#>": "_ip_ops", "<+>": "_l1_ops"}


@dataclass(frozen=True, order=True)
class Finding:
    """Something wrong in one migration; `line` counts from 1, 0 is the file as a whole."""

    file: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        """As a compiler says it."""
        return f"migrations/{self.file}:{self.line}: {self.rule}: {self.text}"


@dataclass
class Report:
    """One migration: why it is a contract (empty: it is not) and what was found."""

    file: str
    reasons: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def safety(self) -> str:
        """`expand` or `contract`."""
        return "contract" if self.reasons else "expand"


@dataclass
class Schema:
    """What the files read so far have made."""

    tables: set[str] = field(default_factory=set)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)  # table: {column: type}
    indexed: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)  # operator classes of vector indexes
    functions: dict[str, tuple[str, str]] = field(default_factory=dict)  # name: language, source
    policies: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # (table, name): roles
    # Functions that find a caller's types first: the report, line and waivers of their last definition.
    trusting: dict[str, tuple[Report, int, set[str]]] = field(default_factory=dict)


def _name(parts: Any) -> str:
    """A qualified name from a RangeVar or a list of strings."""
    if isinstance(parts, dict) and "relname" in parts:
        return f"{parts.get('schemaname', 'public')}.{parts['relname']}"
    if isinstance(parts, dict):
        return str(parts.get("sval", ""))
    return ".".join(str(part.get("sval", "")) for part in parts)


def _nodes(value: Any, kind: str, *, outside: str = "") -> Iterator[dict[str, Any]]:
    """Every node of a kind below, without those inside a node of the kind `outside`."""
    if isinstance(value, dict):
        if outside and value.get("@") == outside:
            return
        if value.get("@") == kind:
            yield value
        for item in value.values():
            yield from _nodes(item, kind, outside=outside)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _nodes(item, kind, outside=outside)


def _names(parts: Any) -> tuple[str, ...]:
    return tuple(str(part["sval"]) for part in parts or ())


class _File:
    """One migration being read."""

    def __init__(self, path: pathlib.Path, schema: Schema) -> None:
        self.sql = path.read_text()
        self.report = Report(path.name)
        self.schema = schema
        self.before = set(schema.tables)
        self.columns_before = {table: set(columns) for table, columns in schema.columns.items()}
        self.made: dict[str, int] = {}  # table made here: line
        self.secured: set[str] = set()
        self.granted: set[str] = set()
        self.commented: set[str] = set()
        self.wants_comment: dict[str, int] = {}
        self.exposed: dict[str, int] = {}  # function of `public` that everybody may call: line
        self.foreign: list[tuple[str, tuple[str, ...], int]] = []
        self.searches: list[tuple[str, int]] = []  # source of a function, line
        self.dropped_here: set[str] = set()
        self.waived: dict[int, set[str]] = {}  # line of a statement: rules

    def line(self, offset: int) -> int:
        return self.sql.count("\n", 0, offset) + 1

    def find(self, line: int, rule: str, text: str) -> None:
        self.report.findings.append(Finding(self.report.file, line, rule, text))

    def lose(self, line: int, loss: str) -> None:
        """Something that the code of the last release may lean on goes away."""
        self.report.reasons.append(loss)
        self.find(
            line,
            "destructive",
            f"{loss}. Next: release the code that does without it, then say on the line above: "
            "-- allow: destructive: which release that was",
        )

    def read(self) -> Report:
        try:
            statements = parse_sql(self.sql)
        except (ParseError, SyntaxProblem) as error:
            self.find(1, "syntax", " ".join(str(error).split()))
            return self.report
        lines = self.sql.splitlines()
        starts: list[int] = []
        for raw in statements:
            line = self.line(raw.stmt_location or 0)
            starts.append(line)
            above = line - 2
            rules = set()
            while above >= 0 and lines[above].lstrip().startswith("--"):
                rules |= set(WAIVER.findall(lines[above]))
                above -= 1
            self.waived[line] = rules
            statement: Any = raw.stmt
            node = statement(skip_none=True)
            self.statement(node, line)
        self.finish()
        self.squawk(starts)
        self.report.findings = sorted(
            found
            for found in set(self.report.findings)
            if found.rule not in self.waived.get(found.line, set())
        )
        return self.report

    def statement(self, node: dict[str, Any], line: int) -> None:
        """Read one statement that runs with the file, be it in a block or in a function that is called."""
        reader = getattr(self, f"on_{node['@']}", None)
        if reader:
            reader(node, line)
        if node["@"] in ("SelectStmt", "InsertStmt", "UpdateStmt", "CallStmt"):
            for inner in _nodes(node, "DeleteStmt"):  # with … as (delete …)
                self.on_DeleteStmt(inner, line)
            for call in _nodes(node, "FuncCall"):
                # By a call, what merely stood in a function happens. Once: it may call itself.
                code = self.schema.functions.pop(_name(call["funcname"]), None)
                if code:
                    self.body(*code, line)
                    self.schema.functions[_name(call["funcname"])] = code

    def body(self, language: str, source: str, line: int) -> None:
        """Read what a body of code does when it runs."""
        try:
            statements, unknown = bodies.read(language, source)
        except bodies.Unreadable:
            statements, unknown = [], [source]
        for node in statements:
            self.statement(node, line)
        for text in unknown:
            found = LOST.search(text)
            if found:
                self.lose(line, f"a block that cannot be read ahead says {found.group(0)!r}")

    def squawk(self, starts: list[int]) -> None:
        result = subprocess.run(
            [
                str(pathlib.Path(sys.executable).parent / "squawk"),
                *("--reporter", "json", "--assume-in-transaction", "--pg-version", "17"),
                *("--exclude", SQUAWK_LEFT_OUT, "--stdin-filepath", self.report.file),
            ],
            input=self.sql,
            capture_output=True,
            text=True,
        )
        for found in json.loads(result.stdout or "[]"):
            line = int(found["line"]) + 1
            start = max((at for at in starts if at <= line), default=line)
            rule = f"squawk:{found['rule_name']}"
            self.find(start, rule, " ".join(str(found["message"]).split()))

    # Statements, by the parser's name of them.

    def on_CreateStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        table = _name(node["relation"])
        self.made[table] = line
        self.schema.tables.add(table)
        self.wants_comment[table] = line
        for element in node.get("tableElts", ()):
            if element["@"] == "ColumnDef":
                self.column(table, element, line)
            elif element["@"] == "Constraint":
                self.constraint(table, element, line)

    def column(self, table: str, element: dict[str, Any], line: int) -> None:
        name = str(element["colname"])
        kind = _name(element["typeName"]["names"]).rpartition(".")[2]
        self.schema.columns.setdefault(table, {})[name] = kind
        self.wants_comment[f"{table}.{name}"] = line
        for constraint in element.get("constraints", ()):
            self.constraint(table, constraint, line, (name,))

    def constraint(
        self, table: str, node: dict[str, Any], line: int, own: tuple[str, ...] = ()
    ) -> None:
        kind = node["contype"]["name"]
        if kind in ("CONSTR_PRIMARY", "CONSTR_UNIQUE"):
            self.index(table, own or _names(node.get("keys")))
        elif kind == "CONSTR_FOREIGN":
            self.foreign.append((table, own or _names(node.get("fk_attrs")), line))

    def index(self, table: str, columns: tuple[str, ...]) -> None:
        self.schema.indexed.setdefault(table, []).append(columns)

    def on_IndexStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        table = _name(node["relation"])
        elements = node.get("indexParams", ())
        if "whereClause" not in node and node["accessMethod"] == "btree":
            self.index(table, tuple(str(element.get("name", "")) for element in elements))
        if table in self.before and not node["concurrent"]:
            self.find(
                line,
                "index-not-concurrent",
                f"{table} exists already: building an index blocks its writers. "
                "Next: create index concurrently, alone in a file of its own",
            )
        if table in self.before and node["unique"]:
            self.lose(line, f"two equal rows in {table} are refused from now on")
        for element in elements:
            kind = self.schema.columns.get(table, {}).get(str(element.get("name")), "")
            if node["accessMethod"] not in ("hnsw", "ivfflat") or not kind:
                continue
            operators = _name(element.get("opclass", ())).rpartition(".")[2]
            self.schema.operators.add(operators)
            if not operators.startswith(f"{kind}_"):
                self.find(
                    line,
                    "vector-opclass",
                    f"{table}.{element['name']} is a {kind}, its index orders by "
                    f"{operators or 'the default'}. Next: {kind}_cosine_ops",
                )

    def on_AlterTableStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        if node["objtype"]["name"] != "OBJECT_TABLE":
            return
        table = _name(node["relation"])
        new = table in self.made
        for command in node["cmds"]:
            kind = command["subtype"]["name"]
            if kind == "AT_EnableRowSecurity":
                self.secured.add(table)
                if not new:
                    self.lose(line, f"{table} shows only what a policy allows from now on")
            elif kind == "AT_AddColumn":
                self.column(table, command["def_"], line)
                constraints = command["def_"].get("constraints", ())
                kinds = {constraint["contype"]["name"] for constraint in constraints}
                filled = kinds & {"CONSTR_DEFAULT", "CONSTR_IDENTITY", "CONSTR_GENERATED"}
                if not new and "CONSTR_NOTNULL" in kinds and not filled:
                    self.lose(line, f"a row of {table} needs {command['def_']['colname']} now")
                elif not new and kinds & {"CONSTR_UNIQUE", "CONSTR_PRIMARY"}:
                    self.lose(line, f"two equal rows in {table} are refused from now on")
            elif kind == "AT_AddConstraint":
                self.constraint(table, command["def_"], line)
                if not new:
                    self.lose(line, f"rows that {table} took until now may be refused")
            elif kind == "AT_ColumnDefault":
                if not new and "def_" not in command:
                    self.lose(line, f"{table}.{command['name']} has no default any more")
            elif kind == "AT_DropColumn" and not new:
                self.lose(line, f"{table}.{command['name']} is dropped with its data")
            elif kind == "AT_AlterColumnType" and not new:
                self.lose(line, f"{table}.{command['name']} changes its type")
            elif kind not in HARMLESS and not new:
                self.lose(line, f"{table}: {kind.removeprefix('AT_')}")

    def on_DropStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        kind = node["removeType"]["name"].removeprefix("OBJECT_").lower()
        if kind in ("index", "trigger"):
            return  # slower, or done by the code: nothing is missing
        names = [_name(item.get("objname", item) if isinstance(item, dict) else item)
                 for item in node["objects"]]  # fmt: skip
        if not all(name in self.made for name in names):
            self.lose(line, f"{kind} {', '.join(names)} is dropped")

    def on_DropRoleStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        names = ", ".join(str(role.get("rolename")) for role in node["roles"])
        self.lose(line, f"role {names} is dropped")

    def on_RenameStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        if "relation" not in node or _name(node["relation"]) not in self.made:
            self.lose(line, f"what was called {node.get('subname', '')} is {node['newname']} now")

    def on_AlterObjectSchemaStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        self.lose(line, f"something moves to the schema {node['newschema']}")

    def on_TruncateStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        self.lose(line, f"{', '.join(map(_name, node['relations']))} is emptied")

    def on_DeleteStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        self.lose(line, f"rows of {_name(node['relation'])} are deleted")

    def on_UpdateStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        table = _name(node["relation"])
        for target in node["targetList"]:
            if target["name"] in self.columns_before.get(table, ()):
                self.lose(line, f"{table}.{target['name']} is overwritten in rows that exist")

    def on_DoStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        options = {option["defname"]: str(option["arg"]["sval"]) for option in node["args"]}
        self.body(options.get("language", "plpgsql"), options["as"], line)

    def on_GrantStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        kind = node["objtype"]["name"]
        for item in node.get("objects", ()):
            name = _name(item.get("objname", item))
            if kind == "OBJECT_TABLE" and node["is_grant"]:
                self.granted.add(name)
            if kind == "OBJECT_FUNCTION" and not node["is_grant"]:
                roles = {role["roletype"]["name"] for role in node["grantees"]}
                if "ROLESPEC_PUBLIC" in roles:
                    self.exposed.pop(name, None)
            if kind == "OBJECT_TABLE" and not node["is_grant"] and name in self.before:
                self.lose(line, f"rights on {name} are taken back")

    def on_CreatePolicyStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        table = _name(node["table"])
        roles = {role.get("rolename", "public") for role in node["roles"]}
        self.schema.policies[table, node["policy_name"]] = roles
        self.policy(node, line)
        if table in self.before and not node["permissive"]:
            self.lose(line, f"{table} shows less than before")

    def on_AlterPolicyStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        table, key = _name(node["table"]), (_name(node["table"]), node["policy_name"])
        roles = {role.get("rolename", "public") for role in node.get("roles", ())}
        fewer = bool(roles) and not roles >= self.schema.policies.get(key, {"public"})
        self.policy(node, line)
        if table in self.before and (fewer or "qual" in node or "with_check" in node):
            self.lose(line, f"policy {node['policy_name']} of {table} may show less than before")
        if roles:
            self.schema.policies[key] = roles

    def policy(self, node: dict[str, Any], line: int) -> None:
        conditions = [node.get("qual"), node.get("with_check")]
        for call in _nodes(conditions, "FuncCall", outside="SubLink"):
            function = _name(call["funcname"])
            if function.startswith("auth."):
                self.find(
                    line,
                    "policy-per-row",
                    f"{function}() is called for every row. Next: (select {function}())",
                )

    def on_CreateExtensionStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        if any(option["defname"] == "new_version" for option in node.get("options", ())):
            self.find(line, "extension-version", "Supabase chooses the version. Next: leave it out")

    def on_CreateFunctionStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        name = _name(node["funcname"])
        options = {option["defname"]: option["arg"] for option in node.get("options", ())}
        self.schema.trusting[name] = (self.report, line, self.waived[line])
        self.search_path(name, node.get("options", ()))
        if not node["replace"]:
            self.wants_comment[name] = line
            self.exposed[name] = line
        source = options.get("as", ())
        self.searches.append((" ".join(_names(source)), line))
        language = str(options["language"]["sval"])
        self.schema.functions[name] = (language, " ".join(_names(source)))

    def on_AlterFunctionStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        name = _name(node["func"]["objname"])
        if any(option["defname"] == "set" for option in node["actions"]):
            self.schema.trusting.setdefault(name, (self.report, line, self.waived[line]))
        self.search_path(name, node["actions"])

    def search_path(self, name: str, options: Any) -> None:
        """Note whether a function looks in pg_temp last. Where the path leaves it out, its types are found first."""
        for option in options:
            setting = option["arg"] if option["defname"] == "set" else {}
            if setting.get("name") == "search_path":
                path = [part["val"]["sval"] for part in setting.get("args", ())]
                if path[-1:] == ["pg_temp"]:
                    self.schema.trusting.pop(name, None)

    def on_CommentStmt(self, node: dict[str, Any], _: int) -> None:  # noqa: N802
        item = node["object"]
        if isinstance(item, dict) and "objname" in item:
            item = item["objname"]
        self.commented.add(_name(item))

    def on_CreateSchemaStmt(self, node: dict[str, Any], line: int) -> None:  # noqa: N802
        if not node["if_not_exists"]:
            self.wants_comment[str(node["schemaname"])] = line

    def finish(self) -> None:
        """What can be said only at the end of the file."""
        for table, line in self.made.items():
            if not table.startswith("public."):
                continue
            if table not in self.secured:
                text = f"Next: alter table {table} enable row level security"
                self.find(line, "no-row-security", f"{table} is open. {text}")
            if table not in self.granted:
                self.find(
                    line, "no-grant", f"nobody may use {table}. Next: grant … on {table} to …"
                )
        for name, line in self.wants_comment.items():
            if name not in self.commented:
                self.find(line, "no-comment", f"Next: comment on … {name} is '…'")
        for name, line in self.exposed.items():
            self.find(
                line,
                "public-function",
                f"everybody may call {name}. Next: revoke all on function {name}(…) from public",
            )
        for table, columns, line in self.foreign:
            covered = self.schema.indexed.get(table, [])
            if not any(set(index[: len(columns)]) == set(columns) for index in covered):
                self.find(
                    line,
                    "foreign-key-index",
                    f"deleting what {table} refers to reads all of it. "
                    f"Next: create index on {table} ({', '.join(columns)})",
                )
        for source, line in self.searches:
            for operator, operators in DISTANCE.items():
                unmatched = not any(name.endswith(operators) for name in self.schema.operators)
                if operator in source and self.schema.operators and unmatched:
                    self.find(
                        line, "vector-opclass", f"no vector index serves {operator} ({operators})"
                    )


def check(folder: pathlib.Path = ROOT / "migrations") -> list[Report]:
    """One report for each migration, in the order in which they are applied."""
    schema = Schema()
    reports = [_File(path, schema).read() for path in sorted(folder.glob("*.sql"))]
    # Said at the end: a later migration may have mended what an applied one cannot any more.
    for name, (report, line, waived) in schema.trusting.items():
        if "search-path" not in waived:
            text = f"{name} finds the types of its caller first. Next: set search_path = pg_catalog, pg_temp"
            report.findings.append(Finding(report.file, line, "search-path", text))
    return reports


def same_release(reports: list[Report], base: str, root: pathlib.Path = ROOT) -> list[Finding]:
    """Contract migrations that are new since `base` was left, when code of the services changes with them.

    Raises UnknownRevision.
    """
    left = revisions.merge_base(base, root)
    changed = subprocess.run(
        ["git", "diff", "--name-status", "--no-renames", left, "--", "migrations", "services"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split("\t", 1) for line in changed.stdout.splitlines()]
    code = [
        path
        for _, path in rows
        if path.startswith("services/") and "/tests/" not in path and not path.endswith(".md")
    ]
    new = {pathlib.Path(path).name for kind, path in rows if kind == "A"}
    return [
        Finding(
            report.file,
            0,
            "same-release",
            f"it takes something away ({report.reasons[0]}) in the change that also changes {code[0]}: "
            "until the new code serves, and after a rollback, the old one runs without it. "
            "Next: release the code first, then the migration in a pull request of its own",
        )
        for report in reports
        if code and report.reasons and report.file in new
    ]


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", help="the branch that is merged into, such as origin/main")
    parser.add_argument("--contracts", action="store_true", help="only these, as JSON")
    arguments = parser.parse_args()
    reports = check()
    if arguments.contracts:
        lost = {report.file.removesuffix(".sql"): "; ".join(report.reasons) for report in reports}
        print(json.dumps({name: reasons for name, reasons in lost.items() if reasons}))
        return 0
    findings = [finding for report in reports for finding in report.findings]
    if arguments.base:
        try:
            findings += same_release(reports, arguments.base)
            findings += [
                Finding(refusal.file, 0, refusal.rule, refusal.text)
                for refusal in history.against(arguments.base, ROOT)
            ]
        except revisions.UnknownRevision as error:
            print(f"safety: {error}", file=sys.stderr)
            return 1
    for report in reports:
        print(f"{report.file:50} {report.safety:8} {'; '.join(report.reasons)}".rstrip())
    for finding in findings:
        print(finding)
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
