"""Who gets in, and who may be root: nobody but those that inventory and roles name."""

from __future__ import annotations

from typing import Any

import pytest

from tools.declared import Declared


@pytest.fixture
def people(declared: Declared) -> set[str]:
    """The admin, the pipeline's account, and root, whose login sshd refuses."""
    named = (declared["ansible_user"], declared["droplet_user"], declared["door_user"])
    return {"root", *filter(None, named)}


def test_nobody_else_gets_in(people: set[str], collected: dict[str, Any]) -> None:
    """An account with a key or a password is a door, and stays one when the person has left."""
    strangers = set(collected["access"]["let_in"]) - people
    assert strangers == set(), f"Next: make ssh, then: sudo deluser --remove-home {min(strangers)}"


def test_nobody_else_may_be_root(people: set[str], collected: dict[str, Any]) -> None:
    """By number, by sudo, or by a group that opens Docker, the disk or the passwords."""
    access = collected["access"]
    assert access["root"] == ["root"]
    by_sudo = set(access["by_sudo"]) - people
    assert by_sudo == set(), "Next: make ssh, then look into /etc/sudoers.d and at the group sudo"
    by_group = {
        f"{name} in {group}"
        for group, names in access["by_group"].items()
        for name in set(names) - people
    }
    assert by_group == set(), "Next: make ssh, then: sudo gpasswd --delete NAME GROUP"


def test_no_file_of_sshd_makes_an_exception(collected: dict[str, Any]) -> None:
    """A Match block goes before every setting that the audit reads, for whom and from where it says."""
    assert collected["access"]["exceptions"] == []
