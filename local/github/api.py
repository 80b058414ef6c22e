"""Stand-in for the part of GitHub's REST API that tools/github.py asks: comments, issues, commits and check runs.

What tools/github_settings.py asks (environments, variables, secrets, rulesets) is in settings.py.

All is kept in one folder, which a person can read:
  tokens.json      {token: {"permissions": {"issues": "write", "pull-requests": "write", "contents": "read", …}}}
  repository.json  written by whoever plays the repository, read anew at each request:
                   {"pulls":   [{"number", "head": {"sha"}, "base": {"ref"}, "merged_at", "merge_commit_sha"}, …],
                    "commits": {sha: {"tree": {"sha"}}, …},
                    "checks":  [{"name", "head_sha", "status", "conclusion", "app": {"slug"}}, …]}
  written.json     what came in: {"issues": […], "comments": […]}; and for people ON.md (issues-3.md, commits-SHA.md)
No limits of rate; one repository, whatever its name; what anybody may read of a public one wants the permission too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local.github import settings

BOT = {"login": "github-actions[bot]", "type": "Bot"}
# What may be asked, and the permissions of which one is enough.
NEEDS = {
    r"GET issues": "issues:read",
    r"POST issues|PATCH issues/\d+": "issues:write",
    r"GET issues/\d+/comments": "issues:read pull-requests:read",
    r"POST issues/\d+/comments|PATCH issues/comments/\d+": "issues:write pull-requests:write",
    r"GET commits/\w+/comments|GET git/commits/\w+": "contents:read",
    r"POST commits/\w+/comments|PATCH comments/\d+": "contents:write",
    r"GET commits/\w+/pulls": "pull-requests:read",
    r"GET commits/\w+/check-runs": "checks:read",
    **settings.NEEDS,
}


def answer(folder: Path, token: str, asked: str, query: dict[str, str], sent: Any) -> Any:
    """The answer to one request, ``METHOD path`` below the repository. Raises LookupError: status, message."""
    tokens = json.loads((folder / "tokens.json").read_text())
    if token not in tokens:
        raise LookupError(401, "Bad credentials")
    if asked == "GET /user":
        return {"id": 7, "login": "a-person"}
    needs = [needed for path, needed in NEEDS.items() if re.fullmatch(path, asked)]
    if not needs:
        raise LookupError(404, "Not Found")
    has = {f"{name}:{mode}" for name, mode in tokens[token]["permissions"].items()}
    has |= {one.replace(":write", ":read") for one in has}
    if not has & set(needs[0].split()):
        raise LookupError(403, "Resource not accessible by integration")
    if re.fullmatch("|".join(settings.NEEDS), asked):
        return settings.answer(folder, asked, query, sent)
    there = json.loads((folder / "repository.json").read_text())
    kept = folder / "written.json"
    written = json.loads(kept.read_text()) if kept.exists() else {"issues": [], "comments": []}
    issues, comments = written["issues"], written["comments"]
    method, *path = re.split("[ /]", asked)
    found: Any
    text = sent.get("body", "" if "comments" in asked else None)
    if (
        method != "GET"
        and text is not None
        and (not isinstance(text, str) or not text.strip() or len(text) > 65536)
    ):
        raise LookupError(422, "Validation Failed")

    def one_of(entries: list[Any], key: str, value: Any) -> Any:
        found = [entry for entry in entries if str(entry[key]) == value]
        if not found:
            raise LookupError(404, "Not Found")
        return found[-1]

    if path[0] == "commits" and path[1] not in there["commits"]:
        raise LookupError(422, f"No commit found for SHA: {path[1]}")
    match path:
        case ["git", "commits", sha]:
            if sha not in there["commits"]:
                raise LookupError(404, "Not Found")
            return {"sha": sha, **there["commits"][sha]}
        case ["commits", sha, "pulls"]:
            found = [
                one
                for one in there["pulls"]
                if sha in (one["merge_commit_sha"], one["head"]["sha"])
            ]
        case ["commits", sha, "check-runs"]:
            runs = [
                one
                for one in there["checks"]
                if (one["head_sha"], one["name"]) == (sha, query["check_name"])
            ]
            return {"total_count": len(runs), "check_runs": runs[-1:]}
        case ["issues"] if method == "GET":
            opened = {"title": "", "body": None, "user": BOT, "pull_request": {}}
            found = [one for one in issues if one["state"] == query.get("state", "open")]
            found = found[::-1] + [
                {**one, **opened} for one in there["pulls"] if not one["merged_at"]
            ]
        case ["issues"]:
            number = 1 + max([one["number"] for one in issues + there["pulls"]], default=0)
            found = {"number": number, "state": "open", "body": None, "user": BOT, **sent}
            issues.append(found)
        case ["issues", number]:
            found = one_of(issues, "number", number)
            found.update(sent)
        case ["issues" | "commits" as kind, which, "comments"]:
            if kind == "issues":
                one_of(issues + there["pulls"], "number", which)
            found = [one for one in comments if one["on"] == f"{kind}-{which}"]
            if method == "POST":
                found = {
                    "id": len(comments) + 1,
                    "on": f"{kind}-{which}",
                    "user": BOT,
                    "body": text,
                }
                comments.append(found)
        case [*_, which]:
            found = one_of(comments, "id", which)
            found["body"] = text
    if method == "GET":
        size = int(query.get("per_page", 30))
        return found[size * (int(query.get("page", 1)) - 1) :][:size]
    kept.write_text(json.dumps(written, indent=1))
    told = {
        f"issues-{one['number']}": [f"# {one['title']} ({one['state']})", one["body"]]
        for one in issues
    }
    for one in comments:
        told.setdefault(one["on"], []).append(one["body"])
    for name, texts in told.items():
        (folder / f"{name}.md").write_text("\n\n---\n\n".join(texts) + "\n")
    return found


def routes(folder: Path) -> list[Route]:
    """All of it, below /api."""

    async def endpoint(request: Request) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        path = request.path_params.get("path")
        asked = f"{request.method} {'/user' if path is None else path.lstrip('/')}"
        try:
            sent = json.loads(await request.body() or b"{}")
            found = answer(folder, token, asked, dict(request.query_params), sent)
        except LookupError as error:
            status, message = error.args
            return JSONResponse({"message": message, "status": str(status)}, status)
        if isinstance(found, settings.Done):
            return (
                JSONResponse(found.body, found.status)
                if found.body
                else Response(None, found.status)
            )
        return JSONResponse(found, 201 if request.method == "POST" else 200)

    path = "/api/repos/{owner}/{repository}{path:path}"
    methods = ["GET", "POST", "PATCH", "PUT", "DELETE"]
    return [Route(path, endpoint, methods=methods), Route("/api/user", endpoint)]
