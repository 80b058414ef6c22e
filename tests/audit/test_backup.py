"""Role backup: what cannot be made again left this host, and came back when it was asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tools.declared import Declared

pytestmark = pytest.mark.droplet

# A night, and some hours for a run that began late.
HOURS = 30
DRILL_HOURS = 30 * 24


@pytest.mark.logs("cimt-backup.service")
def test_the_last_good_backup_is_young(declared: Declared, collected: dict[str, Any]) -> None:
    """Its timer is audited with the role's files. A droplet that was set up today has the night before it."""
    environment = declared.environment
    assert declared["backup_enabled"], (
        "no backup is made. Next: set BACKUP_REPOSITORY (docs/operations/backup.md), then "
        f"make provision ENV={environment}"
    )
    since = collected["hours_since"]
    stamped = since["backup"]
    hours = since["timer"] if stamped is None else stamped
    assert hours is not None, f"there is no timer. Next: make provision ENV={environment}"
    assert hours <= HOURS, (
        f"{'never' if stamped is None else 'not for'} {hours} hours. Next: make backup ENV={environment}"
    )


def test_a_backup_has_come_back_this_month(declared: Declared, collected: dict[str, Any]) -> None:
    """Nobody knows whether one that was never restored can be. A new droplet has its first month for it."""
    since = collected["hours_since"]
    hours = since["timer"] if since["drill"] is None else since["drill"]
    assert hours is None or hours <= DRILL_HOURS, (
        f"no restore drill for {hours / 24:.0f} days. Next: make restore-drill ENV={declared.environment}"
    )


def test_deleted_backups_can_come_back(declared: Declared, collected: dict[str, Any]) -> None:
    """A key that writes may delete: where the bucket says whether it keeps old versions, it does."""
    stamp = json.loads(collected["backup"] or "{}")
    assert stamp.get("versioned") is not False, (
        f"{declared['backup_repository']} keeps no versions. Next: docs/operations/backup.md, Set it up"
    )
