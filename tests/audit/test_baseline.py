"""Role baseline: the machine itself, now and after the next boot. (Its files and packages: test_config.)"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tools.declared import Declared, files_of

from .conftest import Reached


def test_kernel_settings_are_live(declared: Declared, collected: dict[str, Any]) -> None:
    """Without forwarding every container is cut off; the rest keeps spoofed packets out."""
    wanted = {name: str(value) for name, value in declared["baseline_sysctl"].items()}
    assert collected["sysctl"] == wanted


def keys(rules: list[str]) -> list[str]:
    """The key of each rule of auditd, sorted; none is ""."""
    found = [re.search(r"(?:-k |-F key=)(\S+)", rule) for rule in rules]
    return sorted(match[1] if match else "" for match in found)


def test_what_people_do_is_noted(declared: Declared, collected: dict[str, Any]) -> None:
    """Rules that are not loaded note nothing, and who has something to hide takes them out first."""
    (text,) = (
        item["content"]
        for item in files_of(declared.sets()["hardening"])
        if item["path"] == "/etc/audit/rules.d/cimt.rules"
    )
    rules = [line for line in text.splitlines() if line.startswith("-")]
    # The kernel's listing says the same in other words: compared are how many there are, and of which key.
    assert keys(collected["audit_rules"]) == keys(rules), "Next: make provision"


def test_swap_takes_the_rare_peak(declared: Declared, collected: dict[str, Any]) -> None:
    """Two gigabytes without swap end in the kernel killing the app in the middle of an answer."""
    header_mb = 1  # of a swap file's first page, rounded up
    assert collected["memory_mb"]["SwapTotal"] >= declared["baseline_swap_mb"] - header_mb


def test_no_unit_has_failed(collected: dict[str, Any]) -> None:
    """A failed unit is a fault that nobody has read yet."""
    assert collected["failed"] == [], "Next: make ssh, then: systemctl status " + " ".join(
        collected["failed"]
    )


def test_packages_are_whole(collected: dict[str, Any]) -> None:
    """One half-configured package blocks every security update after it."""
    assert collected["dpkg_audit"] == ""


@pytest.mark.logs("unattended-upgrades.service", "apt-daily-upgrade.service")
def test_security_updates_come_by_themselves(collected: dict[str, Any]) -> None:
    """Nobody reads advisories every day. The settings in effect, the timer behind them, and where they come from."""
    for setting in ("Update-Package-Lists", "Unattended-Upgrade"):
        lines = [line for line in collected["apt"] if line.startswith(f"APT::Periodic::{setting} ")]
        assert lines, f"APT::Periodic::{setting} is not set"
        assert lines[0].split('"')[1] not in ("", "0")
    timer = collected["units"]["apt-daily-upgrade.timer"]
    assert (timer["ActiveState"], timer["UnitFileState"]) == ("active", "enabled")
    assert any(
        line.startswith(
            ("Unattended-Upgrade::Allowed-Origins::", "Unattended-Upgrade::Origins-Pattern::")
        )
        and "ecurity" in line
        for line in collected["apt"]
    ), "unattended-upgrades takes nothing from the security origin"
    assert any("-security/" in source for source in collected["apt_sources"]), (
        "no security archive is among apt's sources"
    )


def test_the_clock_is_right(reached: Reached) -> None:
    """A wrong clock refuses valid tokens and certificates. Limit: 5 s beyond the measurement."""
    assert abs(reached.skew) <= 5 + reached.uncertainty


def test_there_is_memory_left(collected: dict[str, Any]) -> None:
    """A start-first release runs the old and the new app side by side."""
    assert collected["memory_mb"]["MemAvailable"] >= 128
