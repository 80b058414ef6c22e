"""What goes wrong with a backup: each is one line that says what to do, never a new stamp, and the next night is well.

On a real S3 server, without a droplet.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local import restic, s3
from local.waiting import free_port
from testbed.backup import Host

SECRET = "a-secret-of-the-bucket-0123456789"
AHEAD = "import time\nreal = time.time\ntime.time = lambda: real() + 3600"


class Network:
    """A way to the server that can be cut: a proxy of TCP."""

    def __init__(self, target: int) -> None:
        self.passed = 0
        self.cut_after = 0  # bytes from us; 0: never
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            ours, _ = self._listener.accept()
            if self.gone():
                ours.close()
                continue
            theirs = socket.create_connection(("127.0.0.1", self._target))
            self._open += [ours, theirs]
            for ends in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def gone(self) -> bool:
        return bool(self.cut_after) and self.passed > self.cut_after

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := one.recv(65536):
                self.passed += len(block)
                if self.gone():
                    for end in self._open:
                        end.close()
                    return
                other.sendall(block)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of SeaweedFS, where one of another user has left what cannot be removed."""
    port, folder = free_port(), tmp_path_factory.mktemp("s3")
    left = Path(f"/tmp/seaweedfs-s3-{port}.sock/left")
    left.mkdir(parents=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            s3.command(port, folder / "data", SECRET), stdout=log, stderr=log
        )
    try:
        s3.prepare(port, process)
        yield port
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(left.parent)


@pytest.fixture
def network(server: int) -> Network:
    return Network(server)


@pytest.fixture
def host(tmp_path: Path, network: Network) -> Iterator[Host]:
    """A droplet whose first night was well."""
    repository = f"s3:http://127.0.0.1:{network.port}/{s3.BUCKET}/{tmp_path.name}"
    made = Host(tmp_path / "host", repository)
    made.said["keys"] = {"AWS_ACCESS_KEY_ID": "key-id", "AWS_SECRET_ACCESS_KEY": "key-secret"}
    (made.secrets / "key-id").write_text(s3.KEY_ID)
    (made.secrets / "key-secret").write_text(SECRET)
    with made.writers():
        assert made.good()["versioned"] is True
        yield made


def test_the_bucket_refuses_is_full_or_goes_away_in_the_middle(
    host: Host, server: int, network: Network
) -> None:
    (host.secrets / "key-secret").write_text("another-secret")
    assert "the bucket refuses the key" in host.bad()
    (host.secrets / "key-secret").write_text(SECRET)

    (host.volume / "binaryData/more").write_bytes(os.urandom(3_000_000))
    host.good()
    s3.shell(server, f"s3.bucket.quota -name={s3.BUCKET} -op=set -sizeMB=1")
    s3.shell(server, "s3.bucket.quota.enforce -apply")  # the server does so itself each minute
    (host.volume / "binaryData/most").write_bytes(os.urandom(3_000_000))
    assert "the bucket takes nothing more" in host.bad()
    s3.shell(server, f"s3.bucket.quota -name={s3.BUCKET} -op=disable")
    s3.shell(server, "s3.bucket.quota.enforce -apply")

    network.cut_after = network.passed + 1_000_000
    assert "cannot be reached" in host.bad()
    assert network.gone()
    assert "cannot be reached" in host.bad()  # from the beginning on
    network.cut_after = 0
    host.good()


def test_killed_at_any_point_the_next_night_is_well(host: Host) -> None:
    staging = Path(host.said["staging"])
    moments: dict[str, Callable[[], bool]] = {
        "copying": staging.exists,
        "uploading": (staging / "manifest.json").exists,
        "verifying": lambda: False,
    }
    for name, reached in moments.items():
        stamped = host.stamp().read_text()
        process = host.start()
        deadline = time.monotonic() + 4
        while process.poll() is None and not reached() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert host.stamp().read_text() == stamped, name
        host.run("thaw")
        assert host.good()["snapshot"]


def test_the_volume_comes_back_silent_and_the_old_one_stays_aside(host: Host) -> None:
    # Its own disk, as the droplet's volume is one.
    host.said["restored"] = f"/dev/shm/cimt-test-restored-{os.getpid()}"
    (host.volume / "database.sqlite").chmod(0o640)
    with (
        contextlib.closing(sqlite3.connect(host.volume / "database.sqlite", timeout=60)) as n8n,
        n8n,
    ):
        n8n.execute("create table workflow_entity (id text, active int, activeVersionId text)")
        n8n.execute("insert into workflow_entity values ('alerts', 1, 'a-version')")
    stamp = host.good()
    (host.volume / "config").write_text("overwritten")
    (host.volume / "binaryData/one").unlink()
    done = host.good("restore", "n8n", stamp["snapshot"][:8])
    (aside,) = map(Path, done["aside"])
    assert (aside / "config").read_text() == "overwritten"
    assert "a-key" in (host.volume / "config").read_text()
    assert (host.volume / "binaryData/one").stat().st_size == 100_000
    # Whoever could open it before can again; a copy of root's kept n8n out.
    assert (host.volume / "database.sqlite").stat().st_mode & 0o777 == 0o640
    assert {path.name for path in host.folder.glob("volume*")} == {"volume", aside.name}
    shutil.rmtree(host.said["restored"])
    with contextlib.closing(sqlite3.connect(host.volume / "database.sqlite")) as n8n:
        assert n8n.execute("select * from workflow_entity").fetchall() == [("alerts", 0, None)]
    asked = (host.folder / "bin/asked").read_text()
    assert asked.splitlines()[-2:] == [f"service scale --detach cimt_n8n={n}" for n in (0, 1)]
    assert "there is no 'n8m'" in host.bad("restore", "n8m", "latest")
    assert "there is no snapshot ffff" in host.bad("restore", "n8n", "ffff")


def test_a_wrong_clock_is_told_before_anything_is_written(host: Host) -> None:
    before = host.good("list")["snapshots"]
    assert "s ahead, says 127.0.0.1" in host.bad(before=AHEAD)
    assert "s behind, says 127.0.0.1" in host.bad(before=AHEAD.replace("+", "-"))
    assert host.good("list")["snapshots"] == before


def test_two_hosts_a_new_droplet_and_another_repository(host: Host, tmp_path: Path) -> None:
    other = Host(tmp_path / "other", host.said["repository"])
    other.said["keys"] = host.said["keys"]
    for name in ("key-id", "key-secret"):
        shutil.copy(host.secrets / name, other.secrets)
    with other.writers():
        assert "this droplet is new, and the repository has 1 backups" in other.bad()
        other.run("begin")
        other.good()
        assert "another host backs up into this repository" in host.bad()
    host.said["repository"] += "-mistyped"
    assert "there is no repository" in host.bad()


def by_hand(host: Host, *arguments: str | Path) -> None:
    """restic, as somebody with the repository's keys runs it."""
    environment = {
        "PATH": os.environ["PATH"],
        "RESTIC_REPOSITORY": host.said["repository"],
        "RESTIC_PASSWORD_FILE": str(host.secrets / "backup.password"),
        "RESTIC_CACHE_DIR": host.said["cache"],
    }
    subprocess.run([restic.program(), "-q", *arguments], env=environment, check=True)


def plant(host: Host, when: str) -> None:
    """A snapshot of another time."""
    by_hand(host, "backup", "--host=cimt", "--tag=cimt", f"--time={when}", host.secrets)


def test_what_shrank_or_would_be_forgotten_at_once_is_asked_about(tmp_path: Path) -> None:
    host = Host(tmp_path / "host", str(tmp_path / "repository"))
    with host.writers():
        host.good()
        for day in (1, 2, 3):
            plant(host, f"2020-01-0{day} 00:00:00")
        done = host.run()
        assert done.returncode == 1
        assert "the rules would forget 3 of 5 snapshots at once" in done.stderr
        for path in host.volume.glob("database.sqlite*"):
            path.unlink()
        assert "n8n has" in host.bad()
        host.run("accept-smaller")
        host.good()
        listed = host.good("list")["snapshots"]
    assert listed
    assert all(one["time"] > "2021" for one in listed)


def test_a_damaged_pack_and_a_full_disk(tmp_path: Path) -> None:
    host = Host(tmp_path / "host", str(tmp_path / "repository"))
    with host.writers():
        host.good()
        packs = (tmp_path / "repository/data").rglob("*")
        largest = max(
            (path for path in packs if path.is_file()), key=lambda path: path.stat().st_size
        )
        whole = largest.read_bytes()
        largest.chmod(0o600)
        largest.write_bytes(whole[:1000] + bytes(100) + whole[1100:])
        assert "the repository is damaged" in host.bad()
        largest.write_bytes(whole)

        plant(host, "2099-01-01 00:00:00")
        assert "is of 2099-01-01T00:00:00, in the future" in host.bad()
        by_hand(host, "forget", "latest")
        host.good()

        with (host.panel / "data/large").open("wb") as large:
            large.truncate(100 * 2**20)
            large.write(os.urandom(2**20))
        own = [] if os.geteuid() == 0 else ["--map-root-user"]
        small = Path(host.said["staging"]).parent
        mount = f'mount -t tmpfs -o size=80m none {small} && exec "$@"'
        assert "this host's disk is full" in host.bad(
            within=["unshare", *own, "--mount", "sh", "-c", mount, "sh"]
        )
