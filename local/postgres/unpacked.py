"""Postgres 17, which Supabase runs, with all extensions that we use: Debian 13's packages, unpacked."""

from __future__ import annotations

from pathlib import Path

from local.debian import unpacked
from local.settings import Settings

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


def ensure(settings: Settings) -> Path:
    """The folder with the `usr` of these packages, from the cache or made now: 39 MB, ten seconds.

    Says on stderr what it does. Raises LocalError when a tool is missing or fails.
    """
    then = "Or take the wheel's: POSTGRES=18"
    return unpacked(settings.cache, "postgres-17", PACKAGES, "usr/lib/postgresql/17/bin/*", then)
