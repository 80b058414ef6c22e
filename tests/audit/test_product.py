"""Docker, the panel, the apps and their releases."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def swarm_services(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {service["Spec"]["Name"]: service["Spec"] for service in found["services"]}


def test_docker_is_the_pinned_one_with_bounded_logs(
    declared: dict[str, Any], found: dict[str, Any]
) -> None:
    """Unbounded logs fill the disk; a daemon that updates itself restarts every app."""
    assert json.loads(found["docker_daemon"]) == json.loads(declared["docker_daemon"])
    if declared["docker_source"] == "upstream":
        assert found["docker"]["ServerVersion"] == declared["docker_version"]
        package = "docker-ce"
    else:
        package = "docker.io"
    assert f"{package} " in "\n".join(found["packages"])
    held = [line.split()[0] for line in found["packages"] if line.endswith(" hold")]
    assert package in held
    assert found["docker"]["Swarm"]["LocalNodeState"] == "active"


def test_no_service_publishes_more_than_is_declared(
    declared: dict[str, Any], found: dict[str, Any]
) -> None:
    """Docker opens ports by itself. The panel's own is the one exception; the firewall keeps it shut."""
    published = {
        (name, port["PublishedPort"])
        for name, spec in swarm_services(found).items()
        for port in spec.get("EndpointSpec", {}).get("Ports", [])
    }
    allowed = {("traefik", port) for port in declared["firewall_public_tcp_ports"]}
    assert published <= allowed | {("easypanel", 3000)}


def test_the_panel_is_pinned_and_taken(declared: dict[str, Any], found: dict[str, Any]) -> None:
    """The panel's API changes between versions; a panel without an admin belongs to its first visitor."""
    image = swarm_services(found)["easypanel"]["TaskTemplate"]["ContainerSpec"]["Image"]
    assert image.split("@")[0] == declared["easypanel_image"]
    assert found["panel_version"] == declared["easypanel_version"]
    assert found["panel_setup"] == {"isComplete": True}


def test_secrets_on_the_host_are_root_s_alone(
    declared: dict[str, Any], found: dict[str, Any]
) -> None:
    """The panel's token is root on this host."""
    assert found["modes"]["/etc/cimt"] == "0:0 0700"
    assert found["modes"][declared["easypanel_token_file"]] == "0:0 0600"


def test_every_declared_app_runs_as_declared(
    declared: dict[str, Any], found: dict[str, Any]
) -> None:
    """Swarm's own view: replicas, limits, order of updates and environment."""
    services = swarm_services(found)
    for app in declared["services_apps"]:
        name = f"{declared['services_project']}_{app['name']}"
        assert name in services, (
            f"{name} was never released. Next: make deploy SERVICE={app['name']}"
        )
        spec = services[name]
        task = spec["TaskTemplate"]
        assert spec["UpdateConfig"]["Order"] == (
            "start-first" if app["zero_downtime"] else "stop-first"
        )
        limits = task["Resources"]["Limits"]
        assert limits.get("MemoryBytes", 0) == app["resources"]["memoryLimit"] * 2**20
        assert limits.get("NanoCPUs", 0) == app["resources"]["cpuLimit"] * 10**9
        assert {f"{key}={value}" for key, value in app["env"].items()} <= set(
            task["ContainerSpec"].get("Env", [])
        )
        running = [
            item
            for item in found["tasks"]
            if item["Name"].rpartition(".")[0] == name
            and item["CurrentState"].startswith("Running")
        ]
        assert len(running) == app["replicas"]


def test_what_runs_is_what_the_ledger_says(declared: dict[str, Any], found: dict[str, Any]) -> None:
    """An image that no release put there is a change that nobody reviewed."""
    assert found["inflight"] == [], "a release was cut short. Next: make deploy again"
    live = {
        entry["service"]: entry
        for entry in map(json.loads, found["ledger"].splitlines())
        if entry["result"] == "live"
    }
    for app in declared["services_apps"]:
        if app["released"]:
            name = f"{declared['services_project']}_{app['name']}"
            running = swarm_services(found)[name]["TaskTemplate"]["ContainerSpec"]["Image"]
            assert running == live[app["name"]]["to"]


def test_there_is_room_for_the_next_release(
    declared: dict[str, Any], found: dict[str, Any]
) -> None:
    """A release is refused below this; it should be seen before that."""
    assert found["free_disk_mb"] > 2 * declared["release_min_free_mb"]
    assert found["available_memory_mb"] > 128


@pytest.mark.parametrize("folder", [path.name for path in (ROOT / "roles").iterdir()])
def test_every_role_is_audited(folder: str) -> None:
    """A new role without an expectation here would pass unseen."""
    text = (ROOT / "playbooks/audit.yml").read_text()
    assert folder in text.split("roles: [")[1].split("]")[0].split(", ")
