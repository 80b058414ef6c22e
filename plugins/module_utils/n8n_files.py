"""n8n workflows as files: their normal form, their settings, the order in which they are published.

Pure functions over decoded JSON, standard library only: the module on the droplet, the linter and
`make n8n-pull` use the same ones. A workflow is the dict that n8n exports and its API returns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

Workflow = dict[str, Any]

SETTINGS_NODE = "Settings"
# What a file says about a workflow and about a node. All else is of one instance: owner, dates, versions, statistics.
WORKFLOW_KEYS = ("id", "name", "nodes", "connections", "settings", "tags")
NODE_KEYS = (
    *("id", "name", "type", "typeVersion", "position", "parameters", "credentials", "webhookId"),
    *("disabled", "notes", "notesInFlow", "executeOnce", "alwaysOutputData", "onError"),
    *("retryOnFail", "maxTries", "waitBetweenTries"),
)
# What n8n adds to `settings` by itself when a file does not say it.
SETTINGS_ADDED = {"callerPolicy": "workflowsFromSameOwner", "availableInMCP": False}
# Of these n8n takes "DEFAULT" for an answer. It merges settings: what is left out of an update stays as it was.
SETTINGS_WITH_DEFAULT = (
    *("errorWorkflow", "timezone", "saveDataErrorExecution", "saveDataSuccessExecution"),
    *("saveManualExecutions", "saveExecutionProgress"),
)
# A node's switches which n8n leaves out or writes as false, as it likes.
SWITCHES = ("disabled", "notesInFlow", "executeOnce", "alwaysOutputData", "retryOnFail")
VARIABLE = re.compile(r"\$\{(\w+)\}")


class FilesError(ValueError):
    """One line: what is wrong with a workflow, a setting or a credential, and where."""


def normal(workflow: Mapping[str, Any]) -> Workflow:
    """The workflow without anything that belongs to one instance, in a fixed order.

    Nodes are sorted by name; tags are names; credentials are ``{type: {id, name}}``.
    """
    nodes = sorted((_node(node) for node in workflow.get("nodes") or []), key=_name)
    settings = {
        key: value
        for key, value in sorted((workflow.get("settings") or {}).items())
        if SETTINGS_ADDED.get(key, ...) != value
    }
    tags = {tag["name"] if isinstance(tag, Mapping) else tag for tag in workflow.get("tags") or []}
    result: Workflow = {key: workflow.get(key) for key in ("id", "name")}
    connections = {
        source: outputs
        for source, outputs in sorted((workflow.get("connections") or {}).items())
        if any(any(branch for branch in branches) for branches in outputs.values())
    }
    return {
        **result,
        "nodes": nodes,
        "connections": connections,
        "settings": settings,
        "tags": sorted(tags),
    }


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("name", ""))


def _node(node: Mapping[str, Any]) -> dict[str, Any]:
    result = {
        key: _numbers(node[key])
        for key in NODE_KEYS
        if key in node and not (key in SWITCHES and node[key] is False)
    }
    if result.get("name") == SETTINGS_NODE and (settings := _object(result)) is not None:
        result["parameters"] = {**result["parameters"], "jsonOutput": _shown(settings)}
    if credentials := result.pop("credentials", None):
        result["credentials"] = {
            kind: {key: used[key] for key in ("id", "name") if key in used}
            for kind, used in sorted(credentials.items())
        }
    return result


def _numbers(value: Any) -> Any:
    """The value with 270 for each 270.0, as JavaScript writes it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_numbers(one) for one in value]
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items()}
    return value


def text(workflow: Mapping[str, Any]) -> str:
    """The normal form as the file in the repository holds it; equal texts are equal workflows."""
    return json.dumps(normal(workflow), indent=2, ensure_ascii=False) + "\n"


def settings_of(workflow: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the node "Settings" (Set, raw JSON) holds; None when the workflow has no such node.

    Raises FilesError when it holds no JSON object.
    """
    for node in workflow.get("nodes") or []:
        if node.get("name") == SETTINGS_NODE:
            found = _object(node)
            if found is None:
                raise FilesError(
                    f"{workflow.get('name')}: node {SETTINGS_NODE}: it must hold a plain JSON object "
                    "(mode JSON, no expression)"
                )
            return found
    return None


def _object(node: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON object that a Set node holds; None when it holds none."""
    try:
        found = json.loads(node["parameters"]["jsonOutput"])
    except (KeyError, TypeError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _shown(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=2, ensure_ascii=False)


def render(workflow: Mapping[str, Any], settings: Mapping[str, Any]) -> Workflow:
    """The workflow for one environment: ``settings`` replace values of its node "Settings".

    A key of ``settings`` replaces the whole value of that key; the file names all keys there are.
    Raises FilesError for a key that the file does not name.
    """
    known = settings_of(workflow)
    if unknown := sorted(set(settings) - set(known or {})):
        raise FilesError(
            f"{workflow.get('name')}: it has no setting {', '.join(unknown)}; "
            f"known: {', '.join(sorted(known or {})) or 'none'}"
        )
    return workflow_with(workflow, {**known, **settings}) if known is not None else dict(workflow)


def workflow_with(workflow: Mapping[str, Any], settings: Mapping[str, Any]) -> Workflow:
    """A copy of the workflow whose node "Settings" holds exactly these settings."""
    nodes = [
        {**node, "parameters": {**node["parameters"], "jsonOutput": _shown(settings)}}
        if node.get("name") == SETTINGS_NODE
        else node
        for node in workflow["nodes"]
    ]
    return {**workflow, "nodes": nodes}


def settings_for_update(wanted: Mapping[str, Any], running: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` for the update of a running workflow, so that it ends with those of the file and no others.

    Of what n8n cannot be told to forget (executionTimeout), the running value stays: write it into the file.
    """
    result = dict(wanted.get("settings") or {})
    for key in set(running.get("settings") or {}) - set(result):
        if key in SETTINGS_WITH_DEFAULT:
            result[key] = "DEFAULT"
        elif key in SETTINGS_ADDED:
            result[key] = SETTINGS_ADDED[key]
    return result


def publish_order(workflows: Iterable[Workflow]) -> list[Workflow]:
    """The same workflows, each after those that it calls (sub-workflows, error workflow), else by id."""
    left = {str(workflow["id"]): workflow for workflow in workflows}
    order: list[Workflow] = []
    while left:
        free = [
            key for key in sorted(left) if not (called_by(left[key]) & set(left) - {key})
        ] or sorted(left)[:1]  # a circle: n8n takes those in any order
        order += [left.pop(key) for key in free]
    return order


def called_by(workflow: Mapping[str, Any]) -> set[str]:
    """Ids of the workflows that this one calls."""
    found = [(workflow.get("settings") or {}).get("errorWorkflow")]
    for node in workflow.get("nodes") or []:
        if node.get("type") == "n8n-nodes-base.executeWorkflow":
            target = (node.get("parameters") or {}).get("workflowId")
            found.append(target.get("value") if isinstance(target, Mapping) else target)
    return {str(one) for one in found if one}


def credentials(
    declared: Iterable[Mapping[str, Any]], secrets: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What `n8n import:credentials` reads: ``[{id, name, type, data}]``, with the secrets put in.

    ``declared`` is services/n8n/credentials.yaml; its data name secrets as ``${NAME}``.
    A credential marked ``optional`` whose secret is not set is made with empty values: nodes that name it
    stay valid, and the channel that needs it is not switched on. Raises FilesError naming all missing secrets.
    """
    missing: set[str] = set()
    result = []
    for one in declared:
        optional = bool(one.get("optional"))
        names = {name for value in one["data"].values() for name in VARIABLE.findall(str(value))}
        if not optional:
            missing |= {name for name in names if not secrets.get(name)}
        data = {
            key: VARIABLE.sub(lambda match: str(secrets.get(match[1], "")), value)
            if isinstance(value, str)
            else value
            for key, value in one["data"].items()
        }
        result.append({"id": one["id"], "name": one["name"], "type": one["type"], "data": data})
    if missing:
        raise FilesError(f"credentials of n8n: no value for {', '.join(sorted(missing))}")
    return result
