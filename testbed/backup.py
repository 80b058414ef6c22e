"""A folder that stands for a droplet with something to back up, and the program of role backup run on it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from local import restic
from local.waiting import eventually

PROGRAM = Path(__file__).parents[1] / "roles/backup/files/backup.py"
# Two rows a transaction, as n8n writes: a copy with an odd number of them is torn.
WRITE_SQLITE = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("pragma journal_mode = wal")
database.execute("create table if not exists execution_entity (id integer primary key, data text)")
while True:
    database.execute("begin immediate")
    database.executemany("insert into execution_entity (data) values (?)", [("x" * 500,)] * 2)
    database.execute("commit")
    time.sleep(0.002)
"""
# The panel: first the one file, then the other. Frozen, the second is never ahead, and never more than one behind.
WRITE_PANEL = """
import os, sys, time
folder, number = sys.argv[1], 0
while True:
    number += 1
    for name in ("first", "second"):
        with open(f"{folder}/.new", "w") as file:
            file.write(str(number))
        os.replace(f"{folder}/.new", f"{folder}/{name}")
    time.sleep(0.001)
"""
# Docker, as far as the program asks: pausing stops the process whose id is in the file `panel`. A service that shall
# stop still has its container for a while.
DOCKER = """\
#!/bin/sh
cd "$(dirname "$0")"
case "$*" in
  service*=0) echo "$*" >> asked; printf .. > stops; exit;;
  service*=1) echo "$*" >> asked; rm stops; exit;;
  ps*cimt_n8n*) left=$(cat stops 2>/dev/null || echo .); [ -z "$left" ] || echo two
    [ ! -e stops ] || printf %s "${left#.}" > stops; exit;;
esac
pid=$(cat panel)
state=$(grep ^State /proc/$pid/status)
case "$*" in
  ps*paused*) case "$state" in *T*) echo one;; esac;;
  ps*) case "$state" in *T*) ;; *) echo one;; esac;;
  pause*) echo pause >> asked; kill -STOP $pid; until grep -q '^State:.T' /proc/$pid/status; do :; done;;
  unpause*) echo unpause >> asked; kill -CONT $pid;;
esac
"""


class Host:
    """A folder that stands for a droplet."""

    def __init__(self, folder: Path, repository: str, **settings: Any) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.volume, self.panel = folder / "volume", folder / "panel"
        for made in (self.state, self.volume / "binaryData", self.panel / "data", folder / "bin"):
            made.mkdir(parents=True)
        (self.volume / "config").write_text('{"encryptionKey": "a-key-0123456789"}')
        (self.volume / "binaryData/one").write_bytes(os.urandom(100_000))
        (self.state / "releases.jsonl").write_text('{"service": "api"}\n')
        (self.panel / "projects").mkdir()
        self.secrets = folder / "etc"
        self.secrets.mkdir()
        (self.secrets / "backup.password").write_text("a-password-of-the-repository")
        (folder / "bin/docker").write_text(DOCKER)
        (folder / "bin/docker").chmod(0o755)
        self.said: dict[str, Any] = {
            "repository": repository,
            "secrets": str(self.secrets),
            "keys": {},
            "state": str(self.state),
            "staging": "/var/tmp/cimt-test-staging-" + str(os.getpid()),
            "stamp": str(self.state / "backup.stamp"),
            "locks": [str(self.state / "heavy.lock"), str(self.volume / "job.lock")],
            "volumes": {"n8n": str(self.volume)},
            "panel": {"path": str(self.panel), "service": "easypanel", "leave_out": ["projects"]},
            "project": "cimt",
            "restored": str(folder / "restored"),
            "host_restored": [f"{self.state}/releases.jsonl"],
            "host_files": [f"{self.state}/*", f"{self.secrets}/*"],
            "database": {},
            "keep": {"within": "1h"},
            "patience_seconds": 2,
            "shrink_percent": 50,
            "read_data_subset": "100%",
            "cache": str(folder / "cache"),
            **settings,
        }

    def start(
        self, *arguments: str, before: str = "", within: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start it; `before` is code that the same process runs first, `within` a command that runs it."""
        settings = self.folder / "settings.json"
        settings.write_text(json.dumps(self.said))
        path = f"{self.folder / 'bin'}:{restic.program().parent}:{os.environ['PATH']}"
        run = "import runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        command = [sys.executable, "-I", "-c", f"{before}\n{run}", PROGRAM, "--settings", settings]
        return subprocess.Popen(
            [*within, *map(str, command), *(arguments or ["run"])],
            env={"PATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, *arguments: str, before: str = "", within: Sequence[str] = (), told: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; `told` is its standard input."""
        process = self.start(*arguments, before=before, within=within)
        said, complained = process.communicate(told, timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, said, complained)

    def good(self, *arguments: str) -> dict[str, Any]:
        """Run it, and it must be well; the stamp, or what it prints."""
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return dict(json.loads(done.stdout if arguments else self.stamp().read_text()))

    def bad(
        self, *arguments: str, before: str = "", within: Sequence[str] = (), told: str = ""
    ) -> str:
        """Run it, and it must fail with one line that says what next, without a new stamp; the line."""
        stamped = self.stamp().read_text() if self.stamp().exists() else None
        done = self.run(*arguments, before=before, within=within, told=told)
        assert done.returncode == 1, done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        assert "Next: " in line, line
        assert "a-password" not in done.stdout + done.stderr
        assert stamped == (self.stamp().read_text() if self.stamp().exists() else None)
        assert not Path(self.said["staging"]).exists()
        return line

    def stamp(self) -> Path:
        return self.state / "backup.stamp"

    @contextlib.contextmanager
    def writers(self) -> Iterator[None]:
        """n8n and the panel at work."""
        programs = [
            (WRITE_SQLITE, self.volume / "database.sqlite"),
            (WRITE_PANEL, self.panel / "data"),
        ]
        running = [subprocess.Popen([sys.executable, "-c", code, path]) for code, path in programs]
        (self.folder / "bin/panel").write_text(str(running[1].pid))
        try:
            database, second = self.volume / "database.sqlite", self.panel / "data/second"
            eventually(
                lambda: second.exists() and database.exists() and rows(database) > 100, "writers"
            )
            yield
        finally:
            for process in running:
                process.kill()
                process.wait()


def rows(database: Path) -> int:
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(database, timeout=60)) as seen,
    ):
        return int(seen.execute("select count(*) from execution_entity").fetchone()[0])
    return 0
