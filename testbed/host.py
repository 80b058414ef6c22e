"""What tests of the host roles share: a directory that stands for a machine, and templates as tasks render them."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

from testbed import modules

ROLES = Path(__file__).parents[1] / "roles"
ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
FIREWALL_VARIANTS: list[dict[str, Any]] = [
    {"firewall_log_drops": True},
    {"firewall_public_udp_ports": [443], "firewall_ssh_port": 2222},
    {"firewall_public_tcp_ports": []},
    {"firewall_cluster_peers": ["10.116.0.3", "10.116.0.4"], "firewall_cluster_manager": True},
    {"firewall_cluster_peers": ["10.116.0.2"], "firewall_public_tcp_ports": []},
    {"firewall_web_sources": ["2001:db8::/32"], "firewall_public_tcp_ports": [443, 8443]},
]


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
        return modules.run(
            "plugins.modules.config_set",
            {"name": "sample", "_ansible_check_mode": check, **params},
            {**os.environ, "PATH": self.path},
            **{
                "config_files.OWNER": self.owner,
                "config_trial.STATE_ROOT": str(self.state),
                "config_trial.RESTORE_UNIT": str(self.home / "cimt-restore@.service"),
            },
        )

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
