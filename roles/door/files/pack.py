"""Pack the door's program: one file that Python runs, with everything that it may do inside.

Usage: python pack.py [FILE]

Prints the SHA-256 of the file, which is the same for the same sources and version of Ansible; with FILE, writes it.
Inside are door.py, the modules that it may run, what they import of this repository, and Ansible's own module_utils.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import sys
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
MODULES = {
    "easypanel_apps": "services",
    "easypanel_release": "release",
    "n8n_workflows": "n8n_workflows",
}
WHEN = (1980, 1, 1, 0, 0, 0)  # the oldest that a ZIP file knows
NOT_PYTHON = ("csharp", "powershell")


def contents() -> dict[str, bytes]:
    """Every file by its name inside."""
    (library,) = importlib.util.find_spec("ansible").submodule_search_locations or ()
    utils = Path(library, "module_utils")
    found: dict[str, Path | bytes] = {
        "__main__.py": Path(__file__).with_name("door.py"),
        "collect.py": ROOT / "tests/audit/collect.py",
    }
    for path in utils.rglob("*.py"):
        inside = path.relative_to(utils)
        if inside.parts[0] not in NOT_PYTHON:
            found[f"ansible/module_utils/{inside}"] = path
    for name, role in MODULES.items():
        found[f"modules/{name}.py"] = ROOT / f"roles/{role}/library/{name}.py"
        found |= {
            f"ansible/module_utils/{path.name}": path for path in ours(found[f"modules/{name}.py"])
        }
    rows = yaml.safe_load((ROOT / "tools/checklist.yaml").read_text())
    commands = [proof["droplet"] for row in rows for proof in row["proofs"] if "droplet" in proof]
    found["modules/checklist.json"] = json.dumps(commands).encode()
    empty = dict.fromkeys(("ansible/__init__.py", "modules/__init__.py"), b"")
    read = {n: p.read_bytes() if isinstance(p, Path) else p for n, p in found.items()}
    return {**empty, **read}


def ours(program: Path) -> set[Path]:
    """What a program imports of this repository's module_utils, and what that does: nothing else changes the file."""
    found = set()
    for name in re.findall(r"^from ansible\.module_utils\.(\w+) import", program.read_text(), re.M):
        places = (*ROOT.glob("plugins/module_utils"), *ROOT.glob("roles/*/module_utils"))
        for path in (place / f"{name}.py" for place in places):
            if path.exists():
                found |= {path} | ours(path)
    return found


def packed() -> bytes:
    """The program."""
    file = io.BytesIO()
    file.write(b"#!/usr/bin/python3 -I\n")
    # Stored: every zlib packs the same bytes otherwise, and two machines would never agree on the program.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(contents().items()):
            archive.writestr(zipfile.ZipInfo(name, WHEN), content)
    return file.getvalue()


if __name__ == "__main__":
    program = packed()
    for place in sys.argv[1:]:
        Path(place).parent.mkdir(parents=True, exist_ok=True)  # a fresh clone has no .local
        Path(place).write_bytes(program)
    print(hashlib.sha256(program).hexdigest())
