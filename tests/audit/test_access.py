"""Who gets in, and who may be root: nobody but those that inventory and roles name."""

from __future__ import annotations

from typing import Any

import pytest

from tools.declared import Declared


@pytest.fixture
def people(declared: Declared) -> set[str]:
    """The admin, the pipeline's account where there is a door, and root, whose login sshd refuses."""
    named = (declared["ansible_user"], declared["droplet_user"], declared.get("door_user"))
    return {"root", *filter(None, named)}


def test_nobody_else_gets_in(people: set[str], collected: dict[str, Any]) -> None:
    """An account with a key or a password is a door, and stays one when the person has left."""
    strangers = set(collected["access"]["let_in"]) - people
    assert strangers == set(), f"Next: make ssh, then: sudo deluser --remove-home {min(strangers)}"


def test_nobody_else_may_be_root(people: set[str], collected: dict[str, Any]) -> None:
    """By number, by sudo, or by a group that opens Docker, the disk or the passwords."""
    access = collected["access"]
    ways = {
        "number 0": access["root"],
        "sudo": access["by_sudo"],
        **{f"group {name}": names for name, names in access["by_group"].items()},
    }
    strangers = [
        f"{name}, by {way}" for way, names in ways.items() for name in names if name not in people
    ]
    assert not strangers, "\n".join([*strangers, "Next: make ssh, then: sudo visudo, vipw or vigr"])


def test_no_file_of_sshd_makes_an_exception(collected: dict[str, Any]) -> None:
    """A Match block goes before every setting that the audit reads, for whom and from where it says."""
    assert collected["access"]["exceptions"] == []
