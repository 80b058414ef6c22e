"""What can be known of the droplet without starting one; QEMU itself is in tests/acceptance."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pycdlib
import pytest
import yaml

from local import clouds
from local.droplet import machine
from local.droplet.acceleration import drive
from local.settings import LocalError, Settings, load


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(tmp_path, {"CIMT_CACHE": str(tmp_path / "cache")})


@pytest.mark.parametrize("pid", ["", "no number", "999999999", "own"])
def test_a_pid_file_that_is_not_our_qemu_counts_as_off(settings: Settings, pid: str) -> None:
    settings.droplet.mkdir(parents=True)
    (settings.droplet / "qemu.pid").write_text(str(os.getpid()) if pid == "own" else pid)
    assert machine.running_pid(settings) == 0
    assert machine.stop(settings) is False
    assert machine.destroy(settings) is True  # and this test process lives on
    assert not settings.droplet.exists()


def test_our_own_process_is_known_by_its_pid_file(settings: Settings) -> None:
    settings.droplet.mkdir(parents=True)
    path = settings.droplet / "qemu.pid"
    # It says a word when it runs: only then is its command line its own.
    sleep = [sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"]
    with subprocess.Popen([*sleep, "-pidfile", str(path)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"1\n"
            path.write_text(str(process.pid))
            assert machine.running_pid(settings) == process.pid
        finally:
            process.kill()
    assert machine.running_pid(settings) == 0


def test_a_stale_pid_of_a_cloud_counts_as_off(settings: Settings) -> None:
    settings.clouds.mkdir(parents=True)
    (settings.clouds / "registry.pid").write_text(str(os.getpid()))
    assert clouds.running_pid(settings, "registry") == 0
    assert clouds.stop(settings, "registry") is False
    assert not (settings.clouds / "registry.pid").exists()


def test_a_stand_in_of_another_checkout_is_not_ours(settings: Settings, tmp_path: Path) -> None:
    settings.clouds.mkdir(parents=True)
    command = [sys.executable, "-c", "print(1, flush=True); import time; time.sleep(60)"]
    for root, ours in ((tmp_path / "other", False), (settings.root, True)):
        root.mkdir(exist_ok=True)
        with subprocess.Popen(
            [*command, "local.openai"], cwd=root, stdout=subprocess.PIPE
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"1\n"
                (settings.clouds / "openai.pid").write_text(str(process.pid))
                assert (clouds.running_pid(settings, "openai") == process.pid) is ours
            finally:
                process.kill()


def test_the_second_of_two_is_refused_with_the_pid_of_the_first(settings: Settings) -> None:
    with (
        machine.alone(settings, "up"),
        pytest.raises(LocalError, match=rf"another run of `up` is at work \(pid {os.getpid()}\)"),
        machine.alone(settings, "up"),
    ):
        pass
    with machine.alone(settings, "up"):
        pass  # free again


def test_another_image_than_that_of_the_droplet_is_refused(settings: Settings) -> None:
    machine.check_image(settings)  # there is none yet
    settings.droplet.mkdir(parents=True)
    (settings.droplet / "state.json").write_text(json.dumps({"image": "debian-12"}))
    with pytest.raises(LocalError, match=r"is debian-12, not debian-13. Next: make down"):
        machine.check_image(settings)


def test_the_seed_is_what_cloud_init_looks_for(settings: Settings) -> None:
    home = settings.droplet
    home.mkdir(parents=True)
    for name in ("id_ed25519", "host_ed25519"):
        (home / name).write_text(f"private {name}\n")
        (home / f"{name}.pub").write_text(f"ssh-ed25519 {name} comment\n")
    machine.write_seed(home / "seed.iso", machine.user_data(home), "droplet")
    iso = pycdlib.PyCdlib()
    iso.open(str(home / "seed.iso"))
    label = iso.pvd.volume_identifier.decode().strip()
    iso.get_file_from_iso(str(home / "copy"), rr_path="/user-data")
    iso.close()
    assert label == "cidata"
    text = (home / "copy").read_text()
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    admin, root = config["users"]
    assert (admin["name"], admin["lock_passwd"]) == ("cimt", True)
    assert (
        admin["ssh_authorized_keys"]
        == root["ssh_authorized_keys"]
        == ["ssh-ed25519 id_ed25519 comment"]
    )
    assert config["ssh_keys"]["ed25519_private"] == "private host_ed25519\n"
    assert config["ssh_pwauth"] is False
    assert "private id_ed25519" not in text
    assert (home / "seed.iso").stat().st_mode & 0o077 == 0


def test_a_comma_in_a_path_is_not_the_end_of_qemus_option() -> None:
    assert drive(Path("/srv/chat, new/disk.raw")) == "file=/srv/chat,, new/disk.raw"
