"""Merges that must not go live, as GitHub runs them, merges that come together, and back. A part of `make drills`.

Gate is said to have passed: what it would find is not what is looked at here.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from local import pipeline
from local.github.repository import Repository
from local.github.runner import Run
from local.settings import load, write_atomic
from local.waiting import eventually
from testbed.droplet import Client, Traffic, ledger, running_image

Edits = dict[
    str, Callable[[str], str | None]
]  # by path: what the file's text becomes; None: it goes


@pytest.fixture(scope="module")
def repository() -> Repository:
    """GitHub after `make pipeline`, whose release serves."""
    found = Repository(load(running=True).state / "github", pipeline.say)
    assert found.known()["pulls"], "Next: make pipeline"
    return found


def proposed(repository: Repository, folder: Path, edits: Edits) -> int:
    """Number of a pull request that makes these edits, with a green Gate."""
    git = ("git", "-C", str(folder), *pipeline.AUTHOR)
    subprocess.run(["git", "clone", "-q", str(repository.bare), str(folder)], check=True)
    for path, edited in edits.items():
        file = folder / path
        text = edited(file.read_text() if file.exists() else "")
        file.unlink(missing_ok=True) if text is None else file.write_text(text)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", f"Change {', '.join(edits)}"], check=True)
    repository.git("fetch", "-q", str(folder), f"+HEAD:refs/heads/{folder.name}")
    head = repository.git("rev-parse", folder.name)
    pull = repository.pull_request(f"refs/heads/{folder.name}", head).payload["pull_request"]
    known = repository.known()
    gate = {"name": "Gate", "conclusion": "success", "status": "completed", "head_sha": head}
    known["checks"].append({**gate, "app": {"slug": "github-actions"}})
    write_atomic(repository.state / "repository.json", json.dumps(known))
    return int(pull["number"])


def released(run: Run) -> str:
    """What the job that touches production printed."""
    return (run.folder / "release.log").read_text()


def replaced(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


RED: dict[str, tuple[Edits, str, str]] = {
    # what is merged; what the red job says; the ledger's last result, when a line is written
    "a failing migration": (
        {"migrations/20991231000000_fails.sql": lambda _: "select 1 / 0;\n"},
        "division by zero",
        "",
    ),
    "an image that never becomes healthy": (
        {"services/api/healthcheck.sh": lambda _: "#!/bin/sh\nexit 1\n"},
        "unhealthy",
        "failed, restored",
    ),
    "a failing smoke test": (
        {"services/api/cimt_api/routes/chat.py": replaced("Hello, CIMT!", "Hello?")},
        "Hello?",
        "failed, restored",
    ),
}


@pytest.mark.parametrize("fault", RED)
def test_a_bad_merge_is_red_and_what_served_goes_on(
    fault: str, repository: Repository, client: Client, traffic: Traffic, tmp_path: Path
) -> None:
    edits, said, result = RED[fault]
    serving, lines = client.revision(), ledger()
    folder = tmp_path / fault.replace(" ", "-")
    (run,) = repository.merge(proposed(repository, folder, put_right(repository) | edits))
    assert run.jobs["release"].result == "failure"
    assert said in released(run)
    assert client.revision() == serving
    added = [line["result"] for line in ledger()[len(lines) :]]
    assert added[-1:] == ([result] if result else [])
    traffic.assert_no_gap()


def put_right(repository: Repository) -> Edits:
    """The edits that make the files of RED what the serving release has, as a team's next pull request does."""
    first = Client().revision()
    edits: Edits = {}
    for path in {path for fault, _, _ in RED.values() for path in fault}:
        there = repository.git("ls-tree", "--name-only", first, path)
        edits[path] = becomes(repository.git("show", f"{first}:{path}") + "\n" if there else None)
    return edits


def becomes(text: str | None) -> Callable[[str], str | None]:
    """The edit that leaves a file with this text, or takes it away."""
    return lambda _: text


def test_of_two_merges_at_once_the_newest_serves_in_the_end(
    repository: Repository, client: Client, traffic: Traffic, tmp_path: Path
) -> None:
    comment = "# Nothing changes by this line.\n"
    edits = put_right(repository) | {pipeline.CHANGE: lambda text: text + comment}
    first = proposed(repository, tmp_path / "first", edits)
    runs: list[Run] = []
    base = repository.git("rev-parse", "main")

    def merge(number: int) -> None:
        runs.extend(repository.merge(number))

    one = threading.Thread(target=merge, args=(first,))
    one.start()
    eventually(lambda: repository.git("rev-parse", "main") != base, "the first is merged")
    edits = {"services/api/cimt_api/__main__.py": lambda text: text + comment}
    second = proposed(repository, tmp_path / "second", edits)
    merge(second)
    one.join()
    newest = repository.git("rev-parse", "main")
    assert client.revision() == newest
    (run,) = [run for run in runs if run.sha == newest]
    assert run.green
    traffic.assert_no_gap()


def test_a_run_that_main_has_overtaken_is_refused(repository: Repository, client: Client) -> None:
    serving = client.revision()
    numbers = sorted(int(one.name) for one in (repository.state / "runs").glob("[0-9]*"))
    runs = [Run.read(repository.state, number) for number in numbers]
    # The newest of them: an older one may be refused for migrations that it has not.
    overtaken = [run for run in runs if run.name == "Deploy" and run.green and run.sha != serving]
    run = repository.again(overtaken[-1].number, ["release"])
    assert run.jobs["release"].result == "failure"
    assert "allow_older" in released(run).lower()
    assert client.revision() == serving


def test_a_rollback_by_hand_brings_the_release_before(
    repository: Repository, client: Client, traffic: Traffic
) -> None:
    serving = client.revision()
    live = [line for line in ledger() if (line["service"], line["result"]) == ("api", "live")]
    before = live[-1]["from"]
    (run,) = repository.dispatch("operate.yml", {"verb": "rollback", "service": "api"})
    assert run.green
    assert running_image() == before
    assert client.revision() != serving
    assert (ledger()[-1]["action"], ledger()[-1]["result"]) == ("rollback", "live")
    traffic.assert_no_gap()
