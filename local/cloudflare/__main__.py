"""`python -m local.cloudflare`: serve the stand-in on loopback until stopped; what was set is forgotten then."""

from __future__ import annotations

import secrets
import sys

from local.serving import arguments, serve

from .app import ALL_RIGHTS, Cloud


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments("cloudflare", "Cloudflare's API")
    parser.add_argument(
        "--zone", action="append", default=[], metavar="NAME", help="such as example.com"
    )
    parser.add_argument(
        "--token", default=f"stand-in-{secrets.token_hex(20)}", help="one that may do everything"
    )
    given = parser.parse_args()
    cloud = Cloud()
    cloud.tokens[given.token] = ALL_RIGHTS
    for name in given.zone or ["example.com"]:
        cloud.add_zone(name)
    print(
        f"CLOUDFLARE_API_URL=http://127.0.0.1:{given.port}/client/v4 CLOUDFLARE_API_TOKEN={given.token}",
        flush=True,
    )
    return serve(cloud.application(), given)


if __name__ == "__main__":
    sys.exit(main())
