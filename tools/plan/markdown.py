"""Two trees side by side, as Markdown: a section for each kind of change, and only where something changes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from plugins.module_utils import app_changes
from tools.database.safety import Report
from tools.plan.tree import DOOR
from tools.settings.__main__ import github

Tree = Mapping[str, Any]
VALUE = 300  # characters of one value
DIFF = 8_000  # characters of one file's diff
# n8n leaves alone what the files do not name, the host what no role names.
STAYS = "stays where it is until somebody deletes it"
PRUNED = "stays until `make prune`"


def code(text: str) -> str:
    """A code span; long text is cut."""
    line = " ".join(text.split())
    line = line if len(line) <= VALUE else f"{line[:VALUE]} … ({len(line)} characters)"
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def fenced(lines: Sequence[str], language: str) -> str:
    """A block of code that nothing in it can end; a long one is cut and says so."""
    kept, length = [], 0
    for line in lines:
        length += len(line) + 1
        if length > DIFF:
            break
        kept.append(line)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", "\n".join(kept))), 3)
    block = "\n".join([f"{fence}{language}", *kept, fence])
    left = len(lines) - len(kept)
    return f"{block}\n\nCut here: {left} more lines of this diff are not shown." if left else block


def changes(base: Mapping[str, str], head: Mapping[str, str]) -> Iterator[str]:
    """List items: what is new, gone, or has another value."""
    for key in sorted({*base, *head}):
        if key not in base:
            yield f"- {code(f'+ {key} = {head[key]}' if head[key] else f'+ {key}')}"
        elif key not in head:
            kept = f": {STAYS}" if key.startswith(("package ", "unit ")) else ""
            yield f"- {code(f'- {key}')}{kept}"
        elif base[key] != head[key]:
            yield f"- {code(f'{key} {base[key] or chr(34) * 2} → {head[key] or chr(34) * 2}')}"


def both(base: Tree, head: Tree, part: str) -> tuple[Any, Any] | None:
    """A part of both trees; None where one of them cannot be read, which is told elsewhere."""
    left, right = base.get(part), head.get(part)
    return None if left is None or right is None else (left, right)


def apps(base: Tree, head: Tree) -> Iterator[str]:
    """Apps as the panel would get them."""
    if pair := both(base, head, "apps"):
        left, right = pair
        for name in sorted({*left, *right}):
            if name not in right:
                yield f"**{name}** is removed: in the panel it {PRUNED}."
                continue
            there, wanted = left.get(name, {}), app_changes.Desired(name, right[name])
            # No value of production is here, so nothing is hidden. Of a new one, only what is said of it.
            found = [replace(one, secret=False) for one in app_changes.changes(wanted, there)]
            rows = [f"- {code(str(one))}" for one in found if there or one.new]
            spare = app_changes.unmanaged(wanted, there)
            rows += [f"- {code(f'- {name}.{path}')}: {PRUNED}" for path in spare]
            if rows:
                yield "\n".join([f"**{name}**{'' if name in left else ' is new'}", "", *rows])


def settings(base: Tree, head: Tree) -> Iterator[str]:
    """Settings that are new, gone, needed now, or have another default."""
    if not (pair := both(base, head, "settings")):
        return
    left, right = pair

    def row(name: str) -> str:
        setting = right[name]
        made = f" ({code(setting['make'])})" if "make" in setting else ""
        return (
            f"- {code(name)} ({github(setting)}): {setting['what']}. From: {setting['from']}{made}"
        )

    given = [name for name, setting in right.items() if github(setting) != "workflow"]
    needed = [
        name
        for name in given
        if right[name].get("needed_by") and not left.get(name, {}).get("needed_by")
    ]
    optional = [name for name in given if name not in left and name not in needed]
    if needed:
        head_line = "**Before the merge**, GitHub's environment `production` must have:"
        yield "\n".join([head_line, "", *map(row, needed)])
    if optional:
        yield "\n".join(["New, and may stay unset:", "", *map(row, optional)])
    if gone := [name for name in left if name not in right]:
        yield f"Not read any more after the merge: {', '.join(map(code, gone))}."
    defaults = [
        {name: str(setting["default"]) for name, setting in side.items() if "default" in setting}
        for side in (left, right)
    ]
    kept = [
        {name: side[name] for name in side if name in left and name in right} for side in defaults
    ]
    if rows := list(changes(*kept)):
        yield "\n".join(["Defaults:", "", *rows])


def host(base: Tree, head: Tree) -> Iterator[str]:
    """Packages, units and files that roles would write."""
    if pair := both(base, head, "host"):
        if pair[0].get(DOOR) != pair[1].get(DOOR):
            yield (
                "**After the merge** Deploy stops, and has done nothing, until Operate → provision has brought the "
                "droplet this program of releases; then re-run it."
            )
        yield from ["\n".join(rows)] if (rows := list(changes(*pair))) else []
    if not (pair := both(base, head, "files")):
        return
    left, right = pair
    nothing = {"state": "", "text": ""}
    for path in sorted({*left, *right}):
        if path not in right:
            yield f"{code(path)} is declared no more: on the host it {STAYS}."
            continue
        old, new = left.get(path, nothing), right[path]
        if (old["state"], old["text"]) == (new["state"], new["text"]):
            continue
        state = (
            new["state"]
            if old["state"] in ("", new["state"])
            else f"{old['state']} → {new['state']}"
        )
        title = f"{code(path)} ({state}; set {new['set']}){'' if path in left else ' is new'}"
        lines = list(
            difflib.unified_diff(
                old["text"].splitlines(), new["text"].splitlines(), "base", "head", lineterm=""
            )
        )
        yield f"{title}\n\n{fenced(lines, 'diff')}" if lines else title


def nodes(workflow: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Nodes by name, without where they lie on the canvas."""
    left_out = ("id", "name", "position")
    return {
        str(node.get("name")): {key: item for key, item in node.items() if key not in left_out}
        for node in workflow["nodes"]
    }


def workflows(base: Tree, head: Tree) -> Iterator[str]:
    """Workflows of n8n, their settings and credentials."""
    left, right = base["workflows"], head["workflows"]
    for file in sorted({*left, *right}):
        path = code(f"n8n_workflows/{file}")
        old, new = left.get(file, {}), right.get(file, {})
        if old is None or new is None or old == new:
            continue
        if not new:
            yield f"{path} (**{old['name']}**) is removed: in n8n it {STAYS}, and stays active."
            continue
        old_nodes, new_nodes = nodes(old) if old else {}, nodes(new)
        rows = [
            f"- {code(f'+ node {name}')} ({new_nodes[name].get('type')})"
            for name in new_nodes
            if name not in old_nodes
        ]
        rows += [f"- {code(f'- node {name}')}" for name in old_nodes if name not in new_nodes]
        for name in new_nodes:
            was, now = old_nodes.get(name), new_nodes[name]
            if was is not None and was != now:
                fields = sorted(key for key in {*was, *now} if was.get(key) != now.get(key))
                rows.append(f"- {code(f'node {name}')} changes: {', '.join(fields)}")
        for key in ("name", "connections", "settings", "tags") if old else ():
            if old.get(key) != new.get(key):
                told = f" {old[key]} → {new[key]}" if key == "name" else ""
                rows.append(f"- {code(f'{key}{told}')}{'' if told else ' change'}")
        kind = "changes" if old else "is new"
        yield "\n".join(
            [
                f"{path} (**{new['name']}**) {kind}; it is active after the merge",
                "",
                *(rows or ["- only places on the canvas"]),
            ]
        )
    if (pair := both(base, head, "n8n")) and (rows := list(changes(*pair))):
        yield "\n".join(["Settings of workflows, and credentials:", "", *rows])


def migrations(new: Sequence[Report], refused: Sequence[str]) -> Iterator[str]:
    """New migrations with what each takes away, and what may not be merged."""
    rows = []
    for report in new:
        lost = f": takes away what the running code may use: {'; '.join(report.reasons)}"
        rows.append(f"- {code(report.file)} **{report.safety}**{lost if report.reasons else ''}")
        rows += [f"  - {code(str(finding))}" for finding in report.findings]
    rows += [f"- **refused**: {text}" for text in refused]
    if rows:
        yield "\n".join(rows)


def limited(blocks: Sequence[str], limit: int) -> str:
    """The blocks as one document of at most so many characters; what is cut is said."""
    cut = "Cut here: a comment on GitHub holds no more. Next: make pull-request-plan ARGS=--limit=0"
    text = ""
    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        if limit and len(text) + len(block) + 2 + (0 if last else len(cut) + 2) > limit:
            return f"{text}{cut}\n"
        text += f"{block}\n\n"
    return text.rstrip("\n") + "\n"
