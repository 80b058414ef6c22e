"""Ansible modules of this repository, each a process as on the droplet, its module_utils where Ansible puts them."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.module_utils.testing import patch_module_args

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "plugins/module_utils", *ROOT.glob("roles/*/module_utils")]
ansible.module_utils.__path__ += map(str, FOLDERS)


def run(
    name: str,
    arguments: Mapping[str, Any],
    env: Mapping[str, str] = os.environ,
    **constants: Any,
) -> dict[str, Any]:
    """What a module, such as `plugins.modules.config_set`, answers; `output` is all that it said.

    ``constants`` of its module_utils (`config_files.OWNER`) get other values, for what is not a droplet.
    """
    done = subprocess.run(
        [sys.executable, "-m", "testbed.modules", name],
        input=json.dumps([arguments, constants]),
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.stdout, done.stderr
    return {**json.loads(done.stdout), "output": done.stdout + done.stderr}


def main() -> None:
    """Run one here: its name is the argument, the rest comes on stdin."""
    arguments, constants = json.load(sys.stdin)
    for constant, value in constants.items():
        home, _, attribute = constant.rpartition(".")
        utils = importlib.import_module(f"ansible.module_utils.{home}")
        setattr(utils, attribute, type(getattr(utils, attribute))(value))
    with patch_module_args(arguments):
        importlib.import_module(sys.argv[1]).main()


if __name__ == "__main__":
    main()
