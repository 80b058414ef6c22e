"""Ansible module: the nodes of the Swarm that this host manages."""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.swarm_service import SOCKET, Engine, EngineError

DOCUMENTATION = r"""
module: swarm_nodes
short_description: List the nodes of this manager's Swarm; label, empty, use or remove one
description:
  - Without a verb it changes nothing. With C(join) it answers what makes a host a worker, which is a secret.
  - C(drain) starts what runs on a node elsewhere, each app in its own order, and waits until the node is empty;
    C(activate) gives the node work again, and moves replicas of apps that are unevenly spread, whether or not it had
    work before.
  - C(remove) forgets a node that runs nothing. The last manager is never drained or removed.
options:
  labels: {type: dict, default: {}, description: "Labels by node, as {id or name: {key: value}}; others go."}
  drain: {type: str, default: "", description: Name or ID of the node that shall be empty.}
  activate: {type: str, default: "", description: Name or ID of the node that shall have work again.}
  remove: {type: str, default: "", description: Name or ID of the node to forget.}
  join: {type: bool, default: false, description: Answer the token for workers too.}
  timeout: {type: int, default: 600, description: Seconds that an app may take to leave a node.}
  docker_socket: {type: path, default: /var/run/docker.sock, description: Where Docker answers.}
author: ["CIMT contributors"]
"""

EXAMPLES = r"""
- name: What a worker needs to join
  swarm_nodes:
    join: true
  register: swarm
  no_log: true
"""

RETURN = r"""
steps: {type: list, elements: str, returned: success, description: What was done or would be done.}
nodes: {type: list, elements: dict, returned: success,
        description: "id, name, address, role, state, availability, labels, running (services) of each."}
address: {type: str, returned: success, description: Address that this manager is reached at by others.}
token: {type: str, returned: with join, description: What makes a host a worker. It is a secret.}
"""


class Nodes:
    """The Swarm as its manager sees it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.engine = Engine(module.params["docker_socket"])
        self.steps: list[str] = []

    def listed(self) -> list[dict[str, Any]]:
        """Every node, managers first, and by name the services whose tasks run there."""
        names = {one["ID"]: one["Spec"]["Name"] for one in self.engine.ask("/services")}
        running: dict[str, list[str]] = {}
        for task in self.engine.ask("/tasks"):
            if task["Status"]["State"] == "running" and task["ServiceID"] in names:
                running.setdefault(task.get("NodeID", ""), []).append(names[task["ServiceID"]])
        found = [
            {
                "id": node["ID"],
                "name": node["Description"]["Hostname"],
                "address": node["Status"].get("Addr", ""),
                "role": node["Spec"]["Role"],
                "state": node["Status"]["State"],
                "availability": node["Spec"]["Availability"],
                "labels": node["Spec"].get("Labels") or {},
                "running": sorted(running.get(node["ID"], [])),
            }
            for node in self.engine.ask("/nodes")
        ]
        return sorted(found, key=lambda node: (node["role"], node["name"]))

    def node(self, name: str) -> dict[str, Any]:
        """The one node of this name or ID; fails when there is none, or several."""
        found = [one for one in self.listed() if name in (one["id"], one["name"])]
        if len(found) != 1:
            told = ", ".join(
                f"{one['name']} ({one['id']}, {one['state']})" for one in self.listed()
            )
            self.module.fail_json(msg=f"{len(found)} nodes are called {name}. There are: {told}")
        return found[0]

    def specify(self, node: dict[str, Any], told: str, **changed: Any) -> None:
        """Write a part of the node's specification."""
        self.steps.append(told)
        if self.module.check_mode:
            return
        now = self.engine.ask(f"/nodes/{node['id']}")
        version = {"version": now["Version"]["Index"]}
        self.engine.ask(f"/nodes/{node['id']}/update", version, {**now["Spec"], **changed})

    def label(self, name: str, labels: dict[str, Any]) -> None:
        """Give the node these labels, and no others."""
        node = self.node(name)
        wanted = {key: str(value) for key, value in labels.items()}
        if node["labels"] != wanted:
            told = f"{node['name']}: labels {node['labels']} -> {wanted}"
            self.specify(node, told, Labels=wanted)

    def drain(self, name: str) -> None:
        """Let nothing run on the node any more, and wait until that is so.

        Swarm's own way ends what runs there first, and starts it elsewhere then: with both replicas of an app on one
        node that is an outage. So the node gets nothing new, each app that runs there is started anew in its own order
        (new tasks first, where it says so), and what is empty then is drained.
        """
        node = self.node(name)
        if node["role"] == "manager":
            self.module.fail_json(
                msg=f"{node['name']} is the manager: panel, proxy and what has a volume run there and nowhere else"
            )
        if node["availability"] == "drain":
            return
        if node["availability"] != "pause":
            self.specify(node, f"{node['name']}: gets no new work", Availability="pause")
        for service in self.engine.ask("/services"):
            if service["Spec"]["Name"] in node["running"]:
                self.anew(service, node["id"])
        self.specify(node, f"{node['name']}: drained", Availability="drain")

    def anew(self, service: dict[str, Any], leaving: str) -> None:
        """Start the tasks of a service anew, one after the other, until none is on the node ``leaving``."""
        name, spec = service["Spec"]["Name"], service["Spec"]
        self.steps.append(f"{name}: started anew, one task after the other")
        if self.module.check_mode:
            return
        template = spec["TaskTemplate"]
        template["ForceUpdate"] = template.get("ForceUpdate", 0) + 1
        version = {"version": service["Version"]["Index"]}
        self.engine.ask(f"/services/{service['ID']}/update", version, spec)
        deadline = time.monotonic() + self.module.params["timeout"]
        # On a node that is lost nobody is there to end them.
        while name in (node := self.node(leaving))["running"] and node["state"] == "ready":
            if time.monotonic() > deadline:
                self.module.fail_json(
                    msg=f"{name} still runs on {node['name']}, which gets nothing new. Next: the same "
                    f"again; make logs SERVICE={name.partition('_')[2]} says why it does not start elsewhere"
                )
            time.sleep(2)

    def activate(self, name: str) -> None:
        """Give the node work again, and move replicas that are unevenly spread."""
        node = self.node(name)
        if node["availability"] != "active":
            told = f"{node['name']}: {node['availability']} -> active"
            self.specify(node, told, Availability="active")
        for service in self.engine.ask("/services"):
            spec = service["Spec"]
            constraints = (spec["TaskTemplate"].get("Placement") or {}).get("Constraints")
            if constraints or spec["Mode"].get("Replicated", {}).get("Replicas", 0) < 2:
                continue
            for _ in range(spec["Mode"]["Replicated"]["Replicas"]):
                if not self.uneven(spec["Name"]):
                    break
                self.move(service["ID"], spec["Name"])
                if self.module.check_mode:
                    break

    def uneven(self, name: str) -> bool:
        """Whether a node runs two tasks of the service more than another that could have one."""
        counts = [
            one["running"].count(name)
            for one in self.listed()
            if (one["state"], one["availability"]) == ("ready", "active")
        ]
        return max(counts) - min(counts) > 1

    def move(self, service: str, name: str) -> None:
        """Move one replica: another one comes up where fewest run, then one ends where most do.

        To start all anew would not do: Swarm counts the old tasks too, and all may land on the emptier node.
        """
        self.steps.append(f"{name}: one replica moved to the emptier node")
        if self.module.check_mode:
            return
        for more in (1, -1):
            now = self.engine.ask(f"/services/{service}")
            now["Spec"]["Mode"]["Replicated"]["Replicas"] += more
            wanted = now["Spec"]["Mode"]["Replicated"]["Replicas"]
            version = {"version": now["Version"]["Index"]}
            self.engine.ask(f"/services/{service}/update", version, now["Spec"])
            deadline = time.monotonic() + self.module.params["timeout"]
            while sum(one["running"].count(name) for one in self.listed()) != wanted:
                if time.monotonic() > deadline:
                    self.module.warn(
                        f"{name}: not {wanted} tasks after {self.module.params['timeout']} s"
                    )
                    break
                time.sleep(2)

    def remove(self, name: str) -> None:
        """Forget a node; one that is there and has work is not forgotten."""
        if not any(name in (one["id"], one["name"]) for one in self.listed()):
            return
        node = self.node(name)
        why = "is the manager" if node["role"] == "manager" else ""
        if node["state"] == "ready" and node["availability"] != "drain":
            why = why or "has work"
        if why:
            self.module.fail_json(
                msg=f"{node['name']} {why}; it stays. Next: make nodes DRAIN={node['name']}"
            )
        self.steps.append(f"{node['name']}: forgotten")
        if not self.module.check_mode:
            self.engine.ask(f"/nodes/{node['id']}", {"force": "true"}, method="DELETE")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "labels": {"type": "dict", "default": {}},
            "drain": {"type": "str", "default": ""},
            "activate": {"type": "str", "default": ""},
            "remove": {"type": "str", "default": ""},
            "join": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 600},
            "docker_socket": {"type": "path", "default": SOCKET},
        },
        supports_check_mode=True,
    )
    params = module.params
    nodes = Nodes(module)
    try:
        info = nodes.engine.ask("/info")["Swarm"]
        if not info["ControlAvailable"]:
            if module.check_mode:  # before its first provision
                module.exit_json(changed=False, steps=[], nodes=[], address="", token="")
            module.fail_json(msg="this host manages no Swarm. Next: make provision")
        for name, labels in params["labels"].items():
            nodes.label(name, labels)
        for verb in ("drain", "activate", "remove"):
            if name := params[verb]:
                getattr(nodes, verb)(name)
        token = nodes.engine.ask("/swarm")["JoinTokens"]["Worker"] if params["join"] else ""
        listed = nodes.listed()
    except EngineError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(nodes.steps),
        steps=nodes.steps,
        nodes=listed,
        address=info["NodeAddr"],
        token=token,
    )


if __name__ == "__main__":
    main()
