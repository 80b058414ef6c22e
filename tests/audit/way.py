"""How the audit reaches a droplet: as its admin, by testinfra, or through the door that a pipeline's key opens."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

import testinfra

from tools.declared import Declared
from tools.host import door

COLLECT = Path(__file__).with_name("collect.py")


class Closed(Exception):
    """The droplet does not answer, or not this audit; the text says why."""


class Way(Protocol):
    """What an audit asks of a droplet. Every method raises Closed."""

    def hello(self) -> tuple[float, str]:
        """The droplet's clock, seconds since 1970, and its /etc/os-release."""

    def collect(self, question: dict[str, Any]) -> dict[str, Any]:
        """What collect.py answers there."""

    def last_lines(self, name: str) -> str:
        """The last lines of a unit, or of a service of Swarm."""


class Admin:
    """As the admin, who has sudo, over one shared connection."""

    def __init__(self, declared: Declared) -> None:
        self.user = declared["ansible_user"]
        self.host = testinfra.get_host(declared.hostspec(), ssh_extra_args=declared.ssh_arguments())
        try:
            self.host.run("true")  # the connection is made outside of what is measured
            sudo = self.host.run("sudo -n true")
        except RuntimeError as error:
            raise Closed(_last(error.args[0].stderr if error.args else str(error))) from None
        if sudo.rc:
            raise Closed(f"{self.user} has no sudo on the droplet")

    def hello(self) -> tuple[float, str]:
        first, _, system = self.host.run("date +%s.%N; cat /etc/os-release").stdout.partition("\n")
        return float(first), system

    def collect(self, question: dict[str, Any]) -> dict[str, Any]:
        # Script and question travel as arguments; neither holds a secret.
        command = "printf %%s %s | sudo -n python3 -c %s"
        done = self.host.run(command, json.dumps(question), COLLECT.read_text())
        if done.rc:
            raise Closed(done.stderr.strip()[-2000:])
        return dict(json.loads(done.stdout))

    def last_lines(self, name: str) -> str:
        if "." in name:
            command = "sudo -n journalctl --no-pager --lines=15 --unit=%s"
        else:
            command = "sudo -n timeout 20 docker service logs --raw --tail 15 %s 2>&1"
        return str(self.host.run(command, name).stdout)


class Door:
    """By a pipeline's key: one request after another, each a connection's only command."""

    def __init__(self, declared: Declared) -> None:
        port = declared.get("ansible_port")
        self.command = [
            *("ssh", *shlex.split(declared.ssh_arguments())),
            *(("-p", str(port)) if port else ()),
            f"{declared['ansible_user']}@{declared['ansible_host']}",
            "cimt-door",
        ]
        self._ask("hello")  # the connection is made outside of what is measured

    def _ask(self, what: str, **given: Any) -> str:
        done = subprocess.run(
            self.command,
            input=door.request(what, **given),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
        )
        if done.returncode:
            raise Closed(_last(done.stdout + done.stderr))
        return done.stdout

    def hello(self) -> tuple[float, str]:
        told = json.loads(self._ask("hello"))
        return float(told["time"]), str(told["system"])

    def collect(self, question: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads(self._ask("audit", **question)))

    def last_lines(self, name: str) -> str:
        try:
            return self._ask("logs", name=name)
        except Closed as reason:
            return str(reason)


def way_to(declared: Declared) -> tuple[Way, str, float, float]:
    """A way in, the droplet's /etc/os-release, how far its clock is from ours, and how sure that is (seconds)."""
    way: Way = Door(declared) if declared.get("door_entered") else Admin(declared)
    before = time.time()
    clock, system = way.hello()
    after = time.time()
    return way, system, clock - (before + after) / 2, (after - before) / 2


def _last(said: Any) -> str:
    lines = re.sub(r"\\[rn]", "\n", str(said)).strip().splitlines()
    return lines[-1] if lines else "ssh says nothing"
