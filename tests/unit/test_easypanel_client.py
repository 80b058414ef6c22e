"""The panel's client and the role easypanel, against panels that restart, answer otherwise or are another version."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.waiting import free_port
from plugins.module_utils.easypanel import Panel, PanelError, open_panel
from testbed import modules
from testbed.served_panel import ServedPanel

ADMIN: dict[str, Any] = {"email": "ops@example.com", "password": "long enough"}
IMAGE = "easypanel/easypanel:2.33.1"
SETUP: dict[str, Any] = {"subscribe": False, "source": "test", "terms": True}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedPanel]:
    panel = ServedPanel(tmp_path / "data").start()
    yield panel
    panel.stop()
    assert panel.breaches == []


def set_up(served: ServedPanel) -> Panel:
    """A panel with an admin, and a client that has signed in."""
    panel = Panel(served.url, patience=5)
    panel.write("setup", **ADMIN, **SETUP)
    panel.token = panel.write("login", **ADMIN)["token"]
    panel.write("createProject", name="cimt")
    panel.write("createAppService", projectName="cimt", serviceName="api")
    return panel


def test_what_a_restart_gets_in_the_way_of_is_asked_again_where_it_does_no_harm(
    served: ServedPanel,
) -> None:
    panel = set_up(served)
    served.quirks.unavailable = {
        "listUsers": 3,
        "updateAppEnv": 2,
        "deployAppService": 1,
        "listActions": 99,
    }
    key: dict[str, Any] = {"projectName": "cimt", "serviceName": "api"}
    assert panel.read("listUsers")[0]["email"] == ADMIN["email"]
    panel.write("updateAppEnv", **key, env="A=1")
    with pytest.raises(PanelError) as twice:
        panel.write("deployAppService", **key)
    assert twice.value.status == 502
    assert served.asked.count("deployAppService") == 1, "a deploy is never asked for twice"
    panel.patience = 0.5
    with pytest.raises(PanelError) as bounded:
        panel.read("listActions")
    assert bounded.value.status == 502
    # A panel that is not there has certainly done nothing: even a deploy may wait for it.
    panel.patience = 30
    served.stop()
    timer = threading.Timer(0.5, served.start)
    timer.start()
    with pytest.raises(PanelError, match="Invariant failed"):
        panel.write("deployAppService", **key)
    timer.join()


def test_a_connection_that_is_cut_is_an_error_of_the_panel_and_a_read_is_repeated() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls = []

        def serve() -> None:
            for answer in (
                b"",
                b"not http\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
                GOOD,
            ):
                connection, _ = server.accept()
                calls.append(connection.recv(65536))
                connection.sendall(answer)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        panel = Panel(f"http://127.0.0.1:{server.getsockname()[1]}", patience=20)
        assert panel.version() == "2.33.9"
        thread.join()
        assert len(calls) == 4


GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 21\r\nConnection: close\r\n\r\n{"version": "2.33.9"}'


@pytest.mark.parametrize(
    ("operation", "answer", "told"),
    [
        ("listUsers", {}, "listUsers: answered {}, which it never should"),
        ("listUsers", [None], "answered [null]"),
        ("listDomains", None, "answered null"),
        ("getSetupStatus", {}, "getSetupStatus: the answer has no 'isComplete'"),
        ("getSetupStatus", "yes", 'answered "yes"'),
        ("getUpdateStatus", {"version": None}, "this panel speaks another API than 2.33 and newer"),
    ],
)
def test_an_answer_that_is_not_what_it_should_be_is_one_line(
    served: ServedPanel, operation: str, answer: Any, told: str
) -> None:
    panel = set_up(served)
    served.quirks.answers = {operation: answer}
    with pytest.raises(PanelError) as error:
        panel.version() if operation == "getUpdateStatus" else panel.read(operation)["isComplete"]
    assert told in str(error.value)
    assert "tested: 2.33.1. Next: set easypanel_version" in str(error.value)


def test_a_page_in_place_of_an_answer_is_one_line(served: ServedPanel) -> None:
    panel = set_up(served)
    served.quirks.html = {"listUsers"}
    with pytest.raises(PanelError, match="answered no JSON but: <!doctype html>"):
        panel.read("listUsers")


def test_a_panel_that_is_not_spoken_is_refused_before_anything_changes(
    served: ServedPanel, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(str(set_up(served).token))
    assert open_panel(served.url, str(token)).version() == "2.33.1"
    served.quirks.extra = True
    assert open_panel(served.url, str(token)).version() == "2.33.1", (
        "one more key is no other panel"
    )
    (tmp_path / "old").write_text("a token of yesterday")
    with pytest.raises(
        PanelError, match=r"does not take the token in .*old any more; next: make provision"
    ):
        open_panel(served.url, str(tmp_path / "old"))
    served.asked.clear()
    for version in ("2.32.9", "2.9", "3.0.0", "latest", None):
        served.quirks.answers = {"getUpdateStatus": {"version": version}}
        with pytest.raises(PanelError, match=r"tested: 2\.33\.1"):
            open_panel(served.url, str(token))
    served.quirks.answers, served.quirks.older = {}, True
    started = time.monotonic()
    with pytest.raises(PanelError, match=r"speaks another API than 2\.33"):
        open_panel(served.url, str(token))
    assert time.monotonic() - started < 5, "it is not waited for"
    assert set(served.asked) == {"getUpdateStatus"}
    served.quirks.older = False


class Host:
    """A host with a Docker that knows some Swarm services; `setup` is what running the panel's image does."""

    def __init__(self, folder: Path, served: ServedPanel) -> None:
        self.folder, self.served = folder, served
        self.token = folder / "easypanel.token"
        self.proxy_ports: list[int] = []
        self.asked = folder / "docker.log"
        self.asked.touch()
        (folder / "bin").mkdir()
        program = folder / "bin/docker"
        program.write_text(
            f"""#!/bin/sh
echo "$*" >> {self.asked}
case "$1 $2 $3" in
  "service inspect traefik") [ -e {folder}/traefik ] ;;
  "service inspect easypanel") cat {folder}/easypanel 2>/dev/null ;;
  "run --rm -i")
    if [ -e {folder}/picky ] && [ -e {folder}/swarm ]; then echo "already part of a swarm" >&2; exit 1; fi
    [ -e {folder}/swarm ] || echo 203.0.113.7 >{folder}/swarm
    cp {folder}/wanted {folder}/easypanel ;;
  "swarm init --advertise-addr") echo "$4" >{folder}/swarm ;;
  "swarm leave --force") rm {folder}/swarm ;;
  "info --format {{{{json .Swarm}}}}")
    if [ -e {folder}/swarm ]; then state=active; else state=inactive; fi
    echo "{{\\"LocalNodeState\\": \\"$state\\", \\"NodeAddr\\": \\"$(cat {folder}/swarm 2>/dev/null)\\"}}" ;;
  "info --format "*) echo null ;;
esac
"""
        )
        program.chmod(0o755)

    def has(self, image: str, version: str, at: str = "easypanel") -> None:
        """Its service `easypanel` runs this, or would after the set-up (``at`` wanted)."""
        container = {"Image": f"{image}@sha256:0", "Env": [f"RELEASE_TAG={version}"]}
        (self.folder / at).write_text(json.dumps(container))

    def provision(self, **given: Any) -> dict[str, Any]:
        """What the role's module answers."""
        params = {
            "image": IMAGE,
            "version": "2.33.1",
            "url": self.served.url,
            "token_file": str(self.token),
            "admin_email": ADMIN["email"],
            "admin_password": ADMIN["password"],
            "project": "cimt",
            "state_directory": str(self.folder),
            "timeout": 20,
            **given,
        }
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        answer = modules.run(
            "roles.easypanel.library.easypanel_install",
            params,
            {**os.environ, "PATH": path},
            **{"easypanel.PROXY_PORTS": self.proxy_ports, "easypanel.PANEL_PORT": free_port()},
        )
        assert params["admin_password"] not in answer["output"].replace(json.dumps(params), "")
        assert "Traceback" not in answer["output"]
        return answer

    def set_up_ran(self) -> bool:
        """Whether the panel's own set-up was run since the last time that this was asked."""
        ran = "run --rm" in self.asked.read_text()
        self.asked.write_text("")
        return ran


@pytest.fixture
def host(tmp_path: Path, served: ServedPanel) -> Host:
    host = Host(tmp_path, served)
    host.has(IMAGE, "2.33.1", at="wanted")
    return host


def test_a_set_up_that_was_interrupted_is_taken_up_again(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        host.proxy_ports = [proxy.getsockname()[1]]
        assert f"port {host.proxy_ports[0]} is in use" in host.provision()["msg"], "somebody else's"
        assert not host.set_up_ran()
        (host.folder / "traefik").touch()  # its own, from the set-up that was cut
        first = host.provision()
    assert first["steps"][0].startswith(f"install {IMAGE} (now: no panel")
    assert first["changed"]
    assert host.set_up_ran()
    second = host.provision()
    assert (second["changed"], second["steps"]) == (False, [])
    assert not host.set_up_ran()
    host.token.unlink()  # cut between admin and token
    assert host.provision()["steps"] == [f"keep an API token in {host.token}"]


@pytest.mark.parametrize("picky", [False, True])
def test_the_swarm_is_known_by_the_private_address(host: Host, picky: bool) -> None:
    """It cannot be changed later. A set-up that takes no Swarm but its own still ends well, and that is told."""
    if picky:
        (host.folder / "picky").touch()
    told = host.provision(advertise="10.116.0.2")
    assert told["steps"][1] == "make a Swarm, known by 10.116.0.2"
    asked = host.asked.read_text()
    assert asked.index("swarm init --advertise-addr 10.116.0.2") < asked.index("run --rm -i")
    assert (host.folder / "swarm").read_text().strip() == ("203.0.113.7" if picky else "10.116.0.2")
    warned = json.dumps(told.get("warnings", []))
    assert ("already part of a swarm" in warned) is picky
    assert ("a second cannot join" in warned) is picky
    assert host.provision(advertise="10.116.0.2")["steps"] == []


def test_a_token_is_read_from_whichever_answer_has_it(host: Host) -> None:
    host.has(IMAGE, "2.33.1")
    made = set_up(host.served)
    user = made.read("listUsers")[0]
    made.write("generateApiToken", id=user["id"])
    token = made.read("listUsers")[0]["apiToken"]
    hidden = {**user, "apiToken": None}
    for shown in (token, {"token": token}, {"apiToken": token}):
        host.served.quirks.answers = {"listUsers": [hidden], "generateApiToken": shown}
        assert host.provision()["changed"]
        assert host.token.read_text() == f"{token}\n"
        host.token.unlink()
    host.served.quirks.answers["generateApiToken"] = None
    assert "shows no token" in host.provision()["msg"]
    assert not host.token.exists(), "nothing, and not the word None, is written as one"


def test_a_second_factor_is_explained(host: Host) -> None:
    host.has(IMAGE, "2.33.1")
    set_up(host.served)
    for answer in ({"twoFactor": True}, {"token": None}):
        host.served.quirks.answers = {"login": answer}
        told = host.provision()["msg"]
        assert "has a second factor" in told
        assert str(host.token) in told


def test_another_password_takes_the_admins_place_and_ends_token_and_hooks(host: Host) -> None:
    host.has(IMAGE, "2.33.1")
    old = set_up(host.served)
    assert host.provision()["steps"] == [f"keep an API token in {host.token}"]
    old.token = host.token.read_text().strip()
    (app,) = old.read("listProjectsAndServices")["services"]
    new = {"admin_password": "another long one"}
    (step,) = host.provision(**new, _ansible_check_mode=True)["steps"]
    assert step.startswith("give the admin the declared password")
    assert host.provision()["steps"] == [], "nothing was changed by a look"
    assert host.provision(**new)["steps"] == [step]
    with pytest.raises(PanelError, match="401"):
        old.read("listUsers")
    with pytest.raises(PanelError, match="401"):
        Panel(host.served.url).write("login", **ADMIN)
    kept = Panel(host.served.url, host.token.read_text().strip())
    (now,) = kept.read("listProjectsAndServices")["services"]
    assert now["token"] != app["token"]
    assert host.provision(**new)["steps"] == []
    told = host.provision(admin_email="somebody@example.com")["msg"]
    assert "the panel has no user somebody@example.com. Next: set EASYPANEL_ADMIN_EMAIL" in told
    assert kept.read("listProjectsAndServices")["services"] == [now], "nothing was changed"
    host.served.quirks.answers = {"login": {"twoFactor": True}}
    assert host.provision()["steps"] == [], "nobody can tell"


def test_an_older_panel_becomes_the_pinned_one_and_keeps_its_apps(host: Host) -> None:
    host.token.write_text(str(set_up(host.served).token))
    host.has("easypanel/easypanel:2.30.0", "2.30.0")
    host.served.quirks.answers = {
        "listProjectsAndServices": {
            "projects": [],
            "services": [{"projectName": "p", "name": "gone"}],
        }
    }
    assert "p/gone" not in str(host.provision(_ansible_check_mode=True))
    assert not host.set_up_ran()
    host.served.quirks.answers = {}
    assert host.provision()["steps"] == [
        f"install {IMAGE} (now: easypanel/easypanel:2.30.0 2.30.0)"
    ]
    assert host.set_up_ran()


def test_a_newer_panel_is_told_and_left_unless_its_downgrade_is_asked_for_by_name(
    host: Host,
) -> None:
    host.token.write_text(str(set_up(host.served).token))
    host.has("easypanel/easypanel:latest", "latest")
    host.served.quirks.answers = {"getUpdateStatus": {"version": "2.34.0"}}
    for named in ("", "2.32.0"):
        left = host.provision(downgrade=named)
        assert not left["changed"]
        assert "2.34.0, newer than the pinned 2.33.1" in str(left["warnings"])
        assert not host.set_up_ran()
    taken_back = host.provision(downgrade="2.33.1", timeout=1)
    assert host.set_up_ran()
    assert "was set up as 2.33.1 and is 2.34.0" in taken_back["msg"], "what came of it is looked at"


def test_a_panel_of_another_api_is_not_waited_for(host: Host) -> None:
    host.has(IMAGE, "2.33.1")
    host.served.quirks.older = True
    started = time.monotonic()
    assert "speaks another API than 2.33" in host.provision(timeout=300)["msg"]
    assert time.monotonic() - started < 60
    host.served.quirks.older, host.served.quirks.html = False, {"getSetupStatus"}
    assert "answered no JSON" in host.provision(timeout=300)["msg"]
