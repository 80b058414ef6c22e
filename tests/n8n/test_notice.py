"""The role release tells n8n of a release, and is not disturbed when n8n does not take it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from local.settings import ROOT
from testbed.n8n.server import N8n
from tests.n8n.conftest import SECRETS, Role


def notice(home: Path, url: str, key: str, **result: Any) -> str:
    """What a playbook shows that runs the notice after such a result of a release."""
    variables = {
        "ansible_python_interpreter": sys.executable,
        "release_notice_url": url,
        "release_notice_key": key,
        "release_revision": "0" * 40,
        "__release_result": result,
    }
    role = {"role": {"name": "release", "tasks_from": "notice"}}
    task = {"name": "Tell", "ansible.builtin.import_role": role["role"]}
    play = {"name": "Notice", "hosts": "localhost", "connection": "local", "gather_facts": False}
    (home / "play.yml").write_text(yaml.safe_dump([{**play, "tasks": [task]}], sort_keys=False))
    (home / "values.json").write_text(json.dumps(variables))
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            *("-i", "localhost,", home / "play.yml", "-e", f"@{home / 'values.json'}"),
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert key not in done.stdout
    return done.stdout


def test_a_release_reaches_n8n_and_a_wrong_key_only_says_so(
    n8n: N8n, role: Role, tmp_path: Path
) -> None:
    assert role()["changed"]
    url = f"{n8n.url}/webhook/release-notice"
    key = SECRETS["N8N_WEBHOOK_KEY"]
    assert "was not taken" not in notice(tmp_path, url, key, changed=True)
    reason = {"failed": True, "msg": "the image never became healthy\nmore"}
    assert "was not taken" not in notice(tmp_path, url, key, **reason)
    assert "was not taken (HTTP 403)" in notice(tmp_path, url, "another-key", changed=True)
    n8n.stop()
    assert "was not taken (HTTP -1)" in notice(tmp_path, url, key, changed=True)
