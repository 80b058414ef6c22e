"""Run a command as GitHub's runners do: an ordinary user, no user namespaces, a shallow checkout of HEAD.

usage: python3 tools/unprivileged.py COMMAND…        (`make check-unprivileged` runs `make check` so)

The checkout is a temporary folder with a space in its name, with a home of its own. Ubuntu 24.04 lets no
ordinary user make a user namespace; here a filter of system calls says the same to this process tree.
"""

import ctypes
import os
import platform
import pwd
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from errno import ENOSYS, EPERM
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USER = pwd.getpwnam("nobody")
CACHE = Path("/var/cache/cimt-unprivileged")  # what the package managers keep; may be deleted
# How this machine reaches package indexes. Nothing else of the caller's environment is handed on.
KEPT = re.compile(r"(pip|uv|npm_config)_|.*_proxy$|.*(_cert|cainfo|ca_certs|ca_bundle)|ssl_", re.I)
SETTINGS = (".npmrc", ".config/pip/pip.conf", ".config/uv/uv.toml")
# AUDIT_ARCH, and the numbers of clone, unshare and clone3.
CALLS = {"x86_64": (0xC000003E, 56, 272, 435), "aarch64": (0xC00000B7, 220, 97, 435)}
CLONE_NEWUSER = 0x10000000


def refuse_user_namespaces() -> None:
    """From here on, this process and its children make no user namespace. Root may still make the other kinds."""
    arch, clone, unshare, clone3 = CALLS[platform.machine()]
    load, equal, has, answer = 0x20, 0x15, 0x45, 0x06  # of BPF: ld abs, jeq, jset, ret
    allow, refuse = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 0, 7, arch),
        (load, 0, 0, 0),  # the call
        (equal, 6, 0, clone3),  # its flags lie in memory, out of reach: glibc then takes clone
        (equal, 1, 0, clone),
        (equal, 0, 3, unshare),
        (load, 0, 0, 16),  # the flags, the first argument
        (has, 0, 1, CLONE_NEWUSER),
        (answer, 0, 0, refuse | EPERM),
        (answer, 0, 0, allow),
        (answer, 0, 0, refuse | ENOSYS),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filters = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0:
        libc.prctl(
            38, 1, 0, 0, 0
        )  # PR_SET_NO_NEW_PRIVS; root needs none, and sudo works on below it
    if libc.prctl(22, 2, filters, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")


def python_for(env: dict[str, str]) -> str:
    """Name of a Python that the user may run and that makes the environment."""
    wanted = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))"
    as_user = ["setpriv", f"--reuid={USER.pw_uid}", "--clear-groups"]
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        if not subprocess.run(
            [*as_user, name, "-c", wanted], env=env, capture_output=True
        ).returncode:
            return name
    sys.exit("unprivileged: no user but root has Python 3.11. Next: apt-get install python3-venv")


def main(command: list[str]) -> int:
    """Exit code of the command."""
    if os.geteuid() != 0:  # it is an ordinary user's run already
        os.execvp(command[0], command)  # noqa: S606
    env = {name: value for name, value in os.environ.items() if KEPT.match(name)}
    folders = os.environ["PATH"].split(":")
    env["PATH"] = ":".join(folder for folder in folders if not folder.startswith(f"{ROOT}/"))
    with tempfile.TemporaryDirectory(prefix="cimt check ") as folder:
        home, checkout = Path(folder, "home"), Path(folder, "cimt")
        home.mkdir()
        for name in SETTINGS:
            if (found := Path.home() / name).exists():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(found, home / name)
        CACHE.mkdir(exist_ok=True)
        caches = {"PIP_CACHE_DIR": "pip", "UV_CACHE_DIR": "uv", "npm_config_cache": "npm"}
        env |= {name: str(CACHE / below) for name, below in caches.items()}
        env |= {
            "HOME": str(home),
            "USER": USER.pw_name,
            "LANG": "C.UTF-8",
            "PYTHON": python_for(env),
        }
        subprocess.run(
            ["git", "clone", "-q", "--depth=1", f"file://{ROOT}", str(checkout)], check=True
        )
        if subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True).stdout:
            print(
                "unprivileged: it is HEAD that is checked, without what is not committed",
                flush=True,
            )
        owner = f"{USER.pw_uid}:{USER.pw_gid}"
        subprocess.run(["chown", "-R", owner, folder, str(CACHE)], check=True)
        refuse_user_namespaces()
        return subprocess.run(
            command,
            cwd=checkout,
            env=env,
            user=USER.pw_uid,
            group=USER.pw_gid,
            extra_groups=[],
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
