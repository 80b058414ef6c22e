"""Postgres 17, which Supabase runs, with pgvector: Debian 13's packages in a container of bubblewrap, without a daemon.

The wheel holds 16 and 18 only. The root file system is made once and kept in the cache, named by the hash of
its inputs; it is read-only inside, has the host's network, and ends with whoever started it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from local.cache import key, made, run
from local.debian import KEEP, LEAVE_OUT, SUITE, mmdebstrap
from local.settings import LocalError, Settings, check_tools

NAME = "postgres 17"
PACKAGES = ("postgresql-17-pgvector",)
PROGRAMS = Path("/usr/lib/postgresql/17/bin")  # inside
# LLVM is a third of it all and serves only the JIT compiler, which Postgres does without when it is not there.
NO_LLVM = (
    "/usr/lib/*/libLLVM*",
    "/usr/lib/*/libz3*",
    "/usr/lib/postgresql/17/lib/llvmjit*",
    "/usr/lib/postgresql/17/lib/bitcode/*",
)


def ensure(settings: Settings) -> Path:
    """Root file system of the container, from the cache or made now; says on stderr what it does.

    Raises LocalError when a tool is missing or fails, or when this user may not make a container.
    """
    check_tools("bwrap", "mmdebstrap")
    leave_out = (*LEAVE_OUT, *NO_LLVM)
    inputs = {"suite": SUITE, "packages": PACKAGES, "leave_out": leave_out, "keep": KEEP}
    root = made(NAME, settings.cache / "postgres-17" / key(inputs), inputs, _bootstrap) / "root"
    _try(root)
    return root


def _bootstrap(part: Path) -> None:
    tar, root = part / "root.tar", part / "root"
    command = mmdebstrap(PACKAGES, (*LEAVE_OUT, *NO_LLVM))
    then = "Next: is the Debian archive within reach? sudo apt-get update"
    run(NAME, [*command, "--quiet", SUITE, str(tar)], then=then)
    root.mkdir()
    # All of it belongs to whoever made it: no other user is needed to read it, or to delete it.
    run(NAME, ["tar", "-C", str(root), "--no-same-owner", "--exclude=./dev/*", "-xf", str(tar)])
    root.chmod(0o755)
    tar.unlink()


def container(root: Path, data: Path) -> list[str]:
    """Prefix of a command that is to run inside, where `data` is writable under its own name.

    Root keeps its number inside and may become another user there; for anybody else it is a user namespace.
    """
    command = ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    if os.geteuid() == 0:
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user"]
    command += ["--ro-bind", str(root), "/", "--dev", "/dev", "--proc", "/proc"]
    command += ["--tmpfs", "/tmp", "--tmpfs", "/run"]  # noqa: S108 - inside
    for parent in [*reversed(data.parents)][1:]:  # else they would be open to root alone
        command += ["--perms", "0755", "--dir", str(parent)]
    command += ["--bind", str(data), str(data)]
    return [*command, "--clearenv", "--setenv", "LC_ALL", "C.UTF-8", "--setenv", "PATH", "/usr/bin"]


def _try(root: Path) -> None:
    """Raise LocalError, with the reason, where this user may not make a container."""
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            [*container(root, Path(folder)), "true"], capture_output=True, text=True
        )
    if tried.returncode:
        raise LocalError(
            f"{NAME}: no container can be made here: {' '.join(tried.stderr.split())}. "
            "Next: allow user namespaces (sysctl kernel.unprivileged_userns_clone, AppArmor), or run it as root"
        )
