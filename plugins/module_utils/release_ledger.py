"""The ledger of releases: one line each, oldest first, and what it says about the ways back and forward."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any


class Ledger:
    """The releases of one host, in a file that only grows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[dict[str, Any]]:
        """The lines; one cut short by a full disk is passed over."""
        if not self.path.exists():
            return []
        result = []
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                result.append(json.loads(line))
        return result

    def live(self, service: str) -> list[dict[str, Any]]:
        """The releases of a service that came up and were not taken back."""
        return live_releases(self.entries(), service)

    def append(self, entry: dict[str, Any]) -> None:
        """One more line, on disk before this returns."""
        with self.path.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def live_releases(entries: Iterable[dict[str, Any]], service: str) -> list[dict[str, Any]]:
    """Those of the ledger's ``entries`` that came up and were not taken back, oldest first."""
    live: list[dict[str, Any]] = []
    for entry in entries:
        if entry["service"] != service:
            continue
        if entry["result"] == "live":
            live.append(entry)
        elif (
            (entry.get("action"), entry["result"]) == ("undo", "failed, restored")
            and live
            and live[-1]["to"] == entry["to"]
        ):
            live.pop()
    return live


def overtaken(live: list[dict[str, Any]], newer: Collection[str]) -> str:
    """Why an older checkout must not change an app whose releases are ``live``; empty when it may.

    ``newer`` are the revisions of the main branch that the checkout does not have.
    """
    if not live or live[-1]["revision"][:40] not in newer:
        return ""
    last = live[-1]
    return (
        f"{last['service']} runs revision {last['revision'][:12]}, released by {last['who']} at {last['time']}, "
        "which is newer than what you bring; nothing was changed. Next: nothing, when the newer one is to stay; "
        f"to go back make rollback SERVICE={last['service']}, or the same command with ALLOW_OLDER=true"
    )


def shown(entry: dict[str, Any]) -> str:
    """A ledger entry on one line, for people."""
    before, after = (
        image.rpartition("@sha256:")[2][:12] or "nothing" for image in (entry["from"], entry["to"])
    )
    reason = f"  ({entry['reason']})" if entry["reason"] else ""
    if entry.get("gate_waived"):
        reason += f"  (without a backup: {entry['gate_waived']})"
    settings = [
        line for line in entry.get("changes", []) if f"{entry['service']}.image:" not in line
    ]
    count = f" + {len(settings)} settings" if settings else ""
    return (
        f"{entry['time']}  {entry['who']:<12} {entry['action']:<8} {entry['service']:<8} {before} -> {after}{count}  "
        f"{entry['revision'][:12]}  {entry['result']}  {entry['seconds']} s{reason}"
    )


def same_release(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two entries are one image with the same plain settings, as far as these were kept."""
    known = [entry["app"]["plain"] for entry in (left, right) if "app" in entry]
    return left["to"] == right["to"] and (len(known) < 2 or known[0] == known[1])


def ran_before(live: list[dict[str, Any]], image: str = "") -> dict[str, Any] | None:
    """The release of ``live`` (oldest first) that is to run again: of this image, or the one before the current.

    None when the image never ran, or is the current one; and when there is none before the current.
    """
    entry: dict[str, Any]
    for entry in reversed(live[:-1]):
        if not same_release(entry, live[-1]) and (
            not image or entry["to"] == image != live[-1]["to"]
        ):
            return entry
    return None


def refusal(
    target: dict[str, Any],
    entries: list[dict[str, Any]],
    migration: str,
    contracts: dict[str, str],
    accept: str,
) -> str:
    """Why it is not safe to go back to the ledger's entry ``target``; empty when it is.

    ``contracts`` are the migrations that take something away, ``{"<14 digits>_<name>": "what"}``, ``migration``
    is the newest number of the same checkout. An entry from before these were kept counts as older than all.
    """
    newest = max(str(entry.get("migration", "")) for entry in entries)
    if newest > migration:
        return (
            f"the last releases knew the database up to migration {newest}, this checkout only up to "
            f"{migration or 'none'}: whether the way back is open cannot be seen from here. Next: git pull"
        )
    accepted = {name.strip() for name in accept.split(",")}
    lost = {
        name: what
        for name, what in sorted(contracts.items())
        if name[:14] > str(target.get("migration", "")) and name not in accepted
    }
    if not lost:
        return ""
    listed = "; ".join(f"{name}: {what}" for name, what in lost.items())
    names = ",".join(sorted(lost.keys() | accepted - {""}))
    return (
        f"the release of {target['time']} (revision {target['revision'][:12]}) may need what later migrations took "
        f"away. {listed}. Next: go forward with a fix; or, when that release does without it, "
        f"the same command with ACCEPT={names}"
    )
