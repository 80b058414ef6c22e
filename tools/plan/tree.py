"""`python -m tools.plan.tree FOLDER`: what the files of a tree declare for production, as JSON.

The tree's own roles, inventory and filters are used, as its playbooks would use them. Every setting without a default
is a placeholder: the caller starts this with an environment in which nothing of production can be.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from plugins.module_utils.app_changes import desired
from plugins.module_utils.n8n_files import normal
from tools.host import door
from tools.workflows import repository

if TYPE_CHECKING:
    from tools.declared import Declared

PLACEHOLDER = "‹NAME›"
DOOR = "program of the door"
# The system of production's droplet (docs/setup.md): some roles declare by it.
SYSTEM = {
    "distribution": "Ubuntu",
    "distribution_version": "22.04",
    "distribution_major_version": "22",
    "distribution_release": "jammy",
}
Flat = dict[str, str]


def flat(value: Any, prefix: str = "") -> Flat:
    """Nested mappings as one, with dotted keys and text for values."""
    if isinstance(value, Mapping):
        parts = (
            flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()
        )
        return {key: text for part in parts for key, text in part.items()}
    return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def settings(folder: Path) -> dict[str, Any]:
    """The settings; they get their placeholders here."""
    found = dict(yaml.safe_load((folder / "services/settings.yaml").read_text())["settings"])
    for name, setting in found.items():
        if "default" not in setting:
            os.environ[name] = PLACEHOLDER.replace("NAME", name)
    return found


def app(declared: Mapping[str, Any], secret: Mapping[str, str]) -> dict[str, Any]:
    """One app of the panel as a state of app_changes, with what the panel does not see of it."""
    known = {
        "released by digest": declared["released"],
        "pulled with our credentials": declared["ours"],
    }
    return known | desired(declared, secret, image=declared["image"]).values


def files(declared: Declared) -> dict[str, dict[str, str]]:
    """Files of the host by path: ``{"set", "state": kind and mode, "text"}``."""
    result = {}
    for name, declaration in declared.sets().items():
        secret = declaration.get("secret_files", {})
        every = [
            *declaration["files"],
            *({"path": path, "content": text, "mode": "0600"} for path, text in secret.items()),
        ]
        for item in every:
            if item.get("absent"):
                state = "must not exist"
            elif item.get("directory"):
                state = f"directory {item.get('mode', '0755')}"
            elif item.get("link"):
                state = f"link to {item['link']}"
            else:
                state = f"file {item.get('mode', '0644')}"
            # JSON on the host says a placeholder in ASCII.
            text = str(item.get("content") or "").replace(r"\u2039", "‹").replace(r"\u203a", "›")
            result[item["path"]] = {"set": name, "state": state, "text": text}
    return result


def host(declared: Declared, folder: Path) -> Flat:
    """What roles declare of the host beside files: packages, units, the panel, the program of releases."""
    result = {}
    for name, package in declared.packages().items():
        held = "held" if package["hold"] else ""
        result[f"package {name}"] = " ".join(filter(None, [package["version"], held]))
    for name, declaration in declared.sets().items():
        result |= {f"unit {unit}": f"set {name}" for unit in declaration.get("units", [])}
    if (role := folder / "roles/door").exists():
        result[DOOR] = door.program(role)[:12]
    for panel in declared.calls("easypanel_install"):
        result |= {f"panel {key}": value for key, value in flat(panel).items()}
    return result


def n8n(declared: Declared) -> Flat:
    """What n8n gets beside its workflows: their settings, and the credentials with placeholders."""
    path = Path(declared["n8n_workflows_credentials_file"])
    credentials = {one["id"]: one for one in yaml.safe_load(path.read_text())}
    return flat({"setting": declared["n8n_workflows_settings"], "credential": credentials})


def read(folder: Path) -> dict[str, Any]:
    """Every part of the tree; None for one that cannot be read, and `problems` says why."""
    from ansible.errors import AnsibleError

    from tools.declared import Declared, NotDeclared

    problems: list[str] = []

    def attempt(what: str, reader: Callable[[], Any]) -> Any:
        try:
            return reader()
        except (
            *(AnsibleError, NotDeclared, yaml.YAMLError),
            *(OSError, ValueError, LookupError, TypeError, AttributeError),
        ) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            problems.append(f"{what}: {said.replace(f'{folder}/', '')[:1000]}")
            return None

    def production() -> Declared:
        declared = Declared("production", folder, ["provision"])
        declared.set_system(SYSTEM)
        return declared

    workflows = {}
    for path in sorted((folder / "n8n_workflows").glob("*.json")):
        workflow, wrong = repository.load(path)
        problems += [f"n8n_workflows/{path.name}: {found.message}" for found in wrong]
        workflows[path.name] = None if wrong else attempt(path.name, partial(normal, workflow))
    found: dict[str, Any] = {
        "problems": problems,
        "settings": attempt("services/settings.yaml", lambda: settings(folder)),
        "workflows": workflows,
    }
    declared = attempt("inventory and playbooks", production)
    parts: dict[str, Callable[[], Any]] = {}
    if declared is not None:
        parts = {
            "apps": lambda: {
                one["name"]: app(one, panel["secret_env"].get(one["name"], {}))
                for panel in [declared.panel(PLACEHOLDER)]
                for one in panel["apps"]
            },
            "files": lambda: files(declared),
            "host": lambda: host(declared, folder),
            "n8n": lambda: n8n(declared),
        }
    for part in ("apps", "files", "host", "n8n"):
        found[part] = attempt(part, parts[part]) if part in parts else None
    return found


if __name__ == "__main__":
    answer, sys.stdout = sys.stdout, sys.stderr  # Ansible says things on its way
    json.dump(read(Path(sys.argv[1])), answer)
