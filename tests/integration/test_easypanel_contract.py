"""The stand-in panel's contract, over HTTP, with a machine in memory instead of Swarm."""

from __future__ import annotations

import ast
import asyncio
import errno
import os
import pathlib
from typing import Any

import httpx
import pytest
import yaml

from local.easypanel.models import Body
from local.easypanel.proxy import configuration
from local.easypanel.serve import application
from local.waiting import eventually
from testbed.served_panel import OPERATIONS, Memory, Routes, memory_panel

ADMIN = {"email": "admin@example.com", "password": "long enough"}
APP: dict[str, Any] = {"projectName": "cimt", "serviceName": "api"}
DOMAIN: dict[str, Any] = {
    "id": "new",
    "host": "api.example.com",
    "https": True,
    "path": "/",
    "middlewares": [],
    "certificateResolver": "",
    "wildcard": False,
    "destinationType": "service",
}
ROOT = pathlib.Path(__file__).parents[2]


class Client:
    """A panel and somebody who calls it."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.machine, self.routes = Memory(), Routes()
        self.token = ""
        self.open()

    def open(self) -> None:
        """Start the panel, as after a crash, on the state that is on disk."""
        self.panel = memory_panel(self.path, self.machine, self.routes)
        self.web = application(self.panel)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.web, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://panel") as client:
                headers = {"Authorization": self.token} if self.token else {}
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(ask())

    def read(self, operation: str, **params: str) -> Any:
        answer = self.request("GET", f"/api/{operation}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def write(self, operation: str, **body: Any) -> Any:
        answer = self.request("POST", f"/api/{operation}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.content else None

    def refused(self, operation: str, **body: Any) -> tuple[int, dict[str, Any]]:
        answer = self.request("POST", f"/api/{operation}", json=body)
        assert answer.status_code >= 400
        return answer.status_code, answer.json()

    def inspect(self) -> Any:
        return self.read("inspectAppService", **APP)


@pytest.fixture
def fresh(tmp_path: pathlib.Path) -> Client:
    return Client(tmp_path / "data/panel.json")


@pytest.fixture
def panel(fresh: Client) -> Client:
    """A panel with an admin, a token, a project and an app that has an image."""
    fresh.write("setup", **ADMIN, subscribe=False, source="test", terms=True)
    fresh.token = fresh.write("login", **ADMIN)["token"]
    user = fresh.read("listUsers")[0]
    fresh.write("generateApiToken", id=user["id"])
    fresh.token = fresh.read("listUsers")[0]["apiToken"]
    fresh.write("createProject", name="cimt")
    fresh.write("createAppService", **APP)
    fresh.write("updateAppSourceImage", **APP, image="registry.example/api@sha256:" + "0" * 64)
    return fresh


def test_setup_is_open_once_and_then_shut(fresh: Client) -> None:
    assert fresh.read("getSetupStatus") == {"isComplete": False}
    weak = {**ADMIN, "password": "short"}
    status, body = fresh.refused("setup", **weak, subscribe=False, source="test", terms=True)
    assert status == 400
    assert "password" in body["data"]["zodErrors"]
    fresh.write("setup", **ADMIN, subscribe=False, source="test", terms=True)
    assert fresh.read("getSetupStatus") == {"isComplete": True}
    assert fresh.refused("setup", **ADMIN, subscribe=False, source="x", terms=True)[0] == 400


def test_without_a_token_nothing_but_setup_answers(panel: Client) -> None:
    for header in ("", "wrong", "Bearer wrong"):
        panel.token = header
        answer = panel.request("GET", "/api/listUsers")
        assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")
    panel.token = ""
    assert panel.refused("login", **{**ADMIN, "password": "something else"})[0] == 401


def test_input_is_validated_in_the_panel_s_words(panel: Client) -> None:
    status, body = panel.refused("createProject", name="Not Allowed")
    assert (status, body["code"], body["message"]) == (
        400,
        "BAD_REQUEST",
        "Input validation failed",
    )
    assert "name" in body["data"]["zodErrors"]
    assert panel.refused("updateAppEnv")[1]["data"]["zodErrors"]["projectName"] == "Required"
    answer = panel.request("GET", "/api/listActions", params={"limit": "5"})
    assert answer.json()["data"]["zodErrors"]["limit"] == "Expected number, received string"
    assert panel.refused("createProject", name="cimt")[1]["message"] == "Project already exists."
    assert panel.request("POST", "/api/noSuchOperation", json={}).status_code == 404
    missing = {"projectName": "cimt", "serviceName": "nothing"}
    assert panel.refused("deployAppService", **missing)[1]["message"] == "Invariant failed"


def test_unknown_keys_are_dropped_and_left_out_ones_wiped(panel: Client) -> None:
    panel.write("updateAppSourceImage", **APP, image="r/i:1", username="u", password="p")
    panel.write("updateAppSourceImage", **APP, image="r/i:2", colour="blue")
    assert panel.inspect()["source"] == {"type": "image", "image": "r/i:2"}
    panel.write("updateAppEnv", **APP, env="A=1\nB=2")
    assert panel.inspect()["env"] == "A=1\r\nB=2"
    panel.write("updateAppEnv", **APP)
    assert panel.inspect()["env"] == ""
    panel.write("updateAppDeploy", **APP, replicas=3)  # flat: dropped
    assert panel.inspect()["deploy"]["replicas"] == 1


def test_mounts_and_ports_are_found_by_position(panel: Client) -> None:
    for name in ("a", "b", "c"):
        values = {"type": "volume", "name": name, "mountPath": f"/{name}"}
        panel.write("createMount", **APP, values=values)
        panel.write("createPort", **APP, values={"published": ord(name), "target": 1})
    bind = {"type": "bind", "hostPath": "/srv", "mountPath": "/srv"}
    port = {"published": 53, "target": 5, "protocol": "udp"}
    for kind, other in (("Mount", bind), ("Port", port)):
        panel.write(f"delete{kind}", **APP, index=0)
        panel.write(f"update{kind}", **APP, index=1, values=other)
        assert panel.refused(f"delete{kind}", **APP, index=2)[1]["message"] == "Invariant failed"
    assert [mount["mountPath"] for mount in panel.inspect()["mounts"]] == ["/b", "/srv"]
    assert [port["published"] for port in panel.inspect()["ports"]] == [98, 53]


def test_an_app_that_is_destroyed_takes_its_domains_along(panel: Client) -> None:
    destination = {"protocol": "http", "port": 80, "path": "/", **APP}
    panel.write("createDomain", **DOMAIN, serviceDestination=destination)
    panel.write("destroyAppService", **APP)
    assert panel.read("listProjectsAndServices")["services"] == []
    assert panel.routes.domains == []
    assert panel.refused("destroyAppService", **APP)[1]["message"] == "Invariant failed"


def test_a_domain_is_a_whole_object_and_reaches_the_proxy(panel: Client) -> None:
    domain = {
        **DOMAIN,
        "serviceDestination": {"protocol": "http", "port": 8000, "path": "/", **APP},
    }
    partial = {key: value for key, value in domain.items() if key != "wildcard"}
    assert panel.refused("createDomain", **partial)[1]["data"]["zodErrors"] == {
        "wildcard": "Required"
    }
    panel.write("createDomain", **domain)
    panel.write("createDomain", **domain)  # the panel makes two rules of it
    first, second = panel.read("listDomains", **APP)
    assert first["id"] != second["id"] != "new"
    panel.write("deleteDomain", id=second["id"])
    panel.write("updateDomain", **{**first, "host": "www.example.com"})
    assert [d["host"] for d in panel.routes.domains] == ["www.example.com"]


def test_a_plan_has_three_projects(panel: Client) -> None:
    panel.write("createProject", name="two")
    panel.write("createProject", name="three")
    assert panel.refused("createProject", name="four")[0] == 400


def wait_for_action(panel: Client, status: str) -> Any:
    def newest() -> Any:
        actions = panel.read("listActions", type="deployment", **APP)
        return actions and actions[0]["status"] == status and actions[0]

    action = eventually(newest, f"an action becomes {status}")
    return panel.read("getAction", id=action["id"])


def test_the_hook_answers_at_once_and_the_action_tells_the_end(panel: Client) -> None:
    token = panel.inspect()["token"]
    panel.machine.gate.clear()
    for method in ("GET", "POST"):
        assert panel.request(method, f"/api/deploy/{token}").status_code == 200
    assert panel.machine.deployed == []
    panel.machine.gate.set()
    assert "### Success" in wait_for_action(panel, "done")["log"]

    panel.machine.fails = "no such image"
    panel.request("POST", f"/api/deploy/{token}")
    assert "no such image" in wait_for_action(panel, "error")["log"]
    assert panel.request("POST", "/api/deploy/another").status_code == 404


def test_what_the_panel_runs_is_what_it_was_told(panel: Client) -> None:
    resources = {"memoryReservation": 64, "memoryLimit": 128, "cpuReservation": 0, "cpuLimit": 0.5}
    panel.write("updateAppResources", **APP, resources=resources)
    panel.write("updateAppEnv", **APP, env="WHO=$(SERVICE_NAME)")
    panel.write("updateAppDeploy", **APP, deploy={"zeroDowntime": False, "replicas": 2})
    panel.write("deployAppService", **APP)
    app = panel.machine.deployed[-1]
    assert (app.env, app.replicas, app.start_first) == (["WHO=api"], 2, False)
    assert (app.memory_limit, app.cpu_limit) == (128 * 2**20, 500_000_000)


def test_a_killed_panel_ends_what_it_left_under_way(panel: Client) -> None:
    panel.machine.gate.clear()
    panel.request("POST", f"/api/deploy/{panel.inspect()['token']}")
    wait_for_action(panel, "running")
    panel.open()
    assert "interrupted" in wait_for_action(panel, "error")["log"]
    panel.machine.gate.set()


def test_a_full_disk_is_said_and_loses_nothing(
    panel: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = panel.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, body = panel.refused("updateAppEnv", **APP, env="A=1")
    assert status == 500
    assert "No space left on device" in body["message"]
    assert panel.path.read_bytes() == before
    assert panel.inspect()["env"] == ""


def test_a_crash_before_the_rename_leaves_the_old_state(panel: Client) -> None:
    panel.path.with_suffix(".tmp").write_text('{"users": [')
    panel.open()
    assert panel.inspect()["name"] == "api"


def test_asking_about_the_hook_does_not_fire_it(panel: Client) -> None:
    token = panel.inspect()["token"]
    assert panel.request("HEAD", f"/api/deploy/{token}").status_code == 404
    assert panel.read("listActions", type="deployment", **APP) == []


def test_deploys_of_one_app_take_turns(panel: Client) -> None:
    token = panel.inspect()["token"]
    panel.machine.gate.clear()
    panel.request("POST", f"/api/deploy/{token}")
    wait_for_action(panel, "running")
    panel.request("POST", f"/api/deploy/{token}")
    statuses = [action["status"] for action in panel.read("listActions", **APP)]
    assert statuses == ["pending", "running"]
    # A deploy reads the configuration when its turn comes.
    panel.write("updateAppEnv", **APP, env="LATE=1")
    panel.machine.gate.set()
    wait_for_action(panel, "done")
    assert panel.machine.deployed[-1].env == ["LATE=1"]


def test_a_failed_deploy_says_so_to_who_waits_for_it(panel: Client) -> None:
    panel.machine.fails = "task: non-zero exit (3)"
    status, body = panel.refused("deployAppService", **APP)
    assert (status, body["code"]) == (500, "INTERNAL_SERVER_ERROR")
    assert "non-zero exit (3)" in body["message"]


def test_a_bearer_token_is_as_good_as_a_bare_one(panel: Client) -> None:
    panel.token = f"Bearer {panel.token}"
    assert panel.read("listUsers")[0]["email"] == ADMIN["email"]


def test_another_domain_does_not_break_off_requests_under_way() -> None:
    destination = {"protocol": "http", "port": 8000, "path": "/", **APP}
    domain = {
        "host": "api.example.com",
        "https": True,
        "path": "/",
        "wildcard": False,
        "destinationType": "service",
        "serviceDestination": destination,
    }
    server = configuration([domain])["apps"]["http"]["servers"]["secure"]
    handler = server["routes"][0]["handle"][-1]
    assert handler["upstreams"] == [{"dial": "cimt_api:8000"}]
    assert "flush_interval" not in handler  # Caddy ends such requests at every reload
    assert handler["transport"]["keep_alive"]["enabled"], "as Traefik: no kinder"
    assert "load_balancing" not in handler, "as Traefik: nothing is tried a second time"
    assert server["routes"][-1]["handle"][0]["status_code"] == 404


def test_the_proxy_reads_its_own_configuration_and_environment(tmp_path: pathlib.Path) -> None:
    """As Traefik: certificates whose files are there, and networks that are believed about clients."""
    pairs = [
        {"certFile": f"/data/{name}.crt", "keyFile": f"/data/{name}.key"}
        for name in ("ours", "lost")
    ]
    for ending in ("crt", "key"):
        (tmp_path / f"ours.{ending}").touch()
    config = yaml.safe_dump({"tls": {"certificates": pairs}})
    env = (
        "TRAEFIK_ENTRYPOINTS_HTTP_FORWARDEDHEADERS_TRUSTEDIPS=192.0.2.0/24\n"
        "TRAEFIK_ENTRYPOINTS_HTTPS_FORWARDEDHEADERS_TRUSTEDIPS=192.0.2.0/24,2001:db8::/32\n"
        "TRAEFIK_LOG_LEVEL=DEBUG"
    )
    domain = {**DOMAIN, "serviceDestination": {"protocol": "http", "port": 80, "path": "/", **APP}}

    def read(config: str, env: str) -> tuple[Any, Any]:
        told = configuration([domain], tmp_path, config, env)["apps"]
        handler = told["http"]["servers"]["secure"]["routes"][0]["handle"][-1]
        return told["tls"]["certificates"]["load_files"], handler["trusted_proxies"]

    files = {"certificate": f"{tmp_path}/ours.crt", "key": f"{tmp_path}/ours.key"}
    assert read(config, env) == ([files], ["192.0.2.0/24", "2001:db8::/32"])
    assert read("{}", "") == ([], [])
    assert read("tls: [", "") == ([], []), "what nobody can read is no certificate"


def test_the_stand_in_takes_what_the_published_document_says(panel: Client) -> None:
    """Names, methods and fields; what nobody asks for is not stood in for."""

    def fields(body: type[Body]) -> dict[str, set[str]]:
        required = {name for name, field in body.model_fields.items() if field.is_required()}
        return {"required": required, "optional": set(body.model_fields) - required}

    stood_in = {
        name: {"method": operation.method, **fields(operation.body)}
        for name, operation in panel.panel.operations().items()
    }
    written = {
        name: {
            "method": known["method"],
            "required": set(known.get("required", ())),
            "optional": set(known.get("optional", ())),
        }
        for name, known in OPERATIONS.items()
    }
    assert stood_in == written


def test_roles_call_what_the_published_document_says() -> None:
    """Each call with the right method, and with no field that the document does not know."""
    sources = [path for at in ("roles", "plugins") for path in (ROOT / at).rglob("*.py")]
    seen: set[str] = set()
    for path in sources:
        for call in ast.walk(ast.parse(path.read_text())):
            if not (
                isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args
            ):
                continue
            name = call.args[0].value if isinstance(call.args[0], ast.Constant) else None
            if call.func.attr not in ("read", "write") or not isinstance(name, str):
                continue
            known = OPERATIONS[name]
            assert known["method"] == {"read": "GET", "write": "POST"}[call.func.attr], (path, name)
            given = {word.arg for word in call.keywords if word.arg not in (None, "timeout")}
            assert given <= {*known.get("required", ()), *known.get("optional", ())}, (path, name)
            seen.add(name)
    assert len(seen) > 15
