"""`python -m tools.plan --base REF`: what a merge into REF changes in production, as one Markdown document.

Compared is what lies here with the commit at which it left REF. It needs no secret, no network and no droplet; no
variable of the caller's environment is seen by what the trees run. Exit codes: 0 the plan is whole; 1 a part of it
could not be computed, which stands at its top.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools import revisions
from tools.database import history, safety
from tools.plan import markdown

ROOT = Path(__file__).parents[2]
MARKER = "<!-- cimt-plan -->"
LIMIT = 60_000  # characters; GitHub takes 65,536
SECTIONS = {
    "Settings": "",
    "Apps": "As the panel gets them with the merge. The code of an app is not shown here: it is built into its image.",
    "Host": "These reach the droplet by Operate → provision, not by the merge.",
    "n8n": "With the merge.",
    "Migrations": "Applied by the merge, before the release.",
}


def read(folder: Path, home: str) -> subprocess.Popen[str]:
    """Start reading a tree, in an environment that has nothing of ours."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools.plan.tree", str(folder)],
        cwd=ROOT,
        env={
            "PATH": os.defpath,
            "HOME": home,
            "LANG": "C.UTF-8",
            # The tree's own: it says where roles and filters are.
            "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What such a reader says of its tree, also when it breaks down."""
    output, errors = process.communicate()
    if process.returncode:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        return {"problems": [f"the tree cannot be read: {last}"], "workflows": {}}
    return dict(json.loads(output))


def document(base: str, limit: int) -> tuple[str, bool]:
    """The plan, and whether it is whole. Raises UnknownRevision."""
    left = revisions.merge_base(base, ROOT)
    with revisions.exported(left, ROOT) as before, tempfile.TemporaryDirectory() as home:
        readers = [read(folder, home) for folder in (before, ROOT)]
        old, new = (answer(reader) for reader in readers)
        known = history.read(before / "migrations")
    every = safety.check(ROOT / "migrations")
    reports = [report for report in every if report.file not in known]
    refused = [refusal.text for refusal in history.against(base, ROOT)]
    refused += [finding.text for finding in safety.same_release(every, base)]
    broken = [
        f"{where}, {problem}"
        for where, tree in ((base, old), ("here", new))
        for problem in tree["problems"]
    ]
    broken += [
        f"here, {found}"
        for report in reports
        for found in report.findings
        if found.rule == "syntax"
    ]
    found: Mapping[str, list[str]] = {
        "Settings": list(markdown.settings(old, new)),
        "Apps": list(markdown.apps(old, new)),
        "Host": list(markdown.host(old, new)),
        "n8n": list(markdown.workflows(old, new)),
        "Migrations": list(markdown.migrations(reports, refused)),
    }
    blocks = [f"{MARKER}\n## What this merge changes in production"]
    if broken:
        rows = [f"- {markdown.code(problem)}" for problem in broken]
        blocks.append("\n".join(["### Could not be computed", "", *rows]))
    for name, sentence in SECTIONS.items():
        if found[name]:
            blocks += [f"### {name}\n\n{sentence}".rstrip(), *found[name]]
    if not any(found.values()):
        blocks.append(
            f"{'Of the rest, nothing' if broken else 'Nothing'} changes in settings, apps, host, n8n and migrations. "
            "Every merge builds the apps' images and releases them."
        )
    blocks.append(
        f"Compared with {markdown.code(base)} at {markdown.code(left[:10])}, by the files alone. "
        f"{markdown.code('‹NAME›')} stands for the value of a setting; one that has a default is shown with that."
    )
    return markdown.limited(blocks, limit), not broken


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.plan", description=__doc__)
    parser.add_argument("--base", default="origin/main", help="the branch that is merged into")
    parser.add_argument(
        "--limit", type=int, default=LIMIT, help="characters; 0: as many as it takes"
    )
    arguments = parser.parse_args()
    try:
        text, whole = document(arguments.base, arguments.limit)
    except revisions.UnknownRevision as error:
        print(f"plan: {error}", file=sys.stderr)
        return 1
    print(text, end="")
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
