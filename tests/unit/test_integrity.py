"""What the nightly comparison of files takes as explained, in a directory that stands for dpkg's."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "roles/hardening/files/integrity.py"
REPORT = """AIDE found differences between database and filesystem!!

Summary:
  Total number of entries:\t31
---------------------------------------------------
Added entries:
---------------------------------------------------

f++++++++++++++++: /usr/local/bin/door
f++++++++++++++++: /usr/lib/modules/6.12.1/modules.dep

---------------------------------------------------
Changed entries:
---------------------------------------------------

f >.... . H  . . : /usr/bin/tool
f =.... . H  . . : /usr/bin/other
d =.... n .  . . : /etc/a: b
"""


@pytest.fixture
def integrity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module; `tool` and `other` came with a package that was installed after the last night."""
    spec = importlib.util.spec_from_file_location("integrity", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "tools.list").write_text("/.\n/bin/tool\n/usr/bin/other\n")
    monkeypatch.setattr(module, "LISTS", tmp_path)
    altered = "??5??????   /usr/bin/other\n"
    monkeypatch.setattr(
        module.subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, 1, stdout=altered),
    )
    return module


def test_every_path_of_a_report_is_read(integrity: Any) -> None:
    assert set(integrity.LISTED.findall(REPORT)) == {
        "/usr/local/bin/door",
        "/usr/lib/modules/6.12.1/modules.dep",
        "/usr/bin/tool",
        "/usr/bin/other",
        "/etc/a: b",
    }


def test_an_update_explains_what_it_brought_and_nothing_that_was_altered_since(
    integrity: Any, tmp_path: Path
) -> None:
    found = set(integrity.LISTED.findall(REPORT))
    explained = integrity.explained(found, 0.0)
    assert found - explained == {"/usr/local/bin/door", "/usr/bin/other", "/etc/a: b"}


def test_without_an_update_nothing_is_explained(integrity: Any, tmp_path: Path) -> None:
    os.utime(tmp_path / "tools.list", (100, 100))
    assert integrity.explained({"/usr/bin/tool"}, 200.0) == set()
