"""`python -m local.digitalocean`: serve the stand-in on loopback until stopped."""

from __future__ import annotations

import sys
from pathlib import Path

from local.serving import arguments, serve

from .app import Api


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments("digitalocean", "DigitalOcean's API")
    parser.add_argument("--state", required=True, type=Path, metavar="FILE", help="kept in it")
    parser.add_argument(
        "--address",
        default="203.0.113.",
        help="of every droplet; one with a dot at its end is made up",
    )
    given = parser.parse_args()
    return serve(Api(given.address, given.state).application(), given)


if __name__ == "__main__":
    sys.exit(main())
