"""Where the database is: SUPABASE_DB_URL, read and checked in one place, and kept out of all that is printed."""

from __future__ import annotations

import io
import ipaddress
import json
import os
import pathlib
import re
import sys
import urllib.parse
from collections.abc import Mapping
from typing import Literal, TextIO

ROOT = pathlib.Path(__file__).parents[2]
# What may stand in a name or a password as it is; the rest is written %XX. No control characters, not even so.
_SIGN = r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%(?!0|1|7[Ff])[0-9A-Fa-f]{2})"
_URL = re.compile(
    rf"postgres(?:ql)?://{_SIGN}+(?::(?:{_SIGN}|:)*)?@(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
    rf"(?::(?P<port>[0-9]{{1,5}}))?(?:/{_SIGN}*)?(?:\?(?P<query>[^#\s]*))?"
)
# After the question mark. Others could name another server, or hold a password where nobody looks for one.
_OPTIONS = {
    "application_name",
    "channel_binding",
    "connect_timeout",
    "options",
    "sslmode",
    "sslrootcert",
}
ENCRYPTED = ("require", "verify-ca", "verify-full")
# Supabase's root, which signs its databases and poolers and which no system knows; until 26 April 2031. The locked
# Supabase CLI holds the same one, which a test compares.
ROOT_CERTIFICATE = pathlib.Path(__file__).with_name("supabase-root-2021.crt")
_PASSWORDS = (
    "API_DATABASE_PASSWORD",
    "BACKUP_DATABASE_PASSWORD",
    "OPENAI_API_KEY",
    "PGPASSWORD",
    "SMTP_PASSWORD",
    "SUPABASE_ACCESS_TOKEN",
    "SUPABASE_DB_PASSWORD",
    "SUPABASE_SECRET_KEY",
)


class Refused(Exception):
    """Nothing was changed in the database; the text says what to do, and quotes no setting."""


def database_url() -> str:
    """URL of the database to work on, with its password.

    What goes to another machine is encrypted, and that machine has to show that it is the one: by Supabase's root,
    where the URL says nothing else (sslmode, sslrootcert). Raises Refused.
    """
    url = os.environ.get("SUPABASE_DB_URL", "")
    if os.environ.get("ENV", "local") == "local" and not url:
        ports = ROOT / ".local/ports.json"
        if not ports.exists():
            raise Refused("there is no local database. Next: make up")
        port = json.loads(ports.read_text())["postgres"]
        return f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable"
    if not url:
        raise Refused(
            "not set: SUPABASE_DB_URL (the database, session pooler or direct). "
            "Next: docs/setup.md says where it comes from"
        )
    parts = _URL.fullmatch(url)
    if not parts or "\N{REPLACEMENT CHARACTER}" in urllib.parse.unquote(url):
        raise Refused(
            "SUPABASE_DB_URL is not postgresql://user:password@host:port/database. Next: copy it from the dashboard "
            "again; in the password, write % / # ? @ and a space as %25 %2F %23 %3F %40 %20 (any other sign: likewise)"
        )
    options = urllib.parse.parse_qsl(parts["query"] or "", keep_blank_values=True)
    if len({name for name, _ in options} & _OPTIONS) < len(options):
        raise Refused(
            "SUPABASE_DB_URL has something after the question mark that does not belong there, or twice. "
            f"Next: keep only {', '.join(sorted(_OPTIONS))}; the password stands before the @"
        )
    if parts["port"] == "6543":
        raise Refused(
            "SUPABASE_DB_URL is the transaction pooler (port 6543), which keeps neither locks nor settings. "
            "Next: take the session pooler's URL (port 5432) from the dashboard: Connect, Session pooler"
        )
    if _here(parts["host"]):
        return url
    given = dict(options)
    if given.get("sslmode", "verify-full") not in ENCRYPTED:
        raise Refused(
            "SUPABASE_DB_URL would send the password and the data to another machine in plain text. "
            f"Next: leave its sslmode out, or make it one of {', '.join(ENCRYPTED)}"
        )
    # The Supabase CLI would step down to plain text by itself, and nobody would know whom it speaks to.
    added = {"sslmode": "verify-full"} if "sslmode" not in given else {}
    if given.get("sslmode", "verify-full").startswith("verify-") and "sslrootcert" not in given:
        added["sslrootcert"] = str(ROOT_CERTIFICATE)
    if not added:
        return url
    sign = "?" if parts["query"] is None else "&" if parts["query"] else ""
    return f"{url}{sign}{urllib.parse.urlencode(added, safe='/')}"


def _here(host: str) -> bool:
    """Whether it is this machine, by its name or address alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def told(error: Exception) -> str:
    """An error of the database on one line, with what to do where the line alone does not say it."""
    line = " ".join(str(error).split())
    if "certificate" in line:
        line += (
            ". Next: is the address right? For a server that Supabase's root has not signed, put "
            "sslmode=verify-full&sslrootcert=FILE (the dashboard has it: Database, SSL) after its question mark"
        )
    return line


def without_password(url: str) -> tuple[str, dict[str, str]]:
    """The URL as it may stand in a process list, and the environment that completes it."""
    parts = urllib.parse.urlsplit(url)
    if parts.password is None:
        return url, {}
    host = parts.netloc.rpartition("@")[2]
    bare = parts._replace(netloc=f"{parts.username}@{host}")
    return urllib.parse.urlunsplit(bare), {"PGPASSWORD": urllib.parse.unquote(parts.password)}


def secrets(environment: Mapping[str, str]) -> list[str]:
    """What must not be printed, in every spelling, the longest first; also where the URL makes no sense."""
    url = environment.get("SUPABASE_DB_URL", "")
    found = {url, *(environment.get(name, "") for name in _PASSWORDS)}
    found |= set(re.findall(r"password=([^&\s]*)", url, re.IGNORECASE))
    # An @ in a password that nobody encoded: whichever is the last one, what stands before it is secret.
    _, _, rest = url.partition("://")
    found |= {rest[: at.start()].partition(":")[2] for at in re.finditer("@", rest)}
    for secret in list(found):
        plain = urllib.parse.unquote(secret)
        found |= {
            plain,
            urllib.parse.quote(plain, safe=""),
            urllib.parse.quote_plus(plain),
            urllib.parse.unquote_plus(secret),
        }
    found |= {spelt[1:-1] for secret in found for spelt in (json.dumps(secret), repr(secret))}
    return sorted(filter(None, found), key=len, reverse=True)


class _Discreet(io.TextIOBase):
    """A stream that passes on all but the secrets."""

    def __init__(self, stream: TextIO, hidden: list[str]) -> None:
        self._stream = stream
        self._pattern = re.compile("|".join(map(re.escape, hidden)))

    def write(self, text: str) -> int:
        self._stream.write(self._pattern.sub("***", text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def hide_secrets(*streams: Literal["stdout", "stderr"]) -> None:
    """From now on to the end of the process these streams show no secret: messages, tracebacks, what a child said."""
    hidden = secrets(os.environ)
    for name in streams:
        if hidden:
            setattr(sys, name, _Discreet(getattr(sys, name), hidden))
