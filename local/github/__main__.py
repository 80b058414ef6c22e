"""`python -m local.github`: stand-in for GitHub, for development and tests only: one folder as a public repository.

After GitHub's REST API ("Get a tree", recursive) below /api and its raw files below /raw. Every owner, repository and
branch is the same folder. No login, no limits, no history. With --state also what api.py says, kept in that folder.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from local.github import api
from local.serving import arguments, serve


def application(folder: Path, state: Path | None = None) -> Starlette:
    """The server; what changes in the folder shows at the next request."""

    def tree(_: Request) -> Response:
        entries = []
        for path in sorted(one for one in folder.rglob("*") if one.is_file()):
            content = path.read_bytes()
            # As git names a file's content.
            sha = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
            entry = {"path": path.relative_to(folder).as_posix(), "mode": "100644", "type": "blob"}
            entries.append({**entry, "sha": sha.hexdigest(), "size": len(content)})
        return JSONResponse({"sha": "0" * 40, "tree": entries, "truncated": False})

    def health(_: Request) -> Response:
        return Response("ok")

    return Starlette(
        routes=[
            Route("/stand-in/health", health),
            Route("/api/repos/{owner}/{repository}/git/trees/{reference}", tree),
            Mount("/raw/{owner}/{repository}/{reference}", StaticFiles(directory=folder)),
            *([api.route(state)] if state else []),
        ]
    )


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments("github", "GitHub")
    parser.add_argument("--folder", type=Path, required=True, help="what is in the repository")
    parser.add_argument("--state", type=Path, help="tokens, and what comes in (api.py says how)")
    given = parser.parse_args()
    return serve(application(given.folder, given.state), given)


if __name__ == "__main__":
    sys.exit(main())
