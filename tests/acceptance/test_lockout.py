"""What would lock the owners out of their droplet: access stays, or comes back by itself within two minutes.

Each drill is a `make provision` with something wrong, on the running local droplet, and leaves it as it found it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.settings import LocalError
from testbed.droplet import GENEROUS, LOCAL, ROOT, full_disk, make, on_droplet

BACK_SECONDS = 120 + 60  # the trial, and what an emulated droplet takes to load its settings
FIREWALL = "nft --stateless --terse list table inet cimt"
SSH = "/usr/sbin/sshd -T | sort"


def provision(folder: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """`make provision` with other values of the roles' variables."""
    path = folder / "extra.json"
    path.write_text(json.dumps(settings))
    return make("provision", f"ARGS=--extra-vars '@{path}'")


def reaches() -> bool:
    """Whether a new connection gets in."""
    with contextlib.suppress(LocalError, subprocess.TimeoutExpired):
        return on_droplet("echo in", 30).strip() == "in"
    return False


def back(seconds: float = BACK_SECONDS) -> float:
    """Seconds until a new connection gets in."""
    began = time.monotonic()
    while not reaches():
        assert time.monotonic() - began < seconds, "nobody gets in any more"
    return time.monotonic() - began


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Firewall and SSH server are in the end what they were."""
    before = [on_droplet(command) for command in (FIREWALL, SSH)]
    yield
    back()
    assert [on_droplet(command) for command in (FIREWALL, SSH)] == before


def test_a_firewall_that_cuts_ssh_is_taken_back_by_the_droplet_itself(tmp_path: Path) -> None:
    done = provision(tmp_path, firewall_ssh_port=2022, firewall_trial_seconds=60)
    assert done.returncode != 0
    assert "Log in again" in done.stdout
    back()
    assert "2022" not in on_droplet(FIREWALL)


def test_a_firewall_that_cannot_work_changes_nothing(tmp_path: Path) -> None:
    done = provision(tmp_path, firewall_public_tcp_ports=[80, 443, 70000])
    assert done.returncode != 0
    assert "Nothing was changed. These are not ports" in done.stdout
    assert reaches()


def test_a_broken_template_of_the_ssh_server_is_refused_before_it_is_used(tmp_path: Path) -> None:
    done = provision(tmp_path, ssh_ciphers=["rot13@example.com"])
    assert done.returncode != 0
    assert "rot13@example.com" in done.stdout
    assert reaches()


def test_an_ssh_server_that_no_client_speaks_with_is_taken_back(tmp_path: Path) -> None:
    """Valid, and of no use: OpenSSH's clients offer this key exchange no more unless they are told to."""
    done = provision(
        tmp_path, ssh_kex_algorithms=["diffie-hellman-group1-sha1"], ssh_trial_seconds=60
    )
    assert done.returncode != 0
    back()
    assert "group1-sha1" not in on_droplet(SSH)


def test_without_an_admin_user_nothing_is_touched(tmp_path: Path) -> None:
    done = provision(tmp_path, ansible_user="")
    assert done.returncode != 0
    assert reaches()


def test_a_wrong_key_is_refused_and_the_right_one_goes_on_working(tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=60
    )
    config = (LOCAL / "ssh_config").read_text()
    wrong = tmp_path / "ssh_config"
    wrong.write_text(
        "\n".join(
            f'  IdentityFile "{key}"' if line.split()[:1] == ["IdentityFile"] else line
            for line in config.splitlines()
        )
        + "\n"
    )
    done = subprocess.run(
        ["ssh", "-F", wrong, "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "droplet", "id"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr
    assert reaches()


@pytest.mark.parametrize("role", ["ssh", "firewall", "docker"])
def test_killed_in_the_middle_of_a_role_it_is_back_and_goes_on(role: str, tmp_path: Path) -> None:
    """Killed where new settings are in force and nobody has kept them yet; then the same again, to its end."""
    changed = {
        "ssh": {"ssh_macs": ["hmac-sha2-256-etm@openssh.com"], "ssh_trial_seconds": 60},
        "firewall": {"firewall_ssh_burst": 50, "firewall_trial_seconds": 60},
        "docker": {},
    }[role]
    path = tmp_path / "extra.json"
    path.write_text(json.dumps(changed))
    last = {"ssh": "[ssh : Log in again", "firewall": "[firewall : Log in again"}
    with subprocess.Popen(
        ["make", "provision", f"ARGS=--extra-vars '@{path}'"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout
        for line in running.stdout:
            if last.get(role, f"TASK [{role} : ") in line:
                break
        else:
            pytest.fail("it ended before it could be killed")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate(timeout=GENEROUS)
    back()
    if role in last:
        began = time.monotonic()
        before = {"ssh": ("umac-128-etm", SSH), "firewall": ("burst 60", FIREWALL)}[role]
        while before[0] not in on_droplet(before[1]):
            assert time.monotonic() - began < BACK_SECONDS, "the trial does not end"
    done = make("provision")
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_full_disk_keeps_the_door_open(tmp_path: Path) -> None:
    """Nothing can be written any more: the run says so, and who comes to clean up gets in."""
    with full_disk():
        done = provision(tmp_path, firewall_ssh_burst=50)
        assert done.returncode != 0
        assert reaches()
    assert make("provision").returncode == 0


def test_a_clock_that_is_far_off_keeps_nobody_out() -> None:
    """Years ahead, and before anything was made: SSH asks for no time, and provision goes through."""
    try:
        for there in ("+ 3 years", "- 3 years"):
            on_droplet(f"date --set \"$(date --date 'now {there}')\" >/dev/null")
            assert reaches(), there
            assert make("provision").returncode == 0
            on_droplet(f"date --set @{time.time():.0f} >/dev/null")
    finally:
        on_droplet(f"date --set @{time.time():.0f} >/dev/null")
    assert make("provision").returncode == 0
