"""A rollback knows what is safe: which migrations took something away since the release it goes back to."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from roles.release.module_utils.release_ledger import Ledger, ran_before, refusal

ROOT = Path(__file__).parents[2]
DROP = "20260301000000_drop_note"
CONTRACTS = {DROP: "public.base.note is dropped with its data"}


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
    target: str | None, contracts: dict[str, str], accept: str, refused: bool
) -> None:
    entries = [entry(target), entry("20260301000000")]
    reason = refusal(entries[0], entries, "20260301000000", contracts, accept)
    assert bool(reason) == refused
    if refused:
        assert f"{DROP}: {CONTRACTS[DROP]}" in reason
        next_command = reason.rpartition("ACCEPT=")[2]
        assert not refusal(entries[0], entries, "20260301000000", contracts, next_command), (
            "the command that is shown must work"
        )


def test_a_checkout_that_is_behind_does_not_judge() -> None:
    entries = [entry("20260201000000"), entry("20260301000000")]
    assert "git pull" in refusal(entries[0], entries, "20260201000000", {}, "")


@pytest.mark.parametrize(
    ("live", "image", "found"),
    [
        ("", "", None),
        ("a", "", None),
        ("ab", "", "a"),
        ("abb", "", "a"),  # the same again is no release before
        ("aba", "", "b"),
        ("ab", "a", "a"),  # a deploy of what ran before is a way back too
        ("ab", "b", None),
        ("ab", "c", None),
    ],
)
def test_what_runs_again_is_known(live: str, image: str, found: str | None) -> None:
    entries = [{"to": name, "number": number} for number, name in enumerate(live)]
    before = ran_before(entries, image)
    assert (before and before["to"]) == found


def test_a_line_that_a_full_disk_cut_short_hides_no_other(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "releases.jsonl")
    whole = {"service": "api", "result": "live", "to": "a"}
    ledger.append(whole)
    with ledger.path.open("a") as stream:
        stream.write('{"service": "api", "resu\n')
    ledger.append({**whole, "result": "failed"})
    assert len(ledger.entries()) == 2
    assert ledger.live("api") == [whole]
    assert ledger.live("n8n") == []


def test_the_playbook_is_told_what_the_files_take_away() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.database.safety", "--contracts"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert isinstance(json.loads(done.stdout), dict)
