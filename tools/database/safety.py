"""What each migration does to the code that runs now, and what is wrong with it.

Usage: python -m tools.database.safety [--base REF | --contracts]

Class `expand`: code of the last release goes on working while the migration is in. Class `contract`: it takes
something away, so that the code that no longer needs it must have been released before. The judge is the catalogue:
the files are applied, one after the other, to a database of their own that lives for as long as this runs, and what
was there before and is not after is lost. What a catalogue cannot show (rows that change, code that runs only where
there are such rows, SQL that is put together) is judged by the text; what is not known there counts as a loss.
With `--base REF` (the branch that is merged into) a contract migration that is new since it was left may not come
together with changes below services/, and none may be what `make migrate` refuses after the merge: older than one
that is in, edited, deleted, renamed, or of the same number. With `--contracts` the contract migrations are printed
as JSON, {name: what they say of it}, by the files alone: `make rollback` asks. Exit codes: 0 nothing found, 1 something
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
from typing import TYPE_CHECKING

from tools import revisions
from tools.database import history, judge
from tools.database.judge import Finding, Report

if TYPE_CHECKING:
    from testbed.postgres import Server

__all__ = ["Finding", "Report", "check", "losses", "same_release"]
ROOT = pathlib.Path(__file__).parents[2]


def check(
    folder: pathlib.Path = ROOT / "migrations", running: Server | None = None
) -> list[Report]:
    """One report for each migration, in the order in which they are applied; `running` spares starting a server."""
    return judge.read(folder, running)


def losses(folder: pathlib.Path = ROOT / "migrations") -> dict[str, list[str]]:
    """What each migration says that it takes away, by file; nothing: it is an expansion.

    The file's own word, for a release and a way back need no database for it: none is merged that takes something
    away and does not say so (rule `destructive`).
    """
    declared = re.compile(r"--\s*allow:\s*destructive:\s*(.*)")
    return {name: declared.findall(sql) for name, sql in history.read(folder).items()}


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
    if arguments.contracts:
        lost = {
            name.removesuffix(".sql"): "; ".join(told) for name, told in losses().items() if told
        }
        print(json.dumps(lost))
        return 0
    unjudged = ""
    reports: list[Report] = []
    try:
        reports = check()
    except Exception as error:  # noqa: BLE001 - what is known without a database is said all the same
        unjudged = (
            f"safety: no database can be made here, so no file is judged: {error}. Next: make setup"
        )
        print(" ".join(unjudged.split()), file=sys.stderr)
    findings = {finding for report in reports for finding in report.findings}
    try:
        refused = history.against(arguments.base, ROOT) if arguments.base else history.alone(ROOT)
        findings |= {Finding(one.file, 0, one.rule, one.text) for one in refused}
        findings |= set(same_release(reports, arguments.base)) if arguments.base else set()
    except revisions.UnknownRevision as error:
        print(f"safety: {error}", file=sys.stderr)
        return 1
    for report in reports:
        print(f"{report.file:50} {report.safety:8} {'; '.join(report.reasons)}".rstrip())
    for finding in sorted(findings):
        print(finding)
    return int(bool(findings or unjudged))


if __name__ == "__main__":
    sys.exit(main())
