"""Role ssh: the settings in effect, with every file read, not the file that we wrote."""

from __future__ import annotations

from typing import Any

import pytest

from tools.declared import Declared, files_of
from tools.host import door


@pytest.fixture
def effective(collected: dict[str, Any]) -> dict[str, list[str]]:
    """`sshd -T`: every value of a setting, by its lower-case name."""
    assert collected["sshd"]["code"] == 0, collected["sshd"]["err"]
    result: dict[str, list[str]] = {}
    for line in collected["sshd"]["out"].splitlines():
        name, _, value = line.partition(" ")
        result.setdefault(name, []).append(value)
    return result


def as_sshd_says(declared: Declared) -> str:
    """PermitRootLogin by its older name, which `sshd -T` prints."""
    return str(declared["ssh_permit_root_login"]).replace("prohibit-password", "without-password")


def test_only_keys_open_the_door(declared: Declared, effective: dict[str, list[str]]) -> None:
    """Passwords are guessed all day long on every public address."""
    wanted = {
        "passwordauthentication": ["no"],
        "kbdinteractiveauthentication": ["no"],
        "permitemptypasswords": ["no"],
        "authenticationmethods": ["publickey"],
        "permitrootlogin": [as_sshd_says(declared)],
        "pubkeyauthentication": ["yes"],
    }
    assert {name: effective.get(name) for name in wanted} == wanted


@pytest.mark.droplet
def test_the_pipelines_door_is_the_one_of_this_repository(
    declared: Declared, collected: dict[str, Any]
) -> None:
    """What its program does there, as root, is all that the pipeline's key can do."""
    if not declared["door_public_keys"]:
        return
    there = collected["digests"][declared["door_program"]]
    assert there == door.program(), "Next: make provision"


def test_what_we_say_is_what_sshd_does(declared: Declared, effective: dict[str, list[str]]) -> None:
    """Of each setting sshd takes the first value it reads: a file before ours would count more than ours."""
    ours = next(
        item["content"]
        for item in files_of(declared.sets()["ssh"])
        if item["path"] == "/etc/ssh/sshd_config.d/00-cimt.conf"
    )
    wanted: dict[str, list[str]] = {}
    for line in ours.splitlines():
        if line.strip() and not line.startswith("#"):
            name, value = line.split(maxsplit=1)
            wanted.setdefault(name.lower(), []).append(value)
    wanted["permitrootlogin"] = [as_sshd_says(declared)]
    assert {name: effective.get(name) for name in wanted} == wanted


def test_host_keys_are_the_declared_types_and_private(
    declared: Declared, effective: dict[str, list[str]], collected: dict[str, Any]
) -> None:
    """Who reads the host key can pretend to be the droplet."""
    keys = [f"/etc/ssh/ssh_host_{kind}_key" for kind in declared["ssh_host_key_types"]]
    assert effective["hostkey"] == keys
    assert {key: collected["files"][key]["mode"] for key in keys} == dict.fromkeys(keys, "0600")


@pytest.mark.logs("ssh.service")
def test_sshd_comes_back_after_a_boot(collected: dict[str, Any]) -> None:
    """The server, or on Ubuntu 24.04 the socket that starts it: without it a reboot locks everybody out."""
    unit = collected["units"]["ssh.service"]
    assert unit["ActiveState"] == "active"
    assert (
        unit["UnitFileState"] in ("enabled", "indirect") or unit.get("TriggeredBy") == "ssh.socket"
    )
