"""What a host says of itself, as JSON on stdout. Python's standard library only: it is sent over SSH and run as root.

Reads, and changes nothing. A part that cannot be read is null, with the reason under "unread".
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from typing import Any

STATE = pathlib.Path("/var/lib/cimt")
N8N = pathlib.Path("/etc/easypanel/projects/cimt/n8n/volumes/n8n/database.sqlite")
REBOOT = pathlib.Path("/run/reboot-required")
SECONDS = 60  # for one command


def said(*command: str) -> str:
    """What a command prints. Raises OSError or subprocess.SubprocessError."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    return done.stdout


def rows(*command: str) -> list[dict[str, Any]]:
    """What a command of Docker prints with `--format json`."""
    return [json.loads(line) for line in said("docker", *command, "--format", "json").splitlines()]


def system() -> dict[str, Any]:
    """Name, release, load of one minute, and seconds since the boot."""
    release = dict(
        line.split("=", 1)
        for line in pathlib.Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )
    return {
        "host": os.uname().nodename,
        "name": release["PRETTY_NAME"].strip('"'),
        "up_seconds": float(pathlib.Path("/proc/uptime").read_text().split()[0]),
        "load": os.getloadavg()[0],
        "processors": os.cpu_count(),
        "reboot_waits_seconds": time.time() - REBOOT.stat().st_mtime if REBOOT.exists() else None,
    }


def memory() -> dict[str, int]:
    """Bytes of memory and of swap, and what is left of both."""
    lines = (line.split() for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    sizes = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines}
    names = {
        "total": "MemTotal",
        "left": "MemAvailable",
        "swap": "SwapTotal",
        "swap_left": "SwapFree",
    }
    return {name: sizes[there] for name, there in names.items()}


def disks() -> dict[str, dict[str, int]]:
    """By mount point of a real disk: bytes, and how many are left."""
    found, seen = {}, set()
    for line in pathlib.Path("/proc/mounts").read_text().splitlines():
        device, point = line.split()[:2]
        if device.startswith("/dev/") and device not in seen:
            seen.add(device)
            disk = shutil.disk_usage(point)
            found[point] = {"total": disk.total, "left": disk.free}
    return found


def services() -> list[dict[str, Any]]:
    """Each service of Swarm: its tasks, since when, image, memory in bytes with its limit."""
    used: dict[str, list[str]] = {}
    for one in rows("stats", "--no-stream"):
        used.setdefault(one["Name"].split(".")[0], []).append(one["MemUsage"])
    found = []
    for one in rows("service", "ls"):
        name = one["Name"]
        inspected = json.loads(said("docker", "service", "inspect", name))[0]
        spec = inspected["Spec"]["TaskTemplate"]["ContainerSpec"]
        since = [
            task["CurrentState"]
            for task in rows("service", "ps", name, "--filter", "desired-state=running")
        ]
        found.append(
            {
                "name": name,
                "tasks": one["Replicas"],
                "since": since,
                "image": spec["Image"],
                "memory": used.get(name, []),
            }
        )
    return found


def units() -> list[str]:
    """Failed units of systemd."""
    listed = said("systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager")
    return [line.split()[0] for line in listed.splitlines() if line.strip()]


def releases() -> list[dict[str, Any]]:
    """The newest lines of the ledger, newest last."""
    path = STATE / "releases.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [one for one in found if one.get("action") != "drill"][-30:]


def stamps() -> dict[str, float | None]:
    """Seconds since the last good backup and the last drill that passed."""
    names = {"backup": STATE / "backup.stamp", "drill": STATE / "restore-drill.stamp"}
    return {
        name: time.time() - path.stat().st_mtime if path.exists() else None
        for name, path in names.items()
    }


def alarms() -> dict[str, Any] | None:
    """What Alerts has told and not taken back, by check since when (milliseconds); None without n8n."""
    if not N8N.exists():
        return None
    with contextlib.closing(sqlite3.connect(f"file:{N8N}?mode=ro", uri=True)) as database:
        row = database.execute(
            "select staticData from workflow_entity where id = 'alerts'"
        ).fetchone()
    kept = (json.loads(row[0] or "{}") if row else {}).get("global", {})
    failing = {name: one for name, one in kept.get("checks", {}).items() if one.get("failing")}
    return {"checks": len(kept.get("checks", {})), "failing": failing}


def look() -> dict[str, Any]:
    """Every part that can be read."""
    parts: tuple[Callable[[], Any], ...] = (
        *(system, memory, disks, services, units, releases, stamps, alarms),
    )
    found: dict[str, Any] = {"now": time.time(), "unread": {}}
    for part in parts:
        try:
            found[part.__name__] = part()
        except (OSError, subprocess.SubprocessError, sqlite3.Error, ValueError, KeyError) as error:
            found[part.__name__] = None
            found["unread"][part.__name__] = str(error)[:200]
    return found


if __name__ == "__main__":
    print(json.dumps(look()))
