"""One migration after the other: applied to a database that lives for as long as this runs, and read.

What the catalogue shows is judged by it (tools.database.catalogue, tools.database.exposure). What it cannot show is
judged by the text: rows that change, code that runs only where there are certain rows, SQL that is put together.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from pglast import parse_sql
from pglast.error import Error as SyntaxProblem
from pglast.parser import ParseError

from tools.database import bodies, catalogue, exposure, history

if TYPE_CHECKING:
    from testbed.postgres import Server

WAIVER = re.compile(r"--\s*allow:\s*([a-z0-9:-]+):\s*\S")
# Not squawk's business: the runner sets the time-outs; we look at tables that existed before; small numbers are small.
SQUAWK_LEFT_OUT = (
    "require-lock-timeout,require-statement-timeout,require-concurrent-index-creation,"
    "prefer-bigint-over-int,prefer-robust-stmts"
)
# Files that were applied before there was such a rule, and may not change any more.
OLDER_THAN_THE_RULE = {
    "20261125100000_search_by_index.sql": {"definer-callable", "definer-replaced"},
    "20261125120000_pg_temp_last.sql": {"definer-replaced"},
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Statements whose effect the catalogue shows in full, by the parser's names of them.
SHOWN = _words(
    """AlterCollationStmt AlterDatabaseSetStmt AlterDefaultPrivilegesStmt AlterDomainStmt AlterEnumStmt
    AlterEventTrigStmt AlterExtensionStmt AlterFunctionStmt AlterObjectDependsStmt AlterObjectSchemaStmt
    AlterOperatorStmt AlterOwnerStmt AlterPolicyStmt AlterPublicationStmt AlterRoleSetStmt AlterRoleStmt
    AlterSeqStmt AlterTableStmt AlterTSConfigurationStmt AlterTypeStmt CommentStmt CompositeTypeStmt
    CreateCastStmt CreateDomainStmt CreateEnumStmt CreateEventTrigStmt CreateExtensionStmt CreateFdwStmt
    CreateForeignServerStmt CreateForeignTableStmt CreateFunctionStmt CreateOpClassStmt CreatePolicyStmt
    CreatePublicationStmt CreateRangeStmt CreateRoleStmt CreateSchemaStmt CreateSeqStmt CreateStatsStmt
    CreateStmt CreateTrigStmt DefineStmt DropOwnedStmt DropRoleStmt DropStmt GrantRoleStmt GrantStmt
    IndexStmt ReassignOwnedStmt RenameStmt RuleStmt CreateUserMappingStmt ViewStmt"""
)
SHOWN_WHEN_DROPPED = _words(
    """CAST COLLATION DOMAIN EXTENSION FOREIGN_SERVER FOREIGN_TABLE FUNCTION INDEX MATVIEW OPCLASS OPERATOR
    POLICY PROCEDURE ROUTINE RULE SCHEMA SEQUENCE TABLE TRIGGER TSCONFIGURATION TSDICTIONARY TYPE VIEW
    AGGREGATE"""
)
# Neither rows nor the catalogue: the session, locks, statistics.
IDLE = _words(
    """CheckPointStmt ClusterStmt ConstraintsSetStmt DeallocateStmt ListenStmt LockStmt NotifyStmt
    RefreshMatViewStmt ReindexStmt TransactionStmt VacuumStmt VariableSetStmt VariableShowStmt"""
)
# In code that may run only where there are certain rows, these add and take nothing away.
ADDING = _words(
    """CommentStmt CompositeTypeStmt CreateDomainStmt CreateEnumStmt CreateExtensionStmt CreateFunctionStmt
    CreateRoleStmt CreateSchemaStmt CreateSeqStmt CreateStmt CreateTableAsStmt CreateTrigStmt"""
)
ADDING_TO_TABLES = {
    "AT_AddColumn",
    "AT_DropNotNull",
    "AT_SetStorage",
    "AT_SetStatistics",
    "AT_SetRelOptions",
}
# Functions of the server and of extensions that change something, and that nobody misses.
VOLATILE = re.compile(
    r"random|gen_random_\w+|uuid_generate_\w+|gen_salt|nextval|currval|lastval|clock_timestamp|timeofday|set_config"
    r"|pg_sleep\w*|pg_notify|pg_(try_)?advisory_\w+|pg_get_\w+|create_hypertable"
)


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
    waived: dict[int, set[str]] = field(default_factory=dict)  # line of a statement: rules

    @property
    def safety(self) -> str:
        """`expand` or `contract`."""
        return "contract" if self.reasons else "expand"

    def find(self, line: int, rule: str, text: str) -> None:
        """Keep what was found, unless it is waived."""
        finding = Finding(self.file, line, rule, text)
        old = rule in OLDER_THAN_THE_RULE.get(self.file, ())
        if rule not in self.waived.get(line, ()) and not old and finding not in self.findings:
            self.findings.append(finding)

    def lose(self, line: int, loss: str) -> None:
        """Something that the code of the last release may lean on goes away."""
        if loss not in self.reasons:
            self.reasons.append(loss)
        self.find(
            line,
            "destructive",
            f"{loss}. Next: release the code that does without it, then say on the line above: "
            "-- allow: destructive: which release that was",
        )


class Scratch:
    """A database that gets the migrations one after the other: as their owner, and seen by a superuser."""

    def __init__(self, url: str, admin: psycopg.Connection) -> None:
        self._url = url
        self.admin = admin
        self.facts = catalogue.snapshot(self.admin)
        # Where each fault comes from: of what a new project brings, nowhere.
        self.faults: dict[catalogue.Key, tuple[Report, int, str] | None] = dict.fromkeys(
            exposure.faults(self.admin, self.facts)
        )

    @contextlib.contextmanager
    def session(self) -> Iterator[psycopg.Connection]:
        """What a migration runs in. Each statement is a transaction, so that it can be told which did what."""
        path = '-c search_path="$user",public,extensions -c statement_timeout=10s'
        with psycopg.connect(self._url, autocommit=True, options=path) as connection:
            yield connection

    def look(self, report: Report, line: int, *, strangers: bool = False) -> None:
        """Note what has changed, and which faults have come and gone, since the last look."""
        self.facts = catalogue.snapshot(self.admin)
        now = exposure.faults(self.admin, self.facts)
        if strangers:
            now |= exposure.seen_by_strangers(self.admin, self.facts)
        for key in set(self.faults) - set(now):
            if (
                strangers or len(key) == 2
            ):  # those of strangers are longer, and known at the end of a file
                del self.faults[key]
        for key, text in now.items():
            self.faults.setdefault(key, (report, line, text))


@contextlib.contextmanager
def scratch(running: Server | None = None, template: str = "supabase") -> Iterator[Scratch]:
    """A copy of a database (a new project's), in a server of its own or in one that runs."""
    from testbed.postgres import server

    roles = "select rolname from pg_roles"
    with contextlib.ExitStack() as stack:
        # The locked wheel's: it is wherever `make setup` was, on a runner before anything else is installed.
        made = running or stack.enter_context(server(18))
        name = made.database(template)
        url, options = (
            made.url(name, "supabase_admin"),
            "-c search_path= -c jit=off -c statement_timeout=10s",
        )
        try:
            with psycopg.connect(url, autocommit=True, options=options) as admin:
                before = {role for (role,) in admin.execute(roles)}
                try:
                    yield Scratch(made.url(name), admin)
                finally:
                    new = [role for (role,) in admin.execute(roles) if role not in before]
        finally:
            made.admin(
                ";\n".join(
                    [f"drop database {name} with (force)", *(f'drop role "{role}"' for role in new)]
                )
            )


def _name(parts: Any) -> str:
    """A qualified name from a RangeVar or a list of strings."""
    if isinstance(parts, dict):
        named = f"{parts.get('schemaname', 'public')}.{parts.get('relname')}"
        return named if "relname" in parts else str(parts.get("sval", parts.get("names", "")))
    return ".".join(str(part.get("sval", "")) for part in parts)


class _File:
    """One migration being read, and applied."""

    def __init__(self, path: pathlib.Path, scratch: Scratch) -> None:
        self.sql = history.text(path.read_bytes()).removeprefix(history.BOM)
        self.report = Report(path.name)
        self.scratch = scratch
        self.start: catalogue.Facts = scratch.facts

    def read(self) -> Report:
        try:
            parsed: Any = parse_sql(self.sql)
        except (ParseError, SyntaxProblem, UnicodeEncodeError) as error:
            self.report.find(1, "syntax", " ".join(str(error).split()))
            self.report.reasons.append("it cannot be read")
            return self.report
        statements: list[tuple[int, str, dict[str, Any]]] = []
        lines = self.sql.splitlines()
        for raw in parsed:
            length = raw.stmt_len or len(self.sql) - raw.stmt_location
            text = self.sql[raw.stmt_location : raw.stmt_location + length]
            line = self.sql.count("\n", 0, raw.stmt_location) + 1
            above = line - 2
            rules: set[str] = set()
            while above >= 0 and lines[above].lstrip().startswith("--"):
                rules |= set(WAIVER.findall(lines[above]))
                above -= 1
            self.report.waived[line] = rules
            statements.append((line, text, raw.stmt(skip_none=True)))
        for wrong in history.unfit(self.report.file, self.sql):
            self.report.find(0, wrong.rule, wrong.text)
        if catalogue.plant(self.scratch.admin, self.start):
            self.start = self.scratch.facts = catalogue.snapshot(self.scratch.admin)
        self.apply(statements)
        self.squawk([line for line, _, _ in statements])
        return self.report

    def apply(self, statements: list[tuple[int, str, dict[str, Any]]]) -> None:
        """Run the statements one by one, and keep which of them lost what."""
        since: dict[catalogue.Key, tuple[int, str]] = {}
        replaced: dict[catalogue.Key, tuple[int, str]] = {}
        runs = True
        with self.scratch.session() as connection:
            for line, text, node in statements:
                self.statement(node, line)
                if node["@"] in ("TransactionStmt", "LockStmt"):
                    continue  # refused elsewhere; here each statement is a transaction
                before = self.scratch.facts
                runs = runs and node["@"] != "CopyStmt" and self.run(connection, text, line)
                if not runs:
                    # From here on the text alone can tell.
                    self.statement(node, line, inside=frozenset())
                    continue
                if node["@"] in IDLE | {"CommentStmt"}:
                    continue  # what a comment mends is seen at the next look
                self.scratch.look(self.report, line)
                if self.scratch.facts != before:
                    lost, other = catalogue.lost(self.start, self.scratch.facts), self.replaced()
                    since = {key: since.get(key, (line, told)) for key, told in lost.items()}
                    replaced = {key: replaced.get(key, (line, told)) for key, told in other.items()}
        for line, told in since.values():
            self.report.lose(line, told)
        for line, told in replaced.values():
            self.report.find(line, "definer-replaced", told)
        # What strangers see is known only with rows in the new tables too; it is said of the last line that names it.
        catalogue.plant(self.scratch.admin, self.scratch.facts)
        self.scratch.look(self.report, 0, strangers=True)
        for key, origin in self.scratch.faults.items():
            if origin and origin[0] is self.report and origin[1] == 0:
                bare = key[1].rpartition(".")[2]
                named = [
                    line
                    for line, text, _ in statements
                    if re.search(rf"\b{re.escape(bare)}\b", text)
                ]
                self.scratch.faults[key] = (self.report, (named or [0])[-1], origin[2])

    def run(self, connection: psycopg.Connection, text: str, line: int) -> bool:
        """Whether a statement can be applied: where there are rows, or at least where there are none."""
        admin = self.scratch.admin
        try:
            connection.execute(text.encode())
        except (psycopg.errors.IntegrityError, psycopg.errors.DataError) as error:
            said = " ".join((error.diag.message_primary or str(error)).split())
            self.report.lose(line, f"it may fail where there are rows: {said}")
            catalogue.uproot(admin, self.scratch.facts)
            self.start = {key: fact for key, fact in self.start.items() if key[0] != "rows"}
            try:
                connection.execute(text.encode())
            except psycopg.Error as again:
                return self.fails(again, line)
        except psycopg.Error as error:
            return self.fails(error, line)
        return True

    def fails(self, error: psycopg.Error, line: int) -> bool:
        said = " ".join((error.diag.message_primary or str(error)).split())
        rule = (
            "vector-opclass" if "operator class" in said and "does not accept" in said else "fails"
        )
        self.report.find(line, rule, f"on a database made from the files before it: {said}")
        return False

    def replaced(self) -> dict[catalogue.Key, str]:
        """Functions with their owner's rights that do something else than before this file, or did not have them."""
        return {
            key: f"{key[1]} does something else with its owner's rights. Next: have the two compared, then say "
            "on the line above: -- allow: definer-replaced: what it may do, and for whom"
            for key, old in self.start.items()
            if key[0] == "function"
            and (new := self.scratch.facts.get(key))
            and new["definer"]
            and (old["source"] != new["source"] or not old["definer"])
        }

    def statement(
        self, node: dict[str, Any], line: int, *, inside: frozenset[str] | None = None
    ) -> None:
        """Judge by its text one statement that runs with the file; `inside`: in a body, of these functions."""
        kind = node["@"]
        loss = ""
        table = _name(node["relation"]) if isinstance(node.get("relation"), dict) else ""
        old = ("relation", table) in self.start

        def there(columns: Iterable[str]) -> str:
            """The first of these columns that the table had before."""
            return next((name for name in columns if ("column", table, name) in self.start), "")

        if kind in ("DeleteStmt", "TruncateStmt", "MergeStmt"):
            loss = f"rows of {table or _name(node['relations'][0])} are deleted or overwritten"
        elif kind == "UpdateStmt":
            written = there(one["name"] for one in node["targetList"])
            loss = f"{table}.{written} is overwritten in rows that exist" if written and old else ""
        elif kind == "InsertStmt":
            action = node.get("onConflictClause", {}).get("action", {}).get("name")
            loss = (
                f"rows of {table} are overwritten" if action == "ONCONFLICT_UPDATE" and old else ""
            )
        elif kind == "DoStmt":
            options = {option["defname"]: str(option["arg"]["sval"]) for option in node["args"]}
            self.body(
                options.get("language", "plpgsql"), options["as"], line, inside or frozenset()
            )
        elif inside is not None and kind in SHOWN | {"CreateTableAsStmt"}:
            loss = "" if _adds(node) else _effect(node)
        elif kind == "DropStmt" and node["removeType"]["name"] == "OBJECT_TABLE":
            gone = [one for one in map(_name, node["objects"]) if ("relation", one) in self.start]
            loss = f"table {gone[0]} is dropped" if gone else ""  # also where it is made anew
        elif kind == "AlterTableStmt":
            drops = (one for one in node["cmds"] if one["subtype"]["name"] == "AT_DropColumn")
            dropped = there(one["name"] for one in drops)
            loss = f"column {table} {dropped} is dropped" if dropped else ""
        elif (
            kind == "DropStmt"
            and node["removeType"]["name"].removeprefix("OBJECT_") not in SHOWN_WHEN_DROPPED
        ):
            loss = f"{node['removeType']['name'].removeprefix('OBJECT_').lower()} is dropped"
        elif kind == "IndexStmt" and not node["concurrent"] and old:
            self.report.find(
                line,
                "index-not-concurrent",
                f"{table} exists already: building an index blocks its writers. "
                "Next: create index concurrently, alone in a file of its own",
            )
        elif (
            kind == "GrantStmt" and node["objtype"]["name"] == "OBJECT_DATABASE" and not _adds(node)
        ):
            loss = "rights on a database are taken back"  # on which one is not known here
        elif kind == "AlterRoleStmt" and any(
            one["defname"] == "password" for one in node["options"]
        ):
            loss = f"{node['role'].get('rolename')} has another password from now on"
        elif kind == "CreateExtensionStmt":
            if any(option["defname"] == "new_version" for option in node.get("options", ())):
                self.report.find(
                    line, "extension-version", "Supabase chooses the version. Next: leave it out"
                )
        elif kind not in SHOWN | IDLE | {"SelectStmt", "CallStmt", "CreateTableAsStmt"}:
            loss = f"what {kind.removesuffix('Stmt')} does is not known"
        if loss:
            self.report.lose(line, loss)
        if kind in ("SelectStmt", "InsertStmt", "UpdateStmt", "CallStmt", "CreateTableAsStmt"):
            # with … as (delete …)
            for below in ("DeleteStmt", "UpdateStmt", "InsertStmt", "MergeStmt"):
                for inner in bodies.nodes(node, below):
                    if inner is not node:
                        self.statement(inner, line, inside=inside)
            for call in bodies.nodes(node, "FuncCall"):
                self.call(call["funcname"], line, inside or frozenset())

    def call(self, name: Any, line: int, inside: frozenset[str]) -> None:
        """Judge what a called function does: one of ours by its body, another by whether it changes anything."""
        *schema, bare = (part["sval"] for part in name)
        known = self.scratch.admin.execute(
            "select n.nspname || '.' || p.proname || '(' || array_to_string(p.proargtypes::regtype[], ', ') || ')', "
            "p.provolatile from pg_proc p join pg_namespace n on n.oid = p.pronamespace "
            "where p.proname = %s and n.nspname = any (%s)",
            (bare, schema or ["pg_catalog", "public", "extensions"]),
        ).fetchall()
        if not known:
            self.report.lose(line, f"what {bare}() does is not known")
        for whole, volatile in known:
            fact = self.scratch.facts.get(("function", whole))
            if fact and whole not in inside:
                self.body(fact["language"], fact["source"], line, inside | {whole})
            elif not fact and volatile == "v" and not VOLATILE.fullmatch(bare):
                self.report.lose(line, f"what {bare}() does is not known")

    def body(self, language: str, source: str, line: int, inside: frozenset[str]) -> None:
        """Judge what a body of code does when it runs."""
        try:
            statements, unknown = bodies.read(language, source)
        except bodies.Unreadable:
            statements, unknown = [], [source]
        for node in statements:
            self.statement(node, line, inside=inside)
        for text in unknown:
            self.report.lose(
                line, f"SQL that is put together when it runs is not known: {text.strip()[:60]}"
            )

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
            self.report.find(
                start, f"squawk:{found['rule_name']}", " ".join(str(found["message"]).split())
            )


def _effect(node: Mapping[str, Any]) -> str:
    """What a statement takes away where it runs, as far as its text tells."""
    if node["@"] != "DropStmt":
        return f"{node['@'].removesuffix('Stmt')} may take something away; whether it does is not seen here"
    objects = [one.get("objname", one) if isinstance(one, dict) else one for one in node["objects"]]
    kind = node["removeType"]["name"].removeprefix("OBJECT_").lower()
    return f"{kind} {', '.join(_name(one) for one in objects)} is dropped"


def _adds(node: Mapping[str, Any]) -> bool:
    """Whether a statement takes nothing away, whatever it finds; by its text."""
    kind = node["@"]
    if kind in ("GrantStmt", "GrantRoleStmt"):
        rights = {right.get("priv_name") for right in node.get("privileges", ())}
        return bool(node["is_grant"]) or rights == {
            "temporary"
        }  # which is no right that is compared
    if kind == "AlterTableStmt":
        for command in node["cmds"]:
            kinds = {
                one["contype"]["name"] for one in command.get("def_", {}).get("constraints", ())
            }
            filled = kinds & {"CONSTR_DEFAULT", "CONSTR_IDENTITY", "CONSTR_GENERATED"}
            asks = kinds & {"CONSTR_UNIQUE", "CONSTR_PRIMARY"} or (
                "CONSTR_NOTNULL" in kinds and not filled
            )
            if command["subtype"]["name"] not in ADDING_TO_TABLES or asks:
                return False
        return True
    if kind == "CreatePolicyStmt":
        return bool(node["permissive"])
    return (
        kind in ADDING
        or (kind == "IndexStmt" and not node["unique"])
        or (kind == "ViewStmt" and not node["replace"])
    )


def read(
    folder: pathlib.Path, running: Server | None = None, template: str = "supabase"
) -> list[Report]:
    """One report for each migration, in the order in which they are applied.

    `running` spares starting a server; `template` is a database of it to which the files come.
    """
    with scratch(running, template) as database:
        reports = [_File(path, database).read() for path in sorted(folder.glob("*.sql"))]
        # Said at the end: a later migration may have mended what an applied one cannot any more.
        for (rule, *_), origin in database.faults.items():
            if origin:
                report, line, text = origin
                report.find(line, rule, text)
    for report in reports:
        report.findings.sort()
    return reports
