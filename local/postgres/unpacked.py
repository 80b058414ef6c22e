"""Postgres 17, which Supabase runs, with all extensions that we use: Debian 13's packages, unpacked.

Their own C library is unpacked beside them, so that they run on older systems too: for any user, without a container.
Made once and kept in the cache, named by the hash of its inputs.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from local.cache import key, made, run
from local.debian import SUITE
from local.settings import Settings, check_tools

NAME = "postgres 17"
# The server, its extensions, and the libraries that they load: a third of what they depend on (LLVM, Perl, locales).
PACKAGES = (
    *("postgresql-17", "postgresql-client-17", "postgresql-17-cron", "postgresql-17-pgvector"),
    *(
        "libaudit1",
        "libc6",
        "libcap-ng0",
        "libcap2",
        "libcom-err2",
        "libgcc-s1",
        "libgssapi-krb5-2",
    ),
    *(
        "libicu76",
        "libk5crypto3",
        "libkeyutils1",
        "libkrb5-3",
        "libkrb5support0",
        "libldap2",
        "liblz4-1",
    ),
    *(
        "liblzma5",
        "libpam0g",
        "libpq5",
        "libreadline8t64",
        "libsasl2-2",
        "libssl3t64",
        "libstdc++6",
    ),
    *("libsystemd0", "libtinfo6", "libxml2", "libxslt1.1", "libxxhash0", "libzstd1", "zlib1g"),
)
LEAVE_OUT = (
    "*/llvmjit*",
    "*/lib/bitcode",
    "./usr/include",
    "./usr/share/locale",
    "./usr/share/man",
)
# `$1` is the root file system, whose package lists mmdebstrap has fetched and verified.
UNPACK = f"""\
#!/bin/sh
set -e
cd "$1"
APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq -o APT::Sandbox::User=root download {shlex.join(PACKAGES)}
for package in *.deb; do
  dpkg-deb --fsys-tarfile "$package" | tar -x --no-same-owner {shlex.join(f"--exclude={part}" for part in LEAVE_OUT)}
done
"""
# In place of each program, wherever the tree lies: the system's loader would bring the system's libraries. Its locale
# is one that the library has by itself.
WRAPPER = """\
#!/bin/sh
lib="${{0%/*}}/{lib}"
LC_ALL=C.UTF-8 exec "$lib/{loader}" --argv0 "$0" --library-path "$lib" "$0.bin" "$@"
"""


def ensure(settings: Settings) -> Path:
    """The folder with the `usr` of these packages, from the cache or made now: 39 MB, ten seconds.

    Says on stderr what it does. Raises LocalError when a tool is missing or fails.
    """
    inputs = {"suite": SUITE, "unpack": UNPACK, "wrapper": WRAPPER}
    return made(NAME, settings.cache / "postgres-17" / key(inputs), inputs, _unpack)


def _unpack(part: Path) -> None:
    check_tools("mmdebstrap", "dpkg-deb")
    hook = part / "unpack"
    hook.write_text(UNPACK)
    hook.chmod(0o755)
    # Chrootless and custom: nothing is installed, and no right is needed that a user has not.
    command = ["mmdebstrap", "--variant=custom", "--mode=chrootless", "--components=main"]
    command += ["--quiet", '--aptopt=Acquire::Retries "3"', f"--customize-hook={hook}"]
    then = "Next: is the Debian archive within reach? sudo apt-get update. Or take the wheel's: POSTGRES=18"
    run(NAME, [*command, SUITE, str(part / "root")], then=then)
    (part / "root/usr").rename(part / "usr")
    shutil.rmtree(part / "root")
    (loader,) = (part / "usr/lib").glob("*/ld-linux-*")
    for program in (part / "usr/lib/postgresql/17/bin").iterdir():
        program.rename(program.with_name(f"{program.name}.bin"))
        program.write_text(WRAPPER.format(lib=f"../../../{loader.parent.name}", loader=loader.name))
        program.chmod(0o755)
