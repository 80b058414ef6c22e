"""`make migrate` on a real Postgres with a password, as Supabase's is, by the real Supabase CLI."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import pytest

from local.waiting import eventually, free_port
from testbed.postgres import Server
from testbed.postgres import server as start_server
from testbed.processes import children
from tools.database import address, migrate, person, usage

ROOT = Path(__file__).parents[2]
PASSWORD = "with/odd#signs@and:more"
QUOTED = "with%2Fodd%23signs%40and%3Amore"
MIGRATE = ("-m", "tools.database.migrate")
EXPORT = ("-m", "tools.database.person", "export")
FIRST = sorted(path.name for path in (ROOT / "migrations").glob("*.sql"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that lets nobody in without the password, with the roles and owners of Supabase."""
    with start_server() as made:
        made.lock_up(PASSWORD)
        yield made


class Checkout:
    """A copy of what `make migrate` uses, with a database of its own."""

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.migrations = root / "migrations"
        self.url = url
        shutil.copytree(ROOT / "supabase", root / "supabase", symlinks=True)
        shutil.copytree(
            ROOT / "tools", root / "tools", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(ROOT / "migrations", self.migrations)

    def add(self, name: str, sql: str) -> None:
        (self.migrations / name).write_text(sql)

    def start(
        self, *arguments: str, command: Sequence[str] = MIGRATE, **environment: str
    ) -> subprocess.Popen[str]:
        path = f"{ROOT / 'node_modules/.bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            [sys.executable, *command, *arguments],
            cwd=self.root,
            env=os.environ
            | {"PATH": path, "ENV": "production", "SUPABASE_DB_URL": self.url}
            | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, *arguments: str, command: Sequence[str] = MIGRATE, **environment: str
    ) -> tuple[int, str]:
        """(exit code, all output)."""
        process = self.start(*arguments, command=command, **environment)
        output, _ = process.communicate(timeout=120)
        assert PASSWORD not in output
        assert QUOTED not in output
        return process.returncode, output

    def ask(self, sql: str) -> list[tuple]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql).fetchall()

    def history(self) -> list[str]:
        """File names of the applied migrations."""
        rows = self.ask(
            "select version || '_' || name || '.sql' from supabase_migrations.schema_migrations order by 1"
        )
        return [name for (name,) in rows]


@pytest.fixture(scope="module")
def released(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(name of a database that `make migrate` has brought to where `main` is, what it said)."""
    name = server.database()
    first = Checkout(tmp_path_factory.mktemp("first"), server.url(name, password=QUOTED))
    code, output = first.run()
    assert code == 0, output
    assert first.history() == FIRST
    return name, output


@pytest.fixture
def fresh(server: Server, tmp_path: Path) -> Checkout:
    """With the database of a new project."""
    return Checkout(tmp_path, server.url(server.database(), password=QUOTED))


@pytest.fixture
def checkout(server: Server, released: tuple[str, str], tmp_path: Path) -> Checkout:
    """With a database that has all that is here."""
    return Checkout(tmp_path, server.url(server.database(released[0]), password=QUOTED))


def test_the_plan_lists_and_applies_nothing(fresh: Checkout) -> None:
    drop = "-- allow: destructive: not read since 1.4\nalter table public.users drop column display_name;"
    fresh.add("20990101000000_drop.sql", drop)
    code, output = fresh.run("--plan")
    assert code == 0, output
    assert all(f"{name} (expand)" in output for name in FIRST)
    assert "20990101000000_drop.sql (contract)" in output  # by its own words
    assert fresh.ask("select to_regclass('public.users') is null") == [(True,)]


def test_a_first_run_applies_all_and_a_second_nothing(
    released: tuple[str, str], checkout: Checkout
) -> None:
    assert all(name in released[1] for name in FIRST)
    code, output = checkout.run()
    assert code == 0
    assert "up to date" in output
    assert checkout.history() == FIRST
    # The plan is `supabase db push --dry-run`.
    code, output = checkout.run("--plan")
    assert code == 0
    assert "Remote database is up to date" in output


def test_what_takes_something_away_waits_for_a_backup(checkout: Checkout) -> None:
    drop = "-- allow: destructive: not read since 1.4\nalter table public.users drop column {};"
    checkout.add("20990101000000_drop.sql", drop.format("display_name"))
    code, output = checkout.run()  # here is no `make backup` that could work
    assert (code, "_drop.sql takes something away, and there is no backup" in output) == (2, True)
    assert checkout.history() == FIRST
    (checkout.root / "Makefile").write_text(
        'backup:\n\t@test "$(MAX_AGE_HOURS):$$SUPABASE_DB_URL" = 1: && echo backed up\n'
    )
    code, output = checkout.run()
    assert (code, "backed up" in output) == (0, True), output
    (checkout.root / "Makefile").unlink()
    checkout.add("20990102000000_drop.sql", drop.format("updated_at"))
    code, output = checkout.run(ACCEPT_NO_BACKUP="the bucket is away")
    assert (code, "no backup is asked for: the bucket is away" in output) == (0, True), output


@pytest.mark.parametrize(
    "content",
    [
        b"create table public.a (id int);\r\n",
        b"\xef\xbb\xbfcreate table public.a (id int);\n",
        b"create table public.a (id int);\ncommit;\nbegin;\n",
        b"lock table public.users;\n",
    ],
    ids=["line ends of Windows", "byte order mark", "commit", "lock table"],
)
def test_a_file_that_would_go_wrong_is_refused_before_anything_is_changed(
    checkout: Checkout, content: bytes
) -> None:
    (checkout.migrations / "20990101000000_odd.sql").write_bytes(content)
    code, output = checkout.run()
    assert (code, "migrations/20990101000000_odd.sql. Next: " in output) == (2, True), output
    assert checkout.history() == FIRST


def test_a_file_that_was_applied_with_other_line_ends_is_the_same(checkout: Checkout) -> None:
    sql = "create table public.a (id int);\ncomment on table public.a is 'one\ntwo';\n"
    checkout.add("20990101000000_a.sql", sql)
    assert checkout.run()[0] == 0
    checkout.ask(
        "update supabase_migrations.schema_migrations set statements[2] = replace(statements[2], e'\\n', e'\\r\\n') "
        "where name = 'a' returning 1"
    )
    code, output = checkout.run()
    assert (code, "up to date" in output) == (0, True), output


@pytest.mark.parametrize("robust", ["", "if not exists "])
def test_an_index_whose_first_attempt_failed_is_built_again(
    checkout: Checkout, robust: str
) -> None:
    checkout.add(
        "20990101000000_twice.sql",
        "create table public.t (id int); insert into public.t values (1), (1);",
    )
    index = f"create unique index concurrently {robust}t_id on public.t (id);"
    checkout.add("20990102000000_index.sql", index)
    assert checkout.run()[0] == 1
    state = "select indisvalid from pg_index where indexrelid = to_regclass('public.t_id')"
    assert checkout.ask(state) == [(False,)]
    checkout.ask("delete from public.t returning 1")
    code, output = checkout.run()
    assert code == 0, output
    assert '"public"."t_id" is left from a build that failed' in output
    assert checkout.ask(state) == [(True,)]
    assert checkout.history()[-1] == "20990102000000_index.sql"


def test_a_push_that_records_nothing_is_no_success(checkout: Checkout) -> None:
    program = checkout.root / "node_modules/.bin/supabase"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho Finished supabase db push.\n")
    program.chmod(0o755)
    checkout.add("20990101000000_a.sql", "create table public.a (id int);")
    code, output = checkout.run()
    assert code == 1
    assert "but migrations/20990101000000_a.sql was not recorded. Next: " in output


def test_two_runners_at_once_take_turns_and_no_command_line_has_the_password(
    checkout: Checkout,
) -> None:
    checkout.add(
        "20990101000000_slow.sql", "select pg_sleep(3); create table public.slow (id int);"
    )
    seen: set[str] = set()
    runners = [checkout.start(), checkout.start()]
    while any(runner.poll() is None for runner in runners):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        time.sleep(0.2)
    outputs = [runner.communicate()[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], outputs
    assert sum("waiting" in output for output in outputs) == 1, outputs
    assert sum("up to date" in output for output in outputs) == 1, outputs
    assert checkout.history() == [*FIRST, "20990101000000_slow.sql"]
    database = checkout.url.rpartition("/")[2]
    assert any("db push" in line and database in line for line in seen)
    assert not any(PASSWORD in line or QUOTED in line for line in seen)


def test_a_failing_migration_leaves_nothing(checkout: Checkout) -> None:
    checkout.add(
        "20990101000000_half.sql",
        "create table public.half (id int); select 1 / 0; select 'never';",
    )
    code, output = checkout.run()
    assert code == 1
    assert "division by zero" in output
    assert checkout.ask("select to_regclass('public.half') is null") == [(True,)]
    assert checkout.history() == FIRST
    # Repaired, it goes on from there.
    checkout.add("20990101000000_half.sql", "create table public.half (id int);")
    assert checkout.run()[0] == 0


def test_badly_named_files_are_refused(checkout: Checkout) -> None:
    names = ["1_short.sql", "20990101000000_x.down.sql", "notes.md"]
    for name in names:
        checkout.add(name, "drop table public.users;")
    code, output = checkout.run()
    assert code == 2
    assert all(name in output for name in names)
    assert "Next:" in output
    assert checkout.history() == FIRST


Here = Callable[..., tuple[int, str]]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs a command in this process, which is quicker: (exit code, all output)."""

    def run(main: Callable[[], int], url: str, *arguments: str) -> tuple[int, str]:
        with monkeypatch.context() as patch:
            for name in ("stdout", "stderr"):
                patch.setattr(
                    sys, name, getattr(sys, name)
                )  # what the command puts in its way ends here
            patch.setattr(sys, "argv", ["command", *arguments])
            values = {"ENV": "production", "USER_ID": "nobody", "CONFIRM": "yes"}
            values |= {"SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SECRET_KEY": "silverfish"}
            for name, value in {**values, "SUPABASE_DB_URL": url}.items():
                patch.setenv(name, value)
            code = main()
        output = capsys.readouterr()
        return code, output.out + output.err

    return run


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"postgresql://postgres.ref:{QUOTED}@pooler.invalid:6543/postgres", "session pooler"),
        (f"postgresql://postgres:{PASSWORD}@db.invalid:5432/postgres", "%2F"),
        (f"postgresql://postgres@db.invalid:5432/postgres?password={QUOTED}", "question mark"),
        (f"postgresql://postgres:{QUOTED}@127.0.0.1/postgres?host=db.invalid", "question mark"),
        (f"postgresql://postgres:{QUOTED}@db.invalid/postgres?sslmode=prefer", "plain text"),
        ("postgresql://postgres:%C3@db.invalid/postgres", "%2F"),
        ("https://db.invalid/", "postgresql://"),
        ("", "SUPABASE_DB_URL"),
    ],
    ids=[
        "transaction pooler",
        "password not quoted",
        "password in query",
        "server in query",
        "plain text",
        "no text",
        "scheme",
        "not set",
    ],
)
def test_a_wrong_address_is_refused(here: Here, url: str, says: str) -> None:
    code, output = here(migrate.main, url)
    assert code == 2
    assert says in output
    assert "Next:" in output
    assert len(output.splitlines()) == 1


COMMANDS: dict[str, tuple[Callable[[], int], tuple[str, ...]]] = {
    "migrate": (migrate.main, ()),
    "export": (person.main, ("export",)),
    "erase": (person.main, ("erase",)),
    "usage": (usage.main, ()),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_error_shows_a_password(server: Server, here: Here, command: str) -> None:
    main, arguments = COMMANDS[command]
    nobody = f"postgresql://postgres:silverfish%25woodlouse@127.0.0.1:{free_port()}/postgres"
    tried = {"silverfish@://woodlouse:": 2, nobody: 1}
    for sign in "% @#:/?":
        password = f"silverfish{sign}woodlouse"  # not the server's
        encoded = urllib.parse.quote(password, safe="")
        tried[server.url("postgres", password=encoded)] = 1
        tried[server.url("postgres", password=password)] = 1 if sign == ":" else 2
    for url, expected in tried.items():
        code, output = here(main, url, *arguments)
        assert (code, len(output.splitlines())) == (expected, 1), output
        assert "silverfish" not in output
        assert "woodlouse" not in output


def test_what_the_cli_says_shows_no_password(checkout: Checkout) -> None:
    words = f"'{PASSWORD} or {QUOTED}, as it was'"
    checkout.add(
        "20990101000000_telltale.sql", f"do $$ begin raise exception '%', {words}; end $$;"
    )
    code, output = checkout.run()  # which looks for the password, in both spellings
    assert code == 1, output
    assert "*** or ***, as it was" in output


def test_an_exception_that_nobody_expected_shows_no_password(checkout: Checkout) -> None:
    (checkout.root / "tools/database/safety.py").write_text(
        "import os\ndef losses(_):\n    raise RuntimeError(os.environ['SUPABASE_DB_URL'])\n"
    )
    checkout.add("20990101000000_a.sql", "create table public.a (id int);")
    code, output = checkout.run()
    assert (code, "RuntimeError: ***" in output) == (1, True), output


class Plain(threading.Thread):
    """A server without TLS; it notes who goes on all the same."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.asked = 0
        self.gave_in = 0

    def run(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            with client, contextlib.suppress(OSError):
                while len(head := client.recv(8, socket.MSG_WAITALL)) == 8:
                    if int.from_bytes(head[4:], "big") not in (80877103, 80877104):
                        self.gave_in += 1  # a session, where TLS or GSS was not to be had
                        break
                    self.asked += 1
                    client.sendall(b"N")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Encrypted(threading.Thread):
    """A server that speaks TLS, in front of one that does not; `plain` counts who went on without."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(daemon=True)
        self.root = folder / "root.crt"
        new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        new = (*new, "-nodes", "-days", "2")
        key = str(folder / "root.key")
        root = ("-keyout", key, "-out", str(self.root), "-subj", "/CN=a root")
        by = ("-CA", str(self.root), "-CAkey", key, "-subj", "/CN=a database")
        leaf = ("-keyout", str(folder / "key"), "-out", str(folder / "crt"))
        usage = (
            "-addext",
            "subjectAltName=IP:0.0.0.0",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        )
        for command in ((*new, *root), (*new, *by, *leaf, *usage)):
            subprocess.run(command, check=True, capture_output=True)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "crt", folder / "key")
        self._target = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.plain = 0

    def run(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (
                int.from_bytes((head := client.recv(8, socket.MSG_WAITALL))[4:], "big") == 80877104
            ):
                client.sendall(b"N")  # GSS
            if int.from_bytes(head[4:], "big") != 80877103:
                self.plain += len(head) == 8
                client.close()
                return
            client.sendall(b"S")
            spoken = self._context.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._target))
            pairs = [(spoken, server), (server, spoken)]
            for one, other in pairs:
                threading.Thread(target=Forgetful.carry, args=(one, other), daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.mark.parametrize("who", ["migrate", "person", "the CLI by itself"])
def test_a_server_has_to_show_that_it_is_the_one(
    checkout: Checkout, server: Server, tmp_path: Path, who: str
) -> None:
    command = {"migrate": MIGRATE, "person": EXPORT, "the CLI by itself": ("-c", PUSH)}[who]
    folder = tmp_path / "tls"
    folder.mkdir()
    spoken = Encrypted(folder, server.port)
    spoken.start()
    try:
        place = f"@0.0.0.0:{spoken.port}/"
        url = re.sub(r"@[^/]*/", place, checkout.url).replace("?sslmode=disable", "")
        environment = {"USER_ID": "nobody"}
        code, output = checkout.run(command=command, SUPABASE_DB_URL=url, **environment)
        assert code == 1
        assert "certificate" in output
        assert who == "the CLI by itself" or (
            "sslrootcert" in output and len(output.splitlines()) == 1
        )
        for given in (f"sslrootcert={spoken.root}", "sslmode=require"):
            code, output = checkout.run(
                command=command, SUPABASE_DB_URL=f"{url}?{given}", **environment
            )
            assert (code, "0 accounts" in output) == (
                (1, True) if who == "person" else (0, False)
            ), output
    finally:
        spoken.close()
    assert spoken.plain == 0


def test_the_root_is_supabases() -> None:
    """The one that the locked Supabase CLI holds, and no other."""
    pem = address.ROOT_CERTIFICATE.read_text()
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    assert digest == "807025ad50d4ed219d2c9c7d299c004f824eb00cf7f65afef607d07b72e6cafa"
    program = next((ROOT / "node_modules/@supabase").glob("cli-linux-*/bin/supabase")).read_bytes()
    middle = pem.split("-----")[2].strip()
    assert any(middle.replace("\n", end).encode() in program for end in ("\n", "\\n"))


PUSH = (
    "from tools.database import migrate; "
    "raise SystemExit(migrate.push(migrate.database_url(), '--dry-run'))"
)


@pytest.mark.parametrize("who", ["migrate", "person", "the CLI by itself"])
def test_nothing_goes_to_another_machine_in_plain_text(tmp_path: Path, who: str) -> None:
    checkout = Checkout(tmp_path, "")
    command = {"migrate": MIGRATE, "person": EXPORT, "the CLI by itself": ("-c", PUSH)}[who]
    server = Plain()
    server.start()
    try:
        # An address that leads here, but is none of loopback.
        url = f"postgresql://postgres:{QUOTED}@0.0.0.0:{server.port}/postgres"
        code, output = checkout.run(command=command, SUPABASE_DB_URL=url, USER_ID="nobody")
    finally:
        server.close()
    assert code == 1, output
    assert (server.asked > 0, server.gave_in) == (True, 0), output


def test_a_database_that_does_not_answer_is_one_line(here: Here) -> None:
    url = f"postgresql://postgres:{QUOTED}@127.0.0.1:{free_port()}/none?sslmode=disable"
    code, output = here(migrate.main, url)
    assert code == 1
    assert "Connection refused" in output
    assert len(output.splitlines()) == 1


def test_the_local_database_is_found_by_its_port(fresh: Checkout, server: Server) -> None:
    (fresh.root / ".local").mkdir()
    (fresh.root / ".local/ports.json").write_text(json.dumps({"postgres": server.port}))
    # Supabase's password comes from the environment here only because this server asks for one.
    code, output = fresh.run("--plan", ENV="local", SUPABASE_DB_URL="", PGPASSWORD=PASSWORD)
    assert code == 0, output
    assert FIRST[0] in output


def test_an_edited_file_is_refused_but_its_comments_are_free(checkout: Checkout) -> None:
    file = checkout.migrations / FIRST[0]
    text = file.read_text()
    file.write_text(f"-- Another word.\n{text}\n\n")
    assert checkout.run()[0] == 0
    file.write_text(text.replace("<= 200", "<= 100"))
    code, output = checkout.run()
    assert code == 2
    assert f"edited since it was applied: migrations/{FIRST[0]}" in output
    assert "Next:" in output


def test_a_missing_and_a_late_file_are_refused(checkout: Checkout) -> None:
    checkout.add("20990101000000_last.sql", "create table public.last (id int);")
    assert checkout.run()[0] == 0
    checkout.add("20980101000000_late.sql", "create table public.late (id int);")
    code, output = checkout.run()
    assert (code, "out of order: migrations/20980101000000_late.sql" in output) == (2, True), output
    (checkout.migrations / "20980101000000_late.sql").unlink()
    (checkout.migrations / "20990101000000_last.sql").unlink()
    code, output = checkout.run("--plan")
    assert (code, "the database has 20990101000000_last" in output) == (2, True), output


class Forgetful(threading.Thread):
    """A pooler on loopback that drops what a session asks for at its start (`options`), as poolers do."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._target = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])

    def run(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(("127.0.0.1", self._target))
            length = int.from_bytes(client.recv(4, socket.MSG_WAITALL), "big")
            start = client.recv(length - 4, socket.MSG_WAITALL)
            if start[:4] == b"\x00\x03\x00\x00":
                words = start[4:].rstrip(b"\0").split(b"\0")
                pairs = list(zip(words[::2], words[1::2], strict=True))
                kept = [key + b"\0" + value + b"\0" for key, value in pairs if key != b"options"]
                start = start[:4] + b"".join(kept) + b"\0"
            server.sendall((len(start) + 4).to_bytes(4, "big") + start)
            for one, other in [(client, server), (server, client)]:
                threading.Thread(target=self.carry, args=(one, other), daemon=True).start()

    @staticmethod
    def carry(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooler drops options"])
def test_who_holds_a_lock_is_named(checkout: Checkout, server: Server, pooled: bool) -> None:
    checkout.add("20990101000000_wide.sql", "alter table public.users add column note text;")
    pooler = Forgetful(server.port)
    pooler.start()
    url = checkout.url.replace(str(server.port), str(pooler.port)) if pooled else checkout.url
    try:
        with psycopg.connect(checkout.url, application_name="forgotten shell") as blocker:
            blocker.execute("select count(*) from public.users")
            code, output = checkout.run(SUPABASE_DB_URL=url, MIGRATE_LOCK_SECONDS="2")
            pid = blocker.info.backend_pid
    finally:
        pooler.close()
    assert code == 1
    assert f"pid {pid} (forgotten shell, postgres, idle in transaction since 2" in output
    assert "select count(*) from public.users" in output
    assert ("was ended" in output) == pooled
    assert checkout.history() == FIRST
    assert checkout.run()[0] == 0


def test_a_killed_runner_leaves_nothing_and_no_lock(checkout: Checkout) -> None:
    checkout.add(
        "20990101000000_long.sql", "create table public.long (id int); select pg_sleep(300);"
    )
    runner = checkout.start()
    working = (
        "select count(*) from pg_stat_activity where datname = current_database() "
        "and query like '%pg_sleep(300)%' and pid <> pg_backend_pid()"
    )
    eventually(lambda: checkout.ask(working) != [(0,)], "the migration runs")
    started = children(runner.pid)
    runner.kill()
    for child in started:  # as the end of a job kills all of it
        for grandchild in children(child):
            os.kill(grandchild, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
    runner.communicate()
    # The server goes on with the statement; nothing of it will be kept. Who cannot wait ends it.
    checkout.add("20990101000000_long.sql", "create table public.long (id int);")
    checkout.ask(working.replace("count(*)", "pg_terminate_backend(pid)"))
    code, output = checkout.run()
    assert code == 0, output
    assert checkout.history() == [*FIRST, "20990101000000_long.sql"]


def test_the_api_gets_its_password_once(checkout: Checkout, server: Server) -> None:
    # Another test makes an error of the password, which is in the log from then on.
    said_before = len((server.folder / "log").read_text())
    code, output = checkout.run(API_DATABASE_PASSWORD=PASSWORD)
    assert code == 0, output
    assert "cimt_api has the password" in output
    url = checkout.url.replace("postgres:", "cimt_api:")
    with psycopg.connect(url) as connection:
        assert connection.execute("select current_user").fetchone() == ("cimt_api",)
    verifier = "select rolpassword from pg_authid where rolname = 'cimt_api'"
    with psycopg.connect(server.url("template1", "supabase_admin")) as admin:
        before = admin.execute(verifier).fetchone()
        code, output = checkout.run(API_DATABASE_PASSWORD=PASSWORD)
        assert (code, "cimt_api" in output) == (0, False), output
        assert admin.execute(verifier).fetchone() == before
        assert PASSWORD not in (server.folder / "log").read_text()[said_before:]
