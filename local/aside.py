"""A second clone on this machine, with a droplet, ports and clouds of its own: what runs in the first one goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from local.cache import run
from local.settings import PORTS, ROOT, Settings, load, save_ports
from local.waiting import free_port


def make(folder: Path, told: str) -> Settings:
    """Clone HEAD into `folder`, where nothing is; `told` begins its lines. Raises LocalError."""
    remove(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    run(told, ["git", "clone", "--quiet", "--local", str(ROOT), str(folder)])
    if subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT).returncode:
        print(f"{told}: what is not committed does not take part", flush=True)
    # Same tools: what is installed here is not installed again, though the clone's files are younger.
    for name in (".venv", "node_modules"):
        (folder / name).symlink_to(ROOT / name)
    for path in (*folder.glob("requirements/*"), *folder.glob("package*.json")):
        os.utime(path, (0, 0))
    settings = load(folder, {variable: str(free_port()) for variable, _ in PORTS.values()})
    save_ports(settings)
    return settings


def remove(folder: Path) -> None:
    """Nothing of it stays. Raises LocalError."""
    if folder.exists():
        here = os.environ | {"ENV": "local"}
        run("what was aside", [sys.executable, "-m", "local", "down"], folder, here)
        shutil.rmtree(folder)
