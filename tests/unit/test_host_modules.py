"""The modules of role baseline, which the other host roles use too: run for real, below a temporary directory."""

import bz2
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from plugins.modules import package_set
from testbed import modules
from testbed.host import Machine

# A key made for this test, and its fingerprint in GnuPG's words.
KEY = """\
-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawTuTRYJKwYBBAHaRw8BAQdAxU4Wo3HAaTV0aGa0G0K7Ug7mccnpQ7GONAbY
yfL9yu60F3Rlc3QgPHRlc3RAZXhhbXBsZS5jb20+iJAEExYIADgWIQRgz23u0/V9
e+P1tMbXfGkayXyoMQUCawTuTQIbAwULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAK
CRDXfGkayXyoMU3qAQCqs0AmT/KH8y6P0Ef0vGris0ZCrgqg5wSLDweTjBSdbgD/
SIv+hBfGnq2PmokzRUmfp04i5g7hig4euAB4smktngw=
=sCpt
-----END PGP PUBLIC KEY BLOCK-----
"""
FINGERPRINT = "60CF6DEED3F57D7BE3F5B4C6D77C691AC97CA831"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_set_is_installed_once(machine: Machine) -> None:
    log = machine.home / "log"
    files: list[dict[str, Any]] = [
        {"path": str(machine.home / "etc/a.conf"), "content": "a\n", "mode": "0640"},
        {"path": str(machine.home / "etc/link"), "link": "a.conf"},
        {"path": str(machine.home / "run"), "directory": True, "mode": "0750"},
    ]
    activate = [["sh", "-c", f"cat {machine.home}/etc/link >> {log}"]]
    checked = machine.config_set(check=True, files=files, activate=activate)
    assert checked["changed"]
    assert [part["after"] for part in checked["diff"]] == ["a\n", "-> a.conf\n", "directory\n"]
    assert not (machine.home / "etc").exists()
    assert machine.config_set(files=files, activate=activate)["changed"]
    assert (machine.home / "etc/a.conf").stat().st_mode & 0o7777 == 0o640
    assert (machine.home / "run").stat().st_mode & 0o7777 == 0o750
    assert not machine.config_set(files=files, activate=activate)["changed"]
    assert log.read_text() == "a\n", "activated exactly once, with every file in place"


def test_a_changed_mode_is_a_change_and_absent_removes(machine: Machine) -> None:
    path = machine.home / "a"
    entry = {"path": str(path), "content": "a\n"}
    machine.config_set(files=[entry])
    path.chmod(0o666)
    assert machine.config_set(files=[entry])["changed"]
    assert path.stat().st_mode & 0o7777 == 0o644
    assert machine.config_set(files=[{"path": str(path), "absent": True}])["changed"]
    assert not path.exists()


def test_a_file_of_another_owner_is_a_change(machine: Machine) -> None:
    """Whoever owns a file can write it, whatever its mode."""
    entry = {"path": str(machine.home / "a"), "content": "a\n"}
    machine.config_set(files=[entry])
    user, group = machine.owner
    for machine.owner in ((user + 1, group), (user, group + 1)):
        assert machine.config_set(check=True, files=[entry])["changed"]


def test_what_is_absent_has_no_mode(machine: Machine) -> None:
    """A role that takes its files away keeps their modes in the list."""
    item = {"path": str(machine.home / "gone"), "absent": True, "mode": "0755", "content": None}
    assert machine.config_set(files=[item])["changed"] is False


def test_a_secret_is_for_root_only_and_shown_nowhere(machine: Machine) -> None:
    path = machine.home / "key"
    answers = []
    for text, check in (("first-secret", True), ("first-secret", False), ("second-secret", False)):
        answers.append(machine.config_set(secret_files={str(path): text}, check=check))
        assert path.exists() is not check
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("second-secret", 0o600)
    assert machine.config_set(secret_files={str(path): "second-secret"})["changed"] is False
    answers.append(machine.config_set(secret_files={str(path): ""}))
    assert not path.exists()
    assert [answer["changed"] for answer in answers] == [True] * 4
    assert [answer["diff"][0]["before"] for answer in answers] == [
        "",
        "",
        "(hidden)\n",
        "(hidden)\n",
    ]
    assert "-secret" not in json.dumps([answer["diff"] for answer in answers])


def test_a_failed_activation_puts_the_old_files_back_and_in_force(machine: Machine) -> None:
    path, force, new = machine.home / "a", machine.home / "in-force", machine.home / "new"
    activate = [["sh", "-c", f"cp {path} {force}; ! grep bad {path}"]]
    machine.config_set(files=[{"path": str(path), "content": "good\n"}], activate=activate)
    files = [{"path": str(path), "content": "bad\n"}, {"path": str(new), "content": "new\n"}]
    answer = machine.config_set(files=files, activate=activate)
    assert answer["failed"]
    assert answer["msg"].endswith("The previous configuration was put back.")
    assert (path.read_text(), force.read_text(), new.exists()) == ("good\n", "good\n", False)


def test_what_is_in_force_is_set_right_when_something_else_changed_it(machine: Machine) -> None:
    live = machine.home / "live"
    params: dict[str, Any] = {
        "files": [{"path": str(machine.home / "a"), "content": "a\n"}],
        "activate": [["sh", "-c", f"echo wanted > {live}"]],
        "observe": ["cat", str(live)],
    }
    machine.config_set(**params)
    assert not machine.config_set(**params)["changed"]
    live.write_text("meddled\n")
    drift = machine.config_set(check=True, **params)
    assert (drift["diff"][0]["before"], drift["diff"][0]["after"]) == ("meddled\n", "wanted\n")
    assert machine.config_set(**params)["changed"]
    assert live.read_text() == "wanted\n"


def trial(machine: Machine, content: str) -> dict[str, Any]:
    return machine.config_set(
        files=[{"path": str(machine.home / "a"), "content": content}],
        activate=[["systemctl", "reload", "sample"]],
        trial_seconds=60,
    )


def test_a_trial_ends_with_the_old_files_unless_confirmed(machine: Machine) -> None:
    assert trial(machine, "first\n")["on_trial"]
    assert "--on-active=60s" in machine.asked.read_text()
    assert not machine.config_set(state="confirmed").get("failed")
    trial(machine, "second\n")
    machine.asked.write_text("")
    assert machine.restore() == 0
    assert (machine.home / "a").read_text() == "first\n"
    assert "systemctl reload sample" in machine.asked.read_text()
    late = machine.config_set(state="confirmed")
    assert "the trial ended before it was confirmed" in late["msg"]


def test_a_reboot_during_a_trial_restores_without_touching_services(machine: Machine) -> None:
    trial(machine, "first\n")
    machine.asked.write_text("")
    assert machine.restore("boot") == 0
    assert not (machine.home / "a").exists()
    assert "reload sample" not in machine.asked.read_text()


def test_a_run_that_died_on_trial_is_begun_again(machine: Machine) -> None:
    trial(machine, "first\n")
    assert trial(machine, "first\n")["changed"], "not yet confirmed, so not yet done"
    assert not machine.config_set(state="confirmed").get("failed")
    assert not trial(machine, "first\n")["changed"]


def test_an_entry_says_exactly_one_thing(machine: Machine) -> None:
    answer = machine.config_set(files=[{"path": "/a", "content": "a", "link": "b"}])
    assert "exactly one of content, link, directory, absent" in answer["msg"]


DPKG = "docker.io\thi \t26.1.5-1\ncurl\tii \t8.14\nold\trc \t1\nhalf\tiF \t1\nagain\tiHR\t1\n"


def test_packages_that_are_missing_or_of_another_version() -> None:
    installed = package_set.parse_dpkg(DPKG)
    wanted = ["curl", "docker.io=26.1.*", "docker.io=28.*", "old", "never-heard-of"]
    assert package_set.wanting(wanted, installed) == ["docker.io=28.*", "old", "never-heard-of"]


def test_packages_left_half_way_and_which_must_be_unpacked_again() -> None:
    assert package_set.half_way(package_set.parse_dpkg(DPKG)) == {"half": False, "again": True}


def test_a_signing_key_is_known_by_its_fingerprint() -> None:
    assert package_set.fingerprints(KEY) == [FINGERPRINT]
    with pytest.raises(ValueError, match="not an armored OpenPGP key"):
        package_set.fingerprints("<html>not found</html>")


def test_a_release_of_restic_is_installed_once_and_only_by_its_checksum(tmp_path: Path) -> None:
    archive = bz2.compress(b"#!/bin/sh\n")
    (tmp_path / "restic.bz2").write_bytes(archive)
    path = tmp_path / "restic"
    wanted = {"url": (tmp_path / "restic.bz2").as_uri(), "path": str(path)}
    module = "roles.backup.library.backup_restic"
    right = {**wanted, "sha256": hashlib.sha256(archive).hexdigest()}
    assert "has SHA-256" in modules.run(module, {**wanted, "sha256": "0" * 64})["msg"]
    assert modules.run(module, {**right, "_ansible_check_mode": True})["changed"]
    assert not path.exists()
    assert modules.run(module, right)["changed"]
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"#!/bin/sh\n", 0o755)
    assert not modules.run(module, right)["changed"]
