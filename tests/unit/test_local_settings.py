"""Ports, switches and what is said about them before anything is made."""

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from local import settings as local
from local.settings import LocalError, check_ports, load, save_ports, write_atomic


def test_ports_of_the_first_start_stay(tmp_path: Path) -> None:
    first = load(tmp_path, {"DROPLET_SSH_PORT": "2299"})
    save_ports(first)
    assert json.loads((tmp_path / ".local/ports.json").read_text())["ssh"] == 2299
    assert load(tmp_path, {}).ports["ssh"] == 2299
    assert load(tmp_path, {}).ports["https"] == 8443


def test_the_environment_changes_a_port_only_while_nothing_runs(tmp_path: Path) -> None:
    save_ports(load(tmp_path, {}))
    assert load(tmp_path, {"REGISTRY_PORT": "5999"}).ports["registry"] == 5999
    assert load(tmp_path, {"REGISTRY_PORT": "5999"}, running=True).ports["registry"] == 5000


@pytest.mark.parametrize("value", ["ssh", "", "0", "65536", "-1", "22 "])
def test_a_port_that_is_none(tmp_path: Path, value: str) -> None:
    with pytest.raises(LocalError, match=r"DROPLET_SSH_PORT=.* is not a port number"):
        load(tmp_path, {"DROPLET_SSH_PORT": value})


def test_one_port_wanted_twice(tmp_path: Path) -> None:
    with pytest.raises(
        LocalError, match=r"8443 is wanted twice.*DROPLET_SSH_PORT, DROPLET_HTTPS_PORT"
    ):
        load(tmp_path, {"DROPLET_SSH_PORT": "8443"})


def test_a_damaged_ports_file_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local/ports.json").write_text('{"ssh": 22')
    with pytest.raises(LocalError, match=r"not valid.*Next: rm .*ports\.json"):
        load(tmp_path, {})


def test_a_taken_port_names_port_variable_and_holder(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        settings = load(tmp_path, {"DROPLET_HTTPS_PORT": str(port)})
        with pytest.raises(LocalError) as caught:
            check_ports(settings, ["https"])
    message = str(caught.value)
    assert f"port {port} on 127.0.0.1 (https) is taken by " in message
    assert f"(pid {os.getpid()})" in message
    assert "DROPLET_HTTPS_PORT=" in message
    assert "\n" not in message
    assert not (tmp_path / ".local").exists()
    check_ports(settings, ["https"])  # free again


@pytest.mark.parametrize(
    ("variable", "value"),
    [("DROPLET_IMAGE", "debian-11"), ("DROPLET_ACCEL", "hvf"), ("CIMT_EXTRA_CA", "/nowhere.pem")],
)
def test_an_unknown_switch_is_named(tmp_path: Path, variable: str, value: str) -> None:
    with pytest.raises(LocalError, match=rf"{variable}=.*{value}"):
        load(tmp_path, {variable: value})


def test_the_image_of_the_droplet_that_exists_is_the_default(tmp_path: Path) -> None:
    assert load(tmp_path, {}).image == "debian-13"
    write_atomic(tmp_path / ".local/droplet/state.json", '{"image": "debian-12"}')
    assert load(tmp_path, {}).image == "debian-12"


def test_a_missing_program_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LocalError, match=r"no-such-program is missing. Next: make up"):
        local.check_tools("no-such-program")


def test_a_file_is_written_whole_and_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "deep/file"
    write_atomic(path, "old", mode=0o600)
    write_atomic(path, "new", mode=0o600)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.name for item in path.parent.iterdir()] == ["file"]
