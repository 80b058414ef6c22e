"""Ansible module: this host is a worker of a Swarm, reached by a private address."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.private_network import private_address
from ansible.module_utils.swarm_service import SOCKET, Engine, EngineError

DOCUMENTATION = r"""
module: swarm_join
short_description: Make this host a worker of a Swarm
description:
  - Joins where it is in none; joins anew where the manager does not know it any more (that was restored, or forgot it),
    or where it is reached by another address than the declared one, which only joining can change.
  - A host that is in a Swarm of another manager who answers, or is a manager itself, is refused and left.
  - The token goes to Docker's socket, so no list of processes shows it.
options:
  manager: {type: str, required: true, description: Address of the manager on the private network.}
  token: {type: str, required: true, description: What makes a host a worker.}
  known: {type: list, elements: str, default: [], description: IDs of the nodes that the manager knows.}
  address: {type: str, default: "", description: Private address of this host; empty finds it.}
  timeout: {type: int, default: 120, description: Seconds until it is a node.}
  docker_socket: {type: path, default: /var/run/docker.sock, description: Where Docker answers.}
author: ["CIMT contributors"]
"""

EXAMPLES = r"""
- name: A worker of the droplet's Swarm
  swarm_join:
    manager: "{{ swarm.address }}"
    token: "{{ swarm.token }}"
    known: "{{ swarm.nodes | map(attribute='id') | list }}"
"""

RETURN = r"""
node: {type: str, returned: success, description: "ID of this host in the Swarm, empty in check mode before it joined."}
steps: {type: list, elements: str, returned: success, description: What was done or would be done.}
"""

PORT = 2377  # of a manager
PATIENCE = 5  # seconds, for a manager to answer


def in_the_way(swarm: dict[str, Any], manager: str) -> str:
    """Why this host may not join; empty where it may."""
    if swarm.get("ControlAvailable"):
        return "this host manages a Swarm itself. Next, on it, if that holds nothing: docker swarm leave --force"
    for one in swarm.get("RemoteManagers") or []:
        host, _, port = one["Addr"].rpartition(":")
        if host == manager:
            return ""
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), PATIENCE):
            return f"this host is in the Swarm of {host}. Next, on it: docker swarm leave"
    return ""  # in none, or in one whose manager is gone


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "manager": {"type": "str", "required": True},
            "token": {"type": "str", "required": True, "no_log": True},
            "known": {"type": "list", "elements": "str", "default": []},
            "address": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 120},
            "docker_socket": {"type": "path", "default": SOCKET},
        },
        supports_check_mode=True,
    )
    params = module.params
    engine = Engine(params["docker_socket"])
    steps: list[str] = []

    def state() -> dict[str, Any]:
        return dict(engine.ask("/info")["Swarm"])

    try:
        if module.check_mode and not module.get_bin_path("docker"):
            module.exit_json(changed=True, steps=["join the Swarm"], node="")
        address = params["address"] or private_address(module.run_command)
        if not address:
            module.fail_json(
                msg="this host has no address on a private network: nodes talk without encryption, and not over the "
                "internet. Next: a droplet in the manager's VPC, and its cluster_address in the inventory"
            )
        swarm = state()
        if reason := in_the_way(swarm, params["manager"]):
            module.fail_json(msg=reason)
        there = swarm["LocalNodeState"] != "inactive"
        member = swarm["LocalNodeState"] == "active" and swarm["NodeID"] in params["known"]
        if not member or swarm["NodeAddr"] != address:
            steps.append(f"join the Swarm of {params['manager']} as {address}")
            if not module.check_mode:
                if there:
                    engine.ask("/swarm/leave", {"force": "true"}, {})
                body = {
                    "ListenAddr": f"{address}:{PORT}",
                    "AdvertiseAddr": address,
                    "RemoteAddrs": [f"{params['manager']}:{PORT}"],
                    "JoinToken": params["token"],
                }
                engine.ask("/swarm/join", body=body)
                deadline = time.monotonic() + params["timeout"]
                while (swarm := state())["LocalNodeState"] != "active":
                    if time.monotonic() > deadline:
                        now = f"{swarm['LocalNodeState']} {swarm.get('Error', '')}".strip()
                        module.fail_json(
                            msg=f"no node after {params['timeout']} s ({now}). Next: does "
                            f"{params['manager']}:{PORT} answer from here? (role firewall, the VPC)"
                        )
                    time.sleep(1)
    except EngineError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(steps),
        steps=steps,
        node="" if module.check_mode and steps else swarm["NodeID"],
    )


if __name__ == "__main__":
    main()
