"""What a release may replace, what it takes back, and which way back is safe, told from the ledger."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter.revisions import newer_on_main
from plugins.module_utils.release_ledger import Ledger, overtaken, ran_before, refusal
from testbed.simulated_droplet import Droplet, declared, image

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


@pytest.fixture
def droplet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Droplet:
    """A droplet with the app `api`, which was never released."""
    found = Droplet(tmp_path, monkeypatch)
    found.host.write("createAppService", projectName="cimt", serviceName="api")
    return found


def app(**env: str) -> dict[str, Any]:
    """The app with these plain settings."""
    return declared(env={"LOG_LEVEL": "info", **env})


def test_a_release_that_proved_bad_is_taken_back_and_was_never_live(droplet: Droplet) -> None:
    droplet("deploy", "a", app=app(MODE="old"), secret_env={"KEY": "k1"})
    done = droplet("deploy", "b", app=app(), secret_env={"KEY": "k2"})
    assert (done["switched"], done["image"]) == (True, image("b"))
    undone = droplet("undo", "b", reason="smoke: FAILED test_it - no greeting\nmore")
    assert undone["fate"] == f"api: {image('a')} is back and answers"
    # Image and settings, secrets included: what served is what serves.
    assert droplet.host.runs() == (image("a"), {"LOG_LEVEL": "info", "MODE": "old", "KEY": "k1"})
    line = droplet.ledger()[-1]
    assert (line["action"], line["result"]) == ("undo", "failed, restored")
    assert line["reason"] == "smoke: FAILED test_it - no greeting"
    assert (line["from"], line["to"], line["revision"]) == (image("a"), image("b"), "b" * 40)
    assert not list(droplet.state.glob("*.inflight.json"))
    # For all that comes after, the one before is what is live.
    again = droplet("deploy", "a", app=app(MODE="old"), secret_env={"KEY": "k1"})
    assert again["switched"] is False
    assert "no release of api before" in droplet("rollback")["msg"]
    assert droplet("deploy", "c")["switched"]
    assert droplet("rollback")["image"] == image("a")


def test_image_and_settings_come_and_go_together(droplet: Droplet) -> None:
    droplet("deploy", "a", app=app(MODE="old"))
    droplet("deploy", "b", app=app(MODE="new"))
    shown = [(one[-1], env["MODE"]) for one, env in droplet.host.started]
    assert shown == [("a", "old"), ("b", "new")], "no old image with new settings"
    # Settings alone are a release too, and the way back of each is its own.
    changed = droplet("deploy", app=app(MODE="newer"), revision="")
    assert (changed["switched"], droplet.host.runs()[1]["MODE"]) == (True, "newer")
    assert changed["changes"] == ["~ api.env.MODE: new -> newer"]
    assert droplet.ledger()[-1]["revision"] == "b" * 40
    assert droplet("rollback")["image"] == image("b")
    assert droplet.host.runs() == (image("b"), {"LOG_LEVEL": "info", "MODE": "new"})
    assert droplet("deploy", app=app(MODE="new"), revision="")["changed"] is False


def test_bad_settings_with_a_good_image_are_taken_back_with_it(droplet: Droplet) -> None:
    host = droplet.host
    droplet("deploy", "a", app=app(), secret_env={"KEY": "secret-one"})
    host.broken = lambda _, env: env.get("MODE") in ("bad", "polite")
    before, hooks, served = dict(host.apps["api"]), host.hooks, host.serving()
    mounted = {"type": "volume", "name": "data", "mountPath": "/data"}
    bad = app(MODE="bad") | {"replicas": 2, "mounts": [mounted], "domains": []}
    bad |= {"ports": [{"published": 9000, "target": 9, "protocol": "tcp"}]}
    told = droplet("deploy", "b", app=bad, secret_env={"KEY": "secret-two"})
    assert told["failed"]
    assert f"{image('a')} is back and answers" in told["msg"]
    assert "reason: the panel's deploy failed" in told["msg"]
    assert {**host.apps["api"], "deploy": before["deploy"]} == before
    assert host.apps["api"]["deploy"]["replicas"] == 1
    assert host.serving() == served, "what never stopped serving is left alone"
    assert host.hooks == hooks + 1, "Swarm takes its update back by itself"
    line = droplet.ledger()[-1]
    assert line["result"] == "failed, restored"
    assert "+ api.env.MODE: bad" in line["changes"]
    assert "~ api.env.KEY: (changed)" in line["changes"]
    # Good settings with the same image: that was not its fault.
    assert droplet("deploy", "b", app=app(MODE="good"))["switched"]
    # Swarm knows no error of what ended well when it was unhealthy.
    told = droplet("deploy", "b", app=app(MODE="polite"))
    assert "complete, unhealthy: its check ended with 1 and said no database" in told["msg"]
    # The same digest again with bad settings, where Swarm stops first: the old task is gone, so it is deployed.
    bad = app(MODE="bad") | {"zero_downtime": False}
    told = droplet("deploy", "b", app=bad)
    assert "is back and answers" in told["msg"]
    assert host.runs()[1]["MODE"] == "good"


def test_a_revoked_secret_never_comes_back(droplet: Droplet) -> None:
    registry = {"registry_username": "me"}
    for number, letter in enumerate("9abcdef", 1):
        env = {"KEY": f"revoked-{number}", "GONE": f"forgotten-{number}"}
        droplet(
            "deploy",
            letter,
            app=app(ROUND=letter),
            secret_env=env,
            registry_password=f"token-{number}",
            **registry,
        )
    env = {"KEY": "changed", "GONE": "forgotten-7"}
    again = {"app": app(ROUND="f"), "secret_env": env, "registry_password": "token-7"}
    only = droplet("deploy", "f", **again, **registry)
    assert only.get("switched"), "a changed secret reaches the app"
    assert only["changes"] == ["~ api.env.KEY: (changed)"]
    done = droplet(
        "rollback",
        app=app(),
        secret_env={"KEY": "fresh"},
        registry_password="token-fresh",
        **registry,
    )
    assert done["image"] == image("e")
    told = {"LOG_LEVEL": "info", "ROUND": "e", "KEY": "fresh"}
    assert droplet.host.runs() == (image("e"), told)
    assert droplet.host.apps["api"]["source"]["password"] == "token-fresh"
    assert any("left out: env.GONE" in line for line in done["timeline"])
    # Values are in one file, for root alone, and only the last five.
    kept = droplet.state / "releases.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert len(json.loads(kept.read_text())["releases"]["api"]) == 5
    ledger = (droplet.state / "releases.jsonl").read_text()
    for word in ("revoked", "forgotten", "fresh", "token-"):
        assert word not in ledger
        assert word not in json.dumps([only, done])


def test_a_ledger_from_before_settings_were_kept_is_read(droplet: Droplet) -> None:
    """As the first wave wrote it: an image is all that it knows."""
    droplet("deploy", "a", app=app(MODE="now"))
    droplet("deploy", "b", app=app(MODE="now"))
    lines = droplet.ledger()
    for line in lines:
        del line["app"], line["changes"]
    ledger = droplet.state / "releases.jsonl"
    ledger.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (droplet.state / "releases.json").unlink()
    assert "releases" not in "".join(droplet("history")["ledger"])
    assert droplet.plan(app(MODE="now"))["plan"] == []
    known = droplet("deploy", "b", app=app(MODE="now"))
    assert (known["changed"], known["switched"]) == (True, False)
    assert any("it does now" in line for line in known["timeline"])
    done = droplet("rollback", app=app(MODE="later"))
    assert done["image"] == image("a")
    assert droplet.host.runs() == (image("a"), {"LOG_LEVEL": "info", "MODE": "now"})
    droplet("deploy", "c", app=app(MODE="later"))
    assert droplet("undo", "c", reason="smoke: x")["fate"].endswith("is back and answers")
    assert droplet.host.runs()[1]["MODE"] == "now"


def test_an_undo_leaves_what_another_hand_did_since(droplet: Droplet) -> None:
    for letter in "abc":
        droplet("deploy", letter)
    assert "another hand" in droplet("undo", "b", reason="smoke: late")["fate"]
    droplet.host.apps["api"]["source"]["image"] = image("d")
    assert "another hand" in droplet("undo", "c", reason="smoke: by hand")["fate"]
    assert droplet.host.runs()[0] == image("c")
    assert len(droplet.ledger()) == 3


def test_a_first_release_stays(droplet: Droplet) -> None:
    droplet("deploy", "a")
    undone = droplet("undo", "a", reason="smoke: FAILED")
    assert "nothing ran before" in undone["fate"]
    assert droplet.host.runs()[0] == image("a")
    assert [line["result"] for line in droplet.ledger()] == ["live", "failed"]
    assert droplet("deploy", "a")["changed"] is False, "the ledger knows that it serves"


def test_what_cannot_be_put_back_is_said(droplet: Droplet) -> None:
    droplet("deploy", "a")
    droplet("deploy", "b")
    droplet.host.broken = lambda one, _: one == image("a")
    assert "COULD NOT BE PUT BACK" in droplet("undo", "b", reason="audit: x")["fate"]
    assert droplet.ledger()[-1]["result"] == "failed, NOT restored"
    assert list(droplet.state.glob("*.inflight.json")), "the next release knows what to put back"
    droplet.host.broken = lambda *_: False
    done = droplet("deploy", "c")
    assert any("was cut short; it started from" in line for line in done["timeline"])
    assert droplet.host.runs()[0] == image("c")


def test_a_release_waits_for_the_lock(droplet: Droplet) -> None:
    droplet("deploy", "a")
    with droplet.lock("somebody"):
        for told in (droplet("undo", "a", reason="smoke: x"), droplet("deploy", "b")):
            assert told["locked"]
            assert "locked by somebody" in told["msg"]
    assert droplet.host.runs()[0] == image("a")


def test_one_that_was_cut_short_is_finished_or_taken_back(droplet: Droplet) -> None:
    host = droplet.host
    droplet("deploy", "a", app=app(MODE="old"))

    class Killed(BaseException):
        pass

    def kill() -> None:
        if host.hooks == 2:
            raise Killed

    host.on_poll = kill
    with pytest.raises(Killed):
        droplet("deploy", "b", app=app(MODE="new"))
    host.on_poll = lambda: None
    left = droplet.plan(app(MODE="new"), check=False)
    assert left["releases"][0]["service"] == "api", "services and provision finish it, too"
    host.broken = lambda one, _: one == image("b")
    told = droplet("deploy", "b", app=app(MODE="new"))
    assert "an earlier release by ops was cut short" in told["msg"]
    assert f"{image('a')} is back" in told["msg"]
    assert host.runs() == (image("a"), {"LOG_LEVEL": "info", "MODE": "old"})
    assert not list(droplet.state.glob("*.inflight.json"))


@pytest.mark.parametrize("status", [0, 502, 200])
def test_a_panel_that_is_away_for_a_moment_fails_no_release(droplet: Droplet, status: int) -> None:
    """Also one that answers in HTML, as a proxy does in its place: that is status 200 with another body."""
    host = droplet.host
    droplet("deploy", "a", app=app())
    odd = host.refusal("x", status) if status != 200 else ValueError("Expecting value: line 1")
    names = ("inspectAppService", "updateAppEnv", "hook", "getAction", "listDomains")
    host.answers = {name: [odd] for name in names} | {"listActions": [odd, odd, "<html>"]}
    host.answers["inspectAppService"] = []
    done = droplet("deploy", "b", app=app(MODE="new"))
    assert done.get("switched"), done
    assert host.runs() == (image("b"), {"LOG_LEVEL": "info", "MODE": "new"})
    assert host.hooks == 2


def test_a_panel_that_stays_away_leads_to_what_was_before(droplet: Droplet) -> None:
    host = droplet.host
    droplet("deploy", "a", app=app())
    # While the release polls it breaks down for two minutes, and comes back when everything is put back.
    host.answers = {"listActions": [[], *[host.refusal("listActions", 502)] * 40]}
    told = droplet("deploy", "b", app=app(MODE="new"))
    assert "reason: panel: listActions: Bad gateway (HTTP 502)" in told["msg"]
    assert "is back and answers" in told["msg"]
    assert host.runs() == (image("a"), {"LOG_LEVEL": "info"})


def test_what_the_panel_does_not_keep_is_taken_back(droplet: Droplet) -> None:
    host = droplet.host
    droplet("deploy", "a", app=app())
    host.drops = {"updateAppEnv"}
    hooks = host.hooks
    told = droplet("deploy", "b", app=app(MODE="new"))
    assert "the panel did not keep api.env.MODE" in told["msg"]
    assert "is back and answers" in told["msg"]
    assert (host.runs()[0], host.hooks) == (image("a"), hooks)
    host.drops = set()
    host.extra = {"invented": {"later": [1]}, "deploymentUrl": "http://x"}  # of a newer panel
    assert droplet("deploy", "b", app=app(MODE="new"))["switched"]


def test_a_slow_first_pull_ends_as_what_it_is(droplet: Droplet) -> None:
    host = droplet.host
    host.pull_seconds = 1000
    done = droplet("deploy", "a", app=app())
    assert done["switched"], "the panel was still at it when the time was over"
    host.pull_seconds = 10_000
    told = droplet("deploy", "b", app=app())
    assert "not live after 18" in told["msg"]  # three times the limit: it was at it all the while
    assert host.clock.seconds < 10_000, "it is not waited for for ever"


def test_a_host_that_answers_slowly_is_not_given_up_while_it_pulls(droplet: Droplet) -> None:
    """Docker takes longer than the pause between two looks: an emulated droplet pulled n8n for 12 minutes."""
    host = droplet.host
    host.pull_seconds = 1000
    host.engine_seconds = 8
    assert droplet("deploy", "a", app=app())["switched"]


def test_a_first_release_that_comes_up_too_late_is_live_in_the_end(droplet: Droplet) -> None:
    host = droplet.host
    host.pull_seconds = 3000
    told = droplet("deploy", "a", app=app())
    assert "nothing could be put back" in told["msg"]
    host.clock.sleep(3000)
    host.read("listActions", serviceName="api")
    assert droplet("deploy", "a", app=app())["switched"] is False
    assert [line["result"] for line in droplet.ledger()] == ["failed", "live"]


def test_an_app_without_a_health_address_is_judged_by_swarm(droplet: Droplet) -> None:
    given = {"health_url": "", "revision": ""}
    assert droplet("deploy", "a", **given)["switched"]
    droplet.host.broken = lambda one, _: one == image("b")
    assert "is back and answers" in droplet("deploy", "b", **given)["msg"]


def test_another_image_waits_for_its_gate(droplet: Droplet) -> None:
    """Nothing is there to be saved before the first one, and settings rewrite nothing."""
    assert droplet("deploy", "a", gate="false", app=app())["switched"]
    assert droplet("deploy", "a", gate="false", app=app(MODE="new"))["switched"]
    gated = droplet("deploy", "b", gate="false", app=app())
    assert "nothing was changed: `false` failed: no room. Next: " in gated["msg"]
    absent = droplet("deploy", "b", gate="cimt-no-such-program", app=app())
    assert "there is no such program" in absent["msg"]
    assert droplet.host.runs() == (image("a"), {"LOG_LEVEL": "info", "MODE": "new"})
    assert droplet("deploy", "b", gate="true", app=app())["switched"]
    assert droplet("deploy", "c", gate="false", gate_waived="the bucket is away")["switched"]
    assert [line.get("gate_waived") for line in droplet.ledger()] == [
        *[None] * 3,
        "the bucket is away",
    ]


def test_a_domain_starts_no_container_anew(droplet: Droplet) -> None:
    droplet("deploy", "a", app=app())
    hooks = droplet.host.hooks
    more = [*app()["domains"], {**app()["domains"][0], "host": "www.example"}]
    done = droplet("deploy", app=app() | {"domains": more}, revision="")
    assert done["changes"] == ["+ api.domains.www.example/: https to http port 8000"]
    assert [one["host"] for one in droplet.host.domains] == ["api.example", "www.example"]
    assert droplet.host.hooks == hooks
    # Back to before it: what that release brought goes with it.
    droplet("rollback", app=app())
    assert [one["host"] for one in droplet.host.domains] == ["api.example"]


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
    assert droplet.host.runs()[0] == image("b")
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
