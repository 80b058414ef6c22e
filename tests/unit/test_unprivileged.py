"""The filter below which `make check-unprivileged` runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.unprivileged import machine

BELOW = """
import os, sys, threading
from tools.unprivileged import refuse_user_namespaces
refuse_user_namespaces()
thread = threading.Thread(target=print, args=("a thread runs",), kwargs={"flush": True})
thread.start()
thread.join()
os.execvp(sys.argv[1], sys.argv[1:])
"""
CLONE = """
import ctypes, os, platform
from tools.unprivileged import CALLS, CLONE_NEWUSER
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall(CALLS[platform.machine()][1], CLONE_NEWUSER | 17, 0, 0, 0, 0) == -1:  # SIGCHLD
    raise SystemExit(os.strerror(ctypes.get_errno()))
"""


def below_the_filter(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BELOW, *command],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "attempt",
    [
        ("unshare", "--user", "true"),
        ("unshare", "--map-root-user", "--net", "true"),
        (sys.executable, "-c", CLONE),
    ],
    ids=lambda attempt: attempt[0].rpartition("/")[2],
)
def test_no_user_namespace_is_made(attempt: tuple[str, ...]) -> None:
    done = below_the_filter(*attempt)
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr
    assert done.stdout == "a thread runs\n"


def test_a_folder_that_nobody_else_may_enter_is_left_out_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    (closed / "bin").mkdir(parents=True)
    closed.chmod(0)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("PATH", f"{closed / 'bin'}:/usr/bin")
    assert machine(home)["PATH"] == "/usr/bin"
    closed.chmod(0o700)
