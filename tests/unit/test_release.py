"""A rollback knows what is safe: which migrations took something away since the release it goes back to."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DROP = "20260301000000_drop_note"
CONTRACTS = {DROP: "public.base.note is dropped with its data"}


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    def load(name: str, path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    load("ansible.module_utils.easypanel", "roles/easypanel/module_utils/easypanel.py")
    return load("easypanel_release", "roles/release/library/easypanel_release.py")


def entry(migration: str | None) -> dict[str, Any]:
    known = {} if migration is None else {"migration": migration}
    return {"time": "2026-02-01T00:00:00Z", "revision": "a" * 40, **known}


@pytest.mark.parametrize(
    ("target", "contracts", "accept", "refused"),
    [
        ("20260301000000", CONTRACTS, "", False),  # it ran with that migration
        ("20260201000000", {}, "", False),  # only expansions since
        ("20260201000000", CONTRACTS, "", True),
        (None, CONTRACTS, "", True),  # from before the ledger knew
        (None, {}, "", False),
        ("20260201000000", CONTRACTS, f"{DROP}, 20250101000000_other", False),
        ("20260201000000", CONTRACTS, "20250101000000_other", True),
        ("20260201000000", CONTRACTS, DROP[:14], True),  # by its whole name
    ],
)
def test_the_way_back_ends_at_what_was_taken_away(
    release: ModuleType, target: str | None, contracts: dict[str, str], accept: str, refused: bool
) -> None:
    entries = [entry(target), entry("20260301000000")]
    reason = release.refusal(entries[0], entries, "20260301000000", contracts, accept)
    assert bool(reason) == refused
    if refused:
        assert f"{DROP}: {CONTRACTS[DROP]}" in reason
        next_command = reason.rpartition("ACCEPT=")[2]
        assert not release.refusal(
            entries[0], entries, "20260301000000", contracts, next_command
        ), "the command that is shown must work"


def test_a_checkout_that_is_behind_does_not_judge(release: ModuleType) -> None:
    entries = [entry("20260201000000"), entry("20260301000000")]
    assert "git pull" in release.refusal(entries[0], entries, "20260201000000", {}, "")


def test_the_playbook_is_told_what_the_files_take_away() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "supabase/safety.py", "--contracts"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert isinstance(json.loads(done.stdout), dict)
