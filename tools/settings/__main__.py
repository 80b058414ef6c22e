"""`python -m tools.settings write|check`: what is written from services/settings.yaml into committed files.

`python -m tools.settings needed PLAYBOOK COMMAND…` runs the command, unless a setting of the playbook is missing.
`python -m tools.settings with COMMAND…` runs it with what ENV.env says (values.py). `check` also refuses such a file
when it holds a secret itself.

In a workflow, `# settings: plain of VERB …` is followed by the settings of those verbs that may be shown, and
`# settings: secret of VERB …` by their secret ones, as an `env:` block wants them. docs/setup.md and its Portuguese
twin have a table of all settings, production.env.example a line for each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from plugins.filter.settings import needed, of_verb
from tools.settings import values

ROOT = Path(__file__).parents[2]
FILE = ROOT / "services/settings.yaml"
EXAMPLE = ROOT / "production.env.example"
SETUP = ROOT / "docs/setup.md"
IN_PORTUGUESE = ROOT / "services/settings.pt-BR.yaml"
SETUP_IN_PORTUGUESE = ROOT / "docs/setup.pt-BR.md"
WORKFLOW_BLOCK = re.compile(
    r"^(?P<indent> *)# settings: (?P<kind>plain|secret) of (?P<verbs>[a-z0-9 -]+)\n"
    r"(?P<block>.*?)^(?P=indent)# end of settings\n",
    re.MULTILINE | re.DOTALL,
)
TABLE = re.compile(
    r"(?P<head><!-- settings -->\n)(?P<block>.*?)(?P<tail><!-- end of settings -->\n)", re.DOTALL
)
# GitHub's environments, as the workflows name them: of what every merge does, and of what rules the host.
MERGE_JOBS, HOST_JOBS = "production", "production-host"
PLACES = {"secret": "secrets", "secret by choice": "secrets", "variable": "vars"}
EXAMPLE_HEAD = """\
# Every setting of production; docs/setup.md says more. Written from services/settings.yaml by `make settings`.
# `make init` writes production.env, which is committed: plain values and references, from which every verb takes them.
# `op://` names a field of the item `production` in 1Password's vault `cimt`.
"""


def read() -> dict[str, Any]:
    """The declaration: ``{"verbs": …, "settings": …}``."""
    return dict(yaml.safe_load(FILE.read_text()))


def github(setting: Mapping[str, Any]) -> str:
    """Where GitHub keeps it: `secret`, `variable`, … or `workflow` for what a workflow gives by itself."""
    return str(setting.get("github") or ("secret" if setting.get("secret") else "variable"))


def taken(environment: str) -> set[str]:
    """Names that workflows take in the jobs of an environment, or outside of every job."""
    found = set()
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text())
        jobs = workflow.pop("jobs").values()
        jobs = [job for job in jobs if (job.get("environment") or {}).get("name") == environment]
        text = json.dumps([workflow, jobs], default=str)
        found |= set(re.findall(r"\b(?:vars|secrets)\.(\w+)", text))
    return found


def workflow_block(declared: Mapping[str, Any], kind: str, verbs: Iterable[str]) -> Iterator[str]:
    """Lines of an `env:` block: the plain or the secret settings of these verbs, in the file's order."""
    wanted = {name for verb in verbs for name in of_verb(declared, verb)}
    for name, setting in declared["settings"].items():
        where = PLACES.get(github(setting))
        if name in wanted and where and (kind == "secret") is bool(setting.get("secret")):
            yield f"{name}: ${{{{ {where}.{name} }}}}"


def workflow(declared: Mapping[str, Any], text: str) -> str:
    """A workflow with its blocks written again."""

    def block(match: re.Match[str]) -> str:
        indent, kind, verbs = match["indent"], match["kind"], match["verbs"]
        lines = [f"# settings: {kind} of {verbs}"]
        lines += workflow_block(declared, kind, verbs.split())
        return "".join(f"{indent}{line}\n" for line in [*lines, "# end of settings"])

    return WORKFLOW_BLOCK.sub(block, text)


@dataclass(frozen=True)
class Words:
    """What the table says beside names and values, in one language."""

    head: str
    default: str
    example: str
    github_only: str
    github: Mapping[str, str] = field(
        default_factory=dict
    )  # where it is kept; else the English word
    both: str = ", both"  # of the environments
    host: str = ", host"  # the second of them alone


ENGLISH = Words(
    "| name | what it is | where it comes from | used by | GitHub |",
    *("default", "such as", "GitHub only"),
    {"workflow": "set by the workflow"},
)
PORTUGUESE = Words(
    "| nome | o que é | de onde vem | usado por | GitHub |",
    *("padrão", "como", "só o GitHub"),
    {
        "workflow": "dado pelo workflow",
        "variable": "variável",
        "secret": "segredo",
        "secret by choice": "segredo, se você quiser",
        "variable of the repository": "variável do repositório",
    },
    ", ambos",
    ", host",
)


def table(
    declared: Mapping[str, Any],
    words: Words = ENGLISH,
    translated: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[str]:
    """Lines of the table in docs/setup.md; ``translated`` holds what and from of each setting in another language.

    Raises KeyError for a setting that is not translated.
    """
    yield words.head
    yield "|---|---|---|---|---|"
    merge, host = taken(MERGE_JOBS), taken(HOST_JOBS)
    for name, setting in declared["settings"].items():
        what, source = translated[name] if translated else (setting["what"], setting["from"])
        if "default" in setting:
            what += f"; {words.default} `{setting['default']}`"
        if "example" in setting:
            what += f", {words.example} `{setting['example']}`"
        if "make" in setting:
            source = f"`{setting['make']}`, {source}"
        taking = [verb for verb in declared["verbs"] if name in of_verb(declared, verb)]
        kind = github(setting)
        where = ""
        if kind in ("variable", "secret") and name in host:
            where = words.both if name in merge else words.host
        yield (
            f"| `{name}` | {what} | {source} | {', '.join(taking) or words.github_only} "
            f"| {words.github.get(kind, kind)}{where} |"
        )


def example(declared: Mapping[str, Any]) -> Iterator[str]:
    """Lines of production.env.example."""
    for name, setting in declared["settings"].items():
        needed = "" if "needed_by" in setting else " (optional)"
        yield f"# {setting['what']}{needed}"
        value = setting.get("example", setting.get("default", ""))
        yield f"{name}={f'op://cimt/production/{name}' if setting.get('secret') else value}"


def with_table(page: Path, lines: Iterable[str]) -> str:
    """A page with its table written again."""
    rows = "".join(f"{line}\n" for line in lines)
    return TABLE.sub(lambda match: f"{match['head']}{rows}{match['tail']}", page.read_text())


def translations(declared: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """What and from of every setting in Portuguese. Raises values.Refused when one is missing or is none."""
    found: dict[str, Sequence[str]] = yaml.safe_load(IN_PORTUGUESE.read_text())
    if strange := sorted(found.keys() ^ declared["settings"].keys()):
        raise values.Refused(
            f"services/settings.pt-BR.yaml and settings.yaml differ in {', '.join(strange)}. "
            "Next: write there what it is and where it comes from, in Portuguese"
        )
    return found


def texts(declared: Mapping[str, Any]) -> dict[Path, str]:
    """Every file that is written from the declaration, with the text that it must have."""
    found = {
        SETUP: with_table(SETUP, table(declared)),
        EXAMPLE: EXAMPLE_HEAD + "".join(f"{line}\n" for line in example(declared)),
    }
    if SETUP_IN_PORTUGUESE.exists():
        lines = table(declared, PORTUGUESE, translations(declared))
        found[SETUP_IN_PORTUGUESE] = with_table(SETUP_IN_PORTUGUESE, lines)
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        found[path] = workflow(declared, path.read_text())
    return found


def refused(declared: Mapping[str, Any], root: Path = ROOT) -> Iterator[str]:
    """Why the files ENV.env of the inventories must not be committed, a line each."""
    for environment in sorted(path.parent.name for path in root.glob("inventory/*/hosts.yml")):
        path = root / f"{environment}.env"
        try:
            yield from (
                f"{path.name}: {one}" for one in values.problems(values.read(path), declared)
            )
        except values.Refused as reason:
            yield str(reason)


def missing(playbook: str) -> list[str]:
    """What a playbook needs and the environment does not have: NAME (what it is)."""
    play = yaml.safe_load((ROOT / f"playbooks/{playbook}.yml").read_text())[0]
    names = needed(read())[play["vars"]["preflight_for"]]
    return [f"  {name}: {what}" for name, what in names.items() if not os.environ.get(name)]


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 when `check` finds a file that is stale, 2 when a needed setting is missing."""
    parser = argparse.ArgumentParser(prog="python -m tools.settings", description=__doc__)
    parser.add_argument("verb", choices=["write", "check", "needed", "with"])
    told = "PLAYBOOK COMMAND… of `needed`, COMMAND… of `with`"
    parser.add_argument("command", nargs=argparse.REMAINDER, help=told)
    given = parser.parse_args(argv)
    if given.verb == "needed":
        playbook, *command = given.command
        # Ansible would say it too (playbooks/tasks/preflight.yml), among where in which file.
        if lacking := missing(playbook):
            head, tail = f"{playbook}: not set:", "Next: docs/setup.md says where each comes from"
            print("\n".join([head, *lacking, tail]), file=sys.stderr)
            return 2
        os.execvp(command[0], command)  # noqa: S606
    if given.verb == "with":
        try:
            return values.run(os.environ.get("ENV", "local"), given.command)
        except values.Refused as reason:
            print(f"settings: {reason}", file=sys.stderr)
            return 2
    check = given.verb == "check"
    try:
        written = texts(read())
    except values.Refused as reason:
        print(f"settings: {reason}", file=sys.stderr)
        return 1
    stale = {
        path: text
        for path, text in written.items()
        if not path.exists() or path.read_text() != text
    }
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)}: {'stale. Next: make settings' if check else 'written'}")
        if not check:
            path.write_text(text)
    committed = list(refused(read())) if check else []
    print(*committed, sep="\n", end="\n" if committed else "")
    return 1 if check and (stale or committed) else 0


if __name__ == "__main__":
    sys.exit(main())
