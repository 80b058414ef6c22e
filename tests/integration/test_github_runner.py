"""What GitHub enforces around a job, played by local/github: on a small repository, each job by act."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from local.github.repository import Repository
from local.github.runner import Event, Run
from local.pipeline import AUTHOR
from local.settings import LocalError

CHECKOUT = "actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1"
PULL_REQUEST = f"""\
name: Pull request
on: pull_request
permissions: {{}}
jobs:
  check:
    runs-on: ubuntu-24.04
    steps:
      - uses: {CHECKOUT}
        with: {{persist-credentials: false}}
      - run: git rev-parse HEAD && ! grep -q wrong file && [ -z "${{{{ secrets.KEY }}}}" ]
  gate:
    name: Gate
    needs: check
    if: ${{{{ always() }}}}
    runs-on: ubuntu-24.04
    steps:
      - run: '[ "${{{{ needs.check.result }}}}" = success ]'
"""
DEPLOY = f"""\
name: Deploy
on:
  push: {{branches: [main], paths-ignore: ["docs/**"]}}
  workflow_dispatch:
permissions: {{}}
jobs:
  build:
    runs-on: ubuntu-24.04
    outputs: {{said: "${{{{ steps.one.outputs.said }}}}"}}
    steps:
      - id: one
        run: |
          [ -z "${{{{ secrets.KEY }}}}" ]
          printf 'said<<END\\ntwo\\nlines\\nEND\\n' >>"$GITHUB_OUTPUT"
  release:
    needs: build
    environment: production
    runs-on: ubuntu-24.04
    steps:
      - uses: {CHECKOUT}
        with: {{persist-credentials: false}}
      - env:
          KEY: ${{{{ secrets.KEY }}}}
          SAID: ${{{{ needs.build.outputs.said }}}}
          PLAIN: ${{{{ vars.PLAIN }}}}
        run: |
          [ "$SAID" = "$(printf 'two\\nlines')" ] && [ "$PLAIN" = shown ]
          [ "$(wc -l <<<"$KEY")" = 2 ]
          ! grep -q print file || tail -n 1 <<<"$KEY"
          ! grep -q fail file
  after:
    needs: release
    runs-on: ubuntu-24.04
    steps: [{{run: "true"}}]
"""


class Small:
    """The repository, and a clone of it."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        self.git("init", "-q", "-b", "main")
        workflows = self.work / ".github/workflows"
        workflows.mkdir(parents=True)
        (workflows / "pull-request.yml").write_text(PULL_REQUEST)
        (workflows / "deploy.yml").write_text(DEPLOY)
        self.commit("file", "good")
        self.github = Repository(folder / "github", print)
        self.github.create(self.work)
        for kind, name, value in (
            ("secrets", "KEY", "hidden from everybody\nand from you"),
            ("variables", "PLAIN", "shown"),
        ):
            kept = folder / f"github/settings/production/{kind}/{name}"
            kept.parent.mkdir(parents=True)
            kept.write_text(value)

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.work), *AUTHOR, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, path: str, text: str) -> str:
        (self.work / path).parent.mkdir(exist_ok=True)
        (self.work / path).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", f"Change {path}")
        return self.git("rev-parse", "HEAD")

    def proposed(self, branch: str, path: str, text: str) -> Run:
        """A branch with one change, whose pull request has run."""
        self.git("fetch", "-q", str(self.github.bare), "main")
        self.git("checkout", "-q", "-B", branch, "FETCH_HEAD")
        head = self.commit(path, text)
        self.github.git("fetch", "-q", str(self.work), f"+{branch}:{branch}")
        (run,) = self.github.received("0" * 40, head, f"refs/heads/{branch}")
        return run

    def merged(self, path: str, text: str) -> list[Run]:
        self.proposed(f"change-{abs(hash(text))}", path, text)
        return self.github.merge(len(self.github.known()["pulls"]))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("github"))


def results(run: Run) -> dict[str, str]:
    return {name: job.result for name, job in run.jobs.items()}


def test_what_gate_has_not_passed_is_not_merged(small: Small) -> None:
    run = small.proposed("wrong", "file", "wrong")
    assert results(run) == {"check": "failure", "gate": "failure"}
    main = small.github.git("rev-parse", "main")
    with pytest.raises(LocalError, match="Gate"):
        small.github.merge(len(small.github.known()["pulls"]))
    assert small.github.git("rev-parse", "main") == main


def test_a_merge_runs_with_the_environment_s_own_values(small: Small) -> None:
    (run,) = small.merged("file", "good too")
    assert results(run) == {"build": "success", "release": "success", "after": "success"}
    assert run.green
    assert "hidden" not in (run.folder / "release.log").read_text()


def test_words_alone_start_nothing(small: Small) -> None:
    assert small.merged("docs/page.md", "words") == []


def test_a_failed_job_stops_those_that_need_it_and_runs_again_alone(small: Small) -> None:
    (run,) = small.merged("file", "fail")
    assert results(run) == {"build": "success", "release": "failure", "after": "skipped"}
    again = small.github.again(run.number)
    assert results(again) == {"build": "success", "release": "failure", "after": "skipped"}
    assert (again.sha, again.event.attempt) == (run.sha, 2)
    assert not (again.folder / "build.log").exists()


def test_a_secret_that_is_printed_fails_the_run(small: Small) -> None:
    (run,) = small.merged("file", "print")
    assert results(run)["release"] == "success", "GitHub would not notice"
    assert run.leaked == ["release: KEY"]
    assert not run.green


def test_a_reviewed_environment_waits_for_its_reviewer(small: Small) -> None:
    kept = small.github.state / "settings/environments.json"
    reviewers = [{"type": "User", "id": 7}]
    kept.write_text(json.dumps({"production": {"sent": {"reviewers": reviewers}}}))
    try:
        event = Event("push", "refs/heads/main", {})
        (run,) = small.github.start(event, "deploy.yml")
        assert results(run)["release"] == "cancelled"
        (run,) = small.github.start(event, "deploy.yml", approved=["production"])
        assert results(run)["release"] == "success"
    finally:
        kept.unlink()


def test_another_branch_than_main_reaches_no_environment(small: Small) -> None:
    small.proposed("other", "file", "good again")
    event = small.github.pull_request("refs/heads/other", small.github.git("rev-parse", "other"))
    run = Run(small.github.state, ".github/workflows/deploy.yml", event, print).run()
    assert results(run) == {"build": "success", "release": "failure", "after": "skipped"}


def test_a_shallow_clone_becomes_a_main_with_a_whole_history(small: Small, tmp_path: Path) -> None:
    clone, whole = tmp_path / "clone", tmp_path / "whole"
    source = f"file://{small.work}"
    small.git("clone", "-q", "--depth=1", source, str(clone))
    shallow = Repository(tmp_path / "github", print)
    shallow.create(clone)
    small.git("clone", "-q", f"file://{shallow.bare}", str(whole))
    asked = ("rev-parse", "--is-shallow-repository", "HEAD^{tree}")
    assert small.git("-C", str(whole), *asked).split() == [
        "false",
        small.git("rev-parse", "HEAD^{tree}"),
    ]
