"""A droplet in memory: a panel, Swarm below it and what answers, for the modules that release apps.

The modules are the real ones; only the panel's HTTP, Docker's socket, the health address and the clock are played.
"""

from __future__ import annotations

import importlib
import itertools
import json
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import testbed.modules  # noqa: F401 - Ansible's module_utils find ours

REGISTRY = "registry.example"


def image(letter: str) -> str:
    """An image whose revision is that letter, forty times."""
    return f"{REGISTRY}/api@sha256:{letter * 64}"


def declared(name: str = "api", **fields: Any) -> dict[str, Any]:
    """An app as the filter panel_apps gives it."""
    return {
        "name": name,
        "image": f"{REGISTRY}/{name}",
        "released": True,
        "ours": True,
        "env": {"LOG_LEVEL": "info"},
        "replicas": 1,
        "command": None,
        "zero_downtime": True,
        "cap_add": [],
        "cap_drop": [],
        "init": False,
        "sysctls": {},
        "groups": [],
        "ports": [],
        "resources": dict.fromkeys(
            ("memoryReservation", "memoryLimit", "cpuReservation", "cpuLimit"), 0
        ),
        "mounts": [],
        "domains": [
            {
                "host": f"{name}.example",
                "path": "/",
                "port": 8000,
                "https": True,
                "protocol": "http",
            }
        ],
        "placement": [],
        **fields,
    }


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.days = 0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def gmtime(self) -> float:
        return self.seconds

    def strftime(self, *_: Any) -> str:
        self.days += 1  # no two moments are the same
        return f"2026-01-01T00:{self.days // 60:02d}:{self.days % 60:02d}Z"


class Host:
    """Panel and Swarm of one project `cimt`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.projects: list[str] = ["cimt"]
        self.apps: dict[str, dict[str, Any]] = {}
        self.domains: list[dict[str, Any]] = []
        self.actions: list[dict[str, Any]] = []
        self.services: dict[str, dict[str, Any]] = {}
        self.tasks: list[dict[str, Any]] = []
        self.numbers = itertools.count(1)
        # How it behaves
        self.broken: Callable[[str, Mapping[str, str]], bool] = lambda *_: False
        self.answers: dict[
            str, list[Any]
        ] = {}  # by operation: what the next calls answer, or raise
        self.drops: set[str] = set()  # operations that are taken and not done
        self.pull_seconds = 0.0
        self.engine_seconds = 0.0  # until Docker answers
        self.extra: dict[str, Any] = {}  # keys of a newer panel
        self.tags: dict[str, str] = {}
        self.hooks = 0
        self.started: list[tuple[str, dict[str, str]]] = []  # (image, environment) of each new task
        self.on_poll: Callable[[], None] = lambda: None

    # -- the panel ---------------------------------------------------------------------------

    def _odd(self, operation: str) -> Any:
        if waiting := self.answers.get(operation):
            answer = waiting.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        return None

    def read(self, operation: str, **given: str) -> Any:
        from ansible.module_utils.easypanel import of_its_shape

        if (odd := self._odd(operation)) is not None:
            return of_its_shape(operation, odd)  # as the client does
        if operation == "listProjectsAndServices":
            known = [{"projectName": "cimt", "name": name} for name in self.apps]
            return {"projects": [{"name": name} for name in self.projects], "services": known}
        if operation == "listActions":
            self.on_poll()
            self._settle()
            return [action for action in self.actions if action["service"] == given["serviceName"]]
        if operation == "getAction":
            return next(action for action in self.actions if action["id"] == given["id"])
        name = given["serviceName"]
        if operation == "listDomains":  # a panel may answer with those of the whole host
            return [{**domain, **self.extra} for domain in self.domains]
        if name not in self.apps:
            raise self.refusal(operation, 400, "Invariant failed")
        app = self.apps[name]
        return {**app, "env": app["env"].replace("\n", "\r\n"), **self.extra}

    @staticmethod
    def refusal(operation: str, status: int, message: str = "Bad gateway") -> Exception:
        """What the client makes of such an answer."""
        from ansible.module_utils.easypanel import PanelError

        found: Exception = PanelError(operation, status, message)
        return found

    def write(self, operation: str, **body: Any) -> None:
        self._odd(operation)
        if operation in self.drops:
            return
        if operation == "createProject":
            self.projects.append(body["name"])
        elif operation == "createAppService":
            new: dict[str, Any] = {"source": None, "env": "", "deploy": {}, "resources": None}
            self.apps[body["serviceName"]] = new | {"mounts": [], "ports": [], "token": "t"}
        elif operation == "destroyAppService":
            del self.apps[body["serviceName"]]
        elif operation.endswith("Domain"):
            self._domain(operation, body)
        else:
            self._update(operation, self.apps[body["serviceName"]], body)

    def _domain(self, operation: str, body: dict[str, Any]) -> None:
        if operation == "createDomain":
            self.domains.append(body | {"id": str(next(self.numbers))})
            return
        (place,) = [n for n, one in enumerate(self.domains) if one["id"] == body["id"]]
        if operation == "deleteDomain":
            del self.domains[place]
        else:
            self.domains[place] = body

    @staticmethod
    def _update(operation: str, app: dict[str, Any], body: dict[str, Any]) -> None:
        if operation == "updateAppSourceImage":
            names = ("image", "username", "password")
            app["source"] = {name: body[name] for name in names if name in body}
        elif operation == "updateAppEnv":
            app["env"] = body["env"]
        elif operation in ("updateAppDeploy", "updateAppResources"):
            name = operation[9:].lower()
            app[name] = body[name]
        else:
            members = app["mounts" if operation.endswith("Mount") else "ports"]
            if operation.startswith("create"):
                members.append(body["values"])
            elif operation.startswith("update"):
                members[body["index"]] = body["values"]
            else:
                del members[body["index"]]

    def fire_hook(self, _: str) -> None:
        self._odd("hook")
        self.hooks += 1
        self._deploy("api" if "api" in self.apps else next(iter(self.apps)))

    def _deploy(self, name: str) -> None:
        self.actions.append(
            {
                "id": str(next(self.numbers)),
                "service": name,
                "createdAt": f"{next(self.numbers):09d}",
                "status": "running",
                "ready": self.clock.seconds + self.pull_seconds,
                "app": json.loads(json.dumps(self.apps[name])),
                "log": "",
            }
        )

    # -- Swarm -------------------------------------------------------------------------------

    def _settle(self) -> None:
        """What Swarm has made meanwhile of the deploys."""
        for action in self.actions:
            if action["status"] == "running" and self.clock.seconds >= action["ready"]:
                action["status"] = "done" if self._update_service(action) else "error"
                action["log"] = "### Error: update paused" if action["status"] == "error" else ""

    def _update_service(self, action: dict[str, Any]) -> bool:
        name, app = f"cimt_{action['service']}", action["app"]
        old = self.services.get(name, {})
        force = old["Spec"]["TaskTemplate"]["ForceUpdate"] + 1 if old else 1
        container = {"Image": app["source"]["image"], "Env": app["env"].splitlines()}
        template = {"ContainerSpec": container, "ForceUpdate": force}
        env = dict(line.split("=", 1) for line in container["Env"])
        bad = self.broken(container["Image"], env)
        start_first = app["deploy"].get("zeroDowntime", True)
        status = {"StartedAt": str(next(self.numbers)), "State": "paused" if bad else "completed"}
        self.services[name] = {
            "ID": name,
            "Version": {"Index": next(self.numbers)},
            "Spec": {"TaskTemplate": template, "Mode": {"Replicated": {"Replicas": 1}}},
            **({"PreviousSpec": old["Spec"], "UpdateStatus": status} if old else {}),
        }
        if not bad or not start_first:
            self.tasks = [task for task in self.tasks if task["service"] != name]
        self.started.append((container["Image"], env))
        # Unhealthy, and polite when it is told to end: Swarm sees nothing wrong in that.
        ended = "complete" if env.get("MODE") == "polite" else "failed"
        state = ended if bad else "running"
        self.tasks.append(
            {
                "ID": f"task{next(self.numbers)}",
                "service": name,
                "CreatedAt": str(next(self.numbers)),
                "Spec": template,
                "DesiredState": "shutdown" if bad else "running",
                "Status": {
                    "State": state,
                    "Err": "task: non-zero exit (1)" if state == "failed" else "",
                    "ContainerStatus": {"ContainerID": state},
                },
            }
        )
        return not bad

    def engine(self, path: str, query: Any = None, body: Any = None, **__: Any) -> Any:
        """Docker's answer on its socket."""
        self.clock.sleep(self.engine_seconds)
        from ansible.module_utils.swarm_service import EngineError

        kind, _, name = path[1:].partition("/")
        if kind == "distribution":
            if (tag := name.removesuffix("/json")) not in self.tags:
                raise EngineError(404, "not found")
            return {"Descriptor": {"digest": self.tags[tag]}}
        if kind == "tasks":
            (name,) = json.loads(query["filters"])["service"]
            return [task for task in self.tasks if task["service"] == name]
        name = name.partition("/")[0]
        if kind == "containers":
            check = {"ExitCode": int(name == "complete"), "Output": "no database\n"}
            return {"State": {"Health": {"Status": "unhealthy", "Log": [check]}}}
        if name not in self.services:
            raise EngineError(404, "no such service")
        service = self.services[name]
        if body is not None:
            assert query["rollback"] == "previous"
            service["Spec"] = service.pop("PreviousSpec")
            status = {"StartedAt": str(next(self.numbers)), "State": "rollback_completed"}
            service["UpdateStatus"] = status
        return service

    # -- what answers ------------------------------------------------------------------------

    def serving(self, name: str = "api") -> list[dict[str, Any]]:
        """The tasks that run."""
        return [
            task
            for task in self.tasks
            if task["service"] == f"cimt_{name}" and task["DesiredState"] == "running"
        ]

    def runs(self, name: str = "api") -> tuple[str, dict[str, str]]:
        """(image, environment) of the one task that runs."""
        (task,) = self.serving(name)
        container = task["Spec"]["ContainerSpec"]
        return container["Image"], dict(line.split("=", 1) for line in container["Env"])

    def env(self, name: str = "api") -> dict[str, str]:
        """The environment as the panel has it."""
        return dict(line.split("=", 1) for line in self.apps[name]["env"].splitlines())

    def revision_or_reason(self) -> tuple[str | None, str]:
        tasks = self.serving()
        return (tasks[0]["Spec"]["ContainerSpec"]["Image"][-1] * 40, "") if tasks else (None, "502")


class Ended(Exception):
    """A module has ended; ``args[0]`` is its answer."""


class Droplet:
    """The modules on a `Host`."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from ansible.module_utils import panel_app, swarm_service

        names = ("roles.release.library.easypanel_release", "roles.services.library.easypanel_apps")
        release, apps = (importlib.import_module(name) for name in names)
        self.modules: dict[str, Any] = {"release": release, "apps": apps}
        clock = Clock()
        self.host, self.state = Host(clock), state
        host = self.host

        class Swarm(release.SwarmService):  # type: ignore[misc, name-defined]
            def ask(self, *given: Any, **named: Any) -> Any:
                return host.engine(*given, **named)

        for module in self.modules.values():
            monkeypatch.setattr(module, "open_panel", lambda *_: host)
            monkeypatch.setattr(module, "SwarmService", Swarm)
        monkeypatch.setattr(release, "HealthAddress", lambda *_: host)
        plenty = types.SimpleNamespace(free=2**40)
        monkeypatch.setattr(release.shutil, "disk_usage", lambda _: plenty)
        monkeypatch.setattr(release.signal, "signal", lambda *_: None)
        for module in (release, panel_app, swarm_service):
            monkeypatch.setattr(module, "time", clock)
        (state / "token").write_text("t")

    def _run(self, module: str, params: dict[str, Any], check: bool) -> dict[str, Any]:
        given = {
            "project": "cimt",
            "who": "ops",
            "newer": [],
            "lock_wait": 0,
            "url": "http://127.0.0.1:3000",
            "token_file": str(self.state / "token"),
            "state_directory": str(self.state),
            "registry_username": "",
            "registry_password": "",
            **params,
        }

        def end(**answer: Any) -> None:
            raise Ended(answer)

        def command(words: list[str]) -> tuple[int, str, str]:
            return (1, "", "no room") if words == ["false"] else (0, "", "")

        ansible = types.SimpleNamespace(
            params=given,
            check_mode=check,
            run_command=command,
            get_bin_path=lambda *_, **__: "docker",
            exit_json=end,
            fail_json=lambda **answer: end(failed=True, **answer),
        )
        loaded = self.modules[module]
        try:
            if module == "release":
                with loaded.failures(ansible, "wait", loaded.EngineError):
                    loaded.Release(ansible).run()
            else:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(loaded, "AnsibleModule", lambda **_: ansible)
                    loaded.main()
        except Ended as ended:
            return dict(ended.args[0])
        raise AssertionError("the module did not end")

    def __call__(
        self, action: str, letter: str = "", *, check: bool = False, **given: Any
    ) -> dict[str, Any]:
        """One call of easypanel_release for the app `api`."""
        params = {
            "action": action,
            "service": "api",
            "app": {},
            "secret_env": {},
            "secret_files": {},
            "image": letter and image(letter),
            "revision": letter * 40 if action == "deploy" else "",
            "migration": "",
            "contracts": {},
            "accept": "",
            "reason": "",
            "drop": [],
            "gate": "",
            "gate_waived": "",
            "health_url": "https://api.example/healthz",
            "connect_address": "",
            "ca_file": "",
            "timeout": 600,
            "revision_timeout": 60,
            "min_free_mb": 1,
            "entries": 20,
            **given,
        }
        return self._run("release", params, check)

    def plan(
        self, *apps: dict[str, Any], check: bool = True, secret: Any = None, **given: Any
    ) -> dict[str, Any]:
        """One call of easypanel_apps; ``secret`` is the secret environment of `api`."""
        params = {"apps": list(apps), "secret_env": {"api": secret or {}}, "builds": {}}
        params["secret_files"] = {}
        more = {"adopt": False, "prune": [], "placement": {}, "docker_socket": "", **given}
        return self._run("apps", params | more, check)

    def lock(self, who: str) -> AbstractContextManager[None]:
        """The host's lock, held by somebody."""
        held: AbstractContextManager[None] = self.modules["release"].host_lock(
            str(self.state), who, "a release", 0
        )
        return held

    def ledger(self) -> list[dict[str, Any]]:
        """Its lines, oldest first."""
        path = self.state / "releases.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]
