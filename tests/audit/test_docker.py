"""Role docker: the pinned engine, bounded logs, and no port that nobody declared."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest

from tools.declared import Declared


@pytest.mark.logs("docker.service")
def test_the_engine_is_in_the_swarm(declared: Declared, collected: dict[str, Any]) -> None:
    """The panel runs every app as a service of Swarm; with a locked manager, or none, nothing starts."""
    docker = collected["docker"]
    assert "error" not in docker, docker.get("error")
    manager = declared["inventory_hostname"] == declared["cluster_manager"]
    assert (docker["swarm"]["state"], docker["swarm"]["manager"]) == ("active", manager)
    if len(declared["cluster_nodes"]) > 1:
        assert docker["swarm"]["address"] == declared["cluster_address"]
    if declared["docker_source"] == "upstream":
        assert docker["version"] == declared["docker_version"]


def test_logs_of_every_container_are_bounded(declared: Declared, collected: dict[str, Any]) -> None:
    """One talkative app fills the disk. A container keeps the settings that it was started with."""
    limit = {
        "max-size": declared["docker_log_max_size"],
        "max-file": str(declared["docker_log_max_files"]),
    }
    wrong = {
        container["name"]: container["log"]
        for container in collected["docker"]["containers"]
        if {key: container["log"]["Config"].get(key) for key in limit} != limit
    }
    assert wrong == {}, (
        "started before the limits were set. Next: docker service update --force NAME"
    )


@pytest.mark.droplet
def test_no_port_is_published_beyond_the_declared(
    declared: Declared, collected: dict[str, Any]
) -> None:
    """Docker opens ports by itself. The panel's own is the one exception; the firewall keeps it shut (test_outside)."""
    panel = int(declared["easypanel_url"].rpartition(":")[2])
    declared_ports = {("tcp", port) for port in declared["firewall_public_tcp_ports"]} | {
        ("udp", port) for port in declared["firewall_public_udp_ports"]
    }
    published = {
        (service["name"], protocol, port)
        for service in collected["docker"]["services"]
        for protocol, port in service["ports"]
    }
    allowed = {(protocol, port) for protocol, port in declared_ports} | {("tcp", panel)}
    assert {item for item in published if item[1:] not in allowed} == set()
    assert {name for name, _, port in published if port == panel} <= {"easypanel"}
    bound = {
        (container["name"], port)
        for container in collected["docker"]["containers"]
        for port in container["ports"]
        if port not in {port for _, port in allowed}
    }
    assert bound == set()


def test_no_container_rules_the_host(collected: dict[str, Any]) -> None:
    """A privileged container is root on the droplet."""
    assert [item["name"] for item in collected["docker"]["containers"] if item["privileged"]] == []


def test_no_container_network_hides_a_network_of_the_host(collected: dict[str, Any]) -> None:
    """An app cannot reach what its own network covers: a registry, a database or a private network of the provider."""
    outside = [
        ipaddress.ip_interface(text).network for text in collected["host_networks"]["addresses"]
    ]
    outside += [ipaddress.ip_network(text) for text in collected["host_networks"]["gateways"]]
    hidden = {
        name: [str(other) for other in outside if other.version == 4 and other.overlaps(subnet)]
        for name, subnets in collected["docker"]["networks"].items()
        for subnet in map(ipaddress.ip_network, subnets)
        if subnet.version == 4
    }
    assert {name: others for name, others in hidden.items() if others} == {}


@pytest.mark.droplet
def test_disk_has_room(declared: Declared, collected: dict[str, Any]) -> None:
    """A release is refused below its limit: this is seen before."""
    need = 2 * declared["release_min_free_mb"]
    docker_root = collected["docker"].get("root", "/")
    assert collected["room"][docker_root]["free_mb"] >= need, (
        "Next: docker image prune --all --filter until=168h"
    )
    short = {
        path: room for path, room in collected["room"].items() if room["free_inodes_percent"] < 10
    }
    assert json.dumps(short) == "{}"
