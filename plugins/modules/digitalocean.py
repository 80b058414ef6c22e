#!/usr/bin/python
"""Ansible module `digitalocean`: one environment's droplet at DigitalOcean, with all that belongs to it.

Why not a collection: community.digitalocean is no longer maintained and left `ansible` with version 13;
digitalocean.cloud is in no release of it, and neither compares rules, images or sizes (docs/decisions/0022).
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.digitalocean_api import Client, Declined
from ansible.module_utils.digitalocean_environment import (
    Change,
    Environment,
    Wanted,
    first_host_key,
)

DOCUMENTATION = r"""
module: digitalocean
short_description: A droplet with SSH key, tag, project, firewall, volume, reserved IP and alerts of its name
description:
  - Reads all, makes what differs, reads again. What cannot change in place is told and never done.
options:
  state:
    description: C(present) as declared; C(resized) to C(size); C(absent), but for what outlives it.
    choices: [present, resized, absent]
    default: present
  api_url: {description: Where the API is., type: str, default: https://api.digitalocean.com}
  token: {description: A token of DigitalOcean's., type: str, required: true}
  name: {description: Name of all of it., type: str, required: true}
  environment: {description: Which environment it is., type: str, required: true}
  region: {description: Slug of the region., type: str, required: true}
  size: {description: Slug of the size., type: str, required: true}
  image: {description: Slug of the image., type: str, required: true}
  admin: {description: Name of the admin user., type: str, required: true}
  ssh_private_key: {description: The admin's; its public half goes onto the droplet., type: str, required: true}
  ipv6: {description: Whether it has IPv6., type: bool, default: true}
  monitoring: {description: Whether DigitalOcean's agent is installed., type: bool, default: true}
  backups: {description: DigitalOcean's own backups., type: str, choices: [none, weekly, daily], default: none}
  volume_gb: {description: Size of the volume in GB; 0 means none., type: int, default: 0}
  tcp_ports: {description: TCP ports that the firewall lets in., type: list, elements: int, default: [22, 80, 443]}
  udp_ports: {description: UDP ports that the firewall lets in., type: list, elements: int, default: []}
  nodes: {description: Whether other droplets with its tag are nodes of its Swarm., type: bool, default: false}
  alerts_to: {description: E-mail address of the alerts; without one there are none., type: str, default: ''}
  address: {description: The reserved IP that it has or had., type: str, default: ''}
  disk: {description: Whether the disk grows with C(size)., type: bool, default: false}
  also: {description: Names of volume and address that go with the droplet., type: list, elements: str, default: []}
"""
ROUNDS = 3
AT_ONCE = (409, 422)  # what another run may have done meanwhile: then look again


class Run:
    """One call."""

    def __init__(self, module: AnsibleModule, environment: Environment) -> None:
        self.module = module
        self.environment = environment
        self.shown: list[str] = []

    def plan(self) -> list[Change]:
        """What is to be done, by what was read."""
        given = self.module.params
        if given["state"] == "resized":
            return self.environment.resizing(given["size"], given["disk"])
        if given["state"] == "absent":
            return self.environment.destroying(given["also"])
        return self.environment.plan()

    def show(self, changes: list[Change]) -> None:
        """Keep their lines; another round tells only what is new."""
        self.shown += [line for line in map(str, changes) if line not in self.shown]

    def make(self) -> None:
        """Do it all, and look at it again. Raises Declined."""
        for left in reversed(range(ROUNDS)):
            self.environment.read(settled=True)
            changes = self.plan()
            self.show(changes)
            if not any(change.do for change in changes):
                return
            try:
                for change in changes:
                    if change.do:
                        change.do()
            except Declined as reason:
                if reason.status not in AT_ONCE or not left:
                    raise
                self.environment.client.sleep(1.0)
        self.environment.read(settled=True)
        if rest := [change for change in self.plan() if change.do]:
            raise Declined(0, f"still so after it was changed: {rest[0]}. Next: the same again")

    def result(self) -> dict[str, Any]:
        """What came of it; ``changed`` counts what is done, or would be."""
        environment = self.environment
        lines = [line for line in self.shown if line[0] in "+~-"]
        mark = environment.mark
        return {
            "changed": bool(lines),
            "lines": self.shown,
            "count": len(lines),
            "droplet_id": environment.droplet.get("id", 0),
            "address": environment.address.get("ip", ""),
            "ipv6": environment.ipv6() if self.module.params["ipv6"] else "",
            "volume": environment.volume.get("name", "") if self.module.params["volume_gb"] else "",
            "first_host_key": first_host_key(environment.wanted.private_key, mark)[1]
            if mark
            else "",
            "diff": {"prepared": "".join(f"{line}\n" for line in self.shown)},
        }


def main() -> None:
    """Entry point."""
    text, number = {"type": "str", "required": True}, {"type": "list", "elements": "int"}
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["present", "resized", "absent"], "default": "present"},
            "api_url": {"type": "str", "default": "https://api.digitalocean.com"},
            "token": {**text, "no_log": True},
            **dict.fromkeys(("name", "environment", "region", "size", "image", "admin"), text),
            "ssh_private_key": {**text, "no_log": True},
            "ipv6": {"type": "bool", "default": True},
            "monitoring": {"type": "bool", "default": True},
            "backups": {"type": "str", "choices": ["none", "weekly", "daily"], "default": "none"},
            "volume_gb": {"type": "int", "default": 0},
            "tcp_ports": {**number, "default": [22, 80, 443]},
            "udp_ports": {**number, "default": []},
            "nodes": {"type": "bool", "default": False},
            "alerts_to": {"type": "str", "default": ""},
            "address": {"type": "str", "default": ""},
            "disk": {"type": "bool", "default": False},
            "also": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    fields = {name: given[name] for name in Wanted.__dataclass_fields__ if name in given}
    run = None
    try:
        client = Client(given["api_url"], given["token"])
        wanted = Wanted(**fields, private_key=given["ssh_private_key"])
        run = Run(module, Environment(client, wanted))
        if module.check_mode:
            run.environment.read()
            run.show(run.plan())
        else:
            run.make()
    except Declined as reason:
        module.fail_json(msg=str(reason), lines=run.shown if run else [])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        module.fail_json(
            msg=f"an answer is not of DigitalOcean's form ({error!r}). Next: is {given['api_url']} its API?"
        )
    module.exit_json(**run.result())


if __name__ == "__main__":
    main()
