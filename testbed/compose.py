"""compose.yaml as Docker Compose reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from testbed.tree import ROOT


def loopback_project(folder: Path = ROOT, **environment: str) -> dict[str, Any]:
    """The resolved project of ``compose.yaml`` in a shell with these variables. Fails when Compose warns."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("docker-compose"),
            *("-f", "compose.yaml", "config", "--format", "json"),
        ],
        cwd=folder,
        env={"PATH": os.defpath, "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    project: dict[str, Any] = json.loads(done.stdout)
    return project
