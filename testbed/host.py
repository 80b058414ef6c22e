"""What tests of the host roles share: a directory that stands for a machine, and templates as tasks render them."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

ROLES = Path(__file__).parents[1] / "roles"
LIBRARY = ROLES.parent / "plugins/modules"
ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
FIREWALL_VARIANTS: list[dict[str, Any]] = [
    {"firewall_log_drops": True},
    {"firewall_public_udp_ports": [443], "firewall_ssh_port": 2222},
    {"firewall_public_tcp_ports": []},
    {"firewall_web_sources": ["2001:db8::/32"], "firewall_public_tcp_ports": [443, 8443]},
]
RUN_CONFIG_SET = """
import importlib.util, json, sys
from pathlib import Path
from ansible.module_utils.testing import patch_module_args
library, home, owner, arguments = sys.argv[1:]
spec = importlib.util.spec_from_file_location("config_set", library + "/config_set.py")
config_set = importlib.util.module_from_spec(spec)
sys.modules["config_set"] = config_set
spec.loader.exec_module(config_set)
config_set.STATE_ROOT = Path(home, "state")
config_set.RESTORE_UNIT = Path(home, "cimt-restore@.service")
config_set.OWNER = tuple(json.loads(owner))
with patch_module_args(json.loads(arguments)):
    config_set.main()
"""


class Machine:
    """A directory that stands for a machine; what its systemctl and systemd-run were asked is in `asked`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.owner = (os.geteuid(), os.getegid())
        self.state = home / "state"
        self.asked = home / "asked"
        self.asked.touch()
        (home / "bin").mkdir()
        for name in ("systemctl", "systemd-run"):
            (home / "bin" / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {self.asked}\n')
            (home / "bin" / name).chmod(0o755)
        self.path = f"{home / 'bin'}:{os.environ['PATH']}"

    def config_set(self, check: bool = False, **params: Any) -> dict[str, Any]:
        """What the module answers. Its files belong to `owner`, on a droplet root: here whoever runs the test."""
        owner = json.dumps(self.owner)
        arguments = json.dumps({"name": "sample", "_ansible_check_mode": check, **params})
        done = subprocess.run(
            [sys.executable, "-c", RUN_CONFIG_SET, str(LIBRARY), str(self.home), owner, arguments],
            env={**os.environ, "PATH": self.path},
            capture_output=True,
            text=True,
        )
        assert done.stdout, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def restore(self, *arguments: str) -> int:
        """Run the restore script as the machine's timer would (or its boot, with that argument)."""
        script = self.state / "sample" / "trial" / "restore"
        command = ["sh", str(script), *arguments]
        return subprocess.run(command, env={**os.environ, "PATH": self.path}).returncode


@functools.cache
def _plugins() -> None:
    init_plugin_loader()


def defaults(role: str) -> dict[str, Any]:
    path = ROLES / role / "defaults" / "main.yml"
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def render(role: str, template: str, **overrides: Any) -> str:
    """A role's template as its tasks render it, over the role's defaults and a scenario."""
    _plugins()
    values = defaults(role)
    assert set(overrides) <= set(values), "a scenario sets only what the role takes"
    path = ROLES / role / "templates" / template
    templar = Templar(loader=DataLoader(), variables={**values, **overrides})
    expression = f"{{{{ lookup('ansible.builtin.template', '{path}') }}}}"
    return str(templar.template(trust_as_template(expression)))
