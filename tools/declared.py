"""What the files of this repository declare for one environment, as Ansible itself reads them.

The very playbooks that change the droplet are loaded, not run: variables come with Ansible's own precedence
(role defaults, inventory, environment), and the arguments of a role's tasks are rendered as it would render them now.
Nothing is copied into the audit or the plan of a pull request, so nothing here can fall behind the roles.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
os.environ.setdefault("ANSIBLE_CONFIG", str(ROOT / "ansible.cfg"))

from ansible import constants  # noqa: E402  (reads ANSIBLE_CONFIG when it is imported)
from ansible.errors import AnsibleError  # noqa: E402
from ansible.inventory.manager import InventoryManager  # noqa: E402
from ansible.parsing.dataloader import DataLoader  # noqa: E402
from ansible.playbook import Playbook  # noqa: E402
from ansible.playbook.block import Block  # noqa: E402
from ansible.plugins.loader import connection_loader, init_plugin_loader  # noqa: E402
from ansible.template import Templar, trust_as_template  # noqa: E402
from ansible.vars.hostvars import HostVars  # noqa: E402
from ansible.vars.manager import VariableManager  # noqa: E402

from plugins.filter.settings import doors  # noqa: E402

PLAYBOOKS = ("provision", "rollback")
# ${NAME} and ${NAME:?message}: variables of compose.yaml that have no default.
NEEDED = re.compile(r"(?<!\$)\$\{(\w+)(?::?\?[^}]*)?\}|(?<!\$)\$(\w+)")


class NotDeclared(Exception):
    """The declaration cannot be read; the message is one line that says what to do."""


def files_of(declaration: dict[str, Any]) -> list[dict[str, Any]]:
    """The files of a configuration set; of the secret ones only where they are."""
    present = any(not item.get("absent") for item in declaration["files"])
    secret = {"mode": "0600"} if present else {"absent": True}
    return [
        *declaration["files"],
        *({"path": path, **secret} for path in declaration.get("secret_files", {})),
    ]


class Declared:
    """The declaration of one environment: ``declared["docker_version"]``, ``declared.sets()``, …"""

    def __init__(
        self,
        environment: str,
        root: Path = ROOT,
        playbooks: Sequence[str] = PLAYBOOKS,
        host: str = "",
    ) -> None:
        """``root``: the tree; one that is not this one needs its own ANSIBLE_CONFIG before this module is imported.

        ``host``: one of the inventory's that is not the droplet.
        """
        self.environment = environment
        self._sets: dict[str, dict[str, Any]] | None = None
        if not (inventory := root / "inventory" / environment).is_dir():
            raise NotDeclared(f"there is no environment '{environment}'. Next: ls inventory")
        init_plugin_loader()
        connection_loader.get("ssh", class_only=True)  # makes its settings known
        self._loader = DataLoader()
        self._loader.set_basedir(str(root / "playbooks"))
        hosts = InventoryManager(loader=self._loader, sources=[str(inventory)])
        self._variables = VariableManager(loader=self._loader, inventory=hosts)
        HostVars(hosts, self._variables, self._loader)  # makes `hostvars` known to the variables
        if host and host not in hosts.hosts:
            raise NotDeclared(f"the inventory of '{environment}' has no host '{host}'")
        self._host = hosts.hosts[host] if host else hosts.get_hosts("droplets")[0]
        self._plays = [
            play
            for name in playbooks
            for play in Playbook.load(
                str(root / f"playbooks/{name}.yml"),
                variable_manager=self._variables,
                loader=self._loader,
            ).get_plays()
            if self._host in hosts.get_hosts(play.hosts)
        ]
        merged: dict[str, Any] = {}
        for play in reversed(self._plays):
            merged |= self._variables.get_vars(play=play, host=self._host)
        self._templar = Templar(loader=self._loader, variables=merged)

    def __getitem__(self, name: str) -> Any:
        """The value of a variable, rendered. Raises NotDeclared."""
        return self.render("{{ " + name + " }}")

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a variable that an environment may leave out."""
        return self[name] if name in self._templar.available_variables else default

    def render(self, template: str) -> Any:
        """The value of a template of ours."""
        try:
            return self._templar.template(trust_as_template(template))
        except AnsibleError as error:
            raise NotDeclared(f"cannot read {template}: {' '.join(str(error).split())}") from None

    def missing(self, purpose: str) -> list[str]:
        """Settings that ``purpose`` requires of this environment and the shell does not have."""
        required = self["required_settings"].get(purpose, {})
        return [f"{name}: {what}" for name, what in required.items() if not os.environ.get(name)]

    def set_system(self, facts: dict[str, str]) -> None:
        """Tell which system the droplet runs: some roles declare by it."""
        self._sets = None
        self._variables.set_host_facts(
            self._host.name, {f"ansible_{name}": value for name, value in facts.items()}
        )

    # -- what the roles' tasks declare --------------------------------------------------------------

    def _tasks(self, module: str) -> Iterator[tuple[Any, Any]]:
        """Every (play, task) of the roles that calls ``module``."""

        def flat(block: Block) -> Iterator[Any]:
            for item in [*block.block, *block.rescue, *block.always]:
                yield from flat(item) if isinstance(item, Block) else iter([item])

        for play in self._plays:
            for role in play.roles:
                for block in role.compile(play=play):
                    yield from ((play, task) for task in flat(block) if task.action == module)

    def _wanted(self, play: Any, task: Any) -> Templar | None:
        """What renders a task's arguments; None when its condition, or that of its role, does not hold."""
        variables = self._variables.get_vars(play=play, host=self._host, task=task)
        variables["ansible_search_path"] = task.get_search_path()
        templar = Templar(loader=self._loader, variables=variables)
        holds = all(templar.evaluate_conditional(condition) for condition in task.when)
        return templar if holds else None

    def calls(self, module: str) -> list[dict[str, Any]]:
        """The arguments of every task of the roles that calls ``module`` and whose condition holds."""
        return [
            dict(templar.template(task.args))
            for play, task in self._tasks(module)
            if (templar := self._wanted(play, task))
        ]

    def set_names(self) -> list[str]:
        """Names of the configuration sets that this environment has; asks nothing of the droplet."""
        return [
            str(task.args["name"])
            for play, task in self._tasks("config_set")
            if self._wanted(play, task)
        ]

    def sets(self) -> dict[str, dict[str, Any]]:
        """Configuration sets by name, as the module config_set gets them: files, units, …"""
        if self._sets is None:  # seconds, and the audit asks for each of its tests
            self._sets = {found["name"]: found for found in self.calls("config_set")}
        return self._sets

    def packages(self) -> dict[str, dict[str, Any]]:
        """Packages by name: ``{"version": pattern or "", "hold": bool}``."""
        result: dict[str, dict[str, Any]] = {}
        for arguments in self.calls("package_set"):
            for wanted in arguments["names"]:
                name, _, version = wanted.partition("=")
                result[name] = {"version": version, "hold": bool(arguments.get("hold"))}
        return result

    def panel(self, placeholder: str = "-") -> dict[str, Any]:
        """What services/compose.yaml declares, as the filter panel_apps gives it to the role `services`.

        No secret is needed: what only a secret or the image repository could fill stays a placeholder, in which
        ``NAME`` becomes the variable's name.
        """
        text = Path(self["services_compose_file"]).read_text()
        names = {first or second for first, second in NEEDED.findall(text)}
        placeholders = {
            name: placeholder.replace("NAME", name)
            for name in names - set(self["services_environment"])
        }
        known = Templar(
            loader=self._loader,
            variables={**self._templar.available_variables, "declared_placeholders": placeholders},
        )
        expression = (
            "{{ lookup('ansible.builtin.file', services_compose_file)"
            " | panel_apps(services_environment, declared_placeholders, services_leave_out) }}"
        )
        try:
            return dict(known.template(trust_as_template(expression)))
        except AnsibleError as error:
            raise NotDeclared(" ".join(str(error).split())) from None

    def apps(self) -> list[dict[str, Any]]:
        """Its apps, without their secrets."""
        return list(self.panel()["apps"])

    # -- how the droplet is reached -----------------------------------------------------------------

    def hostspec(self) -> str:
        """Address for testinfra's SSH backend."""
        port = self.get("ansible_port")
        at = f"ssh://{self['ansible_user']}@{self['ansible_host']}"
        return f"{at}:{port}" if port else at

    def ssh_arguments(self) -> str:
        """Arguments of ssh, the same as Ansible's: ansible.cfg, then the inventory. One shared connection."""

        def setting(name: str) -> str:
            return str(constants.config.get_config_value(name, None, "connection", "ssh"))

        directory = Path(setting("control_path_dir")).expanduser()
        directory.mkdir(parents=True, exist_ok=True)
        socket = f'ControlPath="{directory}/audit-%C"'  # quoted for ssh, and then for the shell
        parts = [
            setting("ssh_args"),
            f"-o {shlex.quote(socket)}",
            "-o BatchMode=yes -o ConnectTimeout=30",
            str(self.get("ansible_ssh_common_args", "")),
        ]
        if key := self.get("ansible_ssh_private_key_file"):
            parts.append(f"-i {shlex.quote(str(key))}")
        return " ".join(parts)

    def door(self, port: int) -> tuple[str, int] | None:
        """Where a port of the droplet is reached from here; None when it is not forwarded to us.

        A droplet is addressed itself, but for what CONNECT_TO says. Ports forwarded from loopback are all there is.
        """
        forwards = doors(self["setting"]["CONNECT_TO"])
        if any(host.startswith("127.") for host, _ in forwards.values()):
            return forwards.get(port)
        return forwards.get(port, (str(self["ansible_host"]), port))
