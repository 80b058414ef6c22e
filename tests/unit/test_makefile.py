"""The Makefile: `make -n` of every verb shows commands and runs none, with the oldest GNU Make that is in use too."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
VERBS = re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.MULTILINE)
# All that a recipe could call, and what those call: found, each tells on itself.
TRAPS = (
    *("python", "python3", "pip", "uv", "npm", "ansible-playbook", "pytest", "buildah", "docker"),
    *("skopeo", "curl", "sed", "git", "sh", "mkdir", "rm", "touch", "make", "awk", "ssh"),
)
SHOWN = {
    "up": "python -m local up",
    "build": 'python -m tools.services build "${SERVICE:-}"',
    "panel-image": "tools/build.sh easypanel --local",
    "deploy": "ansible-playbook -i inventory/local playbooks/deploy.yml",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Makefile and what it looks at, in a folder with a space; every program is a trap."""
    folder = tmp_path_factory.mktemp("a folder with a space") / "a clone"
    (folder / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / name, folder)
    for name in ("inventory", "requirements"):
        shutil.copytree(ROOT / name, folder / name)
    scripts = [*ROOT.glob("*/*.sh"), *ROOT.glob("services/*/*.sh")]
    for script in [*(folder / ".venv/bin" / name for name in TRAPS), *scripts]:
        place = folder / script.relative_to(ROOT) if script in scripts else script
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f'#!/bin/bash\necho "$0 $*" >>"{folder}/called"\n')
        place.chmod(0o755)
    return folder


def pretend_setup(folder: Path) -> None:
    for name in ("node_modules/.installed", ".venv/.installed"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("make")
    assert program
    return subprocess.run(
        [program, *arguments],
        cwd=folder,
        env={"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "HOME": "/", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("setup_done", [False, True])
def test_a_dry_run_of_any_verb_runs_nothing(checkout: Path, *, setup_done: bool) -> None:
    def files() -> set[tuple[Path, int]]:
        return {(path, path.stat().st_mtime_ns) for path in checkout.rglob("*")}

    if setup_done:
        pretend_setup(checkout)
    before = files()
    assert len(VERBS) > 30
    for verb in VERBS:
        for extra in ([], ["ENV=production"], ["MITOGEN=1", "PUSH=0", "SERVICE=n8n"]):
            done = make(checkout, "-n", verb, *extra)
            assert done.returncode == 0, done.stderr
            assert done.stdout, verb
            assert SHOWN.get(verb, "") in done.stdout or extra
            assert files() == before, f"make -n {verb} {' '.join(extra)}"


def test_the_traps_work(checkout: Path) -> None:
    pretend_setup(checkout)
    called = checkout / "called"
    make(checkout, "build", SERVICE="n8n'; echo $HOME")
    told = called.read_text()
    called.unlink()
    assert "-m tools.services build n8n'; echo $HOME --local" in told.splitlines()[-1]


def test_no_program_runs_while_the_makefile_is_read() -> None:
    """Below 4.4, `$(shell)` does not see `export PATH`; and it runs under `make -n` too, as does a line with MAKE."""
    assert "$(shell" not in MAKEFILE
    assert "$(MAKE)" not in MAKEFILE
    assert not re.search(r"^\t[@-]*\+|!=", MAKEFILE, re.MULTILINE)
