"""`make scale SERVICE=api REPLICAS=3`: another number of replicas in services/compose.yaml, and what it takes.

Nothing runs otherwise before that change is merged. What does not fit is written all the same, and said: a larger
droplet or pool may come first. Exit codes: 0 written; 1 refused, and why.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter.compose import database_pool

ROOT = Path(__file__).parents[1]
COMPOSE, MEMORY = "services/compose.yaml", "services/memory.yaml"
SETTINGS = "services/settings.yaml"
MOST = 20  # replicas: beyond that a number is a slip of the finger


class Refused(Exception):
    """Why an app cannot have this number of replicas, and what to do."""


def scaled(text: str, service: str, replicas: str) -> str:
    """The Compose file with this number in the app's `deploy.replicas`, and all else as it stands. Raises Refused."""
    services = yaml.safe_load(text)["services"]
    several = [name for name, one in services.items() if not one.get("volumes")]
    usage = f"Next: make scale SERVICE={several[0]} REPLICAS=2"
    if service not in services:
        raise Refused(
            f"there is no app {service!r} in {COMPOSE}, only {', '.join(services)}. {usage}"
        )
    if not replicas.isascii() or not replicas.isdigit() or not 1 <= int(replicas) <= MOST:
        raise Refused(f"REPLICAS={replicas!r} is not a whole number from 1 to {MOST}. {usage}")
    if service not in several and int(replicas) > 1:
        raise Refused(
            f"{service} keeps its data in a volume, one SQLite file: two containers on it would spoil each other's. "
            f"It stays at one; these may have more: {', '.join(several)} (docs/scaling.md)"
        )
    node: Any = yaml.compose(text, yaml.SafeLoader)
    for key in ("services", service, "deploy", "replicas"):
        node = next((value for name, value in node.value if name.value == key), None)
        if node is None:
            raise Refused(
                f"{COMPOSE}: {service} has no deploy.replicas. Next: write `replicas: 1` there"
            )
    return text[: node.start_mark.index] + replicas + text[node.end_mark.index :]


def memory(compose: str, table: dict[str, Any], service: str) -> list[str]:
    """What the app takes of the droplet's memory, in MB, and whether all apps at their limits still fit."""
    replicas = {
        name: int((one.get("deploy") or {}).get("replicas", 1))
        for name, one in yaml.safe_load(compose)["services"].items()
    }
    limit = table["apps"][service]["limit"]
    of_all = sum(app["limit"] * replicas[name] for name, app in table["apps"].items())
    lines = [
        f"memory: {replicas[service]} × {limit} = {replicas[service] * limit} MB at most"
        + (", twice that while a release replaces them" if table["apps"][service]["twice"] else ""),
        f"        all apps at their limits: {of_all} of {table['most']} MB",
    ]
    if of_all > table["most"]:
        lines.append(
            f"        IT DOES NOT FIT. First a larger droplet, and its memory as `most` in {MEMORY} (docs/scaling.md)"
        )
    return lines


def connections(compose: str, service: str, most: str) -> list[str]:
    """How the app's processes share the connections of the database; nothing for an app that has none."""
    if "${DATABASE_POOL}" not in str(yaml.safe_load(compose)["services"][service]):
        return []
    try:
        pool = database_pool(compose, most)
    except AnsibleFilterError as error:
        return [f"connections: {error}"]
    return [f"connections: {pool} for each process, of {most} (DATABASE_CONNECTIONS)"]


def main() -> int:
    """Command line; returns the exit code."""
    service, replicas = (os.environ.get(name, "").strip() for name in ("SERVICE", "REPLICAS"))
    file = ROOT / COMPOSE
    before = file.read_text()
    try:
        after = scaled(before, service, replicas)
    except Refused as error:
        print(f"scale: {error}", file=sys.stderr)
        return 1
    table = yaml.safe_load((ROOT / MEMORY).read_text())
    declared = yaml.safe_load((ROOT / SETTINGS).read_text())["settings"]["DATABASE_CONNECTIONS"]
    most = os.environ.get("DATABASE_CONNECTIONS") or declared["default"]
    file.write_text(after)
    print(
        f"scale: {COMPOSE}: {service} has {replicas} replicas"
        + (", as before" if after == before else ". Nothing runs otherwise yet")
    )
    print("\n".join([*memory(after, table, service), *connections(after, service, most)]))
    if after != before:
        print(
            "Next: make check, then open a pull request: its plan shows the change, and its merge makes it so"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
