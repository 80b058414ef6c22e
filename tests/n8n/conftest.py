"""The real n8n of a module, and the role n8n_workflows run against it as a playbook would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.settings import ROOT
from testbed import modules
from testbed.n8n.server import KEY, OWNER, PASSWORD, N8n

FILES = sorted((ROOT / "n8n_workflows").glob("*.json"))
SECRETS = {
    "ETL_KEY": "etl-secret-0123456789abcdef0123456789",
    "N8N_WEBHOOK_KEY": "webhook-secret-0123456789abcdef0123456789",
}


class Role:
    """The role against one n8n on loopback; files, key and hashes below ``home``."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.state = home / "state"
        declared = (ROOT / "services/n8n/credentials.yaml").read_text()
        self.parameters: dict[str, Any] = {
            "workflows": [json.loads(path.read_text()) for path in FILES],
            "credentials": yaml.safe_load(declared),
            "secrets": SECRETS,
            "owner_email": OWNER,
            "owner_password": PASSWORD,
            "port": port,
            "state_directory": str(self.state),
            "who": "tests",
            "timeout": 60,
        }

    def __call__(self, check: bool = False, **parameters: Any) -> dict[str, Any]:
        """What the role's module answers; `failed` and `msg` when it refused, `output` is all that it said."""
        arguments = {**self.parameters, "_ansible_check_mode": check, **parameters}
        return modules.run("roles.n8n_workflows.library.n8n_workflows", arguments)

    def play(self, *options: str, **variables: Any) -> dict[str, Any]:
        """The same by the whole role in a playbook, with ``variables`` of the role; `output` is all that was shown."""
        self.home.mkdir(parents=True, exist_ok=True)
        playbook, values = self.home / "play.yml", self.home / "values.json"
        config = self.home / "ansible.cfg"
        config.touch()
        play = {"name": "N8n", "hosts": "localhost", "connection": "local", "gather_facts": False}
        playbook.write_text(yaml.safe_dump([{**play, "roles": ["n8n_workflows"]}], sort_keys=False))
        chosen = {
            "directory": str(ROOT / "n8n_workflows"),
            "credentials_file": str(ROOT / "services/n8n/credentials.yaml"),
            "service": "",
            "encryption_key": KEY,
            "volume": str(self.home / "volume"),
            **{key: self.parameters[key] for key in self.parameters if key in KNOWN},
            **variables,
        }
        named = {f"n8n_workflows_{key}": value for key, value in chosen.items()}
        values.write_text(json.dumps({"ansible_python_interpreter": sys.executable, **named}))
        done = subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"),
                *("-i", "localhost,", playbook, "--diff", "-e", f"@{values}", *options),
            ],
            env={
                **os.environ,
                # Not the repository's: its profile of tasks would stand in the middle of the JSON.
                "ANSIBLE_CONFIG": str(config),
                "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
                "ANSIBLE_MODULE_UTILS": str(ROOT / "plugins/module_utils"),
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            },
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=900,
        )
        # With -vvv there are lines before the JSON.
        start = 0 if done.stdout.startswith("{") else done.stdout.find("\n{\n") + 1
        assert done.stdout[start:].startswith("{"), done.stdout + done.stderr
        tasks = json.JSONDecoder().raw_decode(done.stdout[start:])[0]["plays"][0]["tasks"]
        answers = {task["task"]["name"]: task["hosts"].get("localhost", {}) for task in tasks}
        failed = [answer for answer in answers.values() if answer.get("failed")]
        answer: dict[str, Any] = (failed or [answers[f"n8n_workflows : {TASK}"]])[0]
        assert bool(failed) == bool(done.returncode), done.stdout + done.stderr
        return {**answer, "output": done.stdout + done.stderr}


KNOWN = {"secrets", "owner_email", "owner_password", "port", "state_directory", "who", "timeout"}
TASK = "Workflows and credentials as declared"


@pytest.fixture(scope="module")
def n8n(tmp_path_factory: pytest.TempPathFactory) -> Iterator[N8n]:
    """A started n8n with an empty volume, one for the tests of a module."""
    server = N8n(tmp_path_factory.mktemp("n8n"))
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def role(n8n: N8n, tmp_path_factory: pytest.TempPathFactory) -> Role:
    return Role(tmp_path_factory.mktemp("role"), n8n.port)
