"""The files that the host roles write, judged by what reads them. (The firewall at work: tests/kernel.)"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from testbed.host import ENVIRONMENT, FIREWALL_VARIANTS, ROLES, render


@pytest.mark.parametrize("variant", FIREWALL_VARIANTS, ids=str)
def test_every_variant_of_the_firewall_policy_is_nft(variant: dict[str, Any]) -> None:
    """The grammar only: nft asks the kernel for the rest, which answers nobody but root."""
    policy = render("firewall", "firewall.nft.j2", **variant)
    command = ["nft", "--check", "--file", "-"]
    done = subprocess.run(command, input=policy, env=ENVIRONMENT, text=True, capture_output=True)
    refused = "cache initialization failed: Operation not permitted" in done.stderr
    assert done.returncode == 0 or (refused and "syntax error" not in done.stderr), done.stderr
    hooks = re.findall(r"type filter hook (input|forward) priority .*; policy (\w+);", policy)
    assert sorted(hooks) == [("forward", "drop"), ("input", "drop")]


def test_docker_configuration_is_json_without_what_swarm_refuses() -> None:
    plain = json.loads(render("docker", "daemon.json.j2"))
    assert plain == {
        "log-driver": "local",
        "log-opts": {"max-size": "10m", "max-file": "3"},
        "shutdown-timeout": 60,
    }
    pools = [{"base": "10.201.0.0/16", "size": 24}]
    full = json.loads(render("docker", "daemon.json.j2", docker_address_pools=pools))
    assert full["default-address-pools"] == pools
    assert "live-restore" not in full


def test_every_setting_of_the_ssh_server_is_one_line() -> None:
    text = render("ssh", "sshd.conf.j2", ssh_permit_root_login="prohibit-password")
    settings = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in settings if len(line) != 2] == []
    assert ["PermitRootLogin", "prohibit-password"] in settings
    assert ["PasswordAuthentication", "no"] in settings


def test_declared_kernel_settings_are_written() -> None:
    text = render("baseline", "sysctl.conf.j2", baseline_sysctl={"vm.swappiness": 1})
    assert text.splitlines()[1:] == ["vm.swappiness = 1"]


@pytest.mark.parametrize(("time", "automatic"), [("05:10", "true"), ("", "false")])
def test_the_droplet_starts_again_by_itself_only_when_told(time: str, automatic: str) -> None:
    text = render("baseline", "apt.conf.j2", baseline_reboot_time=time)
    assert f'Automatic-Reboot "{automatic}";' in text
    assert (f'Automatic-Reboot-Time "{time}";' in text) == bool(time)


def test_units_that_run_at_night_are_systemd_s(tmp_path: Path) -> None:
    for kind in ("service", "timer"):
        unit = render("backup", f"cimt-backup.{kind}.j2", backup_volumes={"n8n": "/srv/n8n"})
        (tmp_path / f"cimt-backup.{kind}").write_text(unit)
        unit = render("hardening", f"cimt-integrity.{kind}.j2")
        (tmp_path / f"cimt-integrity.{kind}").write_text(unit)
    command = ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())]
    done = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True)
    own = [line for line in done.stderr.splitlines() if re.search("cimt-(backup|integrity)", line)]
    assert [line for line in own if "/usr/local/sbin" not in line] == []


def test_docker_does_not_start_without_its_volume(tmp_path: Path) -> None:
    """Where a volume is declared: n8n would begin anew in the empty directory, with another owner."""
    path = "/etc/easypanel/projects/cimt/n8n/volumes"
    given = {"volume_name": "cimt-production", "volume_path": path}
    command = ["systemd-escape", "--path", "--suffix=mount", path]
    done = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True, check=True)
    mount = tmp_path / done.stdout.strip()
    disk = "/dev/disk/by-id/scsi-0DO_Volume_cimt-production"
    mount.write_text(render("volume", "volume.mount.j2", **given, volume_device=disk))
    docker = tmp_path / "docker.service"
    docker.write_text("[Service]\nExecStart=/bin/true\n")
    (tmp_path / "docker.service.d").mkdir()
    drop_in = tmp_path / "docker.service.d/cimt-volume.conf"
    drop_in.write_text(render("volume", "docker.conf.j2", **given))
    command = ["systemd-analyze", "verify", "--man=no", str(mount), str(docker)]
    done = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True)
    own = ("cimt-volume", mount.name, "docker.service")
    assert [line for line in done.stderr.splitlines() if any(name in line for name in own)] == []
    assert f"RequiresMountsFor={path}" in drop_in.read_text().splitlines()
    task = (ROLES / "volume/tasks/configure.yml").read_text()
    assert r"replace('-', '\\x2d') | replace('/', '-') }}.mount" in task, "as systemd-escape does"
