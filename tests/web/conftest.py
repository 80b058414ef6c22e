"""The page in a real Chromium, served by the real nginx with the image's files, against all of `make dev`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local import dev
from local.clouds import PUBLISHABLE_KEY
from local.settings import Settings, cache
from local.waiting import free_port
from testbed import web

ROOT = Path(__file__).parents[2]
SECONDS = 600


@pytest.fixture(scope="session")
def node() -> Iterator[Callable[[str], None]]:
    """Run a file of node tests in this folder; fails with what it said."""
    root = Path(tempfile.mkdtemp(prefix="cimt-browser-"))
    root.chmod(0o755)  # pytest's own folders are closed to Postgres' user
    for name in ("local", "tools", "services", "migrations", "node_modules"):
        (root / name).symlink_to(ROOT / name)
    # The Supabase CLI reads no file that lies outside the project.
    shutil.copytree(ROOT / "supabase", root / "supabase", symlinks=True)
    ports = {name: free_port() for name in dev.PORTS}
    page, line = free_port(), free_port()
    web.build()
    settings = Settings(root=root, cache=cache(), ports={})
    with contextlib.ExitStack() as stack:
        # Only while they start: other tests of this process have an environment of their own.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CORS_ORIGINS", f"http://127.0.0.1:{page}")
            patch.setenv("RATE_PER_MINUTE", "1000")
            running = dev.running(settings, ports, page=f"http://127.0.0.1:{page}")
            world = stack.enter_context(running)
        dev.seed(world)
        addresses = {
            "API_URL": f"http://127.0.0.1:{line}",
            "SUPABASE_URL": world.url("supabase"),
            "SUPABASE_PUBLISHABLE_KEY": PUBLISHABLE_KEY,
        }
        environment = {
            **os.environ,
            "PATH": f"{ROOT / 'node_modules/.bin'}:{os.environ['PATH']}",
            "WEB_URL": stack.enter_context(web.served(addresses, page)),
            "API_URL": world.url("api"),
            "SUPABASE_URL": world.url("supabase"),
            "OPENAI_URL": world.url("openai"),
            "CUT_PORT": str(line),
            "SHOTS": str(ROOT / ".local/screenshots"),
        }

        def run(file: str) -> None:
            done = subprocess.run(
                ["node", "--test", "--test-reporter=spec", str(Path(__file__).parent / file)],
                env=environment,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            print(done.stdout)
            assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

        yield run
    shutil.rmtree(root)
