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
    """Each service of Swarm: its tasks, since when, image, and its containers' memory."""
    listed = rows("service", "ls")
    names = [one["Name"] for one in listed]
    if not names:
        return []
    inspected = json.loads(said("docker", "service", "inspect", *names))
    images = {
        one["Spec"]["Name"]: one["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
        for one in inspected
    }
    tasks = rows("service", "ps", *names, "--filter", "desired-state=running")
    used = containers()

    def of(name: str, kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [one for one in kept if one["Name"].split(".")[0] == name]

    return [
        {
            "name": one["Name"],
            "tasks": one["Replicas"],
            "since": [task["CurrentState"] for task in of(one["Name"], tasks)],
            "image": images[one["Name"]],
            "memory": [box["memory"] for box in of(one["Name"], used)],
        }
        for one in listed
    ]


def containers() -> list[dict[str, Any]]:
    """Name and memory of each container that runs, in bytes: used and limit (None: none).

    Of the kernel itself: `docker stats` watches each for seconds, and on a loaded host for longer than anybody waits.
    What can be dropped at once (files read and not used) does not count, as there.
    """
    found = []
    numbers = [one["ID"] for one in rows("ps", "--no-trunc")]
    asked = ("docker", "inspect", "--format", "{{.State.Pid}} {{.Name}}", *numbers)
    for line in said(*asked).splitlines() if numbers else []:
        number, _, name = line.partition(" /")
        with contextlib.suppress(OSError):  # it has ended since
            group = pathlib.Path(f"/proc/{number}/cgroup").read_text().partition("::")[2].strip()
            folder = pathlib.Path(f"/sys/fs/cgroup{group}")
            kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / "memory.current").read_text()) - int(kinds["inactive_file"])
            limit = (folder / "memory.max").read_text().strip()
            memory = {"used": used, "limit": int(limit) if limit.isdigit() else None}
            found.append({"Name": name, "memory": memory})
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
