"""A read-only audit of one droplet: what the inventory declares against what is there.

One connection, two look-ups: the declaration is written down by Ansible itself, the droplet's state is
collected by one script. `ENV` chooses the inventory.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

ROOT = pathlib.Path(__file__).parents[2]
ENV = os.environ.get("ENV", "local")
REPORTS = ROOT / ".local/reports"


def stop(message: str) -> None:
    """End the whole run with one line: nothing can be audited."""
    pytest.exit(f"audit: {message}", returncode=1)


@pytest.fixture(scope="session")
def declared() -> dict[str, Any]:
    """What inventory and role defaults declare, without secrets."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    file = REPORTS / f"expectations-{ENV}.json"
    done = subprocess.run(
        [
            *("ansible-playbook", "-i", f"inventory/{ENV}", "playbooks/audit.yml"),
            *("--tags", "expectations", "-e", f"expectations_file={file}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        told = " ".join(done.stdout.split())
        start = told.find("not set:")
        stop(
            told[start:].split("PLAY RECAP")[0] if start >= 0 else done.stdout[-2000:] + done.stderr
        )
    return dict(json.loads(file.read_text()))


@pytest.fixture(scope="session")
def host(declared: dict[str, Any]) -> Host:
    """The droplet, over one shared SSH connection."""
    if ENV == "local":
        config = ROOT / ".local/ssh_config"
        if not config.exists():
            stop("there is no local droplet. Next: make up")
        return testinfra.get_host(f"ssh://droplet?ssh_config={config}&timeout=60", sudo=True)
    at = declared["connection"]
    return testinfra.get_host(f"ssh://{at['user']}@{at['host']}:{at['port']}?timeout=60", sudo=True)


@pytest.fixture(scope="session")
def found(host: Host, declared: dict[str, Any]) -> dict[str, Any]:
    """What is there now."""
    asked = json.dumps(
        {
            "sysctl": list(declared["baseline_sysctl"]),
            "token_file": declared["easypanel_token_file"],
            "state": declared["release_state_directory"],
        }
    )
    script = (pathlib.Path(__file__).parent / "collect.py").read_text()
    # The script is an argument, its question comes by stdin; neither holds a secret.
    done = host.run("echo %s | python3 -c %s", asked, script)
    if done.rc == 255:
        next_command = "make up" if ENV == "local" else "ssh to DROPLET_HOST by hand"
        stop(f"the droplet does not answer: {done.stderr.strip()}. Next: {next_command}")
    assert done.rc == 0, done.stderr
    return dict(json.loads(done.stdout))
