"""One app as Swarm runs it, and as its health address answers: the truth that a release waits for."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

FAILED_UPDATES = {"paused", "rollback_started", "rollback_paused", "rollback_completed"}


class SwarmService:
    """A service of Swarm, asked by the docker command. ``run`` gives exit code, stdout and stderr."""

    def __init__(
        self, run: Callable[[list[str]], tuple[int, str, str]], docker: str, name: str
    ) -> None:
        self.run = run
        self.docker = docker
        self.name = name

    def state(self) -> dict[str, Any]:
        """What Swarm has: ``{"image", "update": {...}, "replicas"}``; empty when there is none."""
        code, out, _ = self.run([self.docker, "service", "inspect", self.name])
        if code != 0:
            return {}
        service = json.loads(out)[0]
        return {
            "image": service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"],
            "replicas": service["Spec"]["Mode"].get("Replicated", {}).get("Replicas", 1),
            "update": service.get("UpdateStatus") or {},
        }

    def tasks(self) -> list[dict[str, str]]:
        """The service's tasks, newest first, as docker shows them."""
        code, out, _ = self.run(
            [self.docker, "service", "ps", self.name, "--no-trunc", "--format", "{{json .}}"]
        )
        return [json.loads(line) for line in out.splitlines()] if code == 0 else []

    def surplus(self, digest: str) -> int | None:
        """Tasks of this digest that run beyond the wanted number; None when too few or others run."""
        state = self.state()
        wanted = [task for task in self.tasks() if task["DesiredState"] == "Running"]
        running = [
            task
            for task in wanted
            if digest in task["Image"] and task["CurrentState"].startswith("Running")
        ]
        if not state or digest not in state["image"] or len(running) != len(wanted):
            return None
        return len(running) - state["replicas"] if len(running) >= state["replicas"] else None

    def runs(self, digest: str) -> bool:
        """Whether at least as many tasks of this digest run as are wanted, and none of another."""
        return self.surplus(digest) is not None

    def updated(self, before: dict[str, Any], digest: str) -> bool:
        """Whether a fresh update to this digest is complete; `before` is an earlier `state`."""
        if not self.runs(digest):
            return False
        update = self.state()["update"]
        if not before:
            return True  # the service was created: Swarm reports no update
        fresh = update.get("StartedAt") != before["update"].get("StartedAt")
        return bool(fresh and update.get("State") == "completed")

    def failure(self, before: dict[str, Any]) -> str:
        """Why a fresh update failed; empty while none has. `before` is an earlier `state`."""
        update = self.state().get("update", {})
        fresh = update.get("StartedAt") != before.get("update", {}).get("StartedAt")
        if not fresh or update.get("State") not in FAILED_UPDATES:
            return ""
        return f"swarm: update {update['State']}: {update.get('Message', '')}\n{self.last_words()}"

    def last_words(self) -> str:
        """Errors of the newest tasks and the app's last log lines."""
        errors: list[str] = []
        for _ in range(10):  # Swarm writes a task's error a moment after its container has ended
            errors = [
                f"task {task['ID'][:12]}: {task['CurrentState']} {task['Error']}".rstrip()
                for task in self.tasks()[:4]
                if task["Error"]
            ]
            if errors:
                break
            time.sleep(1)
        # A task that cannot be reached would keep `docker service logs` waiting.
        _, out, err = self.run(
            [
                "timeout",
                "20",
                self.docker,
                "service",
                "logs",
                "--raw",
                "--tail",
                "15",
                self.name,
            ]
        )
        return "\n".join([*errors, *(line[:300] for line in (out + err).splitlines()[-15:])])


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
                context = ssl.create_default_context(cafile=self.ca_file or None)
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
