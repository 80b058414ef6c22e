"""Debian packages: what uses of mmdebstrap share, and programs that run without being installed."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from local.cache import key, made, run
from local.settings import check_tools

SUITE = "trixie"
# Never read by a service. Copyright files stay, as licences ask.
LEAVE_OUT = (
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
)
KEEP = ("/usr/share/doc/*/copyright",)


def mmdebstrap(
    packages: Sequence[str],
    leave_out: Sequence[str],
    keep: Sequence[str] = KEEP,
    hooks: Sequence[str] = (),
) -> list[str]:
    """The command line, which wants the suite and the target yet."""
    # No mirror is named: mmdebstrap then takes the suite's security and update archives too.
    return [
        *("mmdebstrap", "--variant=minbase", "--components=main"),
        *(f"--include={','.join(packages)}", '--aptopt=Acquire::Retries "3"'),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in leave_out),
        *(f"--dpkgopt=path-include={pattern}" for pattern in keep),
        *(f"--customize-hook={hook}" for hook in hooks),
    ]


NOT_UNPACKED = (
    "*/llvmjit*",
    "*/lib/bitcode",
    "./usr/include",
    "./usr/share/locale",
    "./usr/share/man",
)
# `$1` is the root file system, whose package lists mmdebstrap has fetched and verified.
UNPACK = """\
#!/bin/sh
set -e
cd "$1"
APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq -o APT::Sandbox::User=root download {packages}
for package in *.deb; do
  dpkg-deb --fsys-tarfile "$package" | tar -x --no-same-owner {excluded}
done
"""
# In place of each program, wherever the tree lies: the system's loader would bring the system's libraries. Its locale
# is one that the library has by itself.
WRAPPER = """\
#!/bin/sh
lib="${{0%/*}}/{lib}"
LC_ALL=C.UTF-8 exec "$lib/{loader}" --argv0 "$0" --library-path "$lib" "$0.bin" "$@"
"""


def unpacked(
    cache: Path, name: str, packages: Sequence[str], programs: str, then: str = ""
) -> Path:
    """The folder with the `usr` of these packages of Debian 13, from the cache or made now.

    Their own C library (`libc6` is one of them) is unpacked beside them, so that the `programs` (a pattern below the
    folder) run on older systems too: for any user, without a container. Named by the hash of its inputs; says on stderr
    what it does. Raises LocalError, which ends with `then`, when a tool is missing or fails.
    """
    excluded = shlex.join(f"--exclude={part}" for part in NOT_UNPACKED)
    unpack = UNPACK.format(packages=shlex.join(packages), excluded=excluded)

    def make(part: Path) -> None:
        check_tools("mmdebstrap", "dpkg-deb")
        hook = part / "unpack"
        hook.write_text(unpack)
        hook.chmod(0o755)
        # Chrootless and custom: nothing is installed, and no right is needed that a user has not.
        command = ["mmdebstrap", "--variant=custom", "--mode=chrootless", "--components=main"]
        command += ["--quiet", '--aptopt=Acquire::Retries "3"', f"--customize-hook={hook}"]
        within = "Next: is the Debian archive within reach? sudo apt-get update."
        run(name, [*command, SUITE, str(part / "root")], then=f"{within} {then}".strip())
        (part / "root/usr").rename(part / "usr")
        shutil.rmtree(part / "root")
        (loader,) = (part / "usr/lib").glob("*/ld-linux-*")
        for program in part.glob(programs):
            program.rename(program.with_name(f"{program.name}.bin"))
            below = program.parent.relative_to(part / "usr").parts
            lib = "/".join([*[".."] * len(below), "lib", loader.parent.name])
            program.write_text(WRAPPER.format(lib=lib, loader=loader.name))
            program.chmod(0o755)

    inputs = {"suite": SUITE, "unpack": unpack, "wrapper": WRAPPER}
    return made(name, cache / name / key(inputs), inputs, make)
