"""Role cluster: apps stay on their nodes whoever deploys, nodes come and go. (With Swarm itself: tests/acceptance.)"""

from __future__ import annotations

import http.server
import json
import queue
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.waiting import eventually
from plugins.filter.compose import app_placements
from plugins.module_utils.private_network import private_address
from testbed import modules
from testbed.simulated_droplet import Droplet, declared, image

ROOT = Path(__file__).parents[2]
MANAGER = "node.role==manager"


class Docker(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Docker's API on a socket, with what a Swarm of two nodes says; `specify` is what a panel does."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Answers)
        self.listeners: list[queue.Queue[str]] = []
        self.services: dict[str, dict[str, Any]] = {}
        self.swarm = {"LocalNodeState": "inactive", "ControlAvailable": False, "NodeID": ""}
        self.swarm |= {"NodeAddr": "", "RemoteManagers": None}
        self.nodes: list[dict[str, Any]] = []
        self.joined: list[dict[str, Any]] = []
        self.tasks: list[dict[str, Any]] = []
        self.starts_on = (
            ""  # where the tasks of a service come up that is started anew; empty: nowhere
        )

    def specify(self, name: str, constraints: list[str] | None, replicas: int = 1) -> None:
        """Write a service, as a whole."""
        template: dict[str, Any] = {"ContainerSpec": {"Image": "x"}, "Placement": {}}
        if constraints is not None:
            template["Placement"] = {"Constraints": constraints}
        spec = {
            "Name": name,
            "TaskTemplate": template,
            "Mode": {"Replicated": {"Replicas": replicas}},
        }
        known = self.services.get(name, {"Version": {"Index": 1}})
        self.services[name] = {
            "ID": f"id-{name}",
            "Version": {"Index": known["Version"]["Index"] + 1},
            "Spec": spec,
        }
        for listener in self.listeners:
            listener.put(name)

    def scale(self, service: dict[str, Any], spec: dict[str, Any]) -> None:
        """As Swarm does: a task more where fewest run, a task less where most do."""
        now, then = (one["Mode"]["Replicated"]["Replicas"] for one in (service["Spec"], spec))
        mine = [task for task in self.tasks if task["ServiceID"] == service["ID"]]
        on = {node["ID"]: [t for t in mine if t["NodeID"] == node["ID"]] for node in self.nodes}
        if then > now:
            fewest = min(on, key=lambda node: len(on[node]))
            self.tasks.append({**mine[0], "NodeID": fewest})
        elif then < now:
            self.tasks.remove(max(on.values(), key=len)[0])

    def constraints(self, name: str) -> list[str] | None:
        """What keeps it where it is."""
        placement = self.services[name]["Spec"]["TaskTemplate"]["Placement"]
        return placement.get("Constraints")  # type: ignore[no-any-return]


class Answers(http.server.BaseHTTPRequestHandler):
    """One request of `Docker`."""

    server: Docker
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def address_string(self) -> str:
        return "socket"

    def say(self, status: int, answer: Any = None) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        docker, path = self.server, urllib.parse.urlsplit(self.path).path
        kind, _, name = path[1:].partition("/")
        if kind == "events":
            events: queue.Queue[str] = queue.Queue()
            docker.listeners.append(events)
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(json.dumps({"Actor": events.get()}).encode() + b"\n")
        if kind == "info":
            return self.say(200, {"Swarm": docker.swarm})
        if kind == "swarm":
            return self.say(200, {"JoinTokens": {"Worker": "SWMTKN-secret"}})
        whole = {"nodes": docker.nodes, "tasks": docker.tasks}
        if name:
            found = {one["ID"]: one for one in [*docker.nodes, *docker.services.values()]}
            found |= docker.services
            return self.say(200, found[name]) if name in found else self.say(404)
        return self.say(200, whole.get(kind, list(docker.services.values())))

    def do_POST(self) -> None:
        docker = self.server
        url = urllib.parse.urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
        kind, name, *_ = [*url.path[1:].split("/"), ""]
        if name == "join":
            docker.joined.append(body)
            docker.swarm |= {"LocalNodeState": "active", "NodeID": "n2"}
            docker.swarm["NodeAddr"] = body["AdvertiseAddr"]
            return self.say(200)
        if name == "leave":
            docker.swarm |= {"LocalNodeState": "inactive", "NodeID": "", "RemoteManagers": None}
            return self.say(200)
        things = docker.nodes if kind == "nodes" else list(docker.services.values())
        (thing,) = [one for one in things if one["ID"] == name]
        if urllib.parse.parse_qs(url.query)["version"] != [str(thing["Version"]["Index"])]:
            return self.say(500, {"message": "update out of sequence"})
        thing["Version"]["Index"] += 1
        if kind == "services":
            docker.scale(thing, body)
        thing["Spec"] = body
        for task in docker.tasks if docker.starts_on else []:
            if task["ServiceID"] == name:
                task["NodeID"] = docker.starts_on
        return self.say(200, {})

    def do_DELETE(self) -> None:
        name = urllib.parse.urlsplit(self.path).path.rpartition("/")[2]
        self.server.nodes[:] = [one for one in self.server.nodes if one["ID"] != name]
        self.say(200)


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Docker]:
    server = Docker(tmp_path / "docker.sock")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def node(number: int, role: str = "worker", **status: str) -> dict[str, Any]:
    spec = {"Role": role, "Availability": status.pop("availability", "active"), "Labels": {}}
    return {
        "ID": f"n{number}",
        "Version": {"Index": 1},
        "Description": {"Hostname": f"host-{number}"},
        "Spec": spec,
        "Status": {"Addr": f"10.0.0.{number}", "State": "ready", **status},
    }


# -- the unit that keeps apps on their nodes ---------------------------------------------------------


def test_a_deploy_of_the_panel_moves_nothing(docker: Docker, tmp_path: Path) -> None:
    """The panel writes a service without its constraints; they are back before anybody asks."""
    for name in ("cimt_n8n", "cimt_api", "elsewhere"):
        docker.specify(name, None)
    wanted = tmp_path / "placement.json"
    wanted.write_text(json.dumps({"cimt_n8n": [MANAGER], "cimt_api": [], "cimt_gone": [MANAGER]}))
    text = (ROOT / "roles/cluster/files/placement.py").read_text()
    program = tmp_path / "placement.py"
    program.write_text(text.replace("/var/run/docker.sock", str(tmp_path / "docker.sock")))
    with subprocess.Popen([sys.executable, "-u", program, wanted], stdout=subprocess.PIPE) as unit:
        eventually(lambda: docker.constraints("cimt_n8n") == [MANAGER], "its nodes", 20)
        eventually(lambda: docker.listeners, "somebody listens", 20)
        docker.specify("cimt_n8n", None)
        eventually(lambda: docker.constraints("cimt_n8n") == [MANAGER], "its nodes again", 20)
        # What the declaration does not say any more goes, at the next change of a service.
        wanted.write_text(json.dumps({"cimt_n8n": [], "cimt_api": []}))
        docker.specify("elsewhere", [MANAGER])
        eventually(lambda: docker.constraints("cimt_n8n") == [], "any node", 20)
        unit.terminate()
        said = unit.stdout.read().decode() if unit.stdout else ""
    assert docker.constraints("cimt_api") is None
    assert docker.constraints("elsewhere") == [MANAGER]
    assert "cimt_n8n: node.role==manager: kept" in said
    assert "Traceback" not in said


# -- what is declared, planned and waited for --------------------------------------------------------


def test_what_has_a_mount_stays_with_the_manager() -> None:
    api = declared(placement=["node.labels.disk==ssd"])
    n8n = declared("n8n", mounts=[{"type": "volume", "name": "n8n", "mountPath": "/data"}])
    assert app_placements([api, n8n], "cimt") == {
        "cimt_api": ["node.labels.disk==ssd"],
        "cimt_n8n": [MANAGER],
    }


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Droplet:
    found = Droplet(tmp_path, monkeypatch)
    found.host.write("createAppService", projectName="cimt", serviceName="api")
    return found


def test_placement_is_a_part_of_the_plan(simulated: Droplet, tmp_path: Path) -> None:
    simulated("deploy", "a", app=declared())
    placed = {"cimt_api": [MANAGER]}
    planned = simulated.plan(declared(), placement=placed)
    assert planned["changes"] == ['+ api.placement: ["node.role==manager"]']
    assert not (tmp_path / "placement.json").exists()
    simulated.plan(declared(), check=False, placement=placed)
    assert json.loads((tmp_path / "placement.json").read_text()) == placed
    assert simulated.plan(declared(), placement=placed)["changes"] == []
    # Back to one node: nothing is kept anywhere.
    assert simulated.plan(declared(), placement={})["changes"] == [
        '- api.placement: ["node.role==manager"]'
    ]


def test_a_release_is_none_while_its_app_may_run_anywhere(
    simulated: Droplet, tmp_path: Path
) -> None:
    simulated("deploy", "a", app=declared())
    (tmp_path / "placement.json").write_text(json.dumps({"cimt_api": [MANAGER]}))
    told = simulated("deploy", "b", app=declared())
    assert told["failed"]
    assert "cimt-placement.service" in told["msg"]
    (tmp_path / "placement.json").unlink()
    assert simulated("deploy", "b", app=declared())["switched"]
    assert simulated.host.runs()[0] == image("b")


# -- nodes -------------------------------------------------------------------------------------------


def nodes(docker: Docker, tmp_path: Path, check: bool = False, **given: Any) -> dict[str, Any]:
    asked = {"docker_socket": str(tmp_path / "docker.sock"), "timeout": 5, **given}
    return modules.run("roles.cluster.library.swarm_nodes", asked | {"_ansible_check_mode": check})


def test_a_node_is_emptied_used_again_and_forgotten(docker: Docker, tmp_path: Path) -> None:
    docker.swarm |= {"LocalNodeState": "active", "ControlAvailable": True, "NodeAddr": "10.0.0.1"}
    docker.nodes = [node(1, "manager"), node(2)]
    docker.specify("cimt_api", None, replicas=2)
    docker.specify("cimt_n8n", [MANAGER], replicas=2)
    docker.specify("cimt_web", None)
    running = {"ServiceID": "id-cimt_api", "NodeID": "n2", "Status": {"State": "running"}}
    docker.tasks = [running]

    looked = nodes(docker, tmp_path)
    assert not looked["changed"]
    assert looked["token"] == ""
    assert nodes(docker, tmp_path, join=True)["token"] == "SWMTKN-secret"
    assert [(one["name"], one["running"]) for one in looked["nodes"]] == [
        ("host-1", []),
        ("host-2", ["cimt_api"]),
    ]
    labelled = {"labels": {"n2": {"disk": "ssd"}}}
    assert nodes(docker, tmp_path, check=True, **labelled)["changed"]
    assert docker.nodes[1]["Spec"]["Labels"] == {}
    nodes(docker, tmp_path, **labelled)
    assert docker.nodes[1]["Spec"]["Labels"] == {"disk": "ssd"}
    assert not nodes(docker, tmp_path, **labelled)["changed"]

    for refused, why in (
        ({"drain": "host-1"}, "is the manager"),
        ({"remove": "host-1"}, "is the manager"),
        ({"remove": "host-2"}, "has work"),
        ({"drain": "host-3"}, "0 nodes are called host-3"),
        ({"drain": "host-2"}, "still runs on host-2"),
    ):
        told = nodes(docker, tmp_path, **refused)
        assert told["failed"]
        assert why in told["msg"]
    # It gets nothing new, and what runs there goes on: an app that does not start elsewhere is no outage.
    assert docker.nodes[1]["Spec"]["Availability"] == "pause"
    assert docker.tasks == [running]
    docker.starts_on = "n1"
    assert nodes(docker, tmp_path, drain="host-2")["steps"] == [
        "cimt_api: started anew, one task after the other",
        "host-2: drained",
    ]
    assert docker.nodes[1]["Spec"]["Availability"] == "drain"
    assert not nodes(docker, tmp_path, drain="host-2")["changed"]

    docker.starts_on = ""
    docker.tasks = [{**running, "NodeID": "n1"}, {**running, "NodeID": "n1"}]
    back = nodes(docker, tmp_path, activate="host-2")
    assert not back.get("failed"), back
    assert back["steps"] == [
        "host-2: drain -> active",
        "cimt_api: one replica moved to the emptier node",
    ]
    assert sorted(task["NodeID"] for task in docker.tasks) == ["n1", "n2"]
    assert docker.services["cimt_api"]["Spec"]["Mode"]["Replicated"]["Replicas"] == 2
    assert not nodes(docker, tmp_path, activate="host-2")["changed"], "they are spread already"
    forced = {
        name: service["Spec"]["TaskTemplate"].get("ForceUpdate", 0)
        for name, service in docker.services.items()
    }
    assert forced == {"cimt_api": 2, "cimt_n8n": 0, "cimt_web": 0}

    docker.nodes[1]["Status"]["State"] = "down"
    nodes(docker, tmp_path, remove="host-2")
    assert [one["ID"] for one in docker.nodes] == ["n1"]
    assert not nodes(docker, tmp_path, remove="host-2")["changed"]


def join(docker: Docker, tmp_path: Path, **given: Any) -> dict[str, Any]:
    asked = {
        "manager": "10.0.0.1",
        "token": "SWMTKN-secret",
        "known": [],
        "address": "10.0.0.2",
        "docker_socket": str(tmp_path / "docker.sock"),
        **given,
    }
    return modules.run("roles.cluster.library.swarm_join", asked)


def test_a_host_joins_once_and_anew_where_the_manager_forgot_it(
    docker: Docker, tmp_path: Path
) -> None:
    assert join(docker, tmp_path)["node"] == "n2"
    assert docker.joined[0]["RemoteAddrs"] == ["10.0.0.1:2377"]
    docker.swarm["RemoteManagers"] = [{"Addr": "10.0.0.1:2377"}]
    assert not join(docker, tmp_path, known=["n1", "n2"])["changed"]
    assert join(docker, tmp_path, known=["n1"])["changed"]  # the manager was made anew
    docker.swarm["RemoteManagers"] = [{"Addr": "10.0.0.1:2377"}]
    assert join(docker, tmp_path, known=["n2"], address="10.0.0.3")["changed"]
    assert docker.swarm["NodeAddr"] == "10.0.0.3"
    assert len(docker.joined) == 3


def test_a_host_of_another_swarm_is_left_while_that_has_a_manager(
    docker: Docker, tmp_path: Path
) -> None:
    docker.swarm |= {"LocalNodeState": "active", "ControlAvailable": True}
    assert "manages a Swarm itself" in join(docker, tmp_path)["msg"]
    docker.swarm["ControlAvailable"] = False
    with socket.create_server(("127.0.0.1", 0)) as other:
        docker.swarm["RemoteManagers"] = [{"Addr": f"127.0.0.1:{other.getsockname()[1]}"}]
        assert "in the Swarm of 127.0.0.1" in join(docker, tmp_path)["msg"]
    assert docker.joined == []
    # The droplet is gone, and a new one has another address.
    assert join(docker, tmp_path)["changed"]


def test_the_private_address_is_not_on_the_link_to_the_world() -> None:
    """As a droplet has them: a public address and an anchor's on the first link, the VPC's on the second."""

    def link(name: str, *addresses: str) -> dict[str, Any]:
        return {"ifname": name, "addr_info": [{"local": one} for one in addresses]}

    links = [
        link("eth0", "203.0.113.7", "10.17.0.5"),
        link("docker0", "172.17.0.1"),
        link("eth1", "10.116.0.2"),
    ]

    def on(there: list[dict[str, Any]]) -> str:
        routes = json.dumps([{"dst": "default", "dev": "eth0"}])
        return private_address(
            lambda words: (0, routes if "route" in words else json.dumps(there), "")
        )

    assert on(links) == "10.116.0.2"
    assert on(links[:2]) == ""
