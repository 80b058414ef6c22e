"""The stage runner: order, failure, interruption."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from local import s3, up
from local.settings import LocalError
from local.up import Stage, StageFailed, run_all
from local.waiting import eventually, free_port
from testbed.processes import running


def shell(name: str, script: str, *after: str) -> Stage:
    return Stage(name, f"does {name}", ["sh", "-c", script], after)


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_stages_run_in_their_order_and_say_so(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    seen: list[dict[str, float]] = []
    todo = [
        shell("one", f"sleep 0.3; echo one >> {trace}"),
        shell("two", f"echo two >> {trace}", "one"),
        shell("three", f"echo three >> {trace}", "one", "two"),
    ]
    out = console()
    done = run_all(todo, tmp_path / "logs", out, lambda done: seen.append(dict(done)))
    assert trace.read_text().split() == ["one", "two", "three"]
    assert list(done) == ["one", "two", "three"] == list(seen[-1])
    assert done["one"] >= 0.3
    assert "two          does two …" in text(out)
    assert text(out).count("done") == 3


def test_neighbours_run_at_the_same_time_but_never_more_than_allowed(tmp_path: Path) -> None:
    # Each waits for a file that its neighbour makes: alone, neither could end.
    meet = "touch {0}; n=0; until [ -e {1} ]; do n=$((n+1)); [ $n -lt 100 ] || exit 1; sleep 0.05; done"
    a, b = tmp_path / "a", tmp_path / "b"
    todo = [shell("a", meet.format(a, b)), shell("b", meet.format(b, a)), shell("c", "true")]
    assert up.AT_ONCE == 2
    out = console()
    run_all(todo, tmp_path / "logs", out)
    assert text(out).index("c            does") > text(out).index(" s  done")


def test_a_failure_says_stage_log_and_next_command(tmp_path: Path) -> None:
    later = tmp_path / "later"
    todo = [
        Stage("deploy", "release", ["make", "-f", "-", "deploy"]),  # no rule: make fails
        shell("beside", "sleep 60"),
        shell("after", f"touch {later}", "deploy"),
    ]
    started = time.monotonic()
    with pytest.raises(StageFailed) as caught:
        run_all(todo, tmp_path / "logs", console())
    message = str(caught.value)
    assert "No rule to make target" in message
    assert "stage deploy failed" in message
    assert "Stopped with it: beside" in message
    assert message.splitlines()[-1].endswith(
        "Next: make deploy, and when that works: make up (goes on from there)"
    )
    assert not later.exists()
    assert time.monotonic() - started < 20


def test_only_the_end_of_a_long_log_is_shown(tmp_path: Path) -> None:
    with pytest.raises(StageFailed) as caught:
        run_all([shell("long", "seq 1 1000; exit 3")], tmp_path / "logs", console())
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "1000" in lines
    assert str(1000 - up.TAIL + 1) in lines
    assert str(1000 - up.TAIL) not in lines
    assert (tmp_path / "logs/long.log").read_text().startswith("1\n2\n")


def test_a_long_stage_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "HEARTBEAT", 0.2)
    out = console()
    run_all([shell("slow", "echo '[red] 5 of 9'; sleep 0.8")], tmp_path / "logs", out)
    assert "[red] 5 of 9" in text(out)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", "(nothing yet)"),
        ("first\n  second  \n\n", "second"),
        ("10 %\r20 %\r", "20 %"),
        (
            "TASK [docker : Install] *****\nTuesday 24 (0:00:01) ***\nchanged: [droplet]\n",
            "TASK [docker : Install]",
        ),
        ("x" * 9000, "x" * 100),
    ],
)
def test_the_last_line_that_says_something(tmp_path: Path, log: str, said: str) -> None:
    (tmp_path / "log").write_text(log)
    assert up.last_line(tmp_path / "log") == said


def test_stages_of_up_name_only_what_exists() -> None:
    names: list[str] = []
    makefile = (Path(up.__file__).parents[1] / "Makefile").read_text()
    for stage in up.stages(["n8n"]):
        assert set(stage.after) <= set(names)
        names.append(stage.name)
        if stage.command[0] == "make":
            verb = next(word for word in stage.command[1:] if not word.startswith("--"))
            assert f"\n{verb}:" in makefile


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_every_child_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    program = (
        "import signal, sys\nfrom pathlib import Path\nfrom local import settings, up\n"
        # A background job of a script is born deaf to SIGINT, and its children with it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "up.check = lambda settings: None\n"
        f"up.stages = lambda *_: [up.Stage('x', 'waits', ['sh', '-c', 'echo $$ > {tmp_path}/pid; sleep 300'])]\n"
        f"sys.exit(up.main(settings.load(Path({str(tmp_path)!r}), {{}})))\n"
    )
    root = Path(up.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=root,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell that starts a test run in the background lets it ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one thread
    ) as process:
        for _ in range(1200):
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
                break
            time.sleep(0.05)
        child = int((tmp_path / "pid").read_text())
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Next: make up (goes on from there)" in errors
    # It was killed; who inherits it may take a moment to bury it.
    eventually(lambda: not running(child), f"the end of {child}")


def test_exit_code_and_timings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from local.settings import load

    settings = load(tmp_path, {})
    monkeypatch.setattr(up, "check", lambda _: None)
    monkeypatch.setattr(
        up, "stages", lambda *_: [shell("good", "true"), shell("bad", "exit 7", "good")]
    )
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # main() would set them for good
    assert up.main(settings) == 1
    assert "stage bad failed" in capsys.readouterr().err
    assert set(json.loads((settings.logs / "timings.json").read_text())) == {"good", "total"}


def test_what_another_users_killed_server_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    left = Path(f"/tmp/seaweedfs-master-grpc-{port + 5}.sock")
    left.touch()
    try:
        s3.command(port, tmp_path, "secret")  # our own is no obstacle
        monkeypatch.setattr("os.getuid", lambda: left.stat().st_uid + 1)
        with pytest.raises(LocalError, match=f"Next: sudo rm {left}$"):
            s3.command(port, tmp_path, "secret")
    finally:
        left.unlink()
