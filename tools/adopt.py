"""`python -m tools.adopt`: a Compose file from what a panel has, as `make adopt` has read it into .local/adopted.json.

Writes .local/adopted/compose.yaml, and beside it production.env with the values that look like secrets, which the file
names as ${NAME}. With both, the plan of that panel is empty. It prints what a Compose file cannot say of it.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from local.settings import write_atomic

ROOT = Path(__file__).parents[1]
READ = ROOT / ".local/adopted.json"
FOLDER = ROOT / ".local/adopted"
NAMED = re.compile(r"KEY|SECRET|TOKEN|PASS|CREDENTIAL|DSN|AUTH|HEADER|SALT|PRIVATE", re.IGNORECASE)
SPOKEN = re.compile(r"://[^/\s:@]*:[^/\s@]+@")  # an address with a password
OPAQUE = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9+=_-]{20,}")
State = Mapping[str, Any]


def looks_secret(key: str, value: str) -> bool:
    """Whether a setting had better not stand in a file: by its name, or by what it looks like. In doubt it had not."""
    return bool(value) and bool(
        NAMED.search(key) or SPOKEN.search(value) or OPAQUE.fullmatch(value)
    )


def part(state: State, prefix: str) -> dict[str, Any]:
    """The members of a state below a prefix."""
    return {path[len(prefix) :]: value for path, value in state.items() if path.startswith(prefix)}


class Adopted:
    """Apps by name, each a state of app_changes: as a Compose document, with ``values`` for its variables."""

    def __init__(self, apps: Mapping[str, State]) -> None:
        self.apps = apps
        self.values: dict[str, str] = {}
        self.unsaid: list[str] = []
        given = {(k, v) for state in apps.values() for k, v in part(state, "env.").items()}
        self._differ = {key for key, count in Counter(k for k, _ in given).items() if count > 1}
        ours = [state["image"] for state in apps.values() if "registry.username" in state]
        self.repository = ours[0].rpartition("/")[0] if ours else ""

    def document(self) -> dict[str, Any]:
        """What services/compose.yaml would say."""
        services = {name: self._service(name, state) for name, state in self.apps.items()}
        named = {
            mount["name"]
            for state in self.apps.values()
            for mount in part(state, "mounts.").values()
            if "name" in mount
        }
        volumes = {"volumes": dict.fromkeys(sorted(named))} if named else {}
        return {"name": "cimt", "services": services, **volumes}

    def _secret(self, app: str, key: str, value: str) -> str:
        name = f"{app}_{key}" if key in self._differ else key
        name = re.sub(r"\W", "_", name).upper()
        self.values[name] = value
        return f"${{{name}}}"

    def _service(self, name: str, state: State) -> dict[str, Any]:
        image = str(state["image"])
        if "registry.username" in state:
            if image.startswith(f"{self.repository}/"):
                self.values["IMAGE_REPOSITORY"] = self.repository
                image = "${IMAGE_REPOSITORY}" + image.removeprefix(self.repository)
            else:
                self.unsaid.append(f"{name}: credentials for {image}; only one registry has some")
        service: dict[str, Any] = {"image": image, "command": state["command"]}
        service["environment"] = {
            key: self._secret(name, key, value)
            if looks_secret(key, value)
            else value.replace("$", "$$")
            for key, value in part(state, "env.").items()
        }
        service |= {
            "volumes": list(self._volumes(name, state)),
            "ports": [
                f"{path.partition('/')[0]}:{target}/{path.partition('/')[2]}"
                for path, target in part(state, "ports.").items()
            ],
            "cap_add": state["cap_add"],
            "cap_drop": state["cap_drop"],
            "init": state["init"] or None,
            "sysctls": state["sysctls"],
            "group_add": state["groups"],
            "deploy": self._deploy(state),
            "x-easypanel": {"domains": list(self._domains(name, state))},
        }
        empty: tuple[Any, ...] = (None, [], {}, {"domains": []})
        return {key: value for key, value in service.items() if value not in empty}

    def _volumes(self, name: str, state: State) -> Iterator[str]:
        for path, mount in part(state, "mounts.").items():
            if mount["type"] == "file":
                self.unsaid.append(f"{name}: the file that is mounted at {path}")
            elif "#" in path:
                self.unsaid.append(f"{name}: a second mount at {path.partition('#')[0]}")
            else:
                yield f"{mount.get('name') or mount['hostPath']}:{path}"

    @staticmethod
    def _deploy(state: State) -> dict[str, Any]:
        given = part(state, "resources.")
        resources = {}
        for kind, suffix in (("limits", "Limit"), ("reservations", "Reservation")):
            block = {}
            if cpus := given[f"cpu{suffix}"]:
                block["cpus"] = f"{cpus:g}"
            if memory := given[f"memory{suffix}"]:
                block["memory"] = f"{memory:g}M"
            if block:
                resources[kind] = block
        order = "start-first" if state["zero_downtime"] else "stop-first"
        deploy: dict[str, Any] = {"replicas": state["replicas"], "update_config": {"order": order}}
        return deploy | ({"resources": resources} if resources else {})

    def _domains(self, name: str, state: State) -> Iterator[dict[str, Any]]:
        for path, domain in part(state, "domains.").items():
            host, slash, rest = path.partition("/")
            if "#" in rest:
                self.unsaid.append(f"{name}: the domain {host} a second time")
                continue
            yield {"host": host, "path": slash + rest, **domain}


def main() -> int:
    """Command line; returns the exit code."""
    if not READ.exists():
        print("adopt: no panel was read. Next: make adopt", file=sys.stderr)
        return 1
    adopted = Adopted(json.loads(READ.read_text()))
    READ.unlink()  # it holds every secret
    document = adopted.document()
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    (FOLDER / "compose.yaml").write_text(f"# From the panel, by `make adopt`.\n{text}")
    lines = [f"{name}={json.dumps(value)}\n" for name, value in adopted.values.items()]
    write_atomic(FOLDER / "production.env", "".join(lines), 0o600)
    for one in adopted.unsaid:
        print(f"adopt: left out, because a Compose file cannot say it: {one}")
    print(
        f"adopt: {FOLDER.relative_to(ROOT)}/compose.yaml declares {len(adopted.apps)} apps; {len(lines)} values are in "
        "production.env beside it. Next: read both, take the first over into services/compose.yaml and declare the "
        "others in services/settings.yaml; keep their values where secrets are kept, and delete the folder"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
