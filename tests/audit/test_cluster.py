"""Role cluster: the nodes that the inventory names, and every app where it may be."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.filter.compose import app_placements
from tools.declared import Declared

pytestmark = pytest.mark.droplet


def test_every_node_of_the_inventory_is_there(
    declared: Declared, collected: dict[str, Any]
) -> None:
    """One that is lost or empty is found here, before the other one is needed."""
    nodes = collected["docker"]["nodes"]
    assert len(nodes) == len(declared["cluster_nodes"]), nodes
    wrong = [one for one in nodes if (one["state"], one["availability"]) != ("ready", "active")]
    assert wrong == [], "Next: make nodes"
    if len(nodes) > 1:
        wanted = [*declared["firewall_cluster_peers"], declared["cluster_address"]]
        assert sorted(one["address"] for one in nodes) == sorted(wanted)


@pytest.mark.logs("cimt-placement.service")
def test_apps_are_kept_on_their_nodes(declared: Declared, collected: dict[str, Any]) -> None:
    """The panel forgets it with each deploy. Elsewhere an app with a volume starts nothing."""
    if len(declared["cluster_nodes"]) < 2:
        return
    wanted = app_placements(declared.apps(), declared["services_project"])
    there = {one["name"]: sorted(one["constraints"]) for one in collected["docker"]["services"]}
    assert {name: there.get(name) for name in wanted} == wanted
    managers = {one["id"] for one in collected["docker"]["nodes"] if one["role"] == "manager"}
    names = {one["id"]: one["name"] for one in collected["docker"]["services"]}
    astray = [
        names[task["service"]]
        for task in collected["docker"]["tasks"]
        if task["state"] == "running"
        and "node.role==manager" in wanted.get(names.get(task["service"], ""), [])
        and task["node"] not in managers
    ]
    assert astray == []
