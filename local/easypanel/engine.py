"""What the panel needs from the machine below it: Swarm (swarm.py), or a double in tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

Log = Callable[[str], None]
"""Takes one line for the log of the running action."""


class DeployFailed(Exception):
    """A deploy that did not come up; the text gives the reason."""


@dataclass
class App:
    """One app as it is to run. Memory in bytes, CPU in billionths of a core, 0 = unlimited."""

    project: str
    name: str
    image: str
    username: str | None = None
    password: str | None = None
    env: list[str] = field(default_factory=list)
    replicas: int = 1
    command: str | None = None
    start_first: bool = True
    cap_add: list[str] = field(default_factory=list)
    cap_drop: list[str] = field(default_factory=list)
    sysctls: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    init: bool | None = None
    memory_reservation: int = 0
    memory_limit: int = 0
    cpu_reservation: int = 0
    cpu_limit: int = 0
    mounts: list[dict[str, Any]] = field(default_factory=list)
    ports: list[dict[str, Any]] = field(default_factory=list)

    @property
    def service(self) -> str:
        """Name of its Swarm service, which is its DNS name too."""
        return f"{self.project}_{self.name}"


class Engine(Protocol):
    """The machine below the panel. Calls block; they may run in several threads."""

    def create_project(self, project: str) -> None:
        """Make the project's network; no error when it exists."""

    def deploy(self, app: App, log: Log) -> None:
        """Pull the image and bring the service to ``app``; returns when Swarm has converged."""

    def remove(self, app: App) -> None:
        """Take the app's service away, and leave its volumes; no error when there is none."""

    def address(self) -> str:
        """IP address of this node."""
