"""Each inventory by itself: a bare `ansible-playbook -i inventory/… playbooks/…`, as somebody without make types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from plugins.filter import settings

ROOT = Path(__file__).parents[2]
DECLARED = yaml.safe_load((ROOT / "services/settings.yaml").read_text())
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))


def playbook(path: Path, environment: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run it as somebody whose shell has set nothing but this."""
    program = Path(sys.executable).with_name("ansible-playbook")
    return subprocess.run(
        [program, "-i", f"inventory/{environment}", f"playbooks/{path.name}"],
        cwd=ROOT,
        env={"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(home)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.stem)
def test_production_names_all_that_is_missing_at_once(path: Path, tmp_path: Path) -> None:
    play, *_ = yaml.safe_load(path.read_text())
    done = playbook(path, "production", tmp_path)
    told = " ".join(done.stdout.split())
    assert done.returncode != 0
    for name, what in settings.needed(DECLARED)[play["vars"]["preflight_for"]].items():
        assert f"{name}: {what}" in told, done.stdout + done.stderr
    assert "Next: docs/setup.md" in told


def test_what_an_inventory_says_for_both_is_one_file() -> None:
    for environment in ("local", "production"):
        link = ROOT / f"inventory/{environment}/group_vars/all/common.yml"
        assert link.is_symlink()
        assert link.resolve() == ROOT / "inventory/common.yml"
