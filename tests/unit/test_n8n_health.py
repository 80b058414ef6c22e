"""The health check of n8n's image: by whatever the image has, it says whether n8n is ready."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from local.waiting import free_port
from testbed.served import served
from testbed.tree import ROOT

SCRIPT = ROOT / "services/n8n/healthcheck.sh"
PROGRAMS = ["wget", "bash", "node"]  # as the script prefers them


class N8n:
    """What answers, on a port of its own, and how."""

    def __init__(self) -> None:
        self.status = 200
        self.port = 0
        self.web = Starlette(routes=[Route("/healthz/readiness", self._answer)])

    def _answer(self, _: Request) -> Response:
        return Response(status_code=self.status)


@pytest.fixture
def n8n() -> Iterator[N8n]:
    made = N8n()
    with served(made.web) as made.port:
        yield made


@pytest.mark.parametrize("program", [one for one in PROGRAMS if shutil.which(one)])
def test_it_is_ready_when_n8n_says_so_and_not_before(
    n8n: N8n, tmp_path: Path, program: str
) -> None:
    (tmp_path / program).symlink_to(str(shutil.which(program)))

    def ready(port: int) -> bool:
        script = SCRIPT.read_text().replace("5678", str(port))
        command = ["/bin/sh", "-c", script]
        return subprocess.run(command, env={"PATH": str(tmp_path)}, timeout=60).returncode == 0

    assert ready(n8n.port)
    n8n.status = 503
    assert not ready(n8n.port)
    assert not ready(free_port()), "nobody answers"
