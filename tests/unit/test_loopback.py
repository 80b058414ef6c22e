"""`docker compose up n8n` in a clone: what Docker Compose itself makes of compose.yaml."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.compose import loopback_project

ROOT = Path(__file__).parents[2]
DECLARED = yaml.safe_load((ROOT / "services/compose.yaml").read_text())["services"]["n8n"]
# What plain HTTP on loopback needs, and nothing else, differs from production.
LOOPBACK = {
    "N8N_HOST": "127.0.0.1",
    "N8N_PROTOCOL": "http",
    "N8N_WEBHOOK_URL": "http://127.0.0.1:5678/",
    "N8N_EDITOR_BASE_URL": "http://127.0.0.1:5678/",
    "N8N_PROXY_HOPS": "0",
    "N8N_SECURE_COOKIE": "false",
    "N8N_INSTANCE_OWNER_MANAGED_BY_ENV": "false",
    "TZ": "UTC",
    "GENERIC_TIMEZONE": "UTC",
}
LEFT_OUT = {
    "N8N_ENCRYPTION_KEY",  # n8n makes its own
    "N8N_INSTANCE_OWNER_EMAIL",
    "N8N_INSTANCE_OWNER_PASSWORD_HASH",
}


def test_it_is_the_declared_n8n_but_for_what_loopback_needs() -> None:
    project = loopback_project()
    assert set(project["services"]) == {"n8n"}
    given: dict[str, Any] = project["services"]["n8n"]["environment"]
    assert {name: given[name] for name in LOOPBACK} == LOOPBACK
    same = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in DECLARED["environment"].items()
        if name not in LOOPBACK.keys() | LEFT_OUT
    }
    assert given == same | LOOPBACK


def test_only_this_machine_reaches_it_and_the_volume_is_kept() -> None:
    project = loopback_project()
    n8n = project["services"]["n8n"]
    (port,) = n8n["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "5678", 5678)
    assert n8n["build"]["context"] == str(ROOT / "services/n8n")
    (volume,) = n8n["volumes"]
    assert (volume["source"], volume["target"]) == ("n8n", "/home/node/.n8n")
    assert project["volumes"] == {"n8n": {"name": "cimt_n8n"}}


def test_production_settings_of_the_shell_change_nothing() -> None:
    names = re.findall(r"\$\{(\w+)", (ROOT / "services/compose.yaml").read_text())
    # OTEL_… are Compose's own too: it would send traces.
    production = {
        name: "production" for name in names if not name.startswith(("OTEL_", "TIMEZONE"))
    }
    assert len(production) > 15
    assert loopback_project(**production) == loopback_project()


def test_a_variable_that_the_example_does_not_name_is_told(tmp_path: Path) -> None:
    """The judge is awake: this is the warning that `loopback_project` would not let pass."""
    (tmp_path / "compose.yaml").write_text("services: {n8n: {image: 'x:${NOT_SAID}'}}\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("docker-compose"), "config", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "NOT_SAID" in done.stderr
    with pytest.raises(AssertionError):
        loopback_project(tmp_path)
