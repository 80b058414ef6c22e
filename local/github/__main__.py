"""`python -m local.github`: stand-in for GitHub, for development and tests only: one folder as a public repository.

Git itself serves it by HTTP, under every owner and name; what changes in the folder is a new commit at the next fetch.
No login, no limits. With --state also what api.py says of GitHub's REST API, kept in that folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from local.github import api
from local.serving import arguments, serve

AUTHOR = ("-c", "user.name=GitHub", "-c", "user.email=noreply@github.com")


class Served:
    """A folder as a repository: `git http-backend` (CGI) answers, as behind any web server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._home = tempfile.TemporaryDirectory(prefix="github-")
        self._bare = f"{self._home.name}/repository.git"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", self._bare], check=True)

    def _git(self, *arguments: str) -> None:
        command = ["git", "--git-dir", self._bare, "--work-tree", str(self._folder), *arguments]
        subprocess.run(command, capture_output=True)

    async def answer(self, request: Request) -> Response:
        """One request of a git client."""
        return await run_in_threadpool(self._answer, request, await request.body())

    def _answer(self, request: Request, body: bytes) -> Response:
        path = request.path_params["path"]
        if path == "info/refs":
            self._git("add", "--all")
            self._git(*AUTHOR, "commit", "--message=What is in the folder")  # of nothing: refused
        asked = {
            "GIT_PROJECT_ROOT": self._home.name,
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.method,
            "PATH_INFO": f"/repository.git/{path}",
            "QUERY_STRING": request.url.query,
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        }
        command = ["git", "http-backend"]
        done = subprocess.run(
            command, env=os.environ | asked, input=body, capture_output=True, check=True
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        said = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        return Response(content, int(said.pop("Status", "200")[:3]), said)


def application(folder: Path, state: Path | None = None) -> Starlette:
    """The server."""

    def health(_: Request) -> Response:
        return Response("ok")

    return Starlette(
        routes=[
            Route("/stand-in/health", health),
            *(api.routes(state) if state else []),
            Route(
                "/{owner}/{repository}/{path:path}", Served(folder).answer, methods=["GET", "POST"]
            ),
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
