"""One app as Swarm runs it, and as its health address answers: the truth that a release waits for."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import pathlib
import socket
import ssl
import time
import urllib.error
import urllib.parse
from collections.abc import Callable
from typing import Any

from ansible.module_utils.urls import open_url

SOCKET = "/var/run/docker.sock"
PATIENCE = 60  # seconds without an answer from Docker
FAILED_UPDATES = {"paused", "rollback_started", "rollback_paused", "rollback_completed"}
UNDER_WAY = {"updating", "rollback_started"}
PLACEMENT = "placement.json"  # in the state directory


def _image(spec: dict[str, Any]) -> str:
    """Image of a service's or a task's specification; empty where there is none."""
    container = spec.get("TaskTemplate", spec).get("ContainerSpec", {})
    return str(container.get("Image", ""))


def placement(file: pathlib.Path) -> dict[str, list[str]]:
    """Constraints by service, as the last converge of the apps wrote them; none where the Swarm has one node."""
    try:
        found: dict[str, list[str]] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found


def mark_of(template: dict[str, Any]) -> str:
    """What tells a task that Swarm made of this template (TaskSpec) from one of another, as a hash."""
    container = template.get("ContainerSpec", {})
    names = ("Image", "Env", "Command", "Args")
    said = [container.get(name) or [] for name in names]
    said += [template.get("ForceUpdate", 0), template.get("Resources") or {}]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class EngineError(Exception):
    """Docker does not answer, or refuses; ``status`` is its HTTP status, 0 without an answer."""

    def __init__(
        self, status: int, message: str, then: str = "on the droplet: systemctl status docker"
    ) -> None:
        super().__init__(f"Docker: {message}. Next, {then}")
        self.status = status


class Engine:
    """The Engine's API on its Unix ``socket``. Every method raises EngineError."""

    def __init__(self, socket: str = SOCKET) -> None:
        self.socket = socket

    def ask(
        self,
        path: str,
        query: dict[str, Any] | None = None,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        method: str = "",
    ) -> Any:
        """The Engine's answer, decoded; a ``body`` makes it a POST."""
        url = f"http://localhost{path}?{urllib.parse.urlencode(query or {})}"
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with open_url(
                    url,
                    method=method or ("GET" if body is None else "POST"),
                    data=None if body is None else json.dumps(body),
                    headers={"Content-Type": "application/json", **(headers or {})},
                    unix_socket=self.socket,
                    use_proxy=False,
                    timeout=PATIENCE,
                ) as response:
                    return json.loads(response.read() or b"null")
            except urllib.error.HTTPError as error:
                raise EngineError(error.code, error.read().decode(errors="replace")[:300]) from None
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() > deadline:
                    raise EngineError(0, f"no answer at {self.socket}: {error}") from None
            time.sleep(1)


class SwarmService(Engine):
    """A service of Swarm, asked through the Engine's API on its Unix ``socket``.

    What runs is known by a ``mark``: an image's digest, or the hash of a whole template (`mark_of`).
    Not by the docker program: that costs a small droplet about a second of CPU a call, and a release asks
    every two seconds while the app must go on answering. Only its log is read by ``run``, which gives exit
    code, stdout and stderr of a command. Every method raises EngineError when Docker does not answer for a
    minute: a restart of its daemon is shorter.
    """

    def __init__(
        self,
        run: Callable[[list[str]], tuple[int, str, str]],
        docker: str,
        name: str,
        socket: str = SOCKET,
    ) -> None:
        super().__init__(socket)
        self.run = run
        self.docker = docker
        self.name = name

    def inspect(self) -> dict[str, Any]:
        """The service as Swarm has it; empty when there is none."""
        try:
            return dict(self.ask(f"/services/{self.name}"))
        except EngineError as error:
            if error.status == 404:
                return {}
            raise

    def resolved(self, image: str, username: str = "", password: str = "") -> str:
        """The image with the digest that its tag has in the registry now, as ``name:tag@sha256:…``."""
        auth = json.dumps({"username": username, "password": password}).encode()
        headers = {"X-Registry-Auth": base64.urlsafe_b64encode(auth).decode()} if username else {}
        try:
            answer = self.ask(f"/distribution/{image}/json", headers=headers)
            return f"{image}@{answer['Descriptor']['digest']}"
        except EngineError as error:
            told = f"the registry does not say the digest of {image} ({error.status})"
            raise EngineError(error.status, told, "make build pushes it") from None

    def state(self) -> dict[str, Any]:
        """What Swarm has: image, mark, previous, update, replicas and constraints by name; empty without a service.

        ``previous`` are image and mark of the specification that the latest change replaced; empty after the first.
        """
        service = self.inspect()
        if not service:
            return {}
        template = service["Spec"]["TaskTemplate"]
        previous = (service.get("PreviousSpec") or {}).get("TaskTemplate")
        return {
            "image": _image(service["Spec"]),
            "mark": mark_of(template),
            "previous": [_image(previous), mark_of(previous)] if previous else [],
            "replicas": service["Spec"]["Mode"].get("Replicated", {}).get("Replicas", 1),
            "constraints": (template.get("Placement") or {}).get("Constraints") or [],
            "update": service.get("UpdateStatus") or {},
        }

    def tasks(self) -> list[dict[str, Any]]:
        """The service's tasks as the Engine describes them, newest first; none when there is no service."""
        if not self.inspect():
            return []
        found = self.ask("/tasks", {"filters": json.dumps({"service": [self.name]})})
        return sorted(found, key=lambda task: str(task["CreatedAt"]), reverse=True)

    def serving(self, mark: str) -> int:
        """Tasks of this mark that run and are meant to."""
        return sum(
            (mark in _image(task["Spec"]) or mark == mark_of(task["Spec"]))
            and (task["DesiredState"], task["Status"]["State"]) == ("running", "running")
            for task in self.tasks()
        )

    def surplus(self, mark: str) -> int | None:
        """Tasks of this mark that run beyond the wanted number; None when too few or others run."""
        state = self.state()
        wanted = sum(task["DesiredState"] == "running" for task in self.tasks())
        running = self.serving(mark)
        if not state or not (mark in state["image"] or mark == state["mark"]) or running != wanted:
            return None
        return running - state["replicas"] if running >= state["replicas"] else None

    def runs(self, mark: str) -> bool:
        """Whether at least as many tasks of this mark run as are wanted, and none of another."""
        return self.surplus(mark) is not None

    def updated(self, before: dict[str, Any], digest: str) -> bool:
        """Whether a fresh update to this digest is complete; `before` is an earlier `state`."""
        if not self.runs(digest):
            return False
        state = self.state()
        update = state["update"]
        if not before:
            return True  # the service was created: Swarm reports no update
        if not update and state["mark"] != before["mark"]:
            # Its nodes were named since (cimt-placement), which leaves no status behind: the tasks' own mark tells.
            return self.runs(state["mark"])
        fresh = update.get("StartedAt") != before["update"].get("StartedAt")
        return bool(fresh and update.get("State") == "completed")

    def failure(self, before: dict[str, Any]) -> str:
        """Why a fresh update failed; empty while none has. `before` is an earlier `state`."""
        update = self.state().get("update", {})
        fresh = update.get("StartedAt") != before.get("update", {}).get("StartedAt")
        if not fresh or update.get("State") not in FAILED_UPDATES:
            return ""
        return f"swarm: update {update['State']}: {update.get('Message', '')}\n{self.last_words()}"

    def can_roll_back(self, mark: str) -> bool:
        """Whether Swarm itself can go back to this mark without touching the tasks that serve it."""
        state = self.state()
        return bool(
            state
            and not (mark in state["image"] or mark == state["mark"])
            and any(mark in known for known in state["previous"])
            and self.serving(mark) >= state["replicas"] > 0
        )

    def roll_back(self) -> None:
        """Tell Swarm to take the latest change back: a task of the earlier specification stays as it is."""
        service = self.inspect()
        self.ask(
            f"/services/{service['ID']}/update",
            {"version": service["Version"]["Index"], "rollback": "previous"},
            service["Spec"],
        )

    def settled(self, mark: str) -> bool:
        """Whether only this mark runs, and Swarm is not changing anything."""
        return self.runs(mark) and self.state()["update"].get("State") not in UNDER_WAY

    def last_words(self) -> str:
        """Why the newest tasks are no good, and the log of the first of them: those that still serve say much, too."""
        errors: dict[str, str] = {}
        for _ in range(10):  # Swarm writes a task's error a moment after its container has ended
            errors = {task["ID"]: why for task in self.tasks()[:4] if (why := self._why(task))}
            if errors:
                break
            time.sleep(1)
        # A task that cannot be reached would keep `docker service logs` waiting.
        logs = ["service", "logs", "--raw", "--tail", "15", next(iter(errors), self.name)]
        _, out, err = self.run(["timeout", "20", self.docker, *logs])
        told = [f"task {name[:12]}: {why}" for name, why in errors.items()]
        return "\n".join([*told, *(line[:300] for line in (out + err).splitlines()[-15:])])

    def _why(self, task: dict[str, Any]) -> str:
        """What is wrong with a task; empty where nothing is, or nobody knows.

        A container that Swarm ends because it is unhealthy, and that then ends well, is complete to Swarm, without
        an error. Docker calls every container unhealthy that has ended: its last check says whether it was.
        """
        status = task["Status"]
        if status.get("Err"):
            return f"{status['State']} {status['Err']}"
        name = (status.get("ContainerStatus") or {}).get("ContainerID")
        try:
            state = self.ask(f"/containers/{name}/json")["State"] if name else {}
        except EngineError as error:
            if error.status == 404:  # removed meanwhile, or another node's
                return ""
            raise
        *_, last = (state.get("Health") or {}).get("Log") or [{"ExitCode": 0}]
        if not last["ExitCode"]:
            return ""
        said = " ".join(str(last["Output"]).split())[:300] or "nothing"
        return (
            f"{status['State']}, unhealthy: its check ended with {last['ExitCode']} and said {said}"
        )


class HealthAddress:
    """Where an app reports its revision, through the host's own proxy."""

    def __init__(self, url: str, connect_address: str, ca_file: str) -> None:
        self.url = url
        self.connect_address = connect_address
        self.ca_file = ca_file

    def revision(self) -> str:
        """Revision that the health address reports, through the proxy; raises OSError or ValueError."""
        url = urllib.parse.urlsplit(self.url)
        host = str(url.hostname)
        port = 443 if url.scheme == "https" else 80
        raw = socket.create_connection((self.connect_address, port), timeout=30)
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.sock = raw
        with contextlib.closing(connection):
            if url.scheme == "https":
                context = ssl.create_default_context()
                if (
                    self.ca_file
                ):  # it may be the proxy's own certificate, whose authority nobody here believes
                    context.load_verify_locations(self.ca_file)
                    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
                connection.sock = context.wrap_socket(raw, server_hostname=host)
            connection.request(
                "GET", url.path or "/", headers={"Host": host, "Connection": "close"}
            )
            response = connection.getresponse()
            body = response.read(65536)
        if response.status != 200:
            raise ValueError(f"HTTP {response.status}")
        return str(json.loads(body)["revision"])

    def revision_or_reason(self) -> tuple[str | None, str]:
        """``(revision, "")`` or ``(None, why there is none)``."""
        try:
            return self.revision(), ""
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            return None, f"{self.url} answers: {error or type(error).__name__}"
