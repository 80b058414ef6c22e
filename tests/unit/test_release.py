"""What a release may replace, what it takes back, and which way back is safe, told from the ledger."""

import contextlib
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

import testbed.modules  # noqa: F401 - Ansible's module_utils find ours
from plugins.filter.revisions import newer_on_main
from plugins.module_utils.release_ledger import Ledger, overtaken, ran_before, refusal

ROOT = Path(__file__).parents[2]
DROP = "20260301000000_drop_note"
CONTRACTS = {DROP: "public.base.note is dropped with its data"}


def entry(migration: str | None) -> dict[str, Any]:
    known = {} if migration is None else {"migration": migration}
    return {"time": "2026-02-01T00:00:00Z", "revision": "a" * 40, **known}


@pytest.mark.parametrize(
    ("target", "contracts", "accept", "refused"),
    [
        ("20260301000000", CONTRACTS, "", False),  # it ran with that migration
        ("20260201000000", {}, "", False),  # only expansions since
        ("20260201000000", CONTRACTS, "", True),
        (None, CONTRACTS, "", True),  # from before the ledger knew
        (None, {}, "", False),
        ("20260201000000", CONTRACTS, f"{DROP}, 20250101000000_other", False),
        ("20260201000000", CONTRACTS, "20250101000000_other", True),
        ("20260201000000", CONTRACTS, DROP[:14], True),  # by its whole name
    ],
)
def test_the_way_back_ends_at_what_was_taken_away(
    target: str | None, contracts: dict[str, str], accept: str, refused: bool
) -> None:
    entries = [entry(target), entry("20260301000000")]
    reason = refusal(entries[0], entries, "20260301000000", contracts, accept)
    assert bool(reason) == refused
    if refused:
        assert f"{DROP}: {CONTRACTS[DROP]}" in reason
        next_command = reason.rpartition("ACCEPT=")[2]
        assert not refusal(entries[0], entries, "20260301000000", contracts, next_command), (
            "the command that is shown must work"
        )


def test_a_checkout_that_is_behind_does_not_judge() -> None:
    entries = [entry("20260201000000"), entry("20260301000000")]
    assert "git pull" in refusal(entries[0], entries, "20260201000000", {}, "")


@pytest.mark.parametrize(
    ("live", "image", "found"),
    [
        ("", "", None),
        ("a", "", None),
        ("ab", "", "a"),
        ("abb", "", "a"),  # the same again is no release before
        ("aba", "", "b"),
        ("ab", "a", "a"),  # a deploy of what ran before is a way back too
        ("ab", "b", None),
        ("ab", "c", None),
    ],
)
def test_what_runs_again_is_known(live: str, image: str, found: str | None) -> None:
    entries = [{"to": name, "number": number} for number, name in enumerate(live)]
    before = ran_before(entries, image)
    assert (before and before["to"]) == found


def test_a_line_that_a_full_disk_cut_short_hides_no_other(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "releases.jsonl")
    whole = {"service": "api", "result": "live", "to": "a"}
    ledger.append(whole)
    with ledger.path.open("a") as stream:
        stream.write('{"service": "api", "resu\n')
    ledger.append({**whole, "result": "failed"})
    assert len(ledger.entries()) == 2
    assert ledger.live("api") == [whole]
    assert ledger.live("n8n") == []


def test_the_playbook_is_told_what_the_files_take_away() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.database.safety", "--contracts"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert isinstance(json.loads(done.stdout), dict)


def image(letter: str) -> str:
    return f"registry.example/api@sha256:{letter * 64}"


class Host:
    """A droplet as the module sees it: what panel and Swarm have, and which revision each image reports."""

    def __init__(self) -> None:
        self.panel_has = self.runs = ""
        self.broken: set[str] = set()

    # the panel
    def read(self, operation: str, **_: str) -> Any:
        if operation == "listActions":
            return [{"id": self.runs, "createdAt": 1, "status": "done"}]
        return {"source": {"image": self.panel_has}, "token": "t"}

    def write(self, _: str, *, image: str, **__: str) -> None:
        self.panel_has = image

    def fire_hook(self, _: str) -> None:
        self.runs = self.panel_has

    # Swarm
    def state(self) -> dict[str, Any]:
        return {"image": self.runs} if self.runs else {}

    def failure(self, _: object) -> str:
        return "swarm: update paused" if self.runs in self.broken else ""

    def updated(self, _: object, digest: str) -> bool:
        return digest in self.runs

    def settled(self, digest: str) -> bool:
        return digest in self.runs

    def never(self, _: str) -> bool:
        return False

    # its health address
    def revision_or_reason(self) -> tuple[str | None, str]:
        return self.runs[-1:] * 40, ""


class Ended(Exception):
    """The module has ended; ``args[0]`` is its answer."""


class Droplet:
    """Releases of an app on a `Host`, each by the real module."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from roles.release.library import easypanel_release as module

        self.module = module
        self.host = Host()
        self.state = state
        host = self.host
        swarm = types.SimpleNamespace(
            state=host.state,
            failure=host.failure,
            updated=host.updated,
            runs=host.settled,
            settled=host.settled,
            can_roll_back=host.never,
            surplus=host.never,
        )
        monkeypatch.setattr(module, "open_panel", lambda *_: self.host)
        monkeypatch.setattr(module, "SwarmService", lambda *_: swarm)
        monkeypatch.setattr(module, "HealthAddress", lambda *_: self.host)
        monkeypatch.setattr(
            module.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=2**40)
        )
        monkeypatch.setattr(module.signal, "signal", lambda *_: None)
        monkeypatch.setattr(module.time, "sleep", lambda _: None)

    def __call__(self, action: str, letter: str = "", **given: Any) -> dict[str, Any]:
        params = {
            "action": action,
            "project": "cimt",
            "service": "api",
            "who": "ops",
            "newer": [],
            "image": letter and image(letter),
            "revision": letter * 40 if action == "deploy" else "",
            "migration": "",
            "contracts": {},
            "accept": "",
            "health_url": "",
            "connect_address": "",
            "ca_file": "",
            "registry_username": "",
            "url": "",
            "token_file": "",
            "reason": "",
            "state_directory": str(self.state),
            "timeout": 5,
            "revision_timeout": 5,
            "lock_wait": 0,
            "min_free_mb": 1,
            "entries": 20,
            **given,
        }

        def end(**answer: Any) -> None:
            raise Ended(answer)

        ansible = types.SimpleNamespace(
            params=params,
            check_mode=False,
            run_command=None,
            get_bin_path=lambda *_, **__: "docker",
            exit_json=end,
            fail_json=lambda **answer: end(failed=True, **answer),
        )
        with pytest.raises(Ended) as ended, self.module.failures(ansible, "wait"):
            self.module.Release(ansible).run()
        return dict(ended.value.args[0])

    def ledger(self) -> list[dict[str, Any]]:
        return Ledger(self.state / "releases.jsonl").entries()


@pytest.fixture
def droplet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Droplet:
    return Droplet(tmp_path, monkeypatch)


def test_a_release_that_proved_bad_is_taken_back_and_was_never_live(droplet: Droplet) -> None:
    assert droplet("deploy", "a")["switched"]
    assert droplet("deploy", "b")["image"] == image("b")
    undone = droplet("undo", "b", reason="smoke: FAILED test_it - no greeting\nmore")
    assert undone["fate"] == f"api: {image('a')} is back and answers"
    assert undone["timeline"]
    assert droplet.host.runs == image("a")
    line = droplet.ledger()[-1]
    assert (line["action"], line["result"]) == ("undo", "failed, restored")
    assert line["reason"] == "smoke: FAILED test_it - no greeting"
    assert (line["from"], line["to"], line["revision"]) == (image("a"), image("b"), "b" * 40)
    assert not list(droplet.state.glob("*.inflight.json"))
    # For all that comes after, the one before is what is live.
    assert droplet("deploy", "a")["switched"] is False
    assert "no release of api before" in droplet("rollback")["msg"]
    assert droplet("deploy", "c")["switched"]
    assert droplet("rollback")["image"] == image("a")


def test_an_undo_leaves_what_another_hand_did_since(droplet: Droplet) -> None:
    for letter in "abc":
        droplet("deploy", letter)
    assert "another hand" in droplet("undo", "b", reason="smoke: late")["fate"]
    droplet.host.panel_has = droplet.host.runs = image("d")
    assert "another hand" in droplet("undo", "c", reason="smoke: by hand")["fate"]
    assert droplet.host.runs == image("d")
    assert len(droplet.ledger()) == 3


def test_a_first_release_stays(droplet: Droplet) -> None:
    droplet("deploy", "a")
    undone = droplet("undo", "a", reason="smoke: FAILED")
    assert "nothing ran before" in undone["fate"]
    assert droplet.host.runs == image("a")
    assert [line["result"] for line in droplet.ledger()] == ["live", "failed"]
    assert droplet("deploy", "a")["changed"] is False, "the ledger knows that it serves"


def test_an_undo_that_does_not_come_up_is_said(droplet: Droplet) -> None:
    droplet("deploy", "a")
    droplet("deploy", "b")
    droplet.host.broken = {image("a")}
    assert "COULD NOT BE PUT BACK" in droplet("undo", "b", reason="audit: x")["fate"]
    assert droplet.ledger()[-1]["result"] == "failed, NOT restored"
    assert list(droplet.state.glob("*.inflight.json")), "the next release knows what to put back"


def test_an_undo_waits_for_the_lock(droplet: Droplet) -> None:
    droplet("deploy", "a")
    with droplet.module.host_lock(str(droplet.state), "somebody", "a release", 0):
        told = droplet("undo", "a", reason="smoke: x")
    assert told["locked"]
    assert "locked by somebody" in told["msg"]


def test_an_older_release_is_refused_while_a_newer_one_serves(droplet: Droplet) -> None:
    droplet("deploy", "b")
    told = droplet("deploy", "a", newer=["c" * 40, "b" * 40])
    assert told["failed"]
    for words in (
        "bbbbbbbbbbbb",
        "released by ops at 20",
        "ALLOW_OLDER=true",
        "nothing was changed",
    ):
        assert words in told["msg"]
    assert droplet.host.runs == image("b")
    assert len(droplet.ledger()) == 1
    assert droplet("deploy", "b", newer=["c" * 40])["switched"] is False, "the newest may run again"
    assert droplet("deploy", "a", newer=[])["switched"], "who insists gets it"
    droplet("deploy", "b")
    droplet("undo", "b", reason="smoke: x")
    assert not droplet("deploy", "a", newer=["b" * 40]).get("failed"), (
        "what was taken back serves not"
    )


def test_a_dirty_release_counts_as_its_commit() -> None:
    live = [
        {"service": "api", "revision": "b" * 40 + "-dirty-01234567", "who": "ops", "time": "now"}
    ]
    assert overtaken(live, ["b" * 40])
    assert not overtaken([], ["b" * 40])


@contextlib.contextmanager
def cloned(folder: Path, *options: str) -> Iterator[tuple[Path, list[str]]]:
    """A clone with a main branch of three commits, and these."""
    origin = folder / "origin"

    def git(*words: str, at: Path = origin) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        command = ["git", "-C", str(at), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    origin.mkdir()
    git("init", "-q", "-b", "main")
    for number in range(3):
        git("commit", "-q", "--allow-empty", "-m", str(number))
    git("clone", "-q", *options, origin.as_uri(), str(folder / "clone"))
    yield folder / "clone", git("rev-list", "--reverse", "main").split()


def test_what_main_has_more_is_read_from_the_history(tmp_path: Path) -> None:
    with cloned(tmp_path) as (clone, commits):
        assert newer_on_main(commits[0], str(clone)) == [commits[2], commits[1]]
        assert newer_on_main(f"{commits[1]}-dirty-01234567", str(clone)) == [commits[2]]
        assert newer_on_main("", str(clone)) == []
        with pytest.raises(AnsibleFilterError, match="Next: git fetch origin main"):
            newer_on_main("f" * 40, str(clone))
        with pytest.raises(AnsibleFilterError, match="fetch-depth: 0"):
            newer_on_main("--all", str(clone))
        subprocess.run(["git", "-C", clone, "remote", "remove", "origin"], check=True)
        with pytest.raises(AnsibleFilterError, match="fetch-depth: 0"):
            newer_on_main(commits[0], str(clone))


def test_a_shallow_checkout_is_no_silent_pass(tmp_path: Path) -> None:
    with (
        cloned(tmp_path, "--depth=1") as (clone, commits),
        pytest.raises(AnsibleFilterError, match="fetch-depth: 0"),
    ):
        newer_on_main(commits[2], str(clone))
