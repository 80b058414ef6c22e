"""The image cache, and the download of a cloud image from a server that misbehaves."""

import functools
import hashlib
import http.server
import multiprocessing
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from local.cache import building
from local.droplet.cloud_image import download, ensure_ubuntu
from local.droplet.image import SETUP
from local.droplet.image import _build as _build_debian
from local.images.base import CLEAN
from local.settings import LocalError, Settings, load

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several chunks
FILE = "ubuntu-24.04-server-cloudimg-amd64.img"


@dataclass
class Server:
    """A cloud-image server on loopback."""

    url: str = ""
    content: bytes = CONTENT
    checksum: str = field(default_factory=lambda: hashlib.sha256(CONTENT).hexdigest())
    cut_after: int = 0  # bytes of a body, then the connection ends
    ranges: bool = True
    asked: list[str] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, server: Server, *rest: object) -> None:
        self.plan = server
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        plan = self.plan
        if self.path.endswith("/SHA256SUMS"):
            body, first = f"{'0' * 64} *other.img\n{plan.checksum} *{FILE}\n".encode(), 0
        else:
            wanted = self.headers.get("Range", "")
            plan.asked.append(wanted)
            body = plan.content
            first = int(wanted[6:-1]) if wanted and plan.ranges else 0
        if first and first >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        end = plan.cut_after if plan.cut_after and not self.path.endswith("SUMS") else len(body)
        self.wfile.write(body[first:end])

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    plan = Server()
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, plan))
    plan.url = f"http://127.0.0.1:{web.server_port}"
    thread = threading.Thread(target=web.serve_forever, args=(0.02,))
    thread.start()
    yield plan
    web.shutdown()
    thread.join()
    web.server_close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(tmp_path, {"DROPLET_IMAGE": "ubuntu-24.04", "CIMT_CACHE": str(tmp_path / "cache")})


def test_an_image_is_verified_and_then_comes_from_the_cache(
    server: Server, settings: Settings
) -> None:
    image = ensure_ubuntu(settings, server.url)
    assert image.disk.read_bytes() == CONTENT
    assert (image.format, image.kernel) == ("qcow2", None)
    assert ensure_ubuntu(settings, server.url) == image
    assert len(server.asked) == 1


def test_a_cached_image_serves_when_the_server_is_away(server: Server, settings: Settings) -> None:
    image = ensure_ubuntu(settings, server.url)
    assert ensure_ubuntu(settings, "http://127.0.0.1:9") == image


def test_no_server_and_no_cache(settings: Settings) -> None:
    with pytest.raises(LocalError, match=r"cannot be reached.*DROPLET_IMAGE=debian-13 make up"):
        ensure_ubuntu(settings, "http://127.0.0.1:9")


def test_a_wrong_checksum_leaves_nothing(server: Server, settings: Settings) -> None:
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(LocalError, match=r"checksum of .* is not the published one"):
        ensure_ubuntu(settings, server.url)
    assert not list(settings.cache.rglob("*.img"))
    assert not list(settings.cache.rglob("*.part*"))
    server.content = CONTENT
    assert ensure_ubuntu(settings, server.url).disk.read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_is_gone_on_with(
    server: Server, settings: Settings, ranges: bool
) -> None:
    server.cut_after = 3_000_000
    with pytest.raises(LocalError, match=r"interrupted.*goes on from there"):
        ensure_ubuntu(settings, server.url)
    server.cut_after, server.ranges = 0, ranges
    assert ensure_ubuntu(settings, server.url).disk.read_bytes() == CONTENT
    assert server.asked[0] == ""
    assert server.asked[1].startswith("bytes=")
    assert server.asked[1] != "bytes=0-"


def test_all_bytes_were_there_already(server: Server, tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / f"keep/{server.checksum}.part").write_bytes(CONTENT)
    download(f"{server.url}/{FILE}", server.checksum, tmp_path / "keep", tmp_path / "disk.img")
    assert (tmp_path / "disk.img").read_bytes() == CONTENT


def test_a_server_that_does_not_know_the_image(server: Server, settings: Settings) -> None:
    server.checksum = "not-a-checksum"
    with pytest.raises(LocalError, match=r"does not name"):
        ensure_ubuntu(settings, server.url)


def test_a_build_that_fails_leaves_no_cache_entry(tmp_path: Path) -> None:
    target = tmp_path / "images/debian-13-abc"

    def fail() -> None:
        with building(target) as part:
            assert part is not None
            (part / "disk.raw").write_text("half")
            raise LocalError("out of space")

    with pytest.raises(LocalError, match=r"out of space"):
        fail()
    assert [path.name for path in target.parent.iterdir()] == [".debian-13-abc.lock"]


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "images/debian-13-abc"
    stale = target.parent / f".{target.name}.part-dead"
    stale.mkdir(parents=True)
    with building(target) as part:
        assert part is not None
        assert not stale.exists()
        (part / "disk.raw").write_text("whole")
    assert (target / "disk.raw").read_text() == "whole"


def test_the_guest_has_the_security_archive_of_its_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmdebstrap adds it to the sources unless a mirror is named; the image's own setup insists on it."""
    (tmp_path / "mmdebstrap").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/asked\nexit 1\n'
    )
    (tmp_path / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "cache").mkdir()
    with pytest.raises(LocalError, match="mmdebstrap failed"):
        _build_debian("trixie", ["sudo"], None, tmp_path / "cache")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[-2] == "trixie"
    assert "://" not in "".join(asked)

    apt = tmp_path / "guest/etc/apt"
    apt.mkdir(parents=True)
    (apt / "sources.list").write_text("deb http://192.0.2.1/debian trixie main\n")
    setup = subprocess.run([SETUP, tmp_path / "guest"], capture_output=True, text=True)
    assert setup.returncode == 1
    assert "names no security archive for this suite" in setup.stderr


def _build(
    target: Path, go: "multiprocessing.synchronize.Event", built: "multiprocessing.Queue[bool]"
) -> None:
    go.wait(10)
    with building(target) as part:
        built.put(part is not None)


def test_two_builds_at_once_make_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    go, built = context.Event(), context.Queue()
    jobs = [context.Process(target=_build, args=(tmp_path / "i/x", go, built)) for _ in range(2)]
    for job in jobs:
        job.start()
    go.set()
    assert sorted([built.get(timeout=30), built.get(timeout=30)]) == [False, True]
    for job in jobs:
        job.join(10)
        assert job.exitcode == 0


def test_cleaning_a_root_leaves_what_apt_reads_of_it(tmp_path: Path) -> None:
    """mmdebstrap cleans once more after the hooks: without that file, apt would clean the machine's own lists."""
    configuration = tmp_path / "tmp/mmdebstrap.apt.conf.x"
    lists = tmp_path / "var/lib/apt/lists/partial"
    for path in (configuration, lists):
        path.parent.mkdir(parents=True)
        path.write_text("")
    subprocess.run(["sh", "-euc", CLEAN, "sh", str(tmp_path)], check=True)
    assert configuration.exists()
    assert not lists.exists()
