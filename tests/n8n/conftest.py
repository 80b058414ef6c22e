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
from tests.n8n.server import KEY, OWNER, PASSWORD, N8n

SECRETS = {
    "INGEST_KEY": "ingest-secret-0123456789abcdef0123456789",
    "N8N_WEBHOOK_KEY": "webhook-secret-0123456789abcdef0123456789",
}


class Role:
    """The role against one n8n on loopback; files, key and hashes below ``home``."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.state = home / "state"
        self.variables: dict[str, Any] = {
            "n8n_workflows_directory": str(ROOT / "n8n_workflows"),
            "n8n_workflows_credentials_file": str(ROOT / "services/n8n/credentials.yaml"),
            "n8n_workflows_secrets": SECRETS,
            "n8n_workflows_encryption_key": KEY,
            "n8n_workflows_owner_email": OWNER,
            "n8n_workflows_owner_password": PASSWORD,
            "n8n_workflows_service": "",
            "n8n_workflows_port": port,
            "n8n_workflows_volume": str(home / "volume"),
            "n8n_workflows_state_directory": str(self.state),
            "n8n_workflows_timeout": 60,
        }

    def __call__(self, *options: str, **variables: Any) -> dict[str, Any]:
        """What the module answered; `failed` and `msg` when it refused, `output` is all that was shown."""
        self.home.mkdir(parents=True, exist_ok=True)
        play = [
            {
                "name": "Converge",
                "hosts": "localhost",
                "connection": "local",
                "gather_facts": False,
                "roles": ["n8n_workflows"],
            }
        ]
        playbook, values = self.home / "play.yml", self.home / "values.json"
        config = self.home / "ansible.cfg"
        config.touch()
        playbook.write_text(yaml.safe_dump(play, sort_keys=False))
        values.write_text(
            json.dumps(
                {
                    **self.variables,
                    "ansible_python_interpreter": sys.executable,
                    **{f"n8n_workflows_{key}": value for key, value in variables.items()},
                }
            )
        )
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
                "ANSIBLE_MODULE_UTILS": str(ROOT / "roles/easypanel/module_utils"),
                "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            },
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.stdout.startswith("{"), done.stdout + done.stderr
        tasks = json.loads(done.stdout)["plays"][0]["tasks"]
        answers = {task["task"]["name"]: task["hosts"].get("localhost", {}) for task in tasks}
        failed = [answer for answer in answers.values() if answer.get("failed")]
        answer: dict[str, Any] = (failed or [answers[f"n8n_workflows : {TASK}"]])[0]
        assert bool(failed) == bool(done.returncode), done.stdout + done.stderr
        return {**answer, "output": done.stdout + done.stderr}


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
