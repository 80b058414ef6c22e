"""`python -m local.supabase`: serve the stand-in on loopback until stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg

from local.serving import arguments, serve

from .app import Auth, Options

SWITCHES = """\
mail: GET /inbox (a page), GET /inbox.json?to=ann@example.com
switches:
  PUT  /stand-in/behaviour {"jwks": "ok" | "failing" | "hanging" | "empty"}
  POST /stand-in/rotate              a new signing key; ?revoke=1 voids all former tokens
  POST /stand-in/token {"email": "ann@example.com", "claims": {"exp": 1}}   a session without a mail
counters: GET or DELETE /stand-in/calls
"""


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments("supabase", "Supabase Auth", SWITCHES)
    parser.add_argument(
        "--database", required=True, metavar="URL", help="Postgres with a schema `auth`"
    )
    parser.add_argument(
        "--state", required=True, type=Path, metavar="DIR", help="keys and mail are kept here"
    )
    parser.add_argument("--issuer", metavar="URL", help="default: http://127.0.0.1:PORT/auth/v1")
    parser.add_argument(
        "--site", metavar="URL", help="where links lead; default: a page of the stand-in"
    )
    parser.add_argument(
        "--page",
        metavar="URL",
        default="",
        help="of the web page, whose own link goes into the mail",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="another address that links may lead to, such as https://*.example.com/**",
    )
    parser.add_argument(
        "--publishable-key", default=Options.publishable_key, help="default: %(default)s"
    )
    parser.add_argument(
        "--otp-seconds",
        type=float,
        default=Options.otp_seconds,
        help="between two mails to one address; 0 for tests",
    )
    parser.add_argument(
        "--token-seconds", type=int, default=Options.token_seconds, help="life of an access token"
    )
    given = parser.parse_args()
    here = f"http://127.0.0.1:{given.port}"
    options = Options(
        database=given.database,
        issuer=(given.issuer or f"{here}/auth/v1").rstrip("/"),
        state=given.state,
        site=given.site or f"{here}/signed-in",
        page=given.page.rstrip("/"),
        allowed=tuple(given.allow),
        publishable_key=given.publishable_key,
        otp_seconds=given.otp_seconds,
        token_seconds=given.token_seconds,
    )
    try:
        with psycopg.connect(given.database, connect_timeout=10) as connection:
            row = connection.execute("select to_regclass('auth.users') is not null").fetchone()
    except psycopg.OperationalError as error:
        print(
            f"supabase: the database does not answer: {' '.join(str(error).split())}. "
            "Next: python -m local clouds start postgres",
            file=sys.stderr,
        )
        return 1
    if not row or not row[0]:
        print(
            "supabase: the database has no auth.users. Next: python -m local clouds start postgres",
            file=sys.stderr,
        )
        return 1
    return serve(Auth(options).application(), given)


if __name__ == "__main__":
    sys.exit(main())
