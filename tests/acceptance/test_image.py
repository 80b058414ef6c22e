"""The api's image as `make build` made it, in a container that may write nowhere: what Docker would do with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from local.waiting import eventually, free_port
from testbed import api as harness
from testbed.droplet import GENEROUS, LOCAL

LIMIT_MB = 200  # above the base
QUESTION = "How long is the warranty?"


@dataclass
class Image:
    """An image, unpacked: its files, and how its makers want it to be run."""

    root: Path
    config: dict[str, Any]

    def container(self, *command: str, **environment: str) -> list[str]:
        """Command line that runs something in it: read-only, its own user, no powers, its own processes."""
        user, group = self.config["User"].split(":")
        made = ["bwrap", "--die-with-parent", "--new-session", "--unshare-user", "--unshare-pid"]
        made += ["--unshare-ipc", "--unshare-uts", "--as-pid-1", "--uid", user, "--gid", group]
        made += ["--ro-bind", str(self.root), "/", "--dev", "/dev", "--proc", "/proc"]
        made += ["--tmpfs", "/tmp", "--remount-ro", "/", "--clearenv"]
        declared = dict(line.split("=", 1) for line in self.config["Env"])
        for name, value in {**declared, **environment}.items():
            made += ["--setenv", name, value]
        return [*made, "--chdir", self.config["WorkingDir"], *command]

    def health(self, **environment: str) -> int:
        """Exit code of its health check."""
        kind, *command = self.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return subprocess.run(
            self.container(*command, **environment), capture_output=True, timeout=GENEROUS
        ).returncode


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The last build, by its digest."""
    build = json.loads((LOCAL / "build/api.json").read_text())
    name = f"{build['pushed_to']}:{build['revision']}"
    inspected = subprocess.run(
        ["buildah", "inspect", "--type", "image", name], capture_output=True, text=True
    )
    assert inspected.returncode == 0, f"{inspected.stderr}Next: make build"
    config = json.loads(inspected.stdout)["Docker"]["config"]
    folder = tmp_path_factory.mktemp("image")
    folder.chmod(0o755)
    root = folder / "root"
    root.mkdir()
    script = """
        container=$(buildah from --pull-never "$1")
        trap 'buildah rm "$container" >/dev/null' EXIT
        tar -C "$(buildah mount "$container")" --exclude=./dev -cf - . | tar -C "$2" --no-same-owner -xf -
        chmod u+w "$2" # an image's / need not be
    """
    shell = ["bash", "-euo", "pipefail", "-c", script, "unpack", name, str(root)]
    if os.geteuid() != 0:
        shell = ["buildah", "unshare", *shell]
    unpacked = subprocess.run(shell, capture_output=True, text=True, timeout=GENEROUS)
    assert unpacked.returncode == 0, unpacked.stderr
    (root / "dev").mkdir(exist_ok=True)
    return Image(root, config)


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Clouds]:
    with harness.clouds(tmp_path_factory.mktemp("clouds")) as made:
        yield made


def test_it_is_small_and_holds_nothing_to_build_with(image: Image) -> None:
    app = image.root / "app"
    size = sum(path.lstat().st_size for path in app.rglob("*") if not path.is_symlink())
    assert size < LIMIT_MB * 1e6
    programs = {path.name for path in (app / "venv/bin").iterdir()}
    assert not programs & {"pip", "pip3", "uv"}
    writable = [path for path in app.rglob("*") if path.lstat().st_mode & 0o022]
    assert [path for path in writable if not path.is_symlink()] == []
    assert image.config["User"] == "10001:10001"


def test_it_serves_through_an_outage_and_ends_when_its_streams_have(
    image: Image, clouds: harness.Clouds, tmp_path: Path
) -> None:
    port, metrics, log = free_port(), free_port(), tmp_path / "log"
    environment = clouds.environment() | {
        "PORT": str(port),
        "METRICS_PORT": str(metrics),
        "STREAMS_PER_USER": "100",
        "RATE_PER_MINUTE": "1000",
        "DRAIN_SECONDS": "0.5",
    }
    url = f"http://127.0.0.1:{port}"
    assert image.health(PORT=str(port)) != 0, "nobody serves yet"
    command = image.container(*image.config["Cmd"], **environment)
    with harness.process(command, log) as container:
        harness.answers(f"{url}/readyz", container, log, below=300)
        api = harness.Api(container, url, f"http://127.0.0.1:{metrics}", log)
        (inside,) = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        assert image.health(PORT=str(port)) == 0

        # Swarm would kill it for an outage of the database if the health check told of one.
        clouds.postgres.stop()
        eventually(lambda: api.client().get("/readyz").status_code == 503, "it notices the outage")
        assert image.health(PORT=str(port)) == 0
        clouds.postgres.start()
        eventually(lambda: api.client().get("/readyz").is_success, "it is ready again")

        token = clouds.sign_in.token("ann@example.com")
        got = [harness.Streamed() for _ in range(50)]

        def ask(each: harness.Streamed) -> None:
            body = {"message": f"[stand-in: slow; delay=0.1; chunks=30] {QUESTION}"}
            body["id"] = str(uuid4())
            with api.client(token) as client:
                for event in harness.events(client, "POST", "/chat", json=body):
                    each.take(event)

        users = [threading.Thread(target=ask, args=(each,)) for each in got]
        for user in users:
            user.start()
        eventually(lambda: all(each.text for each in got), "all streams have begun")
        os.kill(int(inside), signal.SIGTERM)  # what `docker stop` sends to process 1
        for user in users:
            user.join()
        container.wait(timeout=harness.WAIT_SECONDS)
    assert [each for each in got if not each.done or each.error] == []
    assert container.returncode == 0, log.read_text()[-2000:]
    count = "select count(*) from public.chat_logs where status = 'complete'"
    eventually(lambda: clouds.postgres.rows(count) == [(50,)], "every answer is stored")
