"""The repository on GitHub: a bare one, whose push starts Pull request or Deploy, and the button that merges.

Usage: python -m local.github.repository merge NUMBER | again RUN [JOB…] | dispatch WORKFLOW NAME=VALUE…
A push comes as usual: git push .local/github/cimt.git HEAD:refs/heads/my-change, and what it starts is printed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from local.github.runner import REPOSITORY, Event, Run, Say, parse, starts
from local.settings import LocalError, load, write_atomic

WORKFLOWS = ".github/workflows"
GITHUB = ("-c", "user.name=GitHub", "-c", "user.email=noreply@github.com")
HOOK = """#!/bin/sh
# Reads what was pushed (old, new, ref) and starts the workflows.
cd {root} && unset GIT_DIR && exec {python} -m local.github.repository received
"""


class Repository:
    """`state` is .local/github: cimt.git, repository.json, runs/, settings/ (of GitHub), home/ (of a runner)."""

    def __init__(self, state: Path, say: Say = print) -> None:
        self.state, self.say = state, say
        self.bare = state / "cimt.git"

    def git(self, *arguments: str) -> str:
        """What git says of the repository. Raises LocalError when it fails."""
        done = subprocess.run(
            ["git", "-C", str(self.bare), *arguments], capture_output=True, text=True
        )
        if done.returncode:
            raise LocalError(f"git {arguments[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def create(self, root: Path) -> None:
        """Make it of the commit that is checked out in `root`, as main; nothing is started."""
        self.state.mkdir(parents=True, exist_ok=True)
        if not self.bare.exists():
            subprocess.run(
                ["git", "init", "-q", "--bare", "-b", "main", str(self.bare)], check=True
            )
            self.git("config", "uploadpack.allowAnySHA1InWant", "true")
        asked = ("-C", str(root), "rev-parse", "--is-shallow-repository")
        if self.git(*asked) == "true":
            # Git hands no cut history on as a branch: main then begins with what is checked out.
            self.git("fetch", "-q", "--no-tags", "--depth=1", f"file://{root}", "HEAD")
            begin = ("commit-tree", "FETCH_HEAD^{tree}", "-m", "What is checked out")
            self.git("update-ref", "refs/heads/main", self.git(*GITHUB, *begin))
            (self.bare / "shallow").unlink(missing_ok=True)
        else:
            self.git("fetch", "-q", "--no-tags", f"file://{root}", "+HEAD:refs/heads/main")
        write_atomic(self.state / "repository.json", json.dumps(self.known()) + "\n")
        hook = self.bare / "hooks/post-receive"
        hook.write_text(
            HOOK.format(root=shlex.quote(str(root)), python=shlex.quote(sys.executable))
        )
        hook.chmod(0o755)

    # -- what starts a run --------------------------------------------------------------------------

    def received(self, old: str, new: str, ref: str) -> list[Run]:
        """Start what a push starts: on main its workflows, on another branch those of its pull request."""
        if set(new) == {"0"}:
            return []
        if ref == "refs/heads/main":
            changed = (
                ()
                if set(old) == {"0"}
                else tuple(self.git("diff", "--name-only", old, new).splitlines())
            )
            return self.start(Event("push", ref, {"before": old, "after": new}, changed))
        return self.start(self.pull_request(ref, new))

    def known(self) -> dict[str, Any]:
        """What the API tells of the repository, in the form that api.py says: pulls, commits, checks."""
        path = self.state / "repository.json"
        nothing: dict[str, Any] = {"pulls": [], "commits": {}, "checks": []}
        return dict(json.loads(path.read_text())) if path.exists() else nothing

    def _keep(self, pull: dict[str, Any], checks: Sequence[dict[str, Any]] = ()) -> None:
        known = self.known()
        known["pulls"] = [one for one in known["pulls"] if one["number"] != pull["number"]] + [pull]
        for sha in filter(None, (pull["head"]["sha"], pull["merge_commit_sha"])):
            known["commits"][sha] = {"tree": {"sha": self.git("rev-parse", f"{sha}^{{tree}}")}}
        known["checks"] += checks
        write_atomic(self.state / "repository.json", json.dumps(known, indent=1) + "\n")

    def pull_request(self, ref: str, head: str) -> Event:
        """Open the pull request of a branch, or bring it up to date; its event."""
        branch, pulls = ref.removeprefix("refs/heads/"), self.known()["pulls"]
        base = {
            "ref": "main",
            "sha": self.git("rev-parse", "main"),
            "repo": {"full_name": REPOSITORY},
        }
        pull: dict[str, Any] = {
            "number": len(pulls) + 1,
            "merged_at": None,
            "merge_commit_sha": None,
            "base": base,
        }
        opened = [one for one in pulls if one["head"]["ref"] == branch and not one["merged_at"]]
        pull |= opened[0] if opened else {}
        pull["head"] = {"ref": branch, "sha": head, "repo": {"full_name": REPOSITORY}}
        self._keep(pull)
        number = pull["number"]
        merge = f"refs/pull/{number}/merge"
        self.git("update-ref", merge, self._merged(head, f"Merge {head} into main"))
        action = "synchronize" if opened else "opened"
        payload = {"action": action, "number": number, "pull_request": pull | {"base": base}}
        return Event("pull_request", merge, payload)

    def _merged(self, head: str, message: str) -> str:
        """A merge commit of head into main. Raises LocalError where they are in conflict."""
        with (
            tempfile.TemporaryDirectory() as clone
        ):  # Git of Ubuntu 22.04 merges in no bare repository
            self.git("clone", "-q", "--shared", "--branch", "main", str(self.bare), clone)
            try:
                self.git("-C", clone, *GITHUB, "merge", "-q", "--no-ff", "-m", message, head)
            except LocalError:
                raise LocalError(f"github: {head} cannot be merged into main: a conflict") from None
            self.git("fetch", "-q", "--no-tags", clone, "HEAD")
            return self.git("-C", clone, "rev-parse", "HEAD")

    def mergeable(self, number: int) -> dict[str, Any]:
        """The open pull request, whose Gate is green. Raises LocalError when it is not."""
        known = self.known()
        pull = next((one for one in known["pulls"] if one["number"] == number), None)
        if pull is None or pull["merged_at"]:
            raise LocalError(f"github: there is no open pull request {number}")
        about = ("Gate", pull["head"]["sha"])
        gates = [one for one in known["checks"] if (one["name"], one["head_sha"]) == about]
        if [one["conclusion"] for one in gates[-1:]] != ["success"]:
            raise LocalError(f"github: pull request {number} waits for the required check Gate")
        return dict(pull)

    def merge(self, number: int) -> list[Run]:
        """The button: main moves only when Gate, which the ruleset requires, was green for this head."""
        pull = self.mergeable(number)
        head = pull["head"]["sha"]
        old = self.git("rev-parse", "main")
        new = self._merged(head, f"Merge pull request #{number} from {pull['head']['ref']}")
        self.git("update-ref", "refs/heads/main", new, old)
        self._keep(
            pull
            | {
                "merged_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "merge_commit_sha": new,
            }
        )
        self.say(f"pull request {number} merged: main is {new[:12]}")
        return self.received(old, new, "refs/heads/main")

    def start(self, event: Event, only: str = "", approved: Collection[str] = ()) -> list[Run]:
        """Run every workflow that the event starts, or the named one; these environments' reviewers approve."""
        runs = []
        for path in self.git("ls-tree", "--name-only", event.ref, f"{WORKFLOWS}/").splitlines():
            if only and only not in (path, Path(path).name):
                continue
            if starts(parse(self.git("show", f"{event.ref}:{path}")), event):
                runs.append(Run(self.state, path, event, self.say, approved=approved))
                runs[-1].run()
                self._checked(event, runs[-1])
        return runs

    def _checked(self, event: Event, run: Run) -> None:
        """The jobs of a pull request's run, as checks of its head."""
        if event.name == "pull_request":
            pull = event.payload["pull_request"]
            about = {
                "head_sha": pull["head"]["sha"],
                "status": "completed",
                "app": {"slug": "github-actions"},
            }
            named = {
                run.workflow["jobs"][name].get("name", name): job.result
                for name, job in run.jobs.items()
            }
            if run.leaked:
                named["Gate"] = "failure"
            newest = next(one for one in self.known()["pulls"] if one["number"] == pull["number"])
            self._keep(
                newest,
                [{"name": name, "conclusion": result, **about} for name, result in named.items()],
            )

    def again(self, number: int, jobs: Iterable[str] = ()) -> Run:
        """Re-run jobs of a run: those that did not succeed, and those that are named."""
        before = Run.read(self.state, number)
        event = replace(before.event, attempt=before.event.attempt + 1)
        earlier = {name: job for name, job in before.jobs.items() if name not in jobs}
        run = Run(self.state, before.path, event, self.say, before.sha).run(again=earlier)
        self._checked(event, run)
        return run

    def dispatch(
        self, workflow: str, inputs: dict[str, str], approved: Collection[str] = ()
    ) -> list[Run]:
        """Actions → a workflow → Run workflow, on main; these environments' reviewers approve."""
        event = Event("workflow_dispatch", "refs/heads/main", {"inputs": inputs})
        return self.start(event, workflow, approved)


def main() -> int:
    """Command line; returns the exit code, 1 when a run was red."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("verb", choices=["received", "merge", "again", "dispatch"])
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--approve", action="append", default=[], metavar="ENVIRONMENT")
    given = parser.parse_args()
    settings = load(running=True)
    repository = Repository(settings.state / "github", lambda text: print(text, flush=True))
    try:
        if given.verb == "received":
            runs = [run for line in sys.stdin for run in repository.received(*line.split())]
        elif given.verb == "merge":
            runs = repository.merge(int(given.arguments[0]))
        elif given.verb == "again":
            runs = [repository.again(int(given.arguments[0]), given.arguments[1:])]
        else:
            pairs = dict(one.split("=", 1) for one in given.arguments[1:])
            runs = repository.dispatch(given.arguments[0], pairs, given.approve)
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if all(run.green for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
