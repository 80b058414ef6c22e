"""Lint workflows: what n8n would accept and then do wrong, or what must not be committed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plugins.module_utils import n8n_files
from tools.workflows import nodes
from tools.workflows.repository import Finding, Repository, load, shown

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{2,35}")
MENTION = re.compile(r"""\$(?:node\[|\()\s*(["'])(.+?)\1\s*[\])]""")
STICKY = "n8n-nodes-base.stickyNote"
CALLED = "n8n-nodes-base.executeWorkflowTrigger"
ON_ERROR = "n8n-nodes-base.errorTrigger"
FORMAT = "Next: make n8n-lint ARGS=--fix"
REWIRE = "n8n brings nothing that way. Connect it anew in the editor"


def lint(paths: list[Path], repository: Repository) -> list[Finding]:
    """All findings in these workflow files, which belong together, by file and node."""
    found: list[Finding] = []
    workflows: dict[Path, dict[str, Any]] = {}
    for path in paths:
        workflow, problems = load(path)
        found += problems
        if not problems:
            workflows[path] = workflow
    for path, workflow in workflows.items():
        found += [
            Finding(shown(path), node, text) for node, text in _workflow(path, workflow, repository)
        ]
    for path, workflow in workflows.items():
        found += [
            Finding(shown(path), node, text)
            for node, text in _calls(workflow, list(workflows.values()), repository)
        ]
    hooks: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for path, workflow in workflows.items():
        for node in workflow["nodes"]:
            parameters = nodes.parameters_of(node)
            if node.get("type") == "n8n-nodes-base.webhook" and parameters.get("path"):
                hook = (
                    str(parameters.get("httpMethod", "GET")),
                    str(parameters["path"]).strip("/"),
                )
                hooks.setdefault(hook, []).append((shown(path), str(node.get("name"))))
    for (method, address), users in hooks.items():
        if len(users) > 1:
            found += [
                Finding(
                    file,
                    node,
                    f"{method} /webhook/{address} is also another node's: n8n publishes one of them",
                )
                for file, node in users
            ]
    for key in ("id", "name"):
        count = Counter(str(workflow.get(key)) for workflow in workflows.values())
        found += [
            Finding(
                shown(path),
                "",
                f"its {key} {workflow.get(key)!r} is also that of another file: give it its own",
            )
            for path, workflow in workflows.items()
            if count[str(workflow.get(key))] > 1
        ]
    return sorted(set(found))


def _workflow(
    path: Path, workflow: dict[str, Any], repository: Repository
) -> Iterator[tuple[str, str]]:
    """Findings (node or "", message) of one workflow by itself."""
    identifier = workflow.get("id")
    if not isinstance(identifier, str) or not IDENTIFIER.fullmatch(identifier):
        yield (
            "",
            f'its id must be 3 to 36 letters, digits and hyphens: n8n needs one. Set "id": "{path.stem}"',
        )
    elif identifier != path.stem:
        yield (
            "",
            f"its id is {identifier!r}: call the file {identifier}.json, so that an id cannot change unseen",
        )
    if not workflow.get("name"):
        yield "", "it has no name"
    for key in ("pinData", "staticData"):
        if workflow.get(key):
            yield "", f"it carries {key} (data of one run): remove it. {FORMAT}"
    if workflow.get("shared") or (workflow.get("meta") or {}).get("instanceId"):
        yield "", f"it carries its owner or instance: remove them. {FORMAT}"
    if (workflow.get("settings") or {}).get("executionOrder") != "v1":
        yield (
            "",
            'settings.executionOrder must be "v1": without it, n8n runs branches in an order of its past',
        )

    names = [str(node.get("name") or "") for node in workflow["nodes"]]
    for name, count in Counter(names).items():
        if not name:
            yield "", "a node has no name"
        elif count > 1:
            yield name, f"{count} nodes have this name; connections could mean either: rename"
    identifiers = Counter(str(node.get("id") or "") for node in workflow["nodes"])
    for node, name in zip(workflow["nodes"], names, strict=True):
        own = str(node.get("id") or "")
        if not own or identifiers[own] > 1:
            yield name, "its id is missing or used twice: give it its own (a UUID)"
        for rule in nodes.RULES:
            for message in rule(node, repository):
                yield name, message
    yield from _connections(workflow, set(names), repository)
    try:
        n8n_files.settings_of(workflow)
    except n8n_files.FilesError as error:
        yield n8n_files.SETTINGS_NODE, str(error).rpartition(": ")[2]
    if n8n_files.text(workflow) != path.read_text(encoding="utf-8"):
        yield "", f"not in the normal form (order, or data of an instance). {FORMAT}"


def _connections(
    workflow: dict[str, Any], names: set[str], repository: Repository
) -> Iterator[tuple[str, str]]:
    """Every wire has two ends, every expression means a node that exists, and no node hangs loose."""
    reached: set[str] = set()
    wired: set[str] = set()
    by_name = {str(node.get("name")): node for node in workflow["nodes"]}
    for source, outputs in (workflow.get("connections") or {}).items():
        if source not in names:
            yield (
                "",
                f"a connection starts at {source!r}, which is no node here: remove or rename it",
            )
        for kind, branches in outputs.items():
            for place, end in (
                (at, end) for at, branch in enumerate(branches) for end in branch or []
            ):
                target = end.get("node")
                if target not in names:
                    yield (
                        source,
                        f"its connection goes to {target!r}, which is no node here: remove or rename it",
                    )
                elif kind == "main" and source in names:
                    have = nodes.ends(by_name[source], repository, "outputs")
                    if have is not None and place >= have:
                        yield (
                            source,
                            f"it has no output {place + 1}, from which a connection starts: {REWIRE}",
                        )
                    have = nodes.ends(by_name[target], repository, "inputs")
                    if have is not None and end.get("index", 0) >= have:
                        yield (
                            target,
                            f"it has no input {end.get('index', 0) + 1}, to which a connection goes: {REWIRE}",
                        )
                (reached if kind == "main" else wired).add(target if kind == "main" else source)
    for node in workflow["nodes"]:
        name, kind = str(node.get("name") or ""), str(node.get("type"))
        if (
            name
            and kind != STICKY
            and not _starts(node, repository)
            and name not in reached | wired
        ):
            yield name, "nothing leads to it: connect or remove it"
        for where, value in nodes.strings(nodes.parameters_of(node)):
            for match in MENTION.finditer(value):
                if match[2] not in names:
                    yield (
                        name,
                        f"{where} means the node {match[2]!r}, which does not exist: rename it there too",
                    )
    if not any(_starts(node, repository) for node in workflow["nodes"]):
        yield "", "it has no trigger: n8n cannot publish it"


def _calls(
    workflow: dict[str, Any], all_workflows: list[dict[str, Any]], repository: Repository
) -> Iterator[tuple[str, str]]:
    """Sub-workflows and the error workflow are in this repository, and are made for it."""

    def has(identifier: str, trigger: str) -> bool:
        return any(
            str(other.get("id")) == identifier
            and any(node.get("type") == trigger for node in other["nodes"])
            for other in all_workflows
        )

    handler = (workflow.get("settings") or {}).get("errorWorkflow")
    last = str(workflow.get("id")) in _last_resort(all_workflows)
    triggers = {node.get("type") for node in workflow["nodes"] if _starts(node, repository)}
    if not handler and not last and triggers != {CALLED}:  # what is only called fails its caller
        yield "", 'nobody hears when it fails: set settings.errorWorkflow, such as "error-handler"'
    if handler and last:
        yield (
            "",
            "an error workflow calls it, so a failure would go round in circles: remove settings.errorWorkflow",
        )
    if handler and not has(str(handler), ON_ERROR):
        yield "", f"settings.errorWorkflow {handler!r} is no workflow here with an Error Trigger"
    for target in sorted(n8n_files.called_by(workflow) - {str(handler)}):
        if not has(target, CALLED):
            yield (
                "",
                f"it calls the workflow {target!r}, which is none here with an Execute Workflow Trigger",
            )


def _starts(node: dict[str, Any], repository: Repository) -> bool:
    return bool((repository.nodes.get(str(node.get("type"))) or {}).get("trigger"))


def _last_resort(workflows: list[dict[str, Any]]) -> set[str]:
    """Ids of the error workflows and of all that they call."""
    calls = {str(one.get("id")): n8n_files.called_by(one) for one in workflows}
    found: set[str] = set()
    new = {
        str(one.get("id"))
        for one in workflows
        if any(node.get("type") == ON_ERROR for node in one["nodes"])
    }
    while new - found:
        found |= new
        new = {target for key in found for target in calls.get(key, set())}
    return found
