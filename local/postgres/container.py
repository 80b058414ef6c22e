"""Postgres 17, which Supabase runs, with pgvector: Debian 13's packages in a container of bubblewrap, without a daemon.

The wheel holds 16 and 18 only. The root file system is made once and kept in the cache, named by the hash of
its inputs; it is read-only inside, has the host's network, and ends with whoever started it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from local.cache import building
from local.settings import LocalError, Settings, check_tools

SUITE = "trixie"
PACKAGES = ("postgresql-17-pgvector",)
PROGRAMS = Path("/usr/lib/postgresql/17/bin")  # inside
# LLVM is a third of it all and serves only the JIT compiler, which Postgres does without when it is not there.
LEAVE_OUT = (
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
    "/usr/lib/*/libLLVM*",
    "/usr/lib/*/libz3*",
    "/usr/lib/postgresql/17/lib/llvmjit*",
    "/usr/lib/postgresql/17/lib/bitcode/*",
)
KEEP = ("/usr/share/doc/*/copyright",)


def ensure(settings: Settings) -> Path:
    """Root file system of the container, from the cache or made now; says on stderr what it does.

    Raises LocalError when a tool is missing or fails, or when this user may not make a container.
    """
    check_tools("bwrap", "mmdebstrap")
    inputs = {"suite": SUITE, "packages": PACKAGES, "leave_out": LEAVE_OUT, "keep": KEEP}
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    target = settings.cache / "postgres-17" / key
    if not target.is_dir():
        with building(target) as part:
            if part is not None:
                started = time.monotonic()
                _say("building its root file system from Debian 13's packages")
                _bootstrap(part)
                (part / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n")
                _say(f"root file system ready in {time.monotonic() - started:.0f} s ({target})")
    _try(target / "root")
    return target / "root"


def _bootstrap(part: Path) -> None:
    tar = part / "root.tar"
    # No mirror is named: mmdebstrap then takes the suite's security and update archives too.
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--components=main"]
    command += [f"--include={','.join(PACKAGES)}", '--aptopt=Acquire::Retries "3"']
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEAVE_OUT]
    command += [f"--dpkgopt=path-include={pattern}" for pattern in KEEP]
    _run([*command, SUITE, str(tar)])
    root = part / "root"
    root.mkdir()
    # All of it belongs to whoever made it: no other user is needed to read it, or to delete it.
    _run(["tar", "-C", str(root), "--no-same-owner", "--exclude=./dev/*", "-xf", str(tar)])
    root.chmod(0o755)
    tar.unlink()


def _run(command: list[str]) -> None:
    result = subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL)
    if result.returncode:
        raise LocalError(
            f"postgres 17: {command[0]} failed with exit code {result.returncode} (its output is above). "
            "Next: is the Debian archive within reach? sudo apt-get update"
        )


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
            f"postgres 17: no container can be made here: {' '.join(tried.stderr.split())}. "
            "Next: allow user namespaces (sysctl kernel.unprivileged_userns_clone, AppArmor), or run it as root"
        )


def _say(text: str) -> None:
    print(f"postgres 17: {text}", file=sys.stderr, flush=True)
