"""A clone in a folder with a space (and a comma, and a percent sign): its path arrives whole at ssh and at a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from testbed.tree import copy_tree

# Run in the clone: what it makes itself of its own place.
PREPARE = """
import sys
from pathlib import Path
from local import settings
from local.droplet import machine
made = settings.load(Path.cwd(), {})
made.droplet.mkdir(parents=True)
for name in ("id_ed25519", "host_ed25519"):
    machine._output(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(made.droplet / name)], Path.cwd())
machine._write_ssh_config(made)
settings.save_ports(made)
"""
DECLARED = """
import json
from tools.declared import Declared
declared = Declared("local")
print(json.dumps({"arguments": declared.ssh_arguments(), "tag": declared["services_environment"]["N8N_TAG"],
    "password": declared["easypanel_admin_password"]}))
"""
# The file of `make n8n-pull` is written here; then the connection is tried.
PLAY = {
    "hosts": "droplets",
    "gather_facts": False,
    "tasks": [
        {
            "ansible.builtin.copy": {
                "content": "x",
                "dest": "{{ n8n_workflows_pull_file }}",
                "mode": "0600",
            },
            "delegate_to": "localhost",
        },
        {"ansible.builtin.command": "true"},
    ],
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree as it is, with a .local of its own."""
    folder = tmp_path_factory.mktemp("paths") / "a folder, 100 % new" / "a clone"
    copy_tree(folder)
    run(folder, sys.executable, "-c", PREPARE)
    return folder


def run(folder: Path, *command: str | Path) -> str:
    environment = {**os.environ, "ANSIBLE_CONFIG": str(folder / "ansible.cfg"), "ENV": "local"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def seen(text: str) -> dict[str, str]:
    """What `ssh -G` says that it would do."""
    return dict(line.split(" ", 1) for line in text.splitlines())


def test_ssh_finds_its_files_by_the_config(clone: Path) -> None:
    config = seen(run(clone, "ssh", "-G", "-F", ".local/ssh_config", "droplet"))
    assert config["hostname"] == "127.0.0.1"
    home = clone / ".local/droplet"
    assert config["userknownhostsfile"] == f"{home}/known_hosts"
    # Percent signs of this one are expanded later, when the file is opened.
    assert config["identityfile"] == f"{home}/id_ed25519".replace("%", "%%")


def test_the_audit_and_its_lookups_work(clone: Path) -> None:
    told = json.loads(run(clone, sys.executable, "-c", DECLARED))
    # As testinfra does it: one line for a shell.
    config = seen(run(clone, "sh", "-c", f"ssh -G {told['arguments']} droplet"))
    assert config["port"] == str(json.loads((clone / ".local/ports.json").read_text())["ssh"])
    assert Path(config["controlpath"]).name.startswith("audit-")
    assert told["tag"] == run(clone, "services/n8n/tag.sh").strip()
    assert (clone / ".local/panel-password").read_text().startswith(told["password"])


def test_ansible_reaches_ssh_with_the_whole_path(clone: Path) -> None:
    (pull,) = yaml.safe_load((clone / "playbooks/n8n-pull.yml").read_text())
    (clone / "playbooks/path.yml").write_text(yaml.safe_dump([PLAY | {"vars": pull["vars"]}]))
    programs = clone / "bin"
    programs.mkdir()
    (programs / "ssh").write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$SSH_CALL"\nexit 255\n')
    (programs / "ssh").chmod(0o755)
    ansible = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [ansible, "-i", "inventory/local", "playbooks/path.yml"],
        cwd=clone,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(clone / "ansible.cfg"),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SSH_CALL": str(clone / "call"),
            "ANSIBLE_REMOTE_TMP": str(clone / "tmp"),  # by itself in the home that the system knows
        },
        capture_output=True,
        text=True,
    )
    assert "UNREACHABLE" in done.stdout, done.stdout + done.stderr
    assert (clone / "call").exists(), done.stdout
    call = (clone / "call").read_text().splitlines()
    config = Path(call[call.index("-F") + 1])
    assert config.samefile(clone / ".local/ssh_config")
    assert (clone / ".local/n8n-local.json").read_text() == "x"
