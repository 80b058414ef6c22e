"""Role release: what runs is what the ledger says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plugins.module_utils.release_ledger import live_releases
from tools.declared import Declared

pytestmark = pytest.mark.droplet


def test_what_runs_is_the_last_live_release(
    app: dict[str, Any],
    declared: Declared,
    collected: dict[str, Any],
    ledger: list[dict[str, Any]],
) -> None:
    """An image that no release put there is a change that nobody reviewed, and rollback would not know it."""
    live = live_releases(ledger, app["name"])
    if not live and not app["released"]:
        return  # of an app that is named by a tag, only what was released since the ledger knows these
    assert live, (
        f"the ledger knows no release of {app['name']}. Next: make deploy SERVICE={app['name']}"
    )
    name = f"{declared['services_project']}_{app['name']}"
    running = [item["image"] for item in collected["docker"]["services"] if item["name"] == name]
    assert running == [live[-1]["to"]], "Next: make history, then make deploy IMAGE=… REVISION=…"


def test_no_release_ended_in_between(ledger: list[dict[str, Any]]) -> None:
    """`failed, NOT restored` means that neither the new nor the old version is known to serve."""
    last = {entry["service"]: entry["result"] for entry in ledger}
    assert {name: result for name, result in last.items() if "NOT restored" in result} == {}


def test_the_ledger_is_written_by_root_alone(declared: Declared, collected: dict[str, Any]) -> None:
    """It is the only witness of who released what."""
    folder = collected["files"][declared["release_state_directory"]]
    assert folder["kind"] == "directory"
    assert folder["owner"] == "0:0"
    assert int(folder["mode"], 8) & 0o022 == 0


def test_the_secrets_of_releases_are_root_s_alone(
    declared: Declared, collected: dict[str, Any]
) -> None:
    """The last releases whole, for the way back."""
    path = str(Path(declared["easypanel_token_file"]).with_name("releases.json"))
    kept = collected["files"][path]
    if kept["kind"] != "absent":  # as long as nothing was released
        assert (kept["kind"], kept["owner"], kept["mode"]) == ("file", "0:0", "0600")
