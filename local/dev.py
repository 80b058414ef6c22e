"""`make dev`: API and web page with reload, Postgres and the stand-ins, in seconds and without a virtual machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from local import clouds
from local.droplet.machine import alone
from local.postgres import server as postgres
from local.settings import LocalError, Settings, check_port, write_atomic
from local.waiting import eventually

# Other ports than those of `make up`: both can run.
PORTS = {
    "api": ("DEV_API_PORT", 8000),
    "web": ("DEV_WEB_PORT", 5180),
    "postgres": ("DEV_POSTGRES_PORT", 54332),
    "supabase": ("DEV_SUPABASE_PORT", 54331),
    "openai": ("DEV_OPENAI_PORT", 8011),
}
APPLICATION = "cimt_api.app:application"
# Where other front ends are developed: Next, Vite and its preview, Angular, and what takes any other.
BROWSERS = [f"http://localhost:{port}" for port in (3000, 3001, 5173, 4173, 4200, 8080)]
START_SECONDS = 60
STOP_SECONDS = 10
ASK = """\
curl -N {api}/chat -H "Authorization: Bearer $({python} -m local sign-in)" \\
  -H 'Content-Type: application/json' -d '{{"message": "How long is the warranty?", "stream": true}}'"""


@dataclass
class Dev:
    """One run: its ports, its folder, its processes."""

    settings: Settings
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Data and logs; to begin anew, delete it."""
        return folder(self.settings)

    def url(self, name: str) -> str:
        """Address of a part on loopback."""
        return f"http://127.0.0.1:{self.ports[name]}"

    @property
    def ingest_key(self) -> str:
        """The API's key for documents, made once."""
        path = self.folder / "ingest-key"
        if not path.exists():
            write_atomic(path, secrets.token_hex(24), 0o600)
        return path.read_text()

    def start(self, name: str, command: list[str], env: Mapping[str, str] | None = None) -> None:
        """Start a part; its output goes to a log, but for the API's. Dies with us, even when we are killed."""
        at_death = ["--pdeathsig", "INT" if name == "postgres" else "TERM"]
        # After a change of user only the same setpriv can set it.
        command = (
            [*command[:1], *at_death, *command[1:]]
            if command[0] == "setpriv"
            else ["setpriv", *at_death, *command]
        )
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd="/" if name == "postgres" else self.settings.root,
                env=None if env is None else {**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=None if name == "api" else log,
                stderr=None if name == "api" else log,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end each as it wants to be ended
            )

    def start_cloud(self, name: str, *options: str) -> None:
        """Start a part that `make up` has too."""
        self.start(name, [*clouds.CLOUDS[name].command(self.ports, self.folder), *options])

    def wait(self, name: str) -> None:
        """Until a part answers. Raises LocalError."""
        port = self.ports[name]

        def answers() -> bool:
            if name in ("api", "web"):
                return clouds.http_answers(port, {"api": "/readyz", "web": "/config.js"}[name])
            return clouds.CLOUDS[name].answers(port)

        try:
            eventually(answers, name, START_SECONDS, self.processes[name])
        except TimeoutError:
            log = self.folder / f"{name}.log"
            told = log.read_text(errors="replace").strip().splitlines()[-1:]
            look = "look above" if name == "api" else f"cat {os.path.relpath(log)}"
            raise LocalError(f"dev: {name} does not start. {' '.join(told)} Next: {look}") from None

    def stop(self) -> None:
        """End every part, the last started first."""
        for name, process in reversed(self.processes.items()):
            if process.poll() is None:
                # SIGINT is Postgres' fast shutdown.
                process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def folder(settings: Settings) -> Path:
    """Where `make dev` keeps its data."""
    return settings.state / "dev"


def supabase_port(settings: Settings) -> int:
    """Where Auth of a running `make dev` answers, or 0."""
    try:
        port = int((folder(settings) / "supabase-port").read_text())
    except (OSError, ValueError):
        return 0
    return port if clouds.CLOUDS["supabase"].answers(port) else 0


def read_ports(env: Mapping[str, str]) -> dict[str, int]:
    """Ports by part. Raises LocalError for one that is none."""
    ports = {}
    for name, (variable, default) in PORTS.items():
        text = env.get(variable, "") or str(default)
        if not text.isdigit() or not 0 < int(text) < 65536:
            raise LocalError(f"{variable}={text!r} is not a port number (1-65535).")
        ports[name] = int(text)
    return ports


def migrate(dev: Dev) -> None:
    """Apply what is pending, by the runner that production uses; nothing is asked of it when nothing is."""
    url = postgres.url(dev.ports["postgres"])
    postgres.prepare(url)
    files = {path.name[:14] for path in (dev.settings.root / "migrations").glob("*.sql")}
    with psycopg.connect(url) as connection:
        there = connection.execute(
            "select to_regclass('supabase_migrations.schema_migrations') is not null"
        ).fetchone()
        applied: set[str] = set()
        if there and there[0]:
            rows = connection.execute("select version from supabase_migrations.schema_migrations")
            applied = {row[0] for row in rows}
    if applied == files:
        return
    print("dev: applying the migrations", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "tools.database.migrate"],
        cwd=dev.settings.root,
        env=os.environ | {"ENV": "local", "SUPABASE_DB_URL": url},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise LocalError(
            f"{(done.stdout + done.stderr).strip()}\ndev: the migrations cannot be applied. "
            f"To begin with an empty database: rm -r {os.path.relpath(dev.folder)}"
        )


def api_environment(dev: Dev) -> dict[str, str]:
    """What the API is told; everything else may come from the shell."""
    database = f"postgresql://cimt_api@127.0.0.1:{dev.ports['postgres']}/postgres?sslmode=disable"
    return {
        "DATABASE_URL": database,
        "SUPABASE_URL": dev.url("supabase"),
        "OPENAI_BASE_URL": f"{dev.url('openai')}/v1",
        "OPENAI_API_KEY": "none-is-needed",
        "INGEST_KEY": dev.ingest_key,
        "CORS_ORIGINS": " ".join(
            [
                dev.url("web"),
                f"http://localhost:{dev.ports['web']}",
                os.environ.get("CORS_ORIGINS", " ".join(BROWSERS)),
            ]
        ),
    }


def web_environment(dev: Dev) -> dict[str, str]:
    """What the web page is told, by /config.js."""
    return {
        "PATH": f"{dev.settings.root / 'node_modules/.bin'}:{os.environ['PATH']}",  # the locked Node
        "API_URL": dev.url("api"),
        "SUPABASE_URL": dev.url("supabase"),
        "SUPABASE_PUBLISHABLE_KEY": clouds.PUBLISHABLE_KEY,
    }


def seed(dev: Dev) -> int:
    """Fill the knowledge base from files, by the etl; the number of documents. What is there already is left alone."""
    options = ["--api", dev.url("api"), "--state", str(dev.folder / "etl.sqlite"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "cimt_etl", "run", str(clouds.DOCUMENTS / "sources.yaml"), *options],
        env=os.environ
        | {"PYTHONPATH": str(dev.settings.root / "services/etl"), "INGEST_KEY": dev.ingest_key},
        capture_output=True,
        text=True,
    )
    report = json.loads((done.stdout.splitlines() or ["{}"])[-1]).get("report", {})
    if done.returncode:
        wrong = [report.get("error"), *(one["reason"] for one in report.get("failed", ()))]
        told = next(filter(None, wrong), done.stderr.strip())
        raise LocalError(f"dev: the documents cannot be stored: {told}")
    return int(report["listed"])


@contextlib.contextmanager
def running(settings: Settings, ports: dict[str, int], page: str = "") -> Iterator[Dev]:
    """Everything, ready; ended at the end of the block. Links of mails lead to `page`, else to the web page here."""
    for name, port in ports.items():
        check_port(port, name, PORTS[name][0], "make dev")
    dev = Dev(settings, ports)
    dev.folder.mkdir(parents=True, exist_ok=True)
    try:
        print("dev: starting Postgres, sign-in, model, API and web page", flush=True)
        dev.start_cloud("openai")
        vite = [str(settings.root / "node_modules/.bin/vite"), "services/web", "--strictPort"]
        address = ["--host", "127.0.0.1", "--port", str(ports["web"])]
        dev.start("web", [*vite, *address], web_environment(dev))
        dev.start_cloud("postgres")
        dev.wait("postgres")
        postgres.prepare(postgres.url(ports["postgres"]))
        dev.start_cloud("supabase", "--otp-seconds", "1", "--page", page or dev.url("web"))
        migrate(dev)
        uvicorn = [sys.executable, "-m", "uvicorn", APPLICATION, "--factory", "--reload"]
        code = ["--app-dir", "services/api", "--reload-dir", "services/api/cimt_api"]
        dev.start("api", [*uvicorn, *code, "--port", str(ports["api"])], api_environment(dev))
        for name in ("supabase", "openai", "api", "web"):
            dev.wait(name)
        yield dev
    finally:
        dev.stop()


def main(settings: Settings, env: Mapping[str, str] = os.environ) -> int:
    """Exit code of `python -m local dev`; ends at Ctrl-C, or when a part ends."""
    started = time.monotonic()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    ports = read_ports(env)
    try:
        with alone(settings, "dev"), running(settings, ports) as dev:
            documents = seed(dev)
            write_atomic(dev.folder / "supabase-port", str(ports["supabase"]))
            print(
                f"\ndev: ready after {time.monotonic() - started:.1f} s, {documents} documents to ask about"
            )
            print(f"  web page  {dev.url('web')} (both reload when a file is saved)")
            print(f"  API       {dev.url('api')}")
            print(f"  mail      {dev.url('supabase')}/inbox")
            print(f"  model     {dev.url('openai')} (switches: python -m local.openai --help)")
            print(f"  database  {postgres.url(ports['postgres'])}")
            print(f"  logs      {os.path.relpath(dev.folder)}/*.log")
            python = os.path.relpath(sys.executable)
            print(f"\nAsk something:\n{ASK.format(api=dev.url('api'), python=python)}\n")
            print("Ctrl-C ends everything.", flush=True)
            while all(process.poll() is None for process in dev.processes.values()):
                time.sleep(0.2)
            ended = [name for name, process in dev.processes.items() if process.poll() is not None]
            raise LocalError(
                f"dev: {ended[0]} has ended. Next: cat {os.path.relpath(dev.folder)}/{ended[0]}.log"
            )
    except KeyboardInterrupt:
        print("\ndev: stopped; its data stays. To begin anew: rm -r .local/dev")
        return 0
