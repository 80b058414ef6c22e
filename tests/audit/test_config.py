"""Files, units and packages of every role, straight from the arguments that the role's tasks would use now.

A role that installs something by `config_set` or `package_set` is audited from its first day.
"""

from __future__ import annotations

import difflib
import fnmatch
from typing import Any

from tools.declared import Declared, files_of


def expected(item: dict[str, Any]) -> dict[str, str]:
    """What config_set would make of one of its files, in the shape of collect.py."""
    if item.get("absent"):
        return {"kind": "absent"}
    if item.get("directory"):
        return {"kind": "directory", "owner": "0:0", "mode": item.get("mode", "0755")}
    if item.get("link"):
        return {"kind": "link", "owner": "0:0", "content": item["link"]}
    mode = item.get("mode", "0644")
    content = {"content": item["content"]} if "content" in item else {}  # a secret is not looked at
    return {"kind": "file", "owner": "0:0", "mode": mode, **content}


def test_files_are_what_the_role_would_write_now(
    set_name: str, declared: Declared, collected: dict[str, Any]
) -> None:
    """A file that somebody edited on the host lasts until the next provision, and then surprises everybody."""
    problems = []
    for item in files_of(declared.sets()[set_name]):
        wanted, there = expected(item), collected["files"][item["path"]]
        for key, value in wanted.items():
            if there.get(key) == value:
                continue
            if key == "content" and there.get("content"):
                diff = difflib.unified_diff(
                    value.splitlines(),
                    there["content"].splitlines(),
                    "declared",
                    "on the droplet",
                    lineterm="",
                    n=1,
                )
                problems.append(f"{item['path']}:\n" + "\n".join(diff))
            else:
                problems.append(f"{item['path']}: {key} is {there.get(key)}, declared: {value}")
    assert not problems, "\n".join([*problems, "Next: make plan, then make provision"])


def test_units_run_and_come_back_after_a_boot(
    set_name: str, declared: Declared, collected: dict[str, Any]
) -> None:
    """What is only started is gone after the next reboot; what is only enabled never started."""
    units = {unit: collected["units"][unit] for unit in declared.sets()[set_name].get("units", [])}
    wrong = [
        f"{unit}: {shown['ActiveState']}, {shown['UnitFileState'] or 'not there'}"
        for unit, shown in units.items()
        if shown["ActiveState"] != "active" or shown["UnitFileState"] not in ("enabled", "static")
    ]
    assert not wrong, "\n".join([*wrong, "Next: make provision"])


def test_no_unit_is_altered_beside_its_file(
    set_name: str, declared: Declared, collected: dict[str, Any]
) -> None:
    """`systemctl edit` leaves the file as it is and says something else beside it; another role of ours may, too."""
    paths = {item["path"] for arguments in declared.sets().values() for item in files_of(arguments)}
    beside = {
        path
        for unit in declared.sets()[set_name].get("units", [])
        for path in collected["units"][unit].get("DropInPaths", "").split()
        if path.startswith("/etc/")
    }
    assert beside - paths == set(), "Next: make ssh, then: sudo systemctl revert UNIT"


def test_no_change_is_still_on_trial(collected: dict[str, Any]) -> None:
    """A change that nobody confirmed takes itself back: the next boot would have other rules than now."""
    assert collected["trials"] == []


def test_packages_are_the_declared_ones(declared: Declared, collected: dict[str, Any]) -> None:
    """A daemon that updates itself at night restarts every app: what is pinned is also held."""
    problems = []
    for name, wanted in declared.packages().items():
        there = collected["packages"].get(name, {"status": "not installed", "version": ""})
        if there["status"][1:2] != "i":
            problems.append(f"{name}: {there['status']}")
        elif wanted["version"] and not fnmatch.fnmatchcase(there["version"], wanted["version"]):
            problems.append(f"{name}: version {there['version']}, declared: {wanted['version']}")
        if wanted["hold"] and not there["status"].startswith("h"):
            problems.append(f"{name}: not held")
    assert problems == []
