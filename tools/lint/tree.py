"""Checks of the tree that no linter of a language makes.

usage: tree.py locks|marks|modes|arrows|twins

locks  every pin of a *.in is in its *.txt with a hash, which begins with the command that makes it (update bots
       read it there); package.json agrees with package-lock.json; and no lock file says where a package comes
       from (so that any mirror serves)
marks  no leftover merge marker, no trailing carriage return
arrows imports go one way: see ARROWS
modes  a file has the executable bit if and only if it starts with `#!`
twins  a page in Portuguese (NAME.pt-BR.md) has the headings, commands, names and links of its page in English
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What each room may import of the others. `local`, `plugins`, `roles` and `services` import no other.
ARROWS = {
    "testbed": {"local", "plugins", "services"},
    "tools": {"testbed", "local", "plugins"},
    "tests": {"testbed", "tools", "local", "plugins", "roles", "services"},
    "bench": {"testbed", "local", "services"},
}
PIN = re.compile(
    r"""^(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[^]]*\])?\s*  # distribution[extra]
    (?:==\s*(?P<version>[^\s;\#]+))?\s*               # ==version
    (?:;[^\#]*)?(?:\#.*)?$                             # ; marker  # comment
    """,
    re.VERBOSE,
)
LOCKED = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+?)(?: ;[^\\]*)? \\\n    --hash=", re.MULTILINE)
COMMAND = (
    "#    uv pip compile --universal --generate-hashes --python-version=3.11 "
    "--output-file={lock} {source}"
)
# Assembled, so that this file does not find itself.
MERGE_MARKER = re.compile(
    rb"^(" + b"|".join(sign * 7 for sign in (b"<", b">", b"\\|")) + rb")( |$)", re.MULTILINE
)


def files() -> list[Path]:
    """Every file git knows or would add, relative to ROOT."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    return [Path(name) for name in sorted(set(listed.split("\0"))) if (ROOT / name).is_file()]


def normal(name: str) -> str:
    """A distribution's name as lock files write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locks() -> Iterator[str]:
    """Findings about the lock files."""
    sources = [path for path in files() if path.suffix == ".in" and "requirements" in str(path)]
    for source in sources:
        lock = source.with_suffix(".txt")
        if not (ROOT / lock).is_file():
            yield f"{lock}: missing, though {source} exists. Next: make lock"
            continue
        text = (ROOT / lock).read_text()
        locked = {normal(name): version for name, version in LOCKED.findall(text)}
        command = COMMAND.format(lock=lock.name, source=source.name)
        if text.splitlines()[1:2] != [command]:
            yield f"{lock}:2: is not {command!r}. Next: make lock"
        if "://" in text or "-index-url" in text:
            yield f"{lock}: names an address; a lock file may not say where packages come from"
        for number, line in enumerate((ROOT / source).read_text().splitlines(), 1):
            wanted = line.strip()
            if not wanted or wanted.startswith(("#", "-r ")):
                continue
            match = PIN.match(wanted)
            if match is None:
                yield f"{source}:{number}: not understood: {wanted!r} (write name==version)"
                continue
            name, version = normal(match["name"]), match["version"]
            if name not in locked:
                yield f"{source}:{number}: {name} is not in {lock}. Next: make lock"
            elif version not in (None, locked[name]):
                have = locked[name]
                yield f"{source}:{number}: {name}=={version}, but {lock} has {have}. Next: make lock"

    manifest = json.loads((ROOT / "package.json").read_text())
    lock_text = (ROOT / "package-lock.json").read_text()
    packages: dict[str, dict[str, object]] = json.loads(lock_text)["packages"]
    for folder in ("", *manifest.get("workspaces", ())):
        source = Path(folder, "package.json")
        given = json.loads((ROOT / source).read_text())
        for kind in ("dependencies", "devDependencies", "optionalDependencies"):
            if given.get(kind, {}) != packages.get(folder, {}).get(kind, {}):
                yield f"package-lock.json: {kind} differ from {source}. Next: make lock"
    for name, package in packages.items():
        if "node_modules/" not in name or package.get("link"):
            continue  # the root, and the workspaces
        if "integrity" not in package:
            yield f"package-lock.json: {name} has no integrity hash. Next: make lock"
        if "resolved" in package:
            yield f"package-lock.json: {name} says where it comes from. Next: make lock"


def marks() -> Iterator[str]:
    """Findings about merge markers and line ends."""
    for path in files():
        content = (ROOT / path).read_bytes()
        if b"\0" in content[:8192]:
            continue
        for match in MERGE_MARKER.finditer(content):
            line = content.count(b"\n", 0, match.start()) + 1
            yield f"{path}:{line}: merge marker"
        if b"\r\n" in content:
            yield f"{path}: has carriage returns. Next: sed -i 's/\\r$//' {path}"


def modes() -> Iterator[str]:
    """Findings about executable bits."""
    for path in files():
        with (ROOT / path).open("rb") as opened:
            script = opened.read(2) == b"#!"
        executable = os.access(ROOT / path, os.X_OK)
        # A role's files and templates get their mode from the task that installs them.
        if path.parts[0] == "roles" and {"files", "templates"} & set(path.parts):
            script = executable
        if script and not executable:
            yield f"{path}: starts with #! but is not executable. Next: chmod +x {path}"
        if executable and not script:
            yield f"{path}: is executable but has no #! line. Next: chmod -x {path}"


def arrows() -> Iterator[str]:
    """Findings about imports between the rooms of the house."""
    rooms = {path.parts[0] for path in files() if path.suffix == ".py"}
    for path in files():
        if path.suffix != ".py":
            continue
        room = path.parts[0]
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            for other in {name.partition(".")[0] for name in names} & rooms - {room}:
                if other not in ARROWS.get(room, ()):
                    yield f"{path}:{node.lineno}: {room} may not import {other} (CONTRIBUTING.md says why)"


def twins() -> Iterator[str]:
    """Findings about pages in Portuguese that say other things than their English ones."""
    for path in files():
        if not path.name.endswith(".pt-BR.md"):
            continue
        english = path.with_name(path.name.replace(".pt-BR", ""))
        here, there = said(path), said(english)
        for kind in here:
            for what in sorted((here[kind] - there[kind]).elements()):
                yield f"{path}: the {kind} {what!r} is not in {english}"
            for what in sorted((there[kind] - here[kind]).elements()):
                yield f"{path}: the {kind} {what!r} of {english} is missing"


def said(path: Path) -> dict[str, Counter[str]]:
    """What a page says in no language: levels of headings, commands without their comments, code, links."""
    text = (ROOT / path).read_text()
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return {
        "heading": Counter(re.findall(r"^#+(?= )", prose, re.MULTILINE)),
        "command": Counter(line for line in lines if line and not line.startswith("#")),
        "name": Counter(re.findall(r"`([^`\n]+)`", prose)),
        "link": Counter(link.replace(".pt-BR", "") for link in re.findall(r"\]\(([^)]+)\)", prose)),
    }


CHECKS = {"arrows": arrows, "locks": locks, "marks": marks, "modes": modes, "twins": twins}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in CHECKS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(CHECKS)}")
    findings = list(CHECKS[sys.argv[1]]())
    print(*findings, sep="\n", end="\n" if findings else "")
    sys.exit(1 if findings else 0)
