"""Runs on the droplet as root and prints what is there as one JSON object. Reads only."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

wanted = json.load(sys.stdin)


def run(*command: str) -> dict[str, object]:
    """Exit code, stdout and stderr of a command; never raises for its failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def lines(*command: str) -> list[str]:
    """Lines of a command's output."""
    return run(*command)["out"].splitlines()


def text(path: str) -> str | None:
    """Content of a file, None when there is none."""
    file = pathlib.Path(path)
    return file.read_text() if file.exists() else None


def mode(path: str) -> str | None:
    """Owner and mode of a path, such as "0:0 0600"; None when there is none."""
    if not pathlib.Path(path).exists():
        return None
    status = pathlib.Path(path).stat()
    return f"{status.st_uid}:{status.st_gid} {status.st_mode & 0o7777:04o}"


def panel(operation: str) -> object:
    """A read operation of the panel, with the token of this host."""
    request = urllib.request.Request("http://127.0.0.1:3000/api/" + operation)  # noqa: S310
    request.add_header("Authorization", (text(wanted["token_file"]) or "").strip())
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - the fixed address above
        return json.load(response)


units = [
    "cimt-firewall",
    "docker",
    "ssh",
    "swapfile.swap",
    "unattended-upgrades",
    "systemd-timesyncd",
]
services = lines("docker", "service", "ls", "--format", "{{.Name}}")
disk = os.statvfs("/var/lib/docker")
memory = dict(line.split(":") for line in text("/proc/meminfo").splitlines())
print(
    json.dumps(
        {
            "time": time.time(),
            "swap": text("/proc/swaps").splitlines()[1:],
            "sysctl": {
                name: text("/proc/sys/" + name.replace(".", "/")).strip()
                for name in wanted["sysctl"]
            },
            "enabled": {
                unit: run("systemctl", "is-enabled", unit)["out"].strip() for unit in units
            },
            "active": {unit: run("systemctl", "is-active", unit)["out"].strip() for unit in units},
            "failed": lines("systemctl", "list-units", "--failed", "--plain", "--no-legend"),
            "dpkg_audit": run("dpkg", "--audit")["out"],
            "packages": lines(
                "dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Want}\\n"
            ),
            "apt_periodic": lines("apt-config", "dump", "APT::Periodic"),
            "sshd": dict(
                line.split(" ", 1) for line in lines("/usr/sbin/sshd", "-T") if " " in line
            ),
            "run_sshd": mode("/run/sshd"),
            "nft": run("nft", "-j", "list", "table", "inet", "cimt"),
            "firewall_file": text("/etc/cimt/firewall.nft"),
            "docker_daemon": text("/etc/docker/daemon.json"),
            "docker": json.loads(run("docker", "info", "--format", "{{json .}}")["out"] or "{}"),
            "services": json.loads(run("docker", "service", "inspect", *services)["out"] or "[]"),
            "tasks": [
                json.loads(line)
                for name in services
                for line in lines(
                    "docker",
                    "service",
                    "ps",
                    name,
                    "--no-trunc",
                    "--filter",
                    "desired-state=running",
                    "--format",
                    "{{json .}}",
                )
            ],
            "modes": {
                path: mode(path) for path in ("/etc/cimt", wanted["token_file"], wanted["state"])
            },
            "ledger": text(wanted["state"] + "/releases.jsonl") or "",
            "inflight": [
                path.name for path in pathlib.Path(wanted["state"]).glob("*.inflight.json")
            ],
            "panel_version": panel("getUpdateStatus")["version"],
            "panel_setup": panel("getSetupStatus"),
            "free_disk_mb": disk.f_bavail * disk.f_frsize // 2**20,
            "available_memory_mb": int(memory["MemAvailable"].split()[0]) // 1024,
        }
    )
)
