"""A real Postgres for tests and for `make schema`: its roles are those of Supabase.

17, which Supabase runs, is the default; 18 is what comes next. POSTGRES=17 or 18 makes it the only one that is tested.

There `postgres`, as whom migrations run, is no superuser: it has CREATEROLE and BYPASSRLS, and what others
own (`auth`, the extension) only as far as it was granted. `supabase_admin` is the superuser.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from local.cache import building, key
from local.postgres import server as postgres
from local.settings import cache
from local.waiting import eventually, free_port

ROOT = Path(__file__).parents[1]
MIGRATIONS = sorted((ROOT / "migrations").glob("*.sql"))
CHOSEN = os.environ.get("POSTGRES", "")
MAJORS = [int(CHOSEN)] if CHOSEN else [17, 18]
STARTED: set[str] = set()  # versions of the servers that were started here, for the report

# As a superuser, in a new cluster. The bootstrap role cannot lose its rights, but it can lose its name.
ROLES = """
alter role postgres rename to bootstrap;
create role postgres login createdb createrole replication bypassrls;
grant pg_read_all_data to postgres with admin option;
grant set on parameter session_replication_role to postgres;
create role supabase_auth_admin login noinherit createrole;
"""

# As a superuser, in the database that every test copies.
HOSTED = """
alter schema auth owner to supabase_auth_admin;
alter table auth.users owner to supabase_auth_admin;
alter function auth.jwt() owner to supabase_auth_admin;
alter function auth.uid() owner to supabase_auth_admin;
alter function auth.role() owner to supabase_auth_admin;
grant usage on schema auth to postgres;
grant all on auth.users to postgres;
grant usage on schema public to postgres;
alter schema extensions owner to postgres;
-- On Supabase its own extension lets postgres do this; here only a superuser may.
create extension vector with schema extensions;
"""

# Projects made before 30 October 2026 offer every new table and function in `public` to all three roles.
OLD_DEFAULTS = """
alter default privileges for role postgres in schema public
  grant all on tables to anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on functions to anon, authenticated, service_role;
alter default privileges for role postgres in schema public
  grant all on sequences to anon, authenticated, service_role;
"""


class Server:
    """A running cluster; `databases` are copies of the one that was prepared."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.folder = folder
        self._made = 0

    def url(self, database: str = "supabase", user: str = "postgres", password: str = "") -> str:
        """URL of a database; nobody is asked for a password unless `lock_up` was called."""
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def admin(self, sql: str, database: str = "template1") -> None:
        """Run SQL as the superuser, each statement by itself."""
        with psycopg.connect(self.url(database, "supabase_admin"), autocommit=True) as connection:
            for statement in filter(str.strip, sql.split(";\n")):
                connection.execute(statement.encode())

    def versions(self) -> str:
        """`Postgres 17.x, pgvector 0.8.x`."""
        sql = "select current_setting('server_version'), extversion from pg_extension where extname = 'vector'"
        with psycopg.connect(self.url()) as connection:
            version, vector = connection.execute(sql).fetchone() or ("?", "?")
        return f"Postgres {version}, pgvector {vector}"

    def lock_up(self, password: str) -> None:
        """From now on `postgres` and the API need a password; the superuser does not."""
        with psycopg.connect(self.url("template1", "supabase_admin"), autocommit=True) as admin:
            admin.execute(f"alter role postgres password '{password}'".encode())
            (self.folder / "data/pg_hba.conf").write_text(
                "host all supabase_admin 127.0.0.1/32 trust\n"
                "host all all 127.0.0.1/32 scram-sha-256\n"
            )
            admin.execute("select pg_reload_conf()")

    def database(self, template: str = "supabase") -> str:
        """Name of a new database, a copy of `template`."""
        self._made += 1
        name = f"copy{self._made}"
        self.admin(f"create database {name} template {template} owner postgres")
        return name


@contextlib.contextmanager
def server(major: int = MAJORS[0], *, old_defaults: bool = False) -> Iterator[Server]:
    """A cluster with the database `supabase`: as a new project is, before any migration of ours."""
    with _folder() as folder:
        # As it is, with its owner, who is another user where we are root.
        subprocess.run(["cp", "-a", _prepared(major), folder / "data"], check=True)
        with _running(major, folder) as made:
            if old_defaults:
                made.admin(OLD_DEFAULTS, "supabase")
            STARTED.add(made.versions())
            yield made


def _prepared(major: int) -> Path:
    """The data directory of such a cluster, which is made once and never started again."""
    binaries = postgres.programs(major)
    inputs = {"binaries": str(binaries), "sql": [ROLES, HOSTED, postgres.STUB.read_text()]}
    target = cache() / f"clusters/{major}-{key(inputs)}"
    if not target.exists():
        with building(target) as part:
            if part is not None:
                with _folder() as folder:
                    with _running(major, folder) as made:
                        with psycopg.connect(made.url("postgres"), autocommit=True) as connection:
                            connection.execute("create role supabase_admin superuser login")
                        made.admin(ROLES)
                        made.admin("create database supabase owner postgres")
                        postgres.prepare(made.url("supabase", "supabase_admin"))
                        made.admin(HOSTED, "supabase")
                    subprocess.run(["cp", "-a", folder / "data", part], check=True)
    return target / "data"


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder that the server's user can reach, until the end of the block; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="cimt-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _running(major: int, folder: Path) -> Iterator[Server]:
    """The server on this folder's `data`, which is made where there is none."""
    port = free_port()
    command = postgres.command(postgres.programs(major), folder / "data", port)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log)
    try:
        try:
            eventually(lambda: postgres.answers(port), "Postgres", process=process)
        except TimeoutError as error:
            raise RuntimeError((folder / "log").read_text()) from error
        yield Server(port, folder)
    finally:
        process.terminate()
        process.wait()


def apply(url: str, files: list[Path] | None = None) -> None:
    """Apply migrations in order, each in one transaction, as the Supabase CLI does (a session for all)."""
    with psycopg.connect(url, autocommit=True) as connection:
        for file in MIGRATIONS if files is None else files:
            connection.execute(file.read_bytes())
