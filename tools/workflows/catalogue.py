"""The nodes of the pinned n8n, boiled down from `n8n export:nodes` (18 MB) to what the linter asks."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tools.workflows.repository import HERE

CATALOGUE = HERE / "catalogue.json"


def compact(described: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Node type to ``{"versions": [number], "trigger"?: true, "webhook"?: true, "needs"?: [credential type]}``.

    A type is described once for each generation of it. ``needs`` are credentials without which no version works.
    ``inputs`` and ``outputs`` are how many there are of the main kind, where that is not one (of triggers no input);
    None where the node computes it.
    """
    nodes: dict[str, dict[str, Any]] = {}
    needs: dict[str, set[str]] = {}
    ends: dict[tuple[str, str], list[int | None]] = {}
    for one in described:
        name, versions = one["name"], one["version"]
        node = nodes.setdefault(name, {"versions": []})
        node["versions"] += versions if isinstance(versions, list) else [versions]
        if "trigger" in one["group"]:
            node["trigger"] = True
        if one.get("webhooks"):
            node["webhook"] = True
        always = {
            credential["name"]
            for credential in one.get("credentials") or []
            if credential.get("required") and not credential.get("displayOptions")
        }
        needs[name] = needs[name] & always if name in needs else always
        for kind in ("inputs", "outputs"):
            ends.setdefault((name, kind), []).append(_mains(one.get(kind, ["main"])))
    for name, node in nodes.items():
        node["versions"] = sorted(set(node["versions"]))
        for kind in ("inputs", "outputs"):
            known = [number for number in ends[name, kind] if number is not None]
            most = max(known) if len(known) == len(ends[name, kind]) else None
            if most != (0 if kind == "inputs" and node.get("trigger") else 1):
                node[kind] = most
        if needs[name]:
            node["needs"] = sorted(needs[name])
    return dict(sorted(nodes.items()))


def _mains(described: Any) -> int | None:
    if not isinstance(described, list):
        return None
    kinds = [one["type"] if isinstance(one, dict) else one for one in described]
    return kinds.count("main")


def write(env: Mapping[str, str]) -> int:
    """Ask the n8n on PATH of ``env`` and write services/n8n/catalogue.json; the number of node types."""

    def ask(*command: str) -> str:
        program = shutil.which("n8n", path=env["PATH"]) or "n8n"
        quiet = {**env, "N8N_USER_FOLDER": home, "N8N_DIAGNOSTICS_ENABLED": "false"}
        done = subprocess.run(
            [program, *command], env=quiet, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    with tempfile.TemporaryDirectory() as home:
        output = Path(home, "nodes.json")
        ask("export:nodes", f"--output={output}")
        nodes = compact(json.loads(output.read_text(encoding="utf-8")))
        version = json.dumps(ask("--version"))
    lines = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(node)}" for name, node in nodes.items()
    )
    CATALOGUE.write_text(
        f'{{\n  "version": {version},\n  "nodes": {{\n{lines}\n  }}\n}}\n', encoding="utf-8"
    )
    return len(nodes)
