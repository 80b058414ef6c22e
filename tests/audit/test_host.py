"""Baseline, ssh and firewall: live now, and again after the next boot."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest


def test_settings_of_the_kernel_are_live(declared: dict[str, Any], found: dict[str, Any]) -> None:
    """Without forwarding containers are cut off; the rest keeps spoofed packets out."""
    assert found["sysctl"] == {
        name: str(value) for name, value in declared["baseline_sysctl"].items()
    }


def test_there_is_swap_for_the_rare_peak(declared: dict[str, Any], found: dict[str, Any]) -> None:
    """Two gigabytes without swap end in the kernel killing the app."""
    swap_mb = sum(int(line.split()[2]) for line in found["swap"]) / 1024
    assert swap_mb >= declared["baseline_swap_mb"] * 0.99


@pytest.mark.parametrize(
    "unit", ["cimt-firewall", "docker", "ssh", "swapfile.swap", "unattended-upgrades"]
)
def test_a_unit_runs_and_comes_back_after_a_boot(unit: str, found: dict[str, Any]) -> None:
    """What is only started is gone after the next reboot."""
    assert found["active"][unit] == "active"
    assert found["enabled"][unit] in ("enabled", "static")


def test_no_unit_has_failed(found: dict[str, Any]) -> None:
    """A failed unit is a fault that nobody has read yet."""
    assert found["failed"] == []


def test_packages_are_whole_and_security_updates_come_by_themselves(
    declared: dict[str, Any], found: dict[str, Any]
) -> None:
    """A half-configured package blocks every security update after it."""
    assert found["dpkg_audit"] == ""
    assert 'APT::Periodic::Unattended-Upgrade "1";' in found["apt_periodic"]
    installed = {line.split()[0] for line in found["packages"]}
    assert set(declared["baseline_packages"]) <= installed


def test_the_clock_is_right(found: dict[str, Any]) -> None:
    """A wrong clock refuses valid tokens and certificates. Half a minute is the time this took to read."""
    assert abs(found["time"] - time.time()) < 30


def test_sshd_takes_keys_of_declared_users_only(
    declared: dict[str, Any], found: dict[str, Any]
) -> None:
    """The settings in effect, with every file read, not the file that we wrote."""
    root = declared["ssh_permit_root_login"].replace("prohibit-password", "without-password")
    expected = {
        "passwordauthentication": "no",
        "kbdinteractiveauthentication": "no",
        "authenticationmethods": "publickey",
        "permitrootlogin": root,
        "kexalgorithms": ",".join(declared["ssh_kex_algorithms"]),
        "ciphers": ",".join(declared["ssh_ciphers"]),
        "macs": ",".join(declared["ssh_macs"]),
    }
    assert {name: found["sshd"][name] for name in expected} == expected
    assert found["run_sshd"] == "0:0 0755", "without /run/sshd the next start of sshd fails"


def test_the_firewall_in_the_kernel_is_the_declared_one(
    declared: dict[str, Any], found: dict[str, Any]
) -> None:
    """One file is the whole policy: the same on disk, and in force."""
    assert found["firewall_file"].strip() == declared["firewall_file"].strip()
    assert found["nft"]["code"] == 0, found["nft"]["err"]
    items = json.loads(found["nft"]["out"])["nftables"]
    chains = {item["chain"]["name"]: item["chain"] for item in items if "chain" in item}
    for hook in ("input", "forward"):
        assert (chains[hook]["hook"], chains[hook]["policy"]) == (hook, "drop")
    public = [
        item["rule"]["expr"] for item in items if item.get("rule", {}).get("chain") == "public"
    ]
    opened = {
        port
        for expressions in public
        for expression in expressions
        if "match" in expression and isinstance(expression["match"]["right"], dict)
        for port in expression["match"]["right"].get("set", [])
        if isinstance(port, int)
    }
    assert opened == set(declared["firewall_public_tcp_ports"])
