"""The web page as its image serves it: the real nginx, with the image's own files, on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from local import nginx
from local.settings import cache
from local.waiting import free_port
from testbed.api import REVISION, answers, process

ROOT = Path(__file__).parents[1]
SERVICE = ROOT / "services/web"


def build() -> None:
    """Make services/web/dist. Raises AssertionError with what the build said when it fails."""
    done = subprocess.run([SERVICE / "build.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def served(environment: Mapping[str, str], port: int = 0) -> Iterator[str]:
    """Serve the page with these variables (start.sh names them); its address. It has to be built."""
    port = port or free_port()
    folder = Path(tempfile.mkdtemp(prefix="cimt-web-"))
    folder.chmod(0o755)  # of root, nginx's worker is nobody
    try:
        for name in ("nginx.conf", "start.sh", "healthcheck.sh"):
            shutil.copy(SERVICE / name, folder)
        shutil.copytree(SERVICE / "dist", folder / "dist")
        (folder / "run").mkdir()
        (folder / "revision").write_text(REVISION)
        path = f"{nginx.ensure(cache()) / 'usr/sbin'}:{os.environ['PATH']}"
        log = folder / "log"
        env = {"PATH": path, "PORT": str(port), **environment}
        with process([str(folder / "start.sh")], log, cwd=folder, env=env) as started:
            url = f"http://127.0.0.1:{port}"
            answers(f"{url}/healthz", started, log)
            try:
                yield url
            finally:
                started.terminate()  # killed it would leave its worker behind
                started.wait()
    finally:
        shutil.rmtree(folder)
