"""Every role says what it takes: the keys of its defaults and of its argument specification are the same."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = sorted(
    path for path in (Path(__file__).parents[2] / "roles").iterdir() if (path / "tasks").is_dir()
)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def options(role: Path) -> dict[str, dict[str, Any]]:
    """The options of all entry points of a role."""
    entry_points = read(role / "meta" / "argument_specs.yml")["argument_specs"].values()
    return {name: spec for entry in entry_points for name, spec in entry.get("options", {}).items()}


def test_there_are_roles() -> None:
    assert {"baseline", "ssh", "firewall", "docker"} <= {role.name for role in ROLES}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_and_specification_name_the_same_variables(role: Path) -> None:
    assert sorted(read(role / "defaults" / "main.yml")) == sorted(options(role))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_public_variables_carry_the_name_of_their_role(role: Path) -> None:
    assert [name for name in options(role) if not name.startswith(f"{role.name}_")] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_option_has_a_type_and_a_description(role: Path) -> None:
    assert [
        name for name, spec in options(role).items() if not {"type", "description"} <= set(spec)
    ] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_default_is_used(role: Path) -> None:
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in role.rglob("*")
        if path.suffix in {".yml", ".j2"}
        and path.parent.name in {"tasks", "templates", "handlers", "vars"}
    )
    defaults = read(role / "defaults" / "main.yml")
    own = "".join(str(value) for value in defaults.values())  # a default may be made of another
    assert [name for name in defaults if name not in text and name not in own] == []
