"""`make up`: from nothing to a running product, stage by stage."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from local import droplet
from local.settings import LocalError, Settings, check_ports, save_ports, write_atomic

HEARTBEAT = 30  # seconds between two signs of life of a long stage
TAIL = 25  # lines of a failed stage's log


@dataclass(frozen=True)
class Stage:
    """One step; every one of them can be repeated, so a new `make up` goes on where the last one stopped."""

    name: str
    does: str
    command: list[str]


def stages() -> list[Stage]:
    """In their order."""
    local = [sys.executable, "-m", "local"]
    make = ["make", "--no-print-directory"]
    return [
        Stage("image", "disk image of the droplet, from packages", [*local, "image"]),
        Stage("droplet", "virtual machine: 2 vCPU, 2 GB, 25 GB", [*local, "droplet"]),
        Stage("clouds", "registry and Postgres on loopback", [*local, "clouds", "start"]),
        Stage("panel-image", "stand-in for EasyPanel's image", [*make, "panel-image"]),
        Stage("provision", "playbooks/provision.yml", [*make, "provision"]),
        Stage("build", "image of the api, pushed by digest", [*make, "build"]),
        Stage("migrate", "migrations/ by the Supabase CLI", [*make, "migrate"]),
        Stage("deploy", "release by the panel's deploy hook", [*make, "deploy"]),
        Stage("smoke", "the product through its TLS proxy", [*make, "smoke"]),
        Stage("audit", "testinfra inside, ports outside", [*make, "audit"]),
    ]


class StageFailed(Exception):
    """A stage ended with an error; the text is what to show."""


def up(settings: Settings) -> None:
    """Run every stage; raises StageFailed with name, log and next command of the one that failed."""
    console = Console(highlight=False, soft_wrap=True)
    with droplet.alone(settings, "up"):
        if not droplet.running_pid(settings):
            check_ports(settings, ("ssh", "http", "https", "panel", "swarm"))
            save_ports(settings)
        started = time.monotonic()
        timings: dict[str, float] = {}
        for stage in stages():
            timings[stage.name] = run(stage, settings.logs, console)
            write_atomic(settings.logs / "timings.json", json.dumps(timings) + "\n")
        summary(settings, timings, time.monotonic() - started, console)


def run(stage: Stage, logs: Path, console: Console) -> float:
    """Seconds that the stage took."""
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"{stage.name}.log"
    console.print(f"{stage.name:<12} {stage.does} …")
    started = time.monotonic()
    # A session of its own: Ctrl-C reaches us alone, and we end the whole stage.
    with path.open("w") as log:
        process = subprocess.Popen(
            stage.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ENV": "local"},
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=HEARTBEAT)
                    break
                seconds = time.monotonic() - started
                console.print(f"{'':<12} {seconds:4.0f} s  {last_line(path)}", style="dim")
        except BaseException:
            os.killpg(process.pid, 15)
            process.wait()
            raise
    seconds = time.monotonic() - started
    if code:
        console.print(f"{stage.name:<12} failed after {seconds:.0f} s", style="bold red")
        lines = path.read_text(errors="replace").splitlines()[-TAIL:]
        retry = f"make {stage.name}" if stage.command[0] == "make" else "make up"
        raise StageFailed(
            "\n".join(f"  {line}" for line in lines)
            + f"\n\nup: stage {stage.name} failed (whole log: {os.path.relpath(path)}). "
            + f"Next: {retry}, and when that works: make up (goes on from there)"
        )
    console.print(f"{stage.name:<12} {seconds:4.0f} s  done", style="green")
    return seconds


def last_line(path: Path) -> str:
    """The last line of a log that says something, cut to a terminal's width."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:100] if lines else "(nothing yet)"


def summary(settings: Settings, timings: dict[str, float], total: float, console: Console) -> None:
    """The table of stages, the addresses, and what to try next."""
    table = Table("stage", "seconds", box=None)
    for name, seconds in timings.items():
        table.add_row(name, f"{seconds:.0f}")
    table.add_row("total", f"{total:.0f}", style="bold")
    console.print()
    console.print(table)
    kind = droplet.state(settings).get("acceleration")
    speed = (
        "accelerated by KVM"
        if kind == "kvm"
        else "emulated: several times slower than a real droplet"
    )
    console.print(f"\nThe product runs. The droplet is {speed}.")
    url = f"https://api.cimt.localhost:{settings.ports['https']}"
    console.print(f"  {url}/healthz")
    console.print(f"  curl --cacert .local/ca.crt -X POST {url}/chat")
    console.print("Next: make audit, make history, make ssh, make deploy, make down", markup=False)


def main(settings: Settings) -> int:
    """Exit code of `python -m local up`."""
    try:
        up(settings)
    except StageFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nup: stopped. Next: make up (goes on from there), or: make down", file=sys.stderr)
        return 130
    except LocalError as error:
        print(f"up: {error}", file=sys.stderr)
        return 1
    return 0
