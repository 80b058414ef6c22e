"""tools/pins.py finds every pinned version by its look, and says which the update bot does not see."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tools import pins

SHA = "3d3c42e5aac5ba805825da76410c181273ba90b1"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    files = {
        ".github/workflows/a.yml": "jobs:\n  a:\n    runs-on: ubuntu-24.04\n"
        f"    steps: [{{uses: actions/checkout@{SHA}}}] # v7.0.1\n",
        "services/a/Dockerfile": "ARG BASE_IMAGE=example.com:5000/a/b:3.12-slim@sha256:ab\n"
        "FROM ${BASE_IMAGE}\nFROM debian:13\n",
        "services/compose.yaml": "services: {a: {image: redis:8}, b: {image: '${REPOSITORY}/b'}}\n",
        "roles/a/defaults/main.yml": 'a_version: "2.33.1" # since 1.1.1\na_address: 10.0.2.2\n',
        "local/a.py": 'TOOL = "v4.5.6"\n__version__ = "0.0.9"\n',
        "requirements/a.txt": "# 9.9.9\nidna==3.20 \\\n    --hash=sha256:ab\n",
        "docs/a.md": "7.7.7\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    return tmp_path


def test_every_kind_of_pin_is_found(repository: Path) -> None:
    assert set(pins.pins(repository)) == {
        (".github/workflows/a.yml", "24.04"),
        (".github/workflows/a.yml", SHA),
        ("services/a/Dockerfile", "3.12-slim"),
        ("services/a/Dockerfile", "13"),
        ("services/compose.yaml", "8"),
        ("roles/a/defaults/main.yml", "2.33.1"),
        ("local/a.py", "4.5.6"),
        ("requirements/a.txt", "idna"),
    }


def test_the_pins_of_this_repository_are_found() -> None:
    found = {file for file, _ in pins.pins()}
    manifest = json.loads((pins.ROOT / "package.json").read_text())
    # Several versions of one package have names of their own: npm:ai@5.0.60.
    assert {pin.rpartition("@")[2] for pin in manifest["devDependencies"].values()} <= {
        value for file, value in pins.pins() if file == "package.json"
    }
    assert found >= {
        *("services/api/Dockerfile", "services/n8n/Dockerfile", "tools/pins.py"),
        *("roles/docker/defaults/main.yml", "roles/easypanel/defaults/main.yml"),
        *(str(path.relative_to(pins.ROOT)) for path in pins.ROOT.glob(".github/workflows/*.yml")),
        *(str(path.relative_to(pins.ROOT)) for path in pins.ROOT.glob("requirements/*.txt")),
        *("services/api/requirements.txt", "services/etl/requirements.txt"),
        *("services/etl/Dockerfile", "local/easypanel/requirements.txt"),
    }


def test_what_the_bot_skips_is_not_seen() -> None:
    def file(name: str, *deps: dict[str, str], **more: list[str]) -> dict[str, object]:
        return {"packageFile": name, "deps": list(deps), **more}

    assert pins.seen({}) == set()
    read = pins.seen(
        {
            "dockerfile": [
                file("Dockerfile", {"depName": "a", "currentValue": "1", "skipReason": "invalid"})
            ],
            "github-actions": [
                file("a.yml", {"depName": "a/b", "currentDigest": SHA, "currentValue": "v7.0.1"})
            ],
            "pip-compile": [
                file(
                    "a.in", {"depName": "idna", "currentValue": "==3"}, lockFiles=["a.txt", "b.txt"]
                )
            ],
        }
    )
    assert {("a.yml", SHA), ("a.txt", "idna"), ("b.txt", "idna")} <= read
    assert ("Dockerfile", "1") not in read
