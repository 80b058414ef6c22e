"""Module config_set of role baseline, where it validates a candidate: in a mount namespace of its own."""

from pathlib import Path
from typing import Any

import pytest

from testbed.host import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_candidate_is_validated_in_its_place_and_nothing_changes_when_it_is_wrong(
    machine: Machine,
) -> None:
    path = machine.home / "etc" / "a.conf"
    files: list[dict[str, Any]] = [
        {"path": str(path), "content": "wrong\n"},
        {"path": str(machine.home / "old"), "absent": True},
    ]
    (machine.home / "old").write_text("old\n")
    sees = {"argv": ["cat", str(path)], "prints": ["right"]}
    gone = {"argv": ["sh", "-c", f"! test -e {machine.home}/old"], "message": "old is still there"}
    for check in (True, False):
        answer = machine.config_set(check=check, files=files, validate=[gone, sees])
        assert answer["failed"]
        assert "it does not print: right" in answer["msg"]
        assert not path.exists()
        assert (machine.home / "old").exists()
    files[0]["content"] = "right\n"
    assert machine.config_set(files=files, validate=[gone, sees])["changed"]
    assert path.read_text() == "right\n"


def test_a_missing_validator_fails_for_real_and_is_reported_in_check_mode(machine: Machine) -> None:
    entry = {"path": str(machine.home / "a"), "content": "a\n"}
    validate = [{"argv": ["no-such-program"]}]
    assert machine.config_set(check=True, files=[entry], validate=validate)["not_validated"] == [
        "no-such-program"
    ]
    assert machine.config_set(files=[entry], validate=validate)["failed"]
    assert not (machine.home / "a").exists()
