"""services/memory.yaml: what compose.yaml and the roles' units may take at the worst moment fits a 2 GB droplet."""

from __future__ import annotations

import pathlib
import re

import yaml

from plugins.filter import compose

ROOT = pathlib.Path(__file__).parents[2]
TABLE = yaml.safe_load((ROOT / "services/memory.yaml").read_text())
COMPOSE = (ROOT / "services/compose.yaml").read_text()
REPLICAS = {
    name: app["deploy"]["replicas"] for name, app in yaml.safe_load(COMPOSE)["services"].items()
}
JOBS = {name: limit for row in TABLE["jobs"] for name, limit in row.items()}


def test_the_table_says_what_apps_and_units_are_limited_to() -> None:
    values = {name: name for name in re.findall(r"\$\{(\w+)", COMPOSE)}
    apps = {
        app["name"]: {
            "limit": app["resources"]["memoryLimit"],
            "twice": app["zero_downtime"],
        }
        for app in compose.panel_apps(COMPOSE, values)["apps"]
    }
    assert apps == TABLE["apps"]
    roles = ROOT / "roles"
    timers = {path.name.removesuffix(".timer.j2") for path in roles.rglob("*.timer.j2")}
    units = {
        path.name.removesuffix(".j2"): path.read_text() for path in roles.rglob("*.service.j2")
    }
    limits = {
        name: int(limit[1])
        for name, text in units.items()
        if (limit := re.search(r"^MemoryMax=(\d+)M$", text, re.MULTILINE))
    }
    assert limits == JOBS
    assert {f"{timer}.service" for timer in timers} <= limits.keys(), (
        "what starts by itself has a limit"
    )
    baseline = yaml.safe_load((roles / "baseline/defaults/main.yml").read_text())
    assert baseline["baseline_swap_mb"] == TABLE["swap"]


def test_the_worst_moment_fits() -> None:
    limits = {name: app["limit"] * REPLICAS[name] for name, app in TABLE["apps"].items()}
    second = max(limits[name] for name, app in TABLE["apps"].items() if app["twice"])
    worst = sum(limits.values()) + second + sum(max(row.values()) for row in TABLE["jobs"])
    assert sum(limits.values()) <= TABLE["most"], "without a release and a job nothing swaps"
    assert worst <= TABLE["most"] + TABLE["swap"]
    text = (ROOT / "docs/operations/alarms.md").read_text()
    shown = {name: app["limit"] for name, app in TABLE["apps"].items()} | JOBS
    assert {
        name: int(limit)
        for name, limit in re.findall(r"^\| `([\w.-]+)` \| (\d+) \|", text, re.MULTILINE)
    } == shown
    assert f"{worst} of {TABLE['most'] + TABLE['swap']} MB" in text
