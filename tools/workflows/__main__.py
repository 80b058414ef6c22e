"""The command line: `python -m tools.workflows lint|pull|catalogue`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from plugins.module_utils import n8n_files
from tools.workflows import catalogue, pull
from tools.workflows.lint import lint
from tools.workflows.repository import (
    WORKFLOWS,
    Finding,
    Repository,
    declaration_findings,
    load,
    shown,
)


def _lint(arguments: argparse.Namespace) -> int:
    paths = arguments.files or sorted(WORKFLOWS.glob("*.json"))
    if arguments.fix:
        for path in paths:
            workflow, problems = load(path)
            if not problems and (text := n8n_files.text(workflow)) != path.read_text("utf-8"):
                path.write_text(text, encoding="utf-8")
                print(f"{shown(path)}: brought into the normal form")
    found: list[Finding] = lint(paths, Repository.read())
    if not arguments.files:
        found += declaration_findings()
    for finding in found:
        print(finding)
    if found:
        print(
            f"n8n-lint: {len(found)} to mend in {len({one.file for one in found})} files",
            file=sys.stderr,
        )
    return 1 if found else 0


def _catalogue(_: argparse.Namespace) -> int:
    from local import settings  # only here: the rest does without an n8n of its own
    from local.images import n8n

    try:
        env = n8n.environment(n8n.ensure(settings.load()))
        print(f"{shown(catalogue.CATALOGUE)}: {catalogue.write(env)} node types")
    except (settings.LocalError, OSError, subprocess.CalledProcessError) as error:
        print(f"n8n-catalogue: {error}", file=sys.stderr)
        return 2
    return 0


def _pull(arguments: argparse.Namespace) -> int:
    try:
        workflows = pull.running(arguments.input)
    except pull.PullError as error:
        print(f"n8n-pull: {error}", file=sys.stderr)
        return 2
    differs, wrong = pull.pull(
        workflows, arguments.adopt, WORKFLOWS, Repository.read(), check=arguments.check
    )
    print("\n".join(differs) or "n8n-pull: n8n has what the files say")
    for line in wrong:
        print(f"n8n-pull: {line}", file=sys.stderr)
    if differs and not arguments.check:
        print("Next: git diff n8n_workflows; make n8n-lint")
    return 1 if wrong or (differs and arguments.check) else 0


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: all well; 1: something to mend or different; 2: it could not be done."""
    parser = argparse.ArgumentParser(prog="python -m tools.workflows", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("lint", help="check n8n_workflows/ and what services/n8n declares")
    verb.add_argument(
        "files", nargs="*", type=Path, help="only these (default: n8n_workflows/*.json)"
    )
    verb.add_argument(
        "--fix", action="store_true", help="first bring the files into the normal form"
    )
    verb.set_defaults(run=_lint)
    verb = verbs.add_parser(
        "pull",
        help="bring edits of the editor into n8n_workflows/ (from N8N_URL with N8N_API_KEY, or --input)",
    )
    verb.add_argument(
        "adopt", nargs="*", help="ids of workflows made in the editor that get a file"
    )
    verb.add_argument("--input", default="", help="a file with the running workflows (JSON)")
    verb.add_argument("--check", action="store_true", help="write nothing, show the difference")
    verb.set_defaults(run=_pull)
    verb = verbs.add_parser(
        "catalogue", help="write services/n8n/catalogue.json from the pinned n8n"
    )
    verb.set_defaults(run=_catalogue)
    arguments = parser.parse_args(argv)
    result: int = arguments.run(arguments)
    return result


if __name__ == "__main__":
    sys.exit(main())
