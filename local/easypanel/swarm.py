"""Apps as services of a real Docker Swarm."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from .engine import App, DeployFailed, Log
from .engine_api import EngineApi, EngineError, registry_auth

NETWORK = "easypanel"
MONITOR = 10
"""Seconds that Swarm watches a new task, after it runs, before it calls the update completed."""
STOP_GRACE = 30
"""Seconds between SIGTERM and SIGKILL, for open streams to end."""
CONVERGE_TIMEOUT = 600
"""Seconds that an update may take once the image is there."""
PULL_SILENCE = 600
"""Seconds without any progress after which a pull is given up (unpacking a big layer is silent)."""
LOG_LINES = 30
SECOND = 10**9


def network_of(project: str) -> str:
    """Name of a project's overlay network."""
    return f"{NETWORK}-{project}"


def has_digest(image: str) -> bool:
    """Whether the reference names one exact image."""
    return "@sha256:" in image


def ensure_network(api: EngineApi, name: str) -> bool:
    """Make an attachable overlay network; True when it did not exist."""
    try:
        api.call("GET", f"/networks/{name}")
        return False
    except EngineError as error:
        if error.status != 404:
            raise
    api.call(
        "POST", "/networks/create", body={"Name": name, "Driver": "overlay", "Attachable": True}
    )
    return True


class Swarm:
    """Engine on the Docker socket; app files live under ``projects``."""

    def __init__(self, api: EngineApi, projects: Path) -> None:
        self._api = api
        self._projects = projects
        self._address = ""

    # -- projects --------------------------------------------------------------------------

    def create_project(self, project: str) -> None:
        ensure_network(self._api, network_of(project))

    # -- apps ------------------------------------------------------------------------------

    def deploy(self, app: App, log: Log) -> None:
        self._pull(app, log)
        ensure_network(self._api, network_of(app.project))
        log(f"### Updating service {app.service}")
        current = self._inspect(app.service)
        force = current["Spec"]["TaskTemplate"].get("ForceUpdate", 0) + 1 if current else 1
        spec = self._spec(app, force)
        auth = registry_auth(app.username, app.password)
        try:
            if current is None:
                self._api.call("POST", "/services/create", body=spec, headers=auth)
            else:
                self._update(current, spec, auth)
        except EngineError as error:
            raise DeployFailed(f"Swarm refused the service: {error}") from error
        self._converge(app.service, force, app.replicas, log)

    def remove(self, app: App) -> None:
        if current := self._inspect(app.service):
            self._api.call("DELETE", f"/services/{current['ID']}")

    def address(self) -> str:
        if not self._address:  # a costly question, asked for every app that is shown
            self._address = str(self._api.call("GET", "/info")["Swarm"]["NodeAddr"])
        return self._address

    # -- the parts of a deploy ---------------------------------------------------------------

    def _inspect(self, service: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._api.call("GET", f"/services/{service}")
        except EngineError as error:
            if error.status == 404:
                return None
            raise
        return found

    def _update(self, current: dict[str, Any], spec: dict[str, Any], auth: dict[str, str]) -> None:
        # The engine asks no registry about the image here (only clients of API 1.29 make it do so):
        # the reference reaches the tasks as given.
        self._api.call(
            "POST",
            f"/services/{current['ID']}/update",
            {"version": current["Version"]["Index"]},
            spec,
            auth,
        )

    def _pull(self, app: App, log: Log) -> None:
        log(f"### Pulling image {app.image}")
        if has_digest(app.image) and self._is_local(app.image):
            log("The image is already here")
            return
        last = app.image.rsplit("/", 1)[-1]
        # Without a tag the engine would pull every tag of the repository.
        reference = app.image if ":" in last or "@" in last else f"{app.image}:latest"
        said: dict[str, str] = {}
        try:
            for event in self._api.stream(
                "POST",
                "/images/create",
                {"fromImage": reference},
                registry_auth(app.username, app.password),
                PULL_SILENCE,
            ):
                if "error" in event:
                    raise DeployFailed(f"Cannot pull {app.image}: {event['error']}")
                status, layer = event.get("status", ""), event.get("id", "")
                if said.get(layer) != status:  # not one line per progress event
                    said[layer] = status
                    log(f"{layer}: {status}" if layer else status)
        except EngineError as error:
            raise DeployFailed(f"Cannot pull {app.image}: {error}") from error

    def _is_local(self, image: str) -> bool:
        try:
            self._api.call("GET", f"/images/{image}/json")
        except EngineError as error:
            if error.status == 404:
                return False
            raise
        return True

    def _mounts(self, app: App) -> list[dict[str, Any]]:
        root = self._projects / app.project / app.name
        mounts = []
        for index, mount in enumerate(app.mounts):
            if mount["type"] == "bind":
                source = mount["hostPath"]
            elif mount["type"] == "volume":
                path = root / "volumes" / mount["name"]
                if not path.exists():
                    path.mkdir(parents=True)
                    # Whatever user the image runs as may write; the parent is closed to others.
                    path.chmod(0o777)
                source = str(path)
            else:
                path = root / "files" / str(index)
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(".tmp")
                temporary.write_text(mount["content"])
                temporary.chmod(0o644)
                os.replace(temporary, path)
                source = str(path)
            mounts.append({"Type": "bind", "Source": source, "Target": mount["mountPath"]})
        return mounts

    def _spec(self, app: App, force: int) -> dict[str, Any]:
        container: dict[str, Any] = {
            "Image": app.image,
            "Env": app.env,
            "Mounts": self._mounts(app),
            "StopGracePeriod": STOP_GRACE * SECOND,
            "CapabilityAdd": app.cap_add,
            "CapabilityDrop": app.cap_drop,
            "Sysctls": app.sysctls,
            "Groups": app.groups,
        }
        if app.command:
            container["Command"] = ["sh", "-c", app.command]
        if app.init is not None:
            container["Init"] = app.init
        update = {
            "Parallelism": 1,
            "FailureAction": "pause",
            "Monitor": MONITOR * SECOND,
            "MaxFailureRatio": 0,
            "Order": "start-first" if app.start_first else "stop-first",
        }
        return {
            "Name": app.service,
            "Labels": {"easypanel.project": app.project, "easypanel.service": app.name},
            "TaskTemplate": {
                "ContainerSpec": container,
                "Resources": {
                    "Limits": {"MemoryBytes": app.memory_limit, "NanoCPUs": app.cpu_limit},
                    "Reservations": {
                        "MemoryBytes": app.memory_reservation,
                        "NanoCPUs": app.cpu_reservation,
                    },
                },
                "RestartPolicy": {"Condition": "any", "Delay": 5 * SECOND},
                "Networks": [{"Target": NETWORK}, {"Target": network_of(app.project)}],
                "ForceUpdate": force,
            },
            "Mode": {"Replicated": {"Replicas": app.replicas}},
            "UpdateConfig": update,
            "EndpointSpec": {
                "Mode": "vip",
                "Ports": [
                    {
                        "Protocol": port["protocol"],
                        "PublishedPort": int(port["published"]),
                        "TargetPort": int(port["target"]),
                        "PublishMode": "ingress",
                    }
                    for port in app.ports
                ],
            },
        }

    def _converge(self, service: str, force: int, replicas: int, log: Log) -> None:
        """Wait until Swarm has settled on the spec with this ForceUpdate number.

        A spec change clears the service's UpdateStatus, so a status that is seen here speaks of
        this update. A first deploy has none: then the tasks decide.
        """
        deadline = time.monotonic() + CONVERGE_TIMEOUT
        steady_since: float | None = None
        said = ""
        while True:
            current = self._inspect(service)
            if current is None:
                raise DeployFailed(f"{service} was removed meanwhile")
            update = current.get("UpdateStatus") or {}
            state, tasks = update.get("State"), self._tasks(service)
            ours = [t for t in tasks if t["Spec"].get("ForceUpdate", 0) == force]
            wanted = [t for t in tasks if t["DesiredState"] == "running"]
            running = [t for t in ours if t["Status"]["State"] == "running" and t in wanted]
            now = f"{state or 'starting'}: {len(running)} of {replicas} running"
            if now != said:
                said = now
                log(now)
            if state == "paused" or (state or "").startswith("rollback"):
                self._explain(ours, log)
                raise DeployFailed(self._reason(ours, update.get("Message") or "update paused"))
            # Swarm may restart a failed task while it is being replaced, and then runs one too many.
            if state == "completed" and len(running) >= replicas > 0:
                return
            if state != "updating" and len(running) == len(wanted) == replicas:
                steady_since = steady_since or time.monotonic()
                # A completed update was already watched by Swarm.
                if (
                    replicas == 0
                    or state == "completed"
                    or time.monotonic() - steady_since >= MONITOR
                ):
                    return
            else:
                steady_since = None
            if state is None and any(t["Status"]["State"] in ("failed", "rejected") for t in ours):
                self._explain(ours, log)
                raise DeployFailed(self._reason(ours, "the task failed"))
            if time.monotonic() > deadline:
                self._explain(ours, log)
                raise DeployFailed(
                    self._reason(ours, f"{service} did not come up in {CONVERGE_TIMEOUT} s")
                )
            time.sleep(1)

    def _tasks(self, service: str) -> list[dict[str, Any]]:
        """The service's tasks, oldest first."""
        tasks = self._api.call("GET", "/tasks", {"filters": {"service": [service]}}) or []
        return sorted(tasks, key=lambda task: task["CreatedAt"])

    @staticmethod
    def _reason(tasks: list[dict[str, Any]], message: str) -> str:
        """The newest error that a task reports, or ``message``."""
        for task in reversed(tasks):
            if problem := task["Status"].get("Err"):
                return f"{message}: {problem}"
        return message

    def _explain(self, tasks: list[dict[str, Any]], log: Log) -> None:
        """Write what the newest failed container said into the action's log."""
        ended = [t for t in tasks if t["Status"]["State"] in ("failed", "rejected", "shutdown")]
        for task in reversed(ended or tasks):
            container = task["Status"].get("ContainerStatus", {}).get("ContainerID")
            if not container:
                continue
            try:
                lines = self._api.container_log(container, LOG_LINES)
            except EngineError as error:
                log(f"### No log of container {container[:12]}: {error}")
                continue
            log(f"### Last lines of container {container[:12]}")
            for line in lines:
                log(line)
            return
