"""`make status`: what runs on an environment's host, since when, and how the host is. Reads only; a screen at most.

usage: python -m tools.host.status [--json]     ENV names the environment

Exit codes: 0 all is well, 1 something is not (a line with ✗ says what), 2 the host cannot be reached.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from plugins.module_utils.n8n_files import settings_of
from plugins.module_utils.release_ledger import live_releases
from tools.host.way_in import NoWayIn, way_in

PROGRAM = Path(__file__).with_name("seen.py")
SECONDS = 240  # an emulated droplet takes its time
SPANS = (("d", 86400), ("h", 3600), ("min", 60))
ALERTS = Path(__file__).parents[2] / "n8n_workflows/alerts.json"


def ask(environment: str) -> dict[str, Any]:
    """What the host says. Raises NoWayIn."""
    with way_in(environment, os.environ) as ssh:
        done = subprocess.run(
            [*ssh, "sudo -n python3 -I -"],
            input=PROGRAM.read_text(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NoWayIn(
            f"the host says nothing: {told}. Next: make doctor ENV={environment}"
        ) from None
    return found


def span(seconds: float) -> str:
    """A time as people say it: 3 d, 5 h, 12 min."""
    for name, size in SPANS:
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.1f} {unit}" if unit == "GB" else f"{count:.0f} {unit}"
        count /= 1000
    raise AssertionError


def share(memory: dict[str, Any]) -> str:
    """Memory of a container and its limit, in the megabytes of compose.yaml (2^20 bytes)."""
    used, limit = memory["used"], memory["limit"]
    return f"{used >> 20}" + (f" of {limit >> 20}" if limit else "") + " MB"


def worries(seen: dict[str, Any], environment: str) -> Iterator[str]:
    """What is not as it should be, one line each with what to type next."""
    verb = f"ENV={environment}"
    settings = settings_of(json.loads(ALERTS.read_text()))
    assert settings is not None  # noqa: S101 - the linter of workflows wants them
    most_of = settings["host"]["limits"]  # what rings there is a worry here
    for part, why in seen["unread"].items():
        yield f"{part} cannot be read: {why}"
    for one in seen["services"] or []:
        running, wanted = re.match(r"(\d+)/(\d+)", one["tasks"]).groups()  # type: ignore[union-attr]
        if running != wanted:
            name = one["name"].removeprefix("cimt_")
            yield f"{one['name']}: {running} of {wanted} run. Next: make logs {verb} SERVICE={name}"
    for unit in seen["units"] or []:
        yield f"{unit} has failed. Next: make logs {verb} SERVICE={unit}"
    for point, disk in (seen["disks"] or {}).items():
        if disk["left"] < (1 - most_of["disk_used_percent"] / 100) * disk["total"]:
            yield f"{point}: {size(disk['left'])} left. Next: docs/operations/alarms.md#host-disk_used_percent"
    memory = seen["memory"]
    if memory and memory["left"] < (1 - most_of["memory_used_percent"] / 100) * memory["total"]:
        yield f"{size(memory['left'])} of memory left. Next: the largest service above"
    if (system := seen["system"]) and (waits := system["reboot_waits_seconds"]) is not None:
        yield f"a reboot waits since {span(waits)}. Next: docs/operations/alarms.md#host-reboot_waits_days"
    if stamps := seen["stamps"]:
        for name, most, verb_of in (
            ("backup", most_of["backup_age_hours"] * 3600, "backup"),
            ("drill", most_of["drill_age_days"] * 86400, "restore-drill"),
        ):
            if stamps[name] is not None and stamps[name] > most:
                yield f"the last {name} is {span(stamps[name])} old. Next: make {verb_of} {verb}"
    for name, one in ((seen["alarms"] or {}).get("failing") or {}).items():
        since = span(seen["now"] - one.get("since", 0) / 1000)
        yield f"alarm {name}, since {since}. Next: docs/operations/alarms.md#{name.replace(' ', '-')}"


def show(seen: dict[str, Any], environment: str, console: Console) -> int:
    """Print it; 1 when something is not well."""
    if system := seen["system"]:
        console.print(
            f"[bold]{system['host']}[/] ({environment}), {system['name']}, up {span(system['up_seconds'])}, "
            f"load {system['load']:.1f} on {system['processors']} processors",
            highlight=False,
        )
    table = Table(
        "service", "tasks", "since", "revision", "released", "memory", box=None, pad_edge=False
    )
    for one in seen["services"] or []:
        name = one["name"].removeprefix("cimt_")
        live = live_releases(seen["releases"] or [], name)
        last = live[-1] if live and live[-1]["to"] == one["image"] else {}
        since = ", ".join(re.sub(r"^Running ", "", text) for text in one["since"]) or "not running"
        table.add_row(
            *(one["name"], one["tasks"].split()[0], since, last.get("revision", "")[:12]),
            *(last.get("time", "")[:16].replace("T", " "), "; ".join(map(share, one["memory"]))),
        )
    console.print(table, highlight=False)
    if memory := seen["memory"]:
        swap = memory["swap"] - memory["swap_left"]
        console.print(
            f"memory  {size(memory['left'])} left of {size(memory['total'])}, {size(swap)} in swap",
            highlight=False,
        )
    for point, disk in (seen["disks"] or {}).items():
        console.print(
            f"disk    {point}: {size(disk['left'])} left of {size(disk['total'])}", highlight=False
        )
    if stamps := seen["stamps"]:
        told = [
            f"{name} {span(age)} ago" if (age := stamps[name]) is not None else f"no {name} yet"
            for name in ("backup", "drill")
        ]
        console.print(f"saved   {', '.join(told)}", highlight=False)
    for one in (seen["releases"] or [])[-3:]:
        when = datetime.datetime.fromisoformat(one["time"]).strftime("%d %b %H:%M")
        what = f"{one['service']} {one.get('revision', '')[:12]} {one['result']}"
        console.print(f"ledger  {when}  {what}, by {one['who']}", highlight=False)
    if alarms := seen["alarms"]:
        console.print(f"alarms  {alarms['checks']} checks, {len(alarms['failing'])} ring")
    found = list(worries(seen, environment))
    for line in found:
        console.print(f"[red]✗[/] {line}", highlight=False, soft_wrap=True)
    if not found:
        console.print("[green]✓[/] all is well")
    return 1 if found else 0


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="all that the host says, for programs")
    given = parser.parse_args()
    environment = os.environ.get("ENV", "local")
    try:
        seen = ask(environment)
    except (NoWayIn, subprocess.TimeoutExpired, OSError) as error:
        print(f"status: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(seen, indent=1))
        return 1 if list(worries(seen, environment)) else 0
    return show(seen, environment, Console(width=None if sys.stdout.isatty() else 140))


if __name__ == "__main__":
    sys.exit(main())
