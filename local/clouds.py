"""What is elsewhere in production, on this machine: registry, Postgres, S3, Auth, OpenAI, GitHub. All loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local import s3
from local.certificate import make_certificate
from local.postgres import server as postgres
from local.settings import (
    LocalError,
    Settings,
    check_ports,
    check_tools,
    domain,
    save_ports,
    write_atomic,
)
from local.waiting import eventually

START_SECONDS = 60
DOCUMENTS = Path(__file__).parent / "documents"
GHCR = "ghcr.cimt.test"  # known by this name to the droplet and to a runner only
PUBLISHABLE_KEY = "sb_publishable_local_stand_in"  # public, as on Supabase: every client has it
SECRET_KEY = "sb_secret_local_stand_in"  # noqa: S105 - on Supabase it may do everything, here with local data alone
STOP_SECONDS = 30
REGISTRY = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
http:
  addr: "127.0.0.1:{port}"
  tls: {{certificate: {certificate}, key: {key}}}
"""


Ports = Mapping[str, int]


@dataclass(frozen=True)
class Cloud:
    """One process: how it is started, how one knows that it answers."""

    name: str
    program: str  # what its command line must hold for a PID to be ours: a module of this repository, or a program
    start: Callable[
        [Ports, Path], list[str]
    ]  # all ports, folder of data: a module's options, a program's command
    health: str = ""  # path that answers 200; without one a connection must do
    headers: Mapping[str, str] = field(default_factory=dict)
    asked: bool = False  # started by name only

    @property
    def ours(self) -> bool:
        """Whether it is a module of this repository, so that it runs in its root."""
        return self.program.startswith("local.")

    def command(self, ports: Ports, folder: Path) -> list[str]:
        """Its command line; its data lies below the folder."""
        module = [sys.executable, "-m", self.program, "--port", str(ports[self.name])]
        return [*(module if self.ours else ()), *self.start(ports, folder)]

    def answers(self, port: int) -> bool:
        """Whether it does."""
        if self.name == "postgres":
            return postgres.answers(port)
        if not self.health:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
                return True
            return False
        return http_answers(port, self.health, self.headers)


def start(settings: Settings, name: str) -> None:
    """Start a stand-in and wait until it answers. One that runs is left alone."""
    cloud = CLOUDS[name]
    if running_pid(settings, name):
        print(f"clouds: {name} runs already")
        return
    check_ports(settings, [name])
    save_ports(settings)
    settings.clouds.mkdir(parents=True, exist_ok=True)
    command = cloud.command(settings.ports, settings.clouds)
    with open(settings.clouds / f"{name}.log", "a") as log:
        process = subprocess.Popen(
            command,
            cwd=settings.root if cloud.ours else "/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    write_atomic(settings.clouds / f"{name}.pid", f"{process.pid}\n")
    port = settings.ports[name]
    try:
        eventually(lambda: cloud.answers(port), name, START_SECONDS, process)
        if name == "s3":
            s3.prepare(port, process)
    except TimeoutError:
        raise LocalError(f"clouds: {name} does not answer. Next: make logs NAME={name}") from None
    if name == "postgres":
        postgres.prepare(postgres.url(port))
    print(f"clouds: {name} answers on 127.0.0.1:{port}")


def stop(settings: Settings, name: str) -> bool:
    """Stop a stand-in; its data stays. True when it ran."""
    pid = running_pid(settings, name)
    if pid:
        # SIGINT is Postgres' fast shutdown; SIGTERM would wait for every client to leave.
        os.kill(pid, signal.SIGINT if name == "postgres" else signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while running_pid(settings, name):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        print(f"clouds: {name} stopped")
    (settings.clouds / f"{name}.pid").unlink(missing_ok=True)
    return bool(pid)


def running_pid(settings: Settings, name: str) -> int:
    """PID of our process, or 0. A number that now belongs to another program counts as 0."""
    try:
        pid = int((settings.clouds / f"{name}.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (OSError, ValueError):
        return 0
    cloud = CLOUDS[name]
    here = str(settings.clouds) in command or (cloud.ours and _runs_in(pid, settings.root))
    return pid if here and cloud.program in command else 0


def _runs_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    except OSError:
        return False


def http_answers(port: int, path: str, headers: Mapping[str, str] = {}) -> bool:
    """Whether an HTTP server on loopback answers 200."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310
            return True
    except (urllib.error.URLError, OSError):
        return False


def _registry(ports: Ports, folder: Path) -> list[str]:
    check_tools("docker-registry")
    config, data = folder / "registry.yml", folder / "registry"
    data.mkdir(parents=True, exist_ok=True)
    make_certificate(folder / "ghcr", GHCR)
    paths = {"data": data, "certificate": folder / "ghcr/ca.crt", "key": folder / "ghcr/server.key"}
    quoted = {name: json.dumps(str(path)) for name, path in paths.items()}
    write_atomic(config, REGISTRY.format(port=ports["registry"], **quoted))
    return ["docker-registry", "serve", str(config)]


def _postgres(ports: Ports, folder: Path) -> list[str]:
    return postgres.command(postgres.programs(), folder / "postgres", ports["postgres"])


def _s3(ports: Ports, folder: Path) -> list[str]:
    return s3.command(ports["s3"], folder / "s3", s3.key(folder.parent))


def _supabase(ports: Ports, folder: Path) -> list[str]:
    database = postgres.url(ports["postgres"])
    options = ["--database", database, "--state", str(folder / "supabase")]
    for app in ("http://localhost:*", "http://localhost:*/**"):  # a web app in development
        options += ["--allow", app]
    if "https" in ports:  # of the droplet
        options += ["--page", f"https://{domain('web')}:{ports['https']}"]
    return options


def _github(_: Ports, folder: Path) -> list[str]:
    return ["--folder", str(DOCUMENTS), "--state", str(folder.parent / "github")]


def _digitalocean(_: Ports, folder: Path) -> list[str]:
    # The machine that is "made" there is the local droplet.
    state = ["--state", str(folder / "digitalocean.json"), "--volumes", str(folder / "volumes")]
    return [*state, "--address", "127.0.0.1"]


def _ghcr(_: Ports, folder: Path) -> list[str]:
    return ["--state", str(folder / "ghcr"), "--name", GHCR]


CLOUDS = {
    cloud.name: cloud
    for cloud in (  # in the order of their start: Auth keeps its accounts in Postgres
        Cloud("registry", "docker-registry", _registry),
        Cloud("postgres", "postgres", _postgres),
        Cloud("s3", "weed", _s3),
        Cloud(
            *("supabase", "local.supabase", _supabase),
            *("/auth/v1/health", {"apikey": PUBLISHABLE_KEY}),
        ),
        Cloud("openai", "local.openai", lambda *_: [], "/stand-in/health"),
        Cloud(
            *("github", "local.github", _github),
            "/stand-in/health",
        ),
        Cloud(
            *("digitalocean", "local.digitalocean", _digitalocean),
            *("/stand-in/health", {}, True),
        ),
        # The registry of production, where an image has owners: for `make pipeline`.
        Cloud("ghcr", "local.registry", _ghcr, asked=True),
    )
}
