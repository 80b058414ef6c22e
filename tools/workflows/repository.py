"""What the repository declares for n8n: workflows, credentials, and the nodes of the pinned version."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "n8n_workflows"
HERE = ROOT / "services" / "n8n"
# What all that reads a workflow may rely on. In files of n8n 0 the credentials of a node are names.
_OBJECT: dict[str, Any] = {"type": ["object", "null"]}
_END = {
    "type": "object",
    "required": ["node"],
    "properties": {"node": {"type": "string"}, "index": {"type": "integer"}},
}
_BRANCHES = {"type": "array", "items": {"type": ["array", "null"], "items": _END}}
_NODE = {
    "type": "object",
    "properties": {
        **{
            key: {"type": ["string", "null"]}
            for key in ("id", "name", "type", "onError", "webhookId")
        },
        "typeVersion": {"type": "number"},
        "parameters": _OBJECT,
        "credentials": {**_OBJECT, "additionalProperties": {"type": "object"}},
    },
}
_WIRES = {"type": "object", "additionalProperties": _BRANCHES}
SHAPE = jsonschema.Draft202012Validator(
    {
        "type": "object",
        "required": ["nodes"],
        "properties": {
            "nodes": {"type": "array", "items": _NODE},
            "connections": {**_OBJECT, "additionalProperties": _WIRES},
            "settings": {**_OBJECT, "properties": {"errorWorkflow": {"type": ["string", "null"]}}},
            "meta": _OBJECT,
            "tags": {
                "type": ["array", "null"],
                "items": {"type": ["string", "object"], "required": ["name"]},
            },
        },
    }
)


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Finding:
    """One thing that is wrong, and how it is mended. ``node`` is empty when it concerns the whole file."""

    file: str
    node: str
    message: str

    def __str__(self) -> str:
        where = f'{self.file}: node "{self.node}"' if self.node else self.file
        return f"{where}: {self.message}"


@dataclasses.dataclass(frozen=True, slots=True)
class Repository:
    """The declared side of n8n.

    ``nodes`` maps a node type to what `catalogue.compact` says of it.
    """

    n8n_version: str
    nodes: dict[str, dict[str, Any]]
    credentials: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, directory: Path = HERE) -> Repository:
        """From services/n8n."""
        catalogue = json.loads((directory / "catalogue.json").read_text(encoding="utf-8"))
        declared = yaml.safe_load((directory / "credentials.yaml").read_text(encoding="utf-8"))
        return cls(catalogue["version"], catalogue["nodes"], {one["id"]: one for one in declared})


def shown(path: Path) -> str:
    """The path as a person in the repository would type it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def load(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """The workflow in a file, or an empty one and why it cannot be read."""
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {}, [Finding(shown(path), "", f"not JSON: {error}")]
    for wrong in SHAPE.iter_errors(workflow):
        place = ".".join(map(str, wrong.absolute_path)) or "it"
        message = f"not a workflow as n8n 2 writes it: {place}: {wrong.message[:200]}"
        return {}, [Finding(shown(path), "", message)]
    return workflow, []


def declaration_findings(directory: Path = HERE) -> list[Finding]:
    """What is wrong with the catalogue's version."""
    version = json.loads((directory / "catalogue.json").read_text(encoding="utf-8"))["version"]
    dockerfile = (directory / "Dockerfile").read_text(encoding="utf-8")
    # The update bot adds the digest: n8n:1.2.3@sha256:….
    if re.search(rf"/n8n:{re.escape(version)}(@|$)", dockerfile, re.MULTILINE):
        return []
    message = (
        f"made by n8n {version}, which is not the one in the Dockerfile. Next: make n8n-catalogue"
    )
    return [Finding(shown(directory / "catalogue.json"), "", message)]
