"""Run a command as GitHub's runners do: an ordinary user with sudo, no user namespaces, a shallow checkout of HEAD.

usage: python3 tools/unprivileged.py COMMAND…        (`make check-unprivileged` runs `make check` so)

The checkout is a temporary folder with a space in its name, with a home of its own. Ubuntu 24.04 lets no
ordinary user make a user namespace; here a filter of system calls says the same to this process tree.
Only root can become the runner: a user who exists, and has sudo, in a mount namespace of this process tree alone.
"""

import argparse
import contextlib
import ctypes
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from errno import ENOSYS, EPERM
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME, NUMBER = "runner", 47001  # as on GitHub; a number that no user of a machine has
# What the package managers keep; may be deleted. Root's home is closed to the runner.
CACHE = Path("/var/cache/cimt-runner" if os.geteuid() == 0 else Path.home() / ".cache/cimt/runner")
# How this machine reaches package indexes. Nothing else of the caller's environment is handed on.
KEPT = re.compile(r"(pip|uv|npm_config)_|.*_proxy$|.*(_cert|cainfo|ca_certs|ca_bundle)|ssl_", re.I)
SETTINGS = (".npmrc", ".config/pip/pip.conf", ".config/uv/uv.toml")
# AUDIT_ARCH, and the numbers of clone, unshare and clone3.
CALLS = {"x86_64": (0xC000003E, 56, 272, 435), "aarch64": (0xC00000B7, 220, 97, 435)}
CLONE_NEWUSER = 0x10000000
CLONE_NEWNS, MS_BIND, MS_PRIVATE = 0x20000, 0x1000, 0x44000  # the last with MS_REC
LIBC = ctypes.CDLL(None, use_errno=True)


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
    if os.geteuid() != 0:
        LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS; root needs none, and sudo works below it
    if LIBC.prctl(22, 2, filters, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")


def make_runner(hosts: str) -> None:
    """Let the user exist for this process and its children, with sudo without a password and with subordinate ids.

    `hosts` are further lines of /etc/hosts, for them alone too.
    """
    for call in (
        LIBC.unshare(CLONE_NEWNS),
        LIBC.mount(b"none", b"/", None, MS_PRIVATE, None),
    ):
        if call:
            raise OSError(ctypes.get_errno(), "the kernel makes no mount namespace")
    added = {
        "/etc/passwd": f"{NAME}:*:{NUMBER}:{NUMBER}::{os.environ['HOME']}:/bin/bash",
        "/etc/group": f"{NAME}:*:{NUMBER}:",
        "/etc/subuid": f"{NAME}:{1 << 28}:65536",
        "/etc/subgid": f"{NAME}:{1 << 28}:65536",
        "/etc/sudoers": f"{NAME} ALL=(ALL) NOPASSWD: ALL",
        "/etc/hosts": hosts.rstrip(),
    }
    for path, line in added.items():
        if not Path(path).exists():  # a machine without sudo
            continue
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(f"{Path(path).read_text().rstrip()}\n{line}\n")
            file.flush()
            Path(file.name).chmod(Path(path).stat().st_mode & 0o777)
            if LIBC.mount(file.name.encode(), path.encode(), None, MS_BIND, None):
                raise OSError(ctypes.get_errno(), f"cannot mount over {path}")


def machine(home: Path) -> dict[str, str]:
    """The environment of a runner whose home this is; settings of package indexes are copied there."""
    env = {name: value for name, value in os.environ.items() if KEPT.match(name)}
    folders = [Path(folder) for folder in os.environ["PATH"].split(":")]
    env["PATH"] = ":".join(str(one) for one in folders if ROOT not in one.parents and _open(one))
    for name in SETTINGS:
        if (found := Path.home() / name).exists():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(found, home / name)
    caches = {"PIP_CACHE_DIR": "pip", "UV_CACHE_DIR": "uv", "npm_config_cache": "npm"}
    caches["CIMT_CACHE"] = "cimt"
    env |= {name: str(CACHE / below) for name, below in caches.items()}
    (home / "run").mkdir(mode=0o700)
    env["XDG_RUNTIME_DIR"] = str(home / "run")
    if os.geteuid() == 0:
        env |= {"USER": NAME, "LOGNAME": NAME, "PYTHON": _python(env)}
    return env | {"HOME": str(home), "LANG": "C.UTF-8"}


def _open(folder: Path) -> bool:
    """Whether everybody may use what is in a folder: root's own programs are no runner's."""
    # Path.is_dir alone raises for what lies below a closed folder.
    if not (os.access(folder, os.X_OK) and folder.is_dir()):
        return False
    return all(one.stat().st_mode & 5 == 5 for one in (folder, *folder.parents))


def _python(env: dict[str, str]) -> str:
    """Name of a Python that the user may run and that makes the environment."""
    wanted = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))"
    as_user = ["setpriv", f"--reuid={NUMBER}", "--clear-groups"]
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        if not subprocess.run(
            [*as_user, name, "-c", wanted], env=env, capture_output=True
        ).returncode:
            return name
    sys.exit("unprivileged: no user but root has Python 3.11. Next: apt-get install python3-venv")


def become_runner(hosts: str, *, user_namespaces: bool) -> None:
    """What this process executes from here on, it executes as the runner. An ordinary user stays who they are."""
    if os.geteuid() == 0:
        make_runner(hosts)
        if not user_namespaces:
            refuse_user_namespaces()
        os.setgroups([])
        os.setresgid(NUMBER, NUMBER, NUMBER)
        os.setresuid(NUMBER, NUMBER, NUMBER)


def check_out(repository: Path, ref: str, branch: str, folder: Path, *, full: bool) -> None:
    """As actions/checkout does: one commit; with `full` the whole history and every branch as origin/NAME."""
    git = ["git", "-C", str(folder)]
    folder.mkdir()
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "remote", "add", "origin", f"file://{repository}"], check=True)
    # A proposal has a ref there too; act leaves empty folders out of its copy, and no repository is without refs.
    wanted = [ref if branch else f"+{ref}:refs/remotes/pull/merge"]
    wanted += ["+refs/heads/*:refs/remotes/origin/*"] if full else ["--depth=1"]
    subprocess.run([*git, "fetch", "-q", "--no-tags", "origin", *wanted], check=True)
    named = ["-B", branch] if branch else ["--detach"]
    subprocess.run([*git, "checkout", "-q", *named, "FETCH_HEAD"], check=True)


def run(given: argparse.Namespace) -> int:
    """Exit code of the command in a fresh checkout; 124 when its time was up."""
    # act writes no quotes around the scripts that it keeps below a home.
    with tempfile.TemporaryDirectory(prefix="cimt-run-" if given.home else "cimt run ") as name:
        checkout, home = Path(name, "cimt work"), Path(name, "home")
        if given.home:
            shutil.copytree(given.home, home, symlinks=True)
        home.mkdir(exist_ok=True)
        check_out(given.repository, given.ref, given.branch, checkout, full=given.full)
        if given.origin:
            origin = ["git", "-C", str(checkout), "remote", "set-url", "origin", given.origin]
            subprocess.run(origin, check=True)
        env = machine(home)
        CACHE.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            owner = f"{NUMBER}:{NUMBER}"
            subprocess.run(["chown", "-R", owner, name, str(CACHE)], check=True)
        options = ["--here", *(["--user-namespaces"] if given.user_namespaces else [])]
        if (home / "hosts").exists():
            options += ["--hosts", (home / "hosts").read_text()]
        command = [sys.executable, __file__, *options, *given.command]
        process = subprocess.Popen(command, cwd=checkout, env=env, start_new_session=True)
        try:
            return process.wait(given.minutes * 60)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if given.out and (home / "out").is_dir():
                shutil.copytree(home / "out", given.out, dirs_exist_ok=True)
            kept = home / ".local/share/containers"
            if os.geteuid() != 0 and kept.is_dir():  # files of subordinate users in it
                subprocess.run(["buildah", "unshare", "rm", "-rf", str(kept)], env=env, check=True)


def main() -> int:
    """Command line; returns the exit code of the command."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=ROOT, help="which is checked out")
    parser.add_argument("--ref", default="HEAD", help="what of it")
    parser.add_argument("--branch", default="", help="on which it then is")
    parser.add_argument("--origin", default="", help="what its remote says it is")
    parser.add_argument("--full", action="store_true", help="with its history and its branches")
    parser.add_argument("--home", type=Path, help="a folder that is copied to be the home")
    parser.add_argument("--out", type=Path, help="where ~/out is copied to in the end")
    parser.add_argument("--minutes", type=float, default=360, help="then it is ended")
    parser.add_argument("--user-namespaces", action="store_true", help="as Ubuntu allows buildah")
    parser.add_argument("--hosts", default="", help="further lines of /etc/hosts; ~/hosts has them")
    parser.add_argument("--here", action="store_true", help="no checkout: here, and nothing else")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing stays behind
    if given.here:
        become_runner(given.hosts, user_namespaces=given.user_namespaces)
        os.execvp(given.command[0], given.command)  # noqa: S606
    status = ["git", "-C", str(ROOT), "status", "--porcelain"]
    if given.repository == ROOT and subprocess.run(status, capture_output=True).stdout:
        print("unprivileged: it is HEAD that is checked, without what is not committed", flush=True)
    return run(given)


if __name__ == "__main__":
    sys.exit(main())
