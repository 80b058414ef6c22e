"""make checklist: a row is ✅ when all of its proofs hold, and never because one could not be run."""

from __future__ import annotations

import ast
import datetime
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import checklist

ROOT = Path(__file__).parents[2]
ROWS = yaml.safe_load((ROOT / "tools/checklist.yaml").read_text())
REPORT = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="1"
 failures="0" skipped="0" tests="2" time="9.1" timestamp="{when}" hostname="runner">
<testcase classname="tests.audit.test_ssh" name="test_only_keys_open_the_door" time="0.01" />
<testcase classname="tests.audit.test_docker" name="test_disk_has_room" time="0.02"><error message="no | room&#10;x"/>
</testcase></testsuite></testsuites>"""
SSH = """#!/bin/bash
printf '%s\\n' "$@" >"$SSH_ARGUMENTS"
[ -z "$SSH_BROKEN" ] || { echo "Permission denied (publickey)." >&2; exit 255; }
exec bash -s
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in production; ssh runs on this machine what it was to run on the droplet."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH)
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setattr(checklist, "ROOT", tmp_path)
    monkeypatch.setattr(checklist, "ENV", "production")
    monkeypatch.setattr(checklist.sys, "executable", str(tmp_path / "bin/python"))
    environment = {"DROPLET_HOST": "droplet.invalid", "DROPLET_PORT": "2222", "SSH_BROKEN": ""}
    environment |= {"SSH_ARGUMENTS": str(tmp_path / "arguments"), "ENV": "production"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SUPABASE_DB_URL", raising=False)
    report(tmp_path, hours=1)
    monkeypatch.setattr(
        checklist, "smoke", lambda: tmp_path / ".local/reports/audit-production.xml"
    )
    return tmp_path


def report(folder: Path, hours: float) -> None:
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    path = folder / ".local/reports/audit-production.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(REPORT.format(when=when.isoformat()))


def row(*proofs: dict[str, str]) -> tuple[bool, str]:
    """How one row of these proofs comes out: whether it is ✅, and its last column."""
    text, bad = checklist.table([{"row": "Uma linha", "proofs": list(proofs)}])
    mark, _, seen = (cell.strip() for cell in text.splitlines()[-1].strip("|").split("|"))
    assert (mark == "✅") == (bad == 0)
    return mark == "✅", seen


@pytest.mark.parametrize(
    ("proof", "holds", "told"),
    [
        ({"droplet": "echo ubuntu 22.04; echo more", "expect": "^ubuntu 22"}, True, "ubuntu 22.04"),
        ({"droplet": "echo debian 13", "expect": "^ubuntu"}, False, "debian 13"),
        ({"droplet": "cat; echo wrong; exit 3"}, False, "wrong"),
        ({"droplet": "true"}, True, "código de saída 0"),
        ({"here": "echo one; echo two"}, True, "one"),
        ({"here": "echo one; echo the reason; exit 1"}, False, "the reason"),
        ({"here": "no-such-program"}, False, "not found"),
        ({"audit": r"test_ssh\."}, True, "1 testes passam"),
        ({"audit": "."}, False, "1 de 2 testes falham: test_disk_has_room: no / room"),
        ({"audit": "test_other"}, False, "nenhum teste test_other"),
        ({"smoke": "test_only_keys"}, True, "1 testes passam"),
        ({"database": "select true, 'x'"}, False, "SUPABASE_DB_URL"),
    ],
)
def test_a_proof(there: Path, proof: dict[str, str], holds: bool, told: str) -> None:
    found, seen = row(proof)
    assert found == holds
    assert told in seen


def test_one_proof_that_fails_is_a_row_that_fails(there: Path) -> None:
    assert row({"here": "echo good"}, {"droplet": "echo also good"}) == (True, "good; also good")
    assert row({"here": "echo good"}, {"droplet": "echo bad; false"}) == (False, "bad")


def test_the_droplet_is_asked_once_and_by_its_known_key(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs = [
        {"droplet": f"echo {name}; exit {code}"} for name, code in (("a", 0), ("b", 1), ("c", 0))
    ]
    assert row(*proofs) == (False, "b")
    arguments = (there / "arguments").read_text().splitlines()
    assert "StrictHostKeyChecking=yes" in arguments
    assert arguments[-5:] == ["-p", "2222", "--", "cimt@droplet.invalid", "sudo -n bash -s"]
    monkeypatch.setenv("SSH_BROKEN", "1")
    assert row(*proofs) == (False, "Permission denied (publickey).")
    monkeypatch.setenv("DROPLET_HOST", "")
    proven, seen = row(*proofs)
    assert not proven
    assert "DROPLET_HOST" in seen


def test_a_report_that_is_old_or_not_there_proves_nothing(there: Path) -> None:
    report(there, hours=25)
    assert "velho demais" in row({"audit": "test_ssh"})[1]
    (there / ".local/reports/audit-production.xml").unlink()
    assert row({"audit": "test_ssh"}) == (False, "sem relatório: make audit ENV=production")


def test_no_secret_is_shown(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-that-is-secret")
    assert row({"here": 'echo "it is $OPENAI_API_KEY"'}) == (True, "it is ***")


def test_strict_fails_on_a_row_that_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checklist, "table", lambda _: ("the table", 1))
    monkeypatch.setattr(checklist.sys, "argv", ["checklist"])
    assert checklist.main() == 0
    monkeypatch.setattr(checklist.sys, "argv", ["checklist", "--strict"])
    assert checklist.main() == 1


def names(folder: str) -> list[str]:
    """Every test of a folder, as a report names it; what takes an app, once for each."""
    found = []
    for path in (ROOT / "tests" / folder).glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                by_app = "app" in [argument.arg for argument in node.args.args]
                name = f"tests.{folder}.{path.stem}.{node.name}"
                found += [f"{name}[{app}]" for app in ("api", "n8n")] if by_app else [name]
    return found


def test_the_rows_ask_what_there_is() -> None:
    """A test that is renamed would leave its row ❌ for ever, with nobody told."""
    assert [entry["row"].split()[0] for entry in ROWS] == [
        *("C1.1", "C1.2", "C1.3", "C2.4", "C2.5", "C2.6", "C3.7", "C3.8"),
        *("C4.9", "C4.10", "C4.11", "C5.12", "C5.13", "C6.14", "C6.15"),
    ]
    proofs: list[dict[str, Any]] = [proof for entry in ROWS for proof in entry["proofs"]]
    for proof in proofs:
        assert len(proof.keys() - {"expect"}) == 1
        assert proof.keys() <= {"audit", "smoke", "droplet", "here", "database", "expect"}
        for kind in proof.keys() & {"audit", "smoke"}:
            for one in proof[kind].split("|"):
                assert any(re.search(one, name) for name in names(kind)), one


def test_a_secret_in_a_file_is_found(tmp_path: Path) -> None:
    """By the very command of the row; what it finds is named, not shown."""
    (command,) = (
        proof["here"]
        for entry in ROWS
        for proof in entry["proofs"]
        if "git grep" in proof.get("here", "")
    )
    run = checklist.subprocess.run
    run(["git", "init", "-q", str(tmp_path)], check=True)

    def asked() -> tuple[int, str]:
        run(["git", "add", "-A"], cwd=tmp_path, check=True)
        done = run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout

    (tmp_path / "plain.txt").write_text("nothing to see\n")
    assert asked() == (0, "nenhum segredo conhecido em 1 arquivos\n")
    (tmp_path / "leak.env").write_text("GITHUB=" + "ghp_" + "a1B2" * 9 + "\n")
    assert asked() == (1, "leak.env\n")
    assert run(["bash", "-c", command], cwd=os.sep, capture_output=True).returncode != 0, (
        "no repository"
    )
