"""Tells GitHub what happened, and asks whether a commit was checked already.

usage: python -m tools.github comment --number N --file F   one comment on a pull request, kept up to date
       python -m tools.github issue --title T --file F      opens the issue, or brings its text up to date
       python -m tools.github issue --title T --closed      closes it, if it is open (with --file: says that)
       python -m tools.github receipt --sha S --file F      one comment on the commit, kept up to date
       python -m tools.github checked --sha S               0: what this commit holds passed Gate; 1: check it

A comment is known by the first line of its file (`<!-- … -->`) and by its writer: only what the workflows' own bot
wrote is touched. GITHUB_API_URL, GITHUB_REPOSITORY and GITHUB_TOKEN come from the environment. Exit codes: 0 done,
1 not done (one line says why), 2 not asked (wrong call, or a variable is missing).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

BOT = "github-actions[bot]"  # who writes with a workflow's token
LABEL = "operations"
LONGEST = 65000  # signs of a text; GitHub takes 65536
TRIES = 4
PATIENCE = 60  # seconds, at most, before another try; GitHub says how many it wants
PAGE = 100


class NotDone(Exception):
    """GitHub did not do it; the text says why."""

    def __init__(self, told: str, again: float = -1) -> None:
        super().__init__(told)
        self.again = again  # after so many seconds another try makes sense; -1: it makes none


class Repository:
    """One repository, by GitHub's REST API. Every method raises NotDone."""

    def __init__(self, client: httpx.Client, name: str) -> None:
        self._client = client
        self._name = name

    def do(self, verb: str, which: Any, body: str, closed: bool) -> None:
        """What the command line asks for; ``which`` is a number, a title or a commit."""
        if verb == "checked":
            self.checked(which)
        elif verb == "issue":
            self.issue(which, body, closed)
        elif verb == "comment":
            self.comment(f"/issues/{which}", "/issues/comments", body)
        else:
            self.comment(f"/commits/{which}", "/comments", body)

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._client.request(method, f"repos/{self._name}{path}", **options)
        except httpx.TransportError as error:
            raise NotDone(f"{method} {path}: {type(error).__name__}", again=0) from None
        if answer.is_success:
            return answer.json() if answer.content else None
        wait = answer.headers.get("retry-after", "")
        # A 403 means a busy GitHub only when it says how long to wait.
        busy = answer.status_code in (429, *range(500, 600)) or (answer.status_code == 403 and wait)
        again = (float(wait) if wait.isdecimal() else 0) if busy else -1
        raise NotDone(f"{method} {path}: {answer.status_code} {answer.text[:150]}", again)

    def _all(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Every entry of a list, page by page."""
        entries: list[dict[str, Any]] = []
        while True:
            page = {**query, "per_page": PAGE, "page": len(entries) // PAGE + 1}
            more = self._ask("GET", path, params=page)
            entries += more
            if len(more) < PAGE:
                return entries

    def comment(self, place: str, comments: str, body: str) -> None:
        """Write ``body`` at ``place``, over the bot's comment there with the same first line (in ``comments``)."""
        marker = body.partition("\n")[0]
        if not (marker.startswith("<!--") and marker.endswith("-->")):
            raise NotDone("a comment's file begins with a marker, such as <!-- cimt-plan -->")
        for one in self._all(f"{place}/comments"):
            if one["user"]["login"] == BOT and one["body"].splitlines()[:1] == [marker]:
                self._ask("PATCH", f"{comments}/{one['id']}", json={"body": body})
                return
        self._ask("POST", f"{place}/comments", json={"body": body})

    def issue(self, title: str, body: str, closed: bool) -> None:
        """Open the bot's issue of this title or bring it up to date; or close it."""
        found = [  # asked for without its label: a person may have taken that away
            (f"/issues/{one['number']}", one["body"] or "")
            for one in self._all("/issues", state="open")
            if (one["title"], one["user"]["login"]) == (title, BOT) and "pull_request" not in one
        ]
        if not found and not closed:
            self._ask("POST", "/issues", json={"title": title, "body": body, "labels": [LABEL]})
        change = {"state": "closed", "state_reason": "completed"} if closed else {"body": body}
        told = (body or "It is no longer so.") if closed else "It still stands; the text is new."
        for place, before in found:
            if closed or before.split() != body.split():
                self._ask("POST", f"{place}/comments", json={"body": told})
                self._ask("PATCH", place, json=change)

    def checked(self, sha: str) -> None:
        """Raise NotDone unless this commit's files are those of a merged pull request that passed Gate."""
        tree = self._ask("GET", f"/git/commits/{sha}")["tree"]["sha"]
        heads = [
            pull["head"]["sha"]
            for pull in self._all(f"/commits/{sha}/pulls")
            if (pull["base"]["ref"], pull["merge_commit_sha"]) == ("main", sha)
            and pull["merged_at"]
        ]
        if len(heads) != 1:
            raise NotDone(f"{sha[:12]} is the merge of {len(heads)} pull requests")
        if self._ask("GET", f"/git/commits/{heads[0]}")["tree"]["sha"] != tree:
            raise NotDone(f"{sha[:12]} holds other files than its pull request, {heads[0][:12]}")
        query = {"check_name": "Gate", "filter": "latest"}
        runs = self._ask("GET", f"/commits/{heads[0]}/check-runs", params=query)["check_runs"]
        ends = {
            (run["name"], run["head_sha"], run["status"], run["conclusion"])
            for run in runs
            if run["app"]["slug"] == "github-actions"
        }
        if ends != {("Gate", heads[0], "completed", "success")}:
            raise NotDone(f"Gate of {heads[0][:12]} has not ended with success")


def patiently(do: Callable[[], None]) -> str:
    """Do it, again where that makes sense; empty, or why it was not done. It begins anew each time."""
    reason, again = "", 0.0
    for tried in range(TRIES):
        time.sleep(again or (2**tried / 2 if tried else 0))
        try:
            do()
            return ""
        except NotDone as error:
            reason, again = str(error), error.again
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            reason, again = f"this is no answer of the API ({type(error).__name__})", -1
        if not 0 <= again <= PATIENCE:
            break
    return reason


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.github")
    parser.add_argument("verb", choices=("comment", "issue", "receipt", "checked"))
    for option, kind in {"number": int, "title": str, "sha": str, "file": Path}.items():
        parser.add_argument(f"--{option}", type=kind)
    parser.add_argument("--closed", action="store_true")
    given = parser.parse_args()
    wanted = {"comment": "number", "issue": "title"}.get(given.verb, "sha")
    if not getattr(given, wanted) or not (given.file or given.closed or given.verb == "checked"):
        parser.error(
            f"{given.verb} wants --{wanted}, and --file (checked: not; issue: or --closed)"
        )
    names = ("GITHUB_API_URL", "GITHUB_REPOSITORY", "GITHUB_TOKEN")
    url, name, token = (os.environ.get(one, "") for one in names)
    if not (url and name and token) or not url.startswith(("https://", "http://127.0.0.1:")):
        parser.error(f"set {', '.join(names)}; the address with https")
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"}
    body = given.file.read_text() if given.file else ""
    if len(body) > LONGEST:
        body = body[:LONGEST] + "\n\n… (cut off: too long for GitHub)\n"

    def do() -> None:
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            Repository(client, name).do(given.verb, getattr(given, wanted), body, given.closed)

    if reason := patiently(do):
        told = " ".join(reason.replace(token, "***").split())[:300]
        print(f"github: {given.verb}: {told}", file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
