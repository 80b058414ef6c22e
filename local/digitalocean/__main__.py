"""`python -m local.digitalocean`: serve the stand-in on loopback until stopped."""

from __future__ import annotations

import sys
from pathlib import Path

from local.serving import arguments, serve
from local.settings import load

from .app import Api
from .machines import Machines


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments("digitalocean", "DigitalOcean's API")
    parser.add_argument("--state", required=True, type=Path, metavar="FILE", help="kept in it")
    parser.add_argument(
        "--address",
        default="203.0.113.",
        help="of every droplet; one with a dot at its end is made up",
    )
    parser.add_argument(
        "--volumes",
        type=Path,
        metavar="FOLDER",
        help="the oldest droplet is the local one, and disks of volumes lie here",
    )
    given = parser.parse_args()
    api = Api(given.address, given.state)
    if given.volumes:
        Machines(api, load(running=True), given.volumes).start()
    return serve(api.application(), given)


if __name__ == "__main__":
    sys.exit(main())
