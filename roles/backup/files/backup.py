#!/usr/bin/python3
"""Back this host up with restic, verify it, and only then say so. Run every night by cimt-backup.timer.

Usage: cimt-backup [--settings FILE] VERB …

  run             copy, upload, verify, stamp, forget what the rules no longer keep
  fresh           make sure that the last good backup is at most HOURS old (1; 0: make one now), by the unit
  list            the snapshots, the last good backup and the last drill, as JSON
  restore         bring back WHAT of a snapshot (its id, or `latest`): an app's volume by its name, panel, host; of
                  postgres, and copy, only files. What was there before stays beside it. Prints what it did, as JSON
  begin           from now on this host writes after the snapshots that are there, whoever made them
  drilled         note the evidence of a restore drill, JSON on stdin: a stamp, and a line of the ledger
  passwords       of the repository, JSON on stdin: {"add": another one} or {"end": one that shall not open it any more}
  opens           whether other keys of the storage do, JSON on stdin: {"AWS_ACCESS_KEY_ID": …}; nothing is changed
  accept-smaller  the next run may be much smaller than the last, and forget many snapshots at once
  thaw            let the panel go on, in case a killed run left it frozen

Copies are consistent: SQLite by VACUUM INTO, Postgres by pg_dump in one transaction, the panel's files while it stands
still. A failure is one line on stderr and exit code 1; the stamp keeps the time of the last good backup. One job at a
time: the lock is for every job that this small host can bear only one of.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import email.utils
import errno
import fcntl
import hashlib
import hmac
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SETTINGS = Path("/etc/cimt/backup.json")
# One name for all droplets that this product will ever run on: restic forgets by host.
HOST = "cimt"
MINUTES = 60.0
CLOCK_SECONDS = 120.0
ANSWER_SECONDS = 30.0
# A part that had fewer bytes than this may shrink as it likes.
SMALL = 64 * 1024
SPARE = 64 * 1024 * 1024
UNIT = "cimt-backup.service"
REPORT = "journalctl -u cimt-backup -n 50"
# What restic, a server of S3 or the system says, and what to do about it. The first that fits.
ADVICE = (
    (
        ("wrong password or no key found",),
        "BACKUP_PASSWORD is not the repository's. Next: set it to what it was, then make provision",
    ),
    (
        (
            "AccessDenied",
            "Access Denied",
            "does not exist in our records",
            "signature we calculated",
        ),
        "the bucket refuses the key. Next: make another, set BACKUP_KEY_ID and BACKUP_KEY_SECRET, then make provision",
    ),
    (
        ("bucket does not exist",),
        "there is no such bucket. Next: make it, with versioning, or set BACKUP_REPOSITORY; then make provision",
    ),
    (
        ("QuotaExceeded", "StorageFull", "InsufficientStorage", "encountered an internal error"),
        "the bucket takes nothing more. Next: is it full? Raise its limit; else look whether its service is ill",
    ),
    (
        ("No space left on device", "database or disk is full"),
        "this host's disk is full. Next: docker image prune --all --filter until=168h, then make backup",
    ),
    (
        ("already locked",),
        "another restic works on the repository. Next: restic list locks; if nobody is there, restic unlock",
    ),
    (
        ("ciphertext verification failed", "does not match id", "contains errors", "invalid data"),
        "the repository is damaged. Next: docs/operations/backup.md, When a pack is damaged",
    ),
    (
        ("refused", "no such host", "timeout", "timed out", "EOF", "unreachable", "reset by peer"),
        "the repository cannot be reached. Next: is its address right, is it up? Then make backup",
    ),
    (
        ("repository does not exist",),
        "there is no backup in that repository yet. Next: make backup; or mend BACKUP_REPOSITORY",
    ),
)
WRONG_PASSWORD = 12  # restic's exit code
STOP_SECONDS = 180  # n8n has 8 to end by itself; a host at its limit needs more to see it
# Of these restic believes that they pass.
HOPELESS = (*ADVICE[1][0], *ADVICE[2][0])


class Failed(Exception):
    """No backup, or not a proven one; the text is one line that says why and what to do, without a secret."""


class Settings:
    """What /etc/cimt/backup.json says; secrets are read from files for root only when they are needed."""

    def __init__(self, path: Path) -> None:
        said = json.loads(path.read_text())
        self.repository: str = said["repository"]
        self.secrets = Path(said["secrets"])  # files NAME of /etc/cimt are secrets/NAME
        self.keys: dict[str, str] = said["keys"]  # variable of restic -> file of the secret
        self.state = Path(said["state"])
        self.staging = Path(said["staging"])
        self.stamp = Path(said["stamp"])
        self.locks: list[str] = said["locks"]
        self.volumes: dict[str, str] = said["volumes"]
        self.panel: dict[str, Any] = said["panel"]
        self.project: str = said["project"]
        self.restored = Path(said["restored"])
        self.host_files: list[str] = said["host_files"]
        self.host_restored: list[str] = said["host_restored"]
        self.database: dict[str, Any] = said["database"]
        self.keep: dict[str, str] = said["keep"]
        self.patience = float(said["patience_seconds"])
        self.shrink = float(said["shrink_percent"])
        self.read = str(said["read_data_subset"])
        self.cache = said["cache"]

    def secret(self, name: str) -> str:
        """A secret's text. Raises Failed where the file is not there."""
        try:
            return (self.secrets / name).read_text().strip()
        except OSError as error:
            raise Failed(f"{self.secrets / name}: {error.strerror}. Next: make provision") from None

    @property
    def origin(self) -> Path:
        """Who writes into the repository from here: made once, gone with the droplet."""
        return self.state / "backup.origin"

    @property
    def drill(self) -> Path:
        """When a backup was last proven to come back, and how."""
        return self.state / "restore-drill.stamp"

    @property
    def acceptance(self) -> Path:
        """There: the next run may be much smaller."""
        return self.state / "backup.accept"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="cimt-backup", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="default: %(default)s")
    verbs = ["run", "fresh", "list", "restore", "begin", "drilled", "passwords", "opens"]
    verbs += ["accept-smaller", "thaw"]
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("arguments", nargs="*", help="of fresh: HOURS; of restore: WHAT SNAPSHOT")
    given = parser.parse_args(argv)
    # Stopped by systemd: what stands frozen goes on, what is half-made goes away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.umask(0o077)
    try:
        settings = Settings(given.settings)
        if given.verb == "list":
            print(json.dumps(overview(settings)))
        elif given.verb == "fresh":
            print(fresh(settings, float(*given.arguments or "1")))
        elif given.verb == "restore":
            what, snapshot = given.arguments
            with alone(settings):
                print(json.dumps(restore(settings, what, snapshot)))
        elif given.verb == "begin":
            begin(settings, Restic(settings))
        elif given.verb == "drilled":
            drilled(settings, json.load(sys.stdin))
        elif given.verb == "passwords":
            passwords(settings, **json.load(sys.stdin))
        elif given.verb == "opens":
            Restic(settings, keys=json.load(sys.stdin))("cat", "config")
        elif given.verb == "accept-smaller":
            settings.acceptance.write_text("")
        elif given.verb == "thaw":
            thaw(settings)
        else:
            with alone(settings):
                backup(settings)
    except Failed as reason:
        print(f"backup: {reason}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror or error}"
        print(f"backup: {explained(text)}", file=sys.stderr)
        return 1
    return 0


def explained(text: str) -> str:
    """A program's words on one line, and the next step where it is known."""
    line = " ".join(text.split())[-400:]
    for marks, advice in ADVICE:
        if any(mark in text for mark in marks):
            return f"{advice} (it said: {line})"
    return f"{line}. Next: {REPORT}"


@contextlib.contextmanager
def alone(settings: Settings) -> Iterator[None]:
    """Hold the locks of heavy jobs: the first is ours to make, the others are there when their job has ever run.

    Raises Failed when another job has one for too long.
    """
    deadline = time.monotonic() + settings.patience
    with contextlib.ExitStack() as held:
        for number, path in enumerate(settings.locks):
            # Others lie in volumes, and whoever writes there may put a link in their place.
            flags = os.O_NOFOLLOW | (os.O_RDONLY if number else os.O_WRONLY | os.O_CREAT)
            try:
                lock = os.open(path, flags, 0o644)
            except FileNotFoundError:
                continue
            held.callback(os.close, lock)
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EACCES):
                        raise
                if time.monotonic() > deadline:
                    raise Failed(
                        f"another job has held {path} for {settings.patience:.0f} s. "
                        f"Next: fuser -v {path}, then make backup"
                    )
                time.sleep(1)
        yield


# -- restic -----------------------------------------------------------------------------------------


class Restic:
    """The program, told where the repository is by its environment: no secret stands in a process list."""

    def __init__(
        self,
        settings: Settings,
        password: Path | None = None,
        keys: dict[str, str] | None = None,
    ) -> None:
        """By the host's password, or by that of another file; by the storage's keys of the host, or by others."""
        self.settings = settings
        self.environment = {
            "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
            "LC_ALL": "C.UTF-8",
            "RESTIC_REPOSITORY": settings.repository,
            "RESTIC_PASSWORD_FILE": str(password or settings.secrets / "backup.password"),
            "RESTIC_CACHE_DIR": settings.cache,
            "RESTIC_READ_CONCURRENCY": "1",
            # 2 GB of memory: half the peak, and the time is the night's.
            "GOGC": "20",
            "GOMAXPROCS": "1",
            **{
                variable: (keys or {}).get(variable) or settings.secret(name)
                for variable, name in settings.keys.items()
            },
        }
        settings.secret("backup.password")

    def __call__(
        self, *arguments: str, ok: Sequence[int] = (0,)
    ) -> subprocess.CompletedProcess[str]:
        """Its output. Raises Failed, also when it has tried in vain for too long: alone it would for 15 minutes."""
        command = ["restic", "--retry-lock=10m", *arguments]
        process = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        said: list[str] = []
        reader = threading.Thread(target=self._listen, args=(process, said), daemon=True)
        reader.start()
        try:
            output = process.stdout.read() if process.stdout else ""
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        reader.join()
        if code not in ok:
            # The last words of --json are an object with the message in it.
            raise Failed(explained("\n".join(said[-6:]) or f"restic ended with exit code {code}"))
        return subprocess.CompletedProcess(command, code, output, "\n".join(said))

    def _listen(self, process: subprocess.Popen[str], said: list[str]) -> None:
        """Keep what it says, and end it when nothing but retries has come for as long as we wait."""
        ended: threading.Timer | None = None
        for line in process.stderr or ():
            said.append(message(line.strip()))
            if "operation successful" in line and ended:
                ended.cancel()
                ended = None
            elif any(mark in line for mark in HOPELESS):
                process.terminate()
            elif "retry" in line and not ended:
                ended = threading.Timer(self.settings.patience, process.terminate)
                ended.daemon = True
                ended.start()
        if ended:
            ended.cancel()

    def json(self, *arguments: str) -> Any:
        """Its answer, read."""
        return json.loads(self(*arguments, "--json").stdout or "null")

    def repository_id(self) -> str:
        """The repository's own name, or "" where there is none yet."""
        done = self("cat", "config", ok=(0, 10))
        return str(json.loads(done.stdout)["id"]) if done.returncode == 0 else ""

    def snapshots(self) -> list[dict[str, Any]]:
        """Ours, oldest first."""
        found = self.json("snapshots", f"--host={HOST}", f"--tag={HOST}") or []
        return sorted(found, key=lambda one: moment(one["time"]))

    def manifest(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        """What the snapshot says about itself; {} where it has no word of it."""
        if str(self.settings.staging) not in snapshot["paths"]:
            return {}
        path = f"{self.settings.staging}/manifest.json"
        return dict(json.loads(self("dump", snapshot["id"], path).stdout))


def message(line: str) -> str:
    """What a line of restic says: with --json an object with it."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line


def moment(text: str) -> float:
    """Seconds since 1970 of a time of restic, which has nine decimals or none."""
    head, _, tail = text.partition(".")
    zone = tail.lstrip("0123456789") if tail else ""
    whole = head + zone if tail else text
    return datetime.datetime.fromisoformat(whole.replace("Z", "+00:00")).timestamp()


# -- before anything is copied ----------------------------------------------------------------------


def address(settings: Settings) -> urllib.parse.SplitResult | None:
    """Where the repository is, where it speaks HTTP."""
    scheme, _, rest = settings.repository.partition(":")
    if scheme not in ("s3", "rest"):
        return None
    return urllib.parse.urlsplit(rest if "://" in rest else f"https://{rest}")


def versioned(settings: Settings) -> bool | None:
    """Whether the bucket keeps old versions, the way back from a deleted one; None where nobody says so.

    A signed question of S3: GetBucketVersioning, by AWS Signature Version 4.
    """
    parts = address(settings)
    if not parts or not settings.repository.startswith("s3:"):
        return None
    bucket = "/" + parts.path.strip("/").partition("/")[0]
    nothing = hashlib.sha256(b"").hexdigest()
    when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    signed = {"host": parts.netloc, "x-amz-content-sha256": nothing, "x-amz-date": when}
    names = ";".join(signed)
    lines = "".join(f"{name}:{value}\n" for name, value in signed.items())
    asked = f"GET\n{bucket}\nversioning=\n{lines}\n{names}\n{nothing}"
    scope = f"{when[:8]}/us-east-1/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{when}\n{scope}\n{hashlib.sha256(asked.encode()).hexdigest()}"
    key = f"AWS4{settings.secret(settings.keys['AWS_SECRET_ACCESS_KEY'])}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    who = f"{settings.secret(settings.keys['AWS_ACCESS_KEY_ID'])}/{scope}"
    signed["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={who}, SignedHeaders={names}, Signature={signature}"
    )
    url = f"{parts.scheme}://{parts.netloc}{bucket}?versioning="
    try:
        question = urllib.request.Request(url, headers=signed)  # noqa: S310 - HTTP
        with urllib.request.urlopen(question, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
            return b"<Status>Enabled</Status>" in answer.read()
    except OSError:  # a key that may not ask; the service of another region
        return None


def check_clock(settings: Settings) -> None:
    """Compare with the clock of whoever keeps the repository, where it speaks HTTP. Raises Failed.

    A snapshot from the future would push real ones out of every rule that keeps the newest.
    """
    parts = address(settings)
    if not parts:
        return
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(f"{parts.scheme}://{host}/", method="HEAD")  # noqa: S310 - HTTP
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
            headers = answer.headers
    except urllib.error.HTTPError as error:  # an answer too
        headers = error.headers
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise Failed(
            f"the repository cannot be reached. Next: is {host} right, is it up? Then make backup (it said: {reason})"
        ) from None
    if not headers.get("Date"):
        return
    theirs = email.utils.parsedate_to_datetime(headers["Date"]).timestamp()
    ahead = time.time() - theirs
    if abs(ahead) > CLOCK_SECONDS:
        raise Failed(
            f"this host's clock is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}, says {host}. "
            "Next: timedatectl, systemctl restart systemd-timesyncd, then make backup"
        )


def begin(settings: Settings, restic: Restic) -> None:
    """Note who writes from here on, and after which snapshot; the repository is made where there is none."""
    if not restic.repository_id():
        restic("init")
    known = restic.snapshots()
    origin = {
        "id": str(uuid.uuid4()),
        "repository": restic.repository_id(),
        "from": known[-1]["id"] if known else "",
        "since": now(),
    }
    write(settings.origin, origin)


def passwords(settings: Settings, add: str = "", end: str = "") -> None:
    """Have another password open the repository too, or one no longer. Twice is as good as once. Raises Failed."""
    if end and end == settings.secret("backup.password"):
        raise Failed("this host still opens the repository by it. Next: make provision")
    with tempfile.NamedTemporaryFile("w", dir=settings.secrets) as file:
        print(add or end, file=file, flush=True)
        other = Restic(settings, Path(file.name))
        known = other("cat", "config", ok=(0, WRONG_PASSWORD)).returncode == 0
        if add and not known:
            Restic(settings)("key", "add", f"--new-password-file={file.name}")
        elif end and known:
            (mine,) = [one["id"] for one in other.json("key", "list") if one["current"]]
            Restic(settings)("key", "remove", mine)


def check_repository(settings: Settings, restic: Restic) -> dict[str, Any]:
    """Whether this host may write there now; the manifest of the newest snapshot. Raises Failed."""
    repository = restic.repository_id()
    if not settings.origin.exists():
        found = restic.snapshots() if repository else []
        if found:
            raise Failed(
                f"this droplet is new, and the repository has {len(found)} backups of an earlier one, the newest of "
                f"{found[-1]['time'][:19]}. Next: make restore, or make backup START=empty when its data may go"
            )
        begin(settings, restic)
        return {}
    origin = json.loads(settings.origin.read_text())
    if repository != origin["repository"]:
        what = "another repository" if repository else "no repository"
        raise Failed(
            f"there is {what} at {settings.repository} than the one of {origin['since'][:10]}. "
            "Next: set BACKUP_REPOSITORY to what it was, or make backup START=empty to begin anew there"
        )
    # Those of a restic that was killed; whoever lives keeps his.
    restic("unlock")
    found = restic.snapshots()
    if not found:
        return {}
    newest = found[-1]
    if moment(newest["time"]) > time.time() + CLOCK_SECONDS:
        raise Failed(
            f"snapshot {newest['short_id']} is of {newest['time'][:19]}, in the future: this host's clock is behind, "
            "or somebody put it there. Next: timedatectl; if the clock is right, docs/operations/backup.md"
        )
    manifest = restic.manifest(newest)
    if manifest.get("origin") != origin["id"] and newest["id"] != origin["from"]:
        raise Failed(
            f"another host backs up into this repository: {newest['short_id']} of {newest['time'][:19]} is of "
            f"{manifest.get('host', newest['username'])}. Next: give each environment a BACKUP_REPOSITORY of its own; "
            "if that host is gone, make backup START=empty"
        )
    return manifest


# -- copies -----------------------------------------------------------------------------------------


def now() -> str:
    """The time in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def write(path: Path, content: dict[str, Any]) -> None:
    """The whole file or nothing, also when the power goes."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w") as stream:
        stream.write(json.dumps(content, indent=1) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)


def need_space(folder: Path, wanted: int) -> None:
    """Refuse before the disk is full: n8n and the panel write on it too. Raises Failed."""
    free = shutil.disk_usage(folder).free
    if free < wanted + SPARE:
        raise Failed(
            f"the copies need {(wanted + SPARE) // 2**20} MB on this host's disk, {free // 2**20} MB are free. "
            "Next: docker image prune --all --filter until=168h, then make backup"
        )


def copy_sqlite(source: Path, target: Path) -> dict[str, int]:
    """A consistent copy beside running writers; rows by table. Raises Failed when the copy is not sound."""
    target.parent.mkdir(parents=True, exist_ok=True)
    need_space(target.parent, source.stat().st_size)
    try:
        with contextlib.closing(sqlite3.connect(source, timeout=60)) as database:
            database.execute("vacuum into ?", (str(target),))
        # It comes back as it was: whose it is decides who opens it.
        own = source.stat()
        os.chown(target, own.st_uid, own.st_gid)
        target.chmod(own.st_mode & 0o777)
        with contextlib.closing(sqlite3.connect(target)) as copied:
            found = [row[0] for row in copied.execute("pragma integrity_check(3)")]
            if found != ["ok"]:
                raise Failed(
                    f"the copy of {source} is not sound: {'; '.join(found)[:200]}. Next: docs/operations/backup.md"
                )
            tables = [
                row[0]
                for row in copied.execute(
                    "select name from sqlite_master where type = 'table' and name not like 'sqlite_%'"
                )
            ]
            count = 'select count(*) from "{}"'
            return {
                name: copied.execute(count.format(name.replace('"', '""'))).fetchone()[0]
                for name in tables
            }
    except sqlite3.Error as error:
        raise Failed(explained(f"{source}: {error}")) from None


def docker(*arguments: str) -> str:
    """Docker's answer. Raises Failed."""
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        raise Failed(f"docker {arguments[0]}: no answer in two minutes. Next: {REPORT}") from None
    if done.returncode:
        raise Failed(explained(done.stderr or "docker failed"))
    return done.stdout


def containers(service: str, state: str) -> list[str]:
    """Ids of the containers of a service of Swarm."""
    label = f"label=com.docker.swarm.service.name={service}"
    return docker("ps", "--quiet", f"--filter={label}", f"--filter=status={state}").split()


def thaw(settings: Settings) -> None:
    """Let the panel go on."""
    for container in containers(settings.panel["service"], "paused"):
        docker("unpause", container)


def copy_panel(settings: Settings, target: Path) -> None:
    """The panel's files while it stands still, for a moment: its store survives a crash, so it survives this.

    Raises Failed.
    """
    source = Path(settings.panel["path"])

    def left_out(folder: str, names: list[str]) -> list[str]:
        here = settings.panel["leave_out"] if Path(folder) == source else []
        sockets = [name for name in names if (Path(folder) / name).is_socket()]
        return [*here, *sockets]

    running = containers(settings.panel["service"], "running")
    try:
        for container in running:
            docker("pause", container)
        shutil.copytree(source, target, symlinks=True, ignore=left_out)
    except shutil.Error as error:
        raise Failed(explained(str(error.args[0][0][-1]))) from None
    finally:
        for container in running:
            docker("unpause", container)


def dump_postgres(settings: Settings, target: Path) -> dict[str, int]:
    """The rows of the database in one transaction, as its own role that can only read; rows by table.

    The schema is not in it: migrations make it. Raises Failed.
    """
    database = settings.database
    parts = urllib.parse.urlsplit(settings.secret("backup.database"))
    bare = parts._replace(netloc=f"{parts.username}@{parts.netloc.rpartition('@')[2]}")
    command = [
        *(f"{database['programs']}/pg_dump", "--data-only", "--no-owner", "--no-privileges"),
        # Of what is unlogged nothing is worth keeping: replicas that were alive, questions of a minute.
        *("--no-unlogged-table-data", "--lock-wait-timeout=60s", f"--file={target}"),
        *(f"--table={pattern}" for pattern in database["tables"]),
        urllib.parse.urlunsplit(bare),
    ]
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
    if parts.password:
        environment["PGPASSWORD"] = urllib.parse.unquote(parts.password)
    if database["ca_file"]:
        # With it libpq's sslmode=require asks the server who it is.
        environment["PGSSLROOTCERT"] = database["ca_file"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        line = " ".join(done.stderr.split())[-400:]
        advice = "Next: make migrate (it makes the role cimt_backup and sets its password), then make backup"
        if "No space left" in line:
            raise Failed(explained(line))
        raise Failed(f"pg_dump: {line}. {advice}")
    rows: dict[str, int] = {}
    table, complete = "", False
    with target.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            if table:
                if line == "\\.\n":
                    table = ""
                else:
                    rows[table] += 1
            elif line.startswith("COPY "):
                table = line.split(" (", 1)[0].removeprefix("COPY ")
                rows[table] = 0
            else:
                complete = complete or line.startswith("-- PostgreSQL database dump complete")
    if not complete or not rows:
        raise Failed("pg_dump ended well, but its file does not. Next: make backup")
    return rows


def weigh(paths: Sequence[Path], left_out: Sequence[Path] = ()) -> dict[str, int]:
    """Files and bytes below paths."""
    skipped = {str(path) for path in left_out}
    files = size = 0
    for path in paths:
        for folder, _, names in (
            os.walk(path) if path.is_dir() else [(str(path.parent), [], [path.name])]
        ):
            for name in names:
                if f"{folder}/{name}" not in skipped:
                    with contextlib.suppress(FileNotFoundError):
                        size += os.lstat(f"{folder}/{name}").st_size
                        files += 1
    return {"files": files, "bytes": size}


# -- one night --------------------------------------------------------------------------------------


def backup(settings: Settings) -> None:
    """One backup from beginning to end. Raises Failed."""
    started = time.monotonic()
    check_clock(settings)
    restic = Restic(settings)
    before = check_repository(settings, restic)
    shutil.rmtree(settings.staging, ignore_errors=True)  # of a run that was killed
    settings.staging.mkdir(mode=0o700, parents=True)
    try:
        parts, manifest = copy_all(settings)
        snapshot, summary = upload(restic, parts)
        verify(settings, restic, snapshot, summary, manifest)
    finally:
        shutil.rmtree(settings.staging, ignore_errors=True)
    last = json.loads(settings.stamp.read_text()) if settings.stamp.exists() else before
    compare(settings, last, manifest)
    seconds = round(time.monotonic() - started)
    write(
        settings.stamp,
        {
            **manifest,
            "snapshot": snapshot,
            "seconds": seconds,
            "versioned": versioned(settings),
            "stored_bytes": summary["data_added_packed"],
        },
    )
    told = ", ".join(
        f"{name} {part['bytes'] / 2**20:.1f} MB" for name, part in manifest["parts"].items()
    )
    print(f"backup: {snapshot[:8]} verified after {seconds} s: {told}", flush=True)
    forget(settings, restic)
    settings.acceptance.unlink(missing_ok=True)


def fresh(settings: Settings, hours: float) -> str:
    """Start the unit unless the last good backup is that young, and wait for it; what it said. Raises Failed."""
    with contextlib.suppress(FileNotFoundError):
        age = (time.time() - settings.stamp.stat().st_mtime) / 3600
        if 0 <= age < hours:
            return f"backup: the last good one is {age:.1f} hours old"
    since = time.time()
    done = subprocess.run(["systemctl", "start", UNIT], capture_output=True, text=True)
    # systemd tells only that it failed; why stands in the journal.
    asked = [f"--unit={UNIT}", f"--since=@{since:.0f}", "--grep=^backup: ", "--output=cat"]
    said = subprocess.run(["journalctl", *asked, "--no-pager"], capture_output=True, text=True)
    lines = said.stdout.strip()
    if done.returncode:
        raise Failed((lines.splitlines() or [explained(done.stderr)])[-1].removeprefix("backup: "))
    return lines


def copy_all(settings: Settings) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Consistent copies in the staging folder: what restic shall take and leave out, and the manifest."""
    staging = settings.staging
    parts: dict[str, Any] = {}
    counts: dict[str, dict[str, int]] = {}
    include, exclude = [str(staging)], []
    for name, folder in settings.volumes.items():
        volume = Path(folder)
        if not volume.is_dir():
            raise Failed(f"{volume}: there is no such volume. Next: make services")
        live = sorted(volume.rglob("*.sqlite"))
        aside = [Path(f"{path}{end}") for path in live for end in ("", "-wal", "-shm", "-journal")]
        for path in live:
            counts[name] = copy_sqlite(path, staging / name / path.relative_to(volume))
        own, rest = weigh([staging / name]), weigh([volume], aside)
        parts[name] = {key: own[key] + rest[key] for key in own}
        include.append(str(volume))
        exclude += [str(path) for path in aside]
    if settings.panel["path"]:
        need_space(staging, 0)
        copy_panel(settings, staging / "panel")
        parts["panel"] = weigh([staging / "panel"])
    own_files = {
        staging,
        *map(Path, settings.locks),
        settings.stamp,
        settings.origin,
        settings.drill,
    }
    own_files.add(settings.acceptance)
    files = [
        path
        for pattern in settings.host_files
        for path in sorted(Path("/").glob(pattern[1:]))
        if path not in own_files
    ]
    if settings.host_files and not files:
        raise Failed(f"none of {', '.join(settings.host_files)} is there. Next: make provision")
    include += [str(path) for path in files]
    parts["host"] = weigh(files)
    if settings.database:
        counts["postgres"] = dump_postgres(settings, staging / "postgres.sql")
        parts["postgres"] = weigh([staging / "postgres.sql"])
    manifest = {
        "origin": json.loads(settings.origin.read_text())["id"],
        "host": socket.gethostname(),
        "time": now(),
        "parts": parts,
        "counts": counts,
        "sha256": {
            str(path.relative_to(staging)): digest(path)
            for path in sorted(staging.rglob("*"))
            if path.is_file() and not path.is_symlink()
        },
    }
    write(staging / "manifest.json", manifest)
    return {"include": include, "exclude": exclude}, manifest


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            found.update(block)
    return found.hexdigest()


def upload(restic: Restic, parts: dict[str, list[str]]) -> tuple[str, dict[str, Any]]:
    """The snapshot's id, and what restic says of it. Raises Failed, also when it could not read a file."""
    done = restic(
        *("backup", "--json", "--quiet", f"--host={HOST}", f"--tag={HOST}", "--group-by=host,tags"),
        *(f"--exclude={path}" for path in parts["exclude"]),
        *parts["include"],
    )
    summary = next(
        line
        for line in map(json.loads, done.stdout.splitlines())
        if line["message_type"] == "summary"
    )
    return str(summary["snapshot_id"]), summary


def verify(
    settings: Settings,
    restic: Restic,
    snapshot: str,
    summary: dict[str, Any],
    manifest: dict[str, Any],
) -> None:
    """Ask the repository, not the program that wrote it: is it there, is it whole, can it be read? Raises Failed."""
    found = {one["id"]: one for one in restic.snapshots()}
    if snapshot not in found:
        raise Failed(
            f"the repository does not have snapshot {snapshot[:8]} that restic made. Next: make backup; "
            "when it comes again, the bucket loses what it takes"
        )
    if restic.manifest(found[snapshot]) != manifest:
        raise Failed("what was read back is not what was written. Next: make backup")
    copied = sum(part["bytes"] for part in manifest["parts"].values())
    # Files of the host may change meanwhile; the copies, most of it, do not.
    if summary["total_bytes_processed"] < copied * 0.95:
        raise Failed(
            f"restic took {summary['total_bytes_processed']} of {copied} bytes. Next: {REPORT}"
        )
    restic("check", f"--read-data-subset={settings.read}")


def compare(settings: Settings, last: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Refuse what is much smaller than the last good one: an emptied volume is a backup of nothing. Raises Failed."""
    if settings.acceptance.exists():
        return
    for name, part in last.get("parts", {}).items():
        size = manifest["parts"].get(name, {"bytes": 0})["bytes"]
        if part["bytes"] > SMALL and size < part["bytes"] * (1 - settings.shrink / 100):
            raise Failed(
                f"{name} has {size} bytes, the last good backup had {part['bytes']}. It was taken, but is not called "
                "good, and nothing is forgotten. Next: look why; if that is right, make backup ACCEPT=smaller"
            )


def forget(settings: Settings, restic: Restic) -> None:
    """Let go what the rules do not keep, and count what is left: restic ends well when the bucket refuses.

    Raises Failed.
    """
    if not settings.keep:
        return
    rules = [f"--keep-{rule}={span}" for rule, span in settings.keep.items()]
    chosen = ["forget", f"--host={HOST}", f"--tag={HOST}", "--group-by=host,tags", *rules]
    groups = restic.json(*chosen, "--dry-run") or []
    kept = sum(len(group["keep"] or []) for group in groups)
    going = sum(len(group["remove"] or []) for group in groups)
    if not going:
        return
    if going > kept and not settings.acceptance.exists():
        raise Failed(
            f"the backup is good, but the rules would forget {going} of {kept + going} snapshots at once. "
            "Next: make backups; if that is right, make backup ACCEPT=smaller"
        )
    restic(*chosen, "--prune", "--max-unused=10%")
    left = len(restic.snapshots())
    if left != kept:
        raise Failed(
            f"the backup is good, but {left - kept} snapshots that were to go are still there: the key may not delete. "
            "Next: set backup_keep to {} and forget with a key that may, apart from this host"
        )


def overview(settings: Settings) -> dict[str, Any]:
    """What there is, newest last. Raises Failed."""
    restic = Restic(settings)
    return {
        "repository": settings.repository,
        "snapshots": [
            {
                "id": one["short_id"],
                "time": one["time"][:19],
                "age_hours": round((time.time() - moment(one["time"])) / 3600, 1),
                "bytes": one.get("summary", {}).get("total_bytes_processed"),
                "stored_bytes": one.get("summary", {}).get("data_added_packed"),
            }
            for one in restic.snapshots()
        ],
        "last_good": json.loads(settings.stamp.read_text()) if settings.stamp.exists() else None,
        "last_drill": json.loads(settings.drill.read_text()) if settings.drill.exists() else None,
    }


def drilled(settings: Settings, evidence: dict[str, Any]) -> None:
    """Keep the evidence of a drill that passed. Raises Failed."""
    if not evidence.get("passed"):
        raise Failed("that drill did not pass. Next: make restore-drill")
    line = {
        "time": evidence["time"],
        "who": "restore-drill",
        "action": "drill",
        "service": "backup",
        "from": "",
        "to": "",
        "revision": "",
        "result": "passed",
        "seconds": evidence["seconds"]["total"],
        "reason": f"snapshot {evidence['snapshot'][:8]} of {evidence['taken']}",
    }
    with (settings.state / "releases.jsonl").open("a") as ledger:
        ledger.write(json.dumps(line) + "\n")
    write(settings.drill, evidence)


# -- the way back -----------------------------------------------------------------------------------


def fetch(settings: Settings, snapshot: str, folder: Path) -> dict[str, Any]:
    """A snapshot as files below a new folder, each compared with what was written; its manifest. Raises Failed."""
    restic = Restic(settings)
    found = restic.snapshots()
    chosen = [one for one in found if one["id"].startswith(snapshot)]
    if snapshot == "latest":
        chosen = found[-1:]
    if len(chosen) != 1:
        raise Failed(f"there is no snapshot {snapshot}, or more than one. Next: make backups")
    folder.mkdir(mode=0o700, parents=True)
    restic("restore", chosen[0]["id"], f"--target={folder}", "--verify")
    copies = folder / str(settings.staging).lstrip("/")
    manifest = json.loads((copies / "manifest.json").read_text())
    wrong = [name for name, known in manifest["sha256"].items() if digest(copies / name) != known]
    if wrong:
        raise Failed(
            f"{', '.join(wrong)} came back otherwise than written. Next: docs/operations/backup.md"
        )
    return {**manifest, "snapshot": chosen[0]["id"], "copies": str(copies)}


def restore(settings: Settings, what: str, snapshot: str) -> dict[str, Any]:
    """Stop, put the files in place, start; what was there goes aside. What was done. Raises Failed."""
    known = [*settings.volumes, "panel", "host", "postgres", "copy"]
    if what not in known:
        raise Failed(f"there is no {what!r} to restore. Next: WHAT is one of {', '.join(known)}")
    folder = settings.restored / f"{what}-{now().translate({ord(sign): None for sign in '-:'})}"
    found = fetch(settings, snapshot, folder)
    copies = Path(found["copies"])
    done = {"what": what, "snapshot": found["snapshot"], "taken": found["time"], "aside": []}
    if what in settings.volumes:
        volume = Path(settings.volumes[what])
        new = folder / str(volume).lstrip("/")
        for path in sorted((copies / what).rglob("*.sqlite")):
            place = new / path.relative_to(copies / what)
            path.rename(place)
            silence(place)
        done["aside"] = exchange([(new, volume)], folder, f"{settings.project}_{what}")
    elif what == "panel":
        home = Path(settings.panel["path"])
        moves = [(path, home / path.name) for path in sorted((copies / "panel").iterdir())]
        done["aside"] = exchange(moves, folder, settings.panel["service"])
    elif what == "host":
        moves = [
            (path, Path("/") / path.relative_to(folder))
            for pattern in settings.host_restored
            for path in sorted(folder.glob(pattern.lstrip("/")))
        ]
        done["aside"] = exchange(moves, folder)
        answer_by_restored_keys()
    else:
        return {**done, "folder": str(folder), "dump": str(copies / "postgres.sql")}
    if not settings.origin.exists():
        begin(settings, Restic(settings))
    return done


def exchange(moves: list[tuple[Path, Path]], folder: Path, service: str = "") -> list[str]:
    """Put each restored path where it belongs, while the service stands; where the earlier ones are. Raises Failed."""
    aside: list[str] = []
    ready = [(near(restored, place), place) for restored, place in moves]
    try:
        if service:
            stop(service)
        for restored, place in ready:
            if place.exists():
                before = place.with_name(f"{place.name}.before-{folder.name}")
                place.rename(before)
                aside.append(str(before))
            restored.rename(place)
    finally:
        if service:
            # When it is up is for its health to say: on a small host that takes longer than anybody waits here.
            docker("service", "scale", "--detach", f"{service}=1")
    return aside


def answer_by_restored_keys() -> None:
    """Have sshd take up the host keys; connections stay, and where it cannot, its keys do. Raises Failed."""
    for command in (["/usr/sbin/sshd", "-t"], ["systemctl", "try-reload-or-restart", "ssh"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Failed(
                f"the files are back, but sshd does not take up its host keys ({done.stderr.strip()[-300:]}). "
                "Next: mend /etc/ssh, then systemctl reload ssh"
            )


def near(restored: Path, place: Path) -> Path:
    """The restored path on the disk where it belongs, with its owners: from there it takes its place in one step.

    Before anything stops: a disk that is too full is met while the service still runs. Raises Failed.
    """
    if restored.stat().st_dev == place.parent.stat().st_dev:
        return restored
    beside = place.with_name(f"{place.name}.restored")
    remove(beside)  # of a run that was killed
    command = ["cp", "--archive", "--no-target-directory", str(restored), str(beside)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        remove(beside)
        raise Failed(explained(done.stderr))
    remove(restored)
    return beside


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; nothing is there, and nothing is wrong."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def stop(service: str) -> None:
    """Stop a service of Swarm, which calls it so while its container still writes. Raises Failed."""
    docker("service", "scale", "--detach", f"{service}=0")
    deadline = time.monotonic() + STOP_SECONDS
    while containers(service, "running"):
        if time.monotonic() > deadline:
            raise Failed(f"{service} does not stop. Next: docker service ps {service}")
        time.sleep(1)  # Docker waits for a container, but not for all of a service


# Of n8n's database: what is published, by which its webhooks answer as soon as it listens, and what is due. n8n 2.41.
PUBLISHED = ("webhook_entity", "workflow_published_version", "workflow_publication_trigger_status")
DUE = ("workflow_publication_outbox", "scheduled_task", "scheduled_job")


def silence(database: Path) -> None:
    """Let no workflow of a restored n8n run by itself: `make n8n-workflows` publishes those of the repository."""
    with contextlib.closing(sqlite3.connect(database)) as opened, opened:
        columns = {row[1] for row in opened.execute("pragma table_info(workflow_entity)")}
        for column, off in (("active", "0"), ("activeVersionId", "null")):
            if column in columns:
                opened.execute(f"update workflow_entity set {column} = {off}")  # noqa: S608 - no outside text
        tables = {row[0] for row in opened.execute("select name from sqlite_master")}
        for table in (*PUBLISHED, *DUE):
            if table in tables:
                opened.execute(f"delete from {table}")  # noqa: S608 - no outside text


if __name__ == "__main__":
    sys.exit(main())
