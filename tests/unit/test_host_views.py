"""`make status` and `make logs`: what is not well is said with the next step, and no name becomes a command."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import runpy
import shlex
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from local.settings import ROOT
from tools.host import logs, seen, status
from tools.host.way_in import NoWayIn, way_in

DAY = 86400.0
WELL: dict[str, Any] = {
    "now": 1_800_000_000.0,
    "unread": {},
    "system": {
        "host": "cimt",
        "name": "Ubuntu 22.04.5 LTS",
        "up_seconds": 3 * DAY,
        "load": 0.4,
        "processors": 2,
        "reboot_waits_seconds": None,
    },
    "memory": {
        "total": 2_000_000_000,
        "left": 800_000_000,
        "swap": 1_000_000_000,
        "swap_left": 9e8,
    },
    "disks": {"/": {"total": 60_000_000_000, "left": 40_000_000_000}},
    "services": [
        {
            "name": "cimt_api",
            "tasks": "1/1",
            "since": ["Running 3 hours ago"],
            "image": "ghcr.io/a/b/api@sha256:1",
            "memory": [{"used": 90 << 20, "limit": 384 << 20}],
        }
    ],
    "units": [],
    "releases": [
        {
            "service": "api",
            "result": "live",
            "to": "ghcr.io/a/b/api@sha256:1",
            "who": "deploy",
            "revision": "0123456789abcdef",
            "time": "2026-11-27T03:00:00",
        }
    ],
    "stamps": {"backup": 3600.0, "drill": None},
    "alarms": {"checks": 9, "failing": {}},
}


def screen(seen: dict[str, Any]) -> tuple[int, str]:
    """Exit code and text."""
    stream = io.StringIO()
    return status.show(seen, "production", Console(file=stream, width=140)), stream.getvalue()


def test_a_host_that_is_well_fits_on_a_screen() -> None:
    code, text = screen(WELL)
    assert code == 0, text
    assert "0123456789ab" in text
    assert "90 of 384 MB" in text
    assert "all is well" in text
    assert len(text.splitlines()) < 20


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("services", 0, "tasks"), "0/1", "cimt_api: 0 of 1 run. Next: make logs ENV=production SERVICE=api"),
        (("units",), ["cimt-backup.service"], "make logs ENV=production SERVICE=cimt-backup.service"),
        (("disks", "/", "left"), 1_000_000_000, "/: 1.0 GB left"),
        (("memory", "left"), 100_000_000, "100 MB of memory left"),
        (("system", "reboot_waits_seconds"), 9 * DAY, "a reboot waits since 9 d"),
        (("stamps", "backup"), 40 * 3600.0, "Next: make backup ENV=production"),
        (("stamps", "drill"), 31 * DAY, "Next: make restore-drill ENV=production"),
        (
            ("alarms", "failing"),
            {"api": {"since": 1_799_999_400_000}},
            "alarm api, since 10 min. Next: docs/operations/alarms.md#api",
        ),
        (("unread",), {"services": "docker: not found"}, "services cannot be read: docker: not found"),
    ],
)  # fmt: skip
def test_what_is_not_well_is_said_with_what_to_type(
    path: tuple[Any, ...], value: Any, told: str
) -> None:
    ill = copy.deepcopy(WELL)
    *there, last = path
    place: Any = ill
    for part in there:
        place = place[part]
    place[last] = value
    code, text = screen(ill)
    assert code == 1
    assert told in " ".join(text.split()), text


def test_each_card_that_is_named_is_there() -> None:
    source = (ROOT / "tools/host/status.py").read_text()
    cards = (ROOT / "docs/operations/alarms.md").read_text()
    for name in re.findall(r"alarms\.md#([\w-]+)", source):
        assert f"## {name.replace('-', ' ', 1)}" in cards


def test_a_host_without_docker_or_n8n_still_tells_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    runpy.run_path(str(status.PROGRAM), run_name="__main__")
    told = json.loads(capsys.readouterr().out)
    assert told["memory"]["left"] > 0
    assert told["disks"]
    assert "docker" in told["unread"]["services"]


def test_alarms_are_read_beside_n8n(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "database.sqlite"
    kept = {"global": {"checks": {"api": {"failing": True, "since": 5}, "host report": {}}}}
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table workflow_entity (id text, staticData text)")
        database.execute("insert into workflow_entity values ('alerts', ?)", [json.dumps(kept)])
        database.execute("begin immediate")  # n8n writes
        monkeypatch.setattr(seen, "N8N", path)
        assert seen.alarms() == {"checks": 2, "failing": {"api": {"failing": True, "since": 5}}}


@pytest.mark.parametrize(
    "name", ["api; rm -rf /", "$(id)", "--follow", "a b", "-", "a'b", "a\nb", "../x"]
)
def test_no_name_becomes_a_command(name: str) -> None:
    with pytest.raises(logs.Refused, match="is no name"):
        logs.command(name, "", follow=False)


@pytest.mark.parametrize("since", ["yesterday", "1", "0h", "-1h", "1h; id", "999999d"])
def test_a_span_that_makes_no_sense_is_refused(since: str) -> None:
    with pytest.raises(logs.Refused, match="Next: SINCE=30m, 2h or 1d"):
        logs.command("api", since, follow=False)


def test_the_hosts_shell_gets_what_was_meant(tmp_path: Path) -> None:
    """A real shell, with programs that write down how they were called."""
    calls = tmp_path / "calls"
    for name in ("docker", "journalctl", "systemctl", "sudo"):
        program = tmp_path / name
        program.write_text(
            '#!/bin/sh\nshift; exec "$@"\n'
            if name == "sudo"
            else f'#!/bin/sh\n[ "$1 $2 $3" != "service inspect cimt_cimt-backup" ] || exit 1\n'
            f'[ "$1 $2 $3" != "service inspect cimt-backup" ] || exit 1\necho "{name} $*" >>"{calls}"\n'
        )
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for service, since, follow in (("api", "2h", True), ("cimt-backup", "", False)):
        subprocess.run(
            ["sh", "-c", logs.command(service, since, follow)],
            env=environment,
            check=True,
            timeout=60,
        )
    told = calls.read_text()
    assert "docker service logs --timestamps --no-task-ids --since 7200s --follow cimt_api" in told
    assert (
        "journalctl --no-pager --output short-iso --since -3600s --unit cimt-backup.service" in told
    )


def test_the_way_in_pins_the_host_and_keeps_the_key_to_itself() -> None:
    known = {
        "DROPLET_HOST": "203.0.113.7",
        "DROPLET_KNOWN_HOSTS": "203.0.113.7 ssh-ed25519 AAAA",
        "DROPLET_SSH_KEY": "-----BEGIN\r\nkey\n-----END",
        "DROPLET_USER": "ops",
    }
    with way_in("production", known) as ssh:
        assert ssh[-2:] == ["--", "ops@203.0.113.7"]
        assert "StrictHostKeyChecking=yes" in ssh
        key = Path(ssh[ssh.index("-i") + 1])
        assert (key.stat().st_mode & 0o777, key.read_text()) == (
            0o600,
            "-----BEGIN\nkey\n-----END\n",
        )
        assert "BEGIN" not in shlex.join(ssh)
    assert not key.exists()
    for host in ("", "-oProxyCommand=id"):
        with (
            pytest.raises(NoWayIn, match="DROPLET_HOST"),
            way_in("production", {"DROPLET_HOST": host}),
        ):
            pass
