"""tools/github.py against the stand-in, over HTTP: what GitHub is told, and that a token is told to nobody."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from local.github.__main__ import application
from testbed.served import served
from tools import github

TOKEN = "ghs_a-token-that-nobody-may-see"
MERGE, HEAD = "a" * 40, "b" * 40
ALL = {"issues": "write", "pull-requests": "write", "contents": "write", "checks": "read"}
Told = subprocess.CompletedProcess[str]


class Repository:
    """A repository of the stand-in, and the tool's command line."""

    def __init__(self, state: Path, url: str) -> None:
        self.state, self.url = state, url
        self.permit(ALL)
        self.commits = {MERGE: {"tree": {"sha": "t"}}, HEAD: {"tree": {"sha": "t"}}}
        self.pull: dict[str, Any] = {"number": 7, "head": {"sha": HEAD}, "base": {"ref": "main"}}
        self.pull |= {"merged_at": "2026-11-25T20:00:00Z", "merge_commit_sha": MERGE}
        self.check: dict[str, Any] = {"name": "Gate", "head_sha": HEAD, "status": "completed"}
        self.check |= {"conclusion": "success", "app": {"slug": "github-actions"}}
        self.save()

    def permit(self, permissions: dict[str, str]) -> None:
        (self.state / "tokens.json").write_text(json.dumps({TOKEN: {"permissions": permissions}}))

    def save(self) -> None:
        there = {"pulls": [self.pull], "commits": self.commits, "checks": [self.check]}
        (self.state / "repository.json").write_text(json.dumps(there))

    def written(self, kind: str) -> list[dict[str, Any]]:
        return list(json.loads((self.state / "written.json").read_text())[kind])

    def tell(self, *arguments: str, text: str | None = None, token: str = TOKEN) -> Told:
        if text is not None:
            (self.state / "text.md").write_text(text)
            arguments += ("--file", str(self.state / "text.md"))
        environment = {"GITHUB_API_URL": self.url, "GITHUB_TOKEN": token}
        environment |= {"GITHUB_REPOSITORY": "example/cimt", "NO_PROXY": "127.0.0.1"}
        out, error = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, environment, clear=True),
            mock.patch.object(sys, "argv", ["github", *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(error),
        ):
            try:
                code = github.main()
            except SystemExit as end:
                code = int(end.code or 0)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), error.getvalue())


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Repository]:
    with served(application(tmp_path, tmp_path)) as port:
        yield Repository(tmp_path, f"http://127.0.0.1:{port}/api")


def refused(done: Told, *words: str) -> None:
    """It failed with one line that has these words, and never the token."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert TOKEN not in done.stderr


def test_a_plan_is_one_comment_however_often_it_is_told(there: Repository) -> None:
    for number in range(130):  # talk of others, more than a page
        kept = {
            "id": number + 100,
            "on": "issues-7",
            "body": "<!-- plan -->\nno",
            "user": {"login": "ana"},
        }
        comments = [*(there.written("comments") if number else []), kept]
        (there.state / "written.json").write_text(json.dumps({"issues": [], "comments": comments}))
    for text in ("one", "one", "two"):
        done = there.tell("comment", "--number", "7", text=f"<!-- plan -->\n{text}\n")
        assert (done.returncode, done.stderr) == (0, "")
    other = there.tell("comment", "--number", "7", text="<!-- another -->\nthree\n")
    assert other.returncode == 0
    bodies = [one["body"] for one in there.written("comments")[130:]]
    assert bodies == ["<!-- plan -->\ntwo\n", "<!-- another -->\nthree\n"]
    assert "two" in (there.state / "issues-7.md").read_text()


def test_a_receipt_is_a_comment_on_the_commit(there: Repository) -> None:
    for text in ("failed", "live"):
        assert there.tell("receipt", "--sha", MERGE, text=f"<!-- r 1 -->\n{text}").returncode == 0
    assert [one["on"] for one in there.written("comments")] == [f"commits-{MERGE}"]
    refused(there.tell("receipt", "--sha", "c" * 40, text="<!-- r 1 -->\nx"), "422")
    refused(there.tell("receipt", "--sha", MERGE, text="no marker"), "begins with a marker")


def test_a_text_that_is_too_long_is_cut(there: Repository) -> None:
    assert there.tell("receipt", "--sha", MERGE, text="<!-- r -->\n" + "é" * 70000).returncode == 0
    assert there.written("comments")[0]["body"].endswith("too long for GitHub)\n")


def test_a_finding_opens_one_issue_and_its_end_closes_it(there: Repository) -> None:
    def issue(*arguments: str, text: str | None = None) -> None:
        done = there.tell("issue", "--title", "Nightly: plan", *arguments, text=text)
        assert (done.returncode, done.stderr) == (0, "")

    issue("--closed")
    assert not (there.state / "written.json").exists(), "nothing was open"
    issue(text="two changes\n")
    issue(text="two changes\n")
    assert there.written("comments") == []
    issue(text="three changes\n")
    (one,) = there.written("issues")
    assert (one["number"], one["body"], one["labels"]) == (8, "three changes\n", ["operations"])
    assert [said["on"] for said in there.written("comments")] == ["issues-8"]
    issue("--closed")
    assert there.written("issues")[0]["state"] == "closed"
    assert len(there.written("comments")) == 2
    issue(text="again\n")
    assert [one["state"] for one in there.written("issues")] == ["closed", "open"]


def test_a_person_s_issue_of_the_same_title_is_left_alone(there: Repository) -> None:
    theirs = {
        "number": 9,
        "title": "Nightly: plan",
        "state": "open",
        "body": "?",
        "user": {"login": "ana"},
    }
    (there.state / "written.json").write_text(json.dumps({"issues": [theirs], "comments": []}))
    assert there.tell("issue", "--title", "Nightly: plan", text="x").returncode == 0
    assert there.written("issues")[0] == theirs
    assert len(there.written("issues")) == 2


@pytest.mark.parametrize(
    ("arguments", "permissions"),
    [
        (("comment", "--number", "7"), {"contents": "write", "issues": "read"}),
        (("issue", "--title", "x"), {"issues": "read", "pull-requests": "write"}),
        (("receipt", "--sha", MERGE), {"contents": "read", "issues": "write"}),
    ],
)
def test_a_token_without_the_permission(
    there: Repository, arguments: tuple[str, ...], permissions: dict[str, str]
) -> None:
    there.permit(permissions)
    refused(there.tell(*arguments, text="<!-- x -->\nx"), "403", "not accessible by integration")
    refused(there.tell(*arguments, text="<!-- x -->\nx", token="unknown"), "401", "Bad credentials")


def test_what_passed_gate_is_not_checked_again(there: Repository) -> None:
    done = there.tell("checked", "--sha", MERGE)
    assert (done.returncode, done.stderr) == (0, "")


def other_tree(there: Repository) -> None:
    there.commits[HEAD] = {"tree": {"sha": "older"}}


# How a commit that was not checked looks like one that was.
UNCHECKED: dict[str, Callable[[Repository], Any]] = {
    "main moved on before the merge": other_tree,
    "Gate is red": lambda there: there.check.update(conclusion="failure"),
    "Gate was left out": lambda there: there.check.update(conclusion="skipped"),
    "Gate still runs": lambda there: there.check.update(status="in_progress", conclusion=None),
    "Gate of another commit": lambda there: there.check.update(head_sha=MERGE),
    "a Gate that is not ours": lambda there: there.check.update(app={"slug": "elsewhere"}),
    "another check": lambda there: there.check.update(name="make check"),
    "not merged": lambda there: there.pull.update(merged_at=None),
    "merged into another branch": lambda there: there.pull.update(base={"ref": "next"}),
    "pushed without a pull request": lambda there: there.pull.update(merge_commit_sha="c" * 40),
    "a commit that is not there": lambda there: there.commits.pop(MERGE),
    "no right to ask": lambda there: there.permit({"contents": "read", "pull-requests": "read"}),
}


@pytest.mark.parametrize("how", UNCHECKED)
def test_anything_else_is_checked(there: Repository, how: str) -> None:
    UNCHECKED[how](there)
    there.save()
    refused(there.tell("checked", "--sha", MERGE))


class Garbage(BaseHTTPRequestHandler):
    """Answers with what the server's list has next, and echoes the token."""

    def do_GET(self) -> None:
        self.server.asked += 1  # type: ignore[attr-defined]
        status, headers, body = self.server.answers.pop(0)  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.replace("TOKEN", self.headers["authorization"]).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def garbage(tmp_path: Path) -> Iterator[Callable[..., tuple[Told, int]]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Garbage)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def tell(*answers: tuple[int, dict[str, str], str]) -> tuple[Told, int]:
        server.answers, server.asked = list(answers), 0  # type: ignore[attr-defined]
        there = Repository(tmp_path, f"http://127.0.0.1:{server.server_address[1]}/api")
        return there.tell("checked", "--sha", MERGE), server.asked  # type: ignore[attr-defined]

    yield tell
    server.shutdown()
    thread.join()
    server.server_close()


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, "<html>TOKEN</html>"),
        (200, JSON, "[]"),
        (200, JSON, '{"tree": null}'),
        (302, {"location": "http://elsewhere.invalid/TOKEN"}, ""),
        (404, {}, "TOKEN\nTOKEN\n"),
        (429, {"retry-after": "3600"}, "{}"),
    ],
)
def test_garbage_is_one_line_and_no_second_try(
    garbage: Callable[..., tuple[Told, int]], answer: tuple[int, dict[str, str], str]
) -> None:
    done, asked = garbage(answer)
    refused(done)
    assert asked == 1


def test_a_busy_github_is_asked_again(garbage: Callable[..., tuple[Told, int]]) -> None:
    done, asked = garbage(
        (502, {}, "<html>"),
        (403, {"retry-after": "1"}, "{}"),
        (429, {"retry-after": "1"}, ""),
        (500, {}, "TOKEN"),
    )
    refused(done, "500")
    assert asked == 4


def test_a_server_that_is_not_there_and_an_address_in_the_clear(tmp_path: Path) -> None:
    refused(
        Repository(tmp_path, "http://127.0.0.1:9/api").tell("checked", "--sha", MERGE),
        "ConnectError",
    )
    done = Repository(tmp_path, "http://api.example.com").tell("checked", "--sha", MERGE)
    assert done.returncode == 2
    assert "https" in done.stderr
