"""The door: what a pipeline's key may ask of a host, and what it may not."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.served_panel import ServedPanel
from testbed.simulated_droplet import declared
from testbed.tree import ROOT
from tests.unit.test_easypanel_client import set_up

PACK = ROOT / "roles/door/files/pack.py"


class Door:
    """The packed program with the settings of a host, asked as sshd would."""

    def __init__(self, folder: Path, panel: ServedPanel) -> None:
        self.folder = folder
        self.program = folder / "cimt-door"
        packed = [sys.executable, str(PACK), str(self.program)]
        self.digest = subprocess.run(packed, capture_output=True, text=True, check=True).stdout
        (folder / "token").write_text(str(set_up(panel).token))
        self.fixed = {
            "project": "cimt",
            "url": panel.url,
            "token_file": str(folder / "token"),
            "state_directory": str(folder),
        }
        self.said: dict[str, Any] = {
            "apps": {"api": {"binds": ["/srv/open"], "cap_add": ["NET_BIND_SERVICE"]}},
            "gates": {},
            "readable": [],
            "fixed": {
                "easypanel_apps": {**self.fixed, "prune": [], "adopt": False},
                "easypanel_release": self.fixed,
                "audit": {"state_directory": str(folder)},
            },
        }

    def ask(self, request: str, command: str = "cimt-door") -> tuple[int, str]:
        settings = self.folder / "door.json"
        settings.write_text(json.dumps(self.said))
        done = subprocess.run(
            [sys.executable, "-I", str(self.program), str(settings)],
            input=request,
            env={**os.environ, "SSH_ORIGINAL_COMMAND": command},
            capture_output=True,
            text=True,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    def request(self, what: str, check: bool = True, **given: Any) -> dict[str, Any]:
        asked = {"door": self.digest.strip(), "do": what, "with": given, "check": check}
        _, said = self.ask(json.dumps(asked))
        return dict(json.loads(said))

    def converge(self, **fields: Any) -> dict[str, Any]:
        """A plan of the one app, with these of its fields."""
        return self.request("easypanel_apps", apps=[declared("api", **fields)], who="a test")


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    panel = ServedPanel(tmp_path).start()
    yield Door(tmp_path, panel)
    panel.stop()


def test_apps_converge_through_it(door: Door) -> None:
    planned = door.converge()
    assert planned["changed"]
    assert "LOG_LEVEL" in str(planned["changes"])
    volume = {"type": "volume", "name": "data", "mountPath": "/data"}
    bind = {"type": "bind", "hostPath": "/srv/open", "mountPath": "/open"}
    allowed = door.converge(mounts=[volume, bind], cap_add=["NET_BIND_SERVICE"])
    assert allowed["changed"], "what the host itself allows"
    # As a role says it: what is the host's, alike.
    same = door.request(
        "easypanel_apps", apps=[declared("api")], who="a test", prune=[], **door.fixed
    )
    assert same["changes"] == planned["changes"]


@pytest.mark.parametrize(
    "fields",
    [
        {"mounts": [{"type": "bind", "hostPath": "/", "mountPath": "/host"}]},
        {"mounts": [{"type": "bind", "hostPath": "/srv/open/../..", "mountPath": "/host"}]},
        {"mounts": [{"type": "bind", "hostPath": "/var/run/docker.sock", "mountPath": "/d"}]},
        {"mounts": [{"type": "volume", "name": "../../../../..", "mountPath": "/host"}]},
        {"mounts": [{"type": "file", "content": "x", "mountPath": "/../../etc/cron.d/x"}]},
        {"mounts": [{"type": "npipe", "mountPath": "/host"}]},
        {"cap_add": ["SYS_ADMIN"]},
        {"sysctls": {"kernel.core_pattern": "|/bin/sh"}},
        {"groups": ["docker"]},
        {"ports": [{"published": 22, "target": 22}]},
        {"name": "../x"},
        {"mounts": '[{"type": "bind", "hostPath": "/", "mountPath": "/host"}]'},
        {"mounts": [["type", "bind"]]},
        {"cap_add": "SYS_ADMIN"},
    ],
)
def test_no_app_gets_more_of_the_host(door: Door, fields: dict[str, Any]) -> None:
    app = {**declared("api"), **fields}
    for what, given in (
        ("easypanel_apps", {"apps": [declared("web"), app]}),
        ("easypanel_release", {"service": "api", "app": app}),
    ):
        answer = door.request(what, **given)
        assert answer["failed"]
        assert answer["msg"].startswith(("door: refused: no app may", "door: refused: an app is"))


@pytest.mark.parametrize(
    ("what", "given"),
    [
        ("easypanel_apps", {"url": "http://127.0.0.1:1"}),
        ("easypanel_apps", {"prune": ["app api"]}),
        ("easypanel_apps", {"adopt": True}),
        ("easypanel_apps", {"docker_socket": "/tmp/x"}),
        ("easypanel_release", {"service": "api", "gate": "touch /tmp/x"}),
        ("easypanel_release", {"service": "api", "token_file": "/etc/shadow"}),
        ("easypanel_release", {"service": "../api"}),
        ("easypanel_release", {"service": "web", "app": declared("api")}),
        ("easypanel_release", {"service": "api", "app": '{"name": "api"}'}),
        ("easypanel_apps", {"apps": '[{"name": "api"}]'}),
        ("easypanel_apps", {"apps": 5}),
        ("config_set", {"name": "x"}),
        ("ansible.builtin.command", {"cmd": "id"}),
        ("logs", {"name": "--file=/etc/shadow"}),
        ("logs", {"name": "a b"}),
        ("audit", {"ca_file": "/etc/shadow"}),
    ],
)
def test_what_is_the_hosts_is_not_the_callers(door: Door, what: str, given: dict[str, Any]) -> None:
    answer = door.request(what, **given)
    assert answer["failed"]
    assert answer["msg"].startswith("door: refused: ")


def test_what_is_no_request_is_refused(door: Door) -> None:
    hello = json.dumps({"do": "hello"})
    assert json.loads(door.ask(hello)[1])["door"] == door.digest.strip()
    for command in ("bash -i", "cimt-door; id", "/usr/lib/openssh/sftp-server", "scp -t /"):
        code, said = door.ask(hello, command)
        assert (code, "is no request" in said) == (1, True)
    for request in ("", "[]", "null", '{"do": 1', '{"with": {}}', "x" * (4 * 2**20 + 1)):
        code, said = door.ask(request)
        assert (code, json.loads(said)["failed"]) == (1, True)
    code, said = door.ask(json.dumps({"do": "easypanel_apps", "door": "0" * 64}))
    assert (code, "of another revision than this checkout" in said) == (1, True)


def test_an_older_checkout_may_go_back_and_no_further(door: Door) -> None:
    door.digest = "0" * 64
    told = door.request("easypanel_release", service="api", action="history", who="a test")
    assert told["entries"] == []
    for action in ("deploy", "undo"):
        told = door.request("easypanel_release", service="api", action=action, who="a test")
        assert "of another revision than this checkout" in told["msg"]


def test_the_audit_is_shown_what_everybody_on_the_host_may_read() -> None:
    public = runpy.run_path(str(PACK.with_name("door.py")))["public"]
    with (
        tempfile.TemporaryDirectory() as name
    ):  # pytest's own lie below a folder that only one may enter
        folder = Path(name).resolve()
        folder.chmod(0o755)
        secret, shown, hidden = (folder / one for one in ("secret", "shown", "closed/hidden"))
        hidden.parent.mkdir(0o700)
        for path in (secret, shown, hidden):
            path.write_text("content")
            path.chmod(0o644)
        secret.chmod(0o600)
        (folder / "link").symlink_to(shown)
        asked = (secret, shown, hidden, folder / "link", folder / "none", folder)
        assert [path.name for path in asked if public(str(path))] == ["shown"]


def test_the_same_sources_are_the_same_program(door: Door) -> None:
    again = door.folder / "of a fresh clone/again"
    subprocess.run([sys.executable, str(PACK), str(again)], check=True, capture_output=True)
    assert again.read_bytes() == door.program.read_bytes()
