"""`make up`: from nothing to a running product, stage by stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from local import clouds
from local.droplet import machine
from local.settings import (
    DROPLET_PORTS,
    LocalError,
    Settings,
    check_ports,
    domain,
    save_ports,
    write_atomic,
)

HEARTBEAT = 30.0  # seconds between two signs of life of a long stage, where there is no terminal
TAIL = 25  # lines of a failed stage's log
AT_ONCE = 2  # stages at the same moment: an emulated droplet keeps a core busy by itself
END_SECONDS = 20.0  # for a stage to end when asked to
# Asked for between two looks, not raised anywhere: a stage that was being started would never be ended.
STOP = threading.Event()


@dataclass(frozen=True)
class Stage:
    """One step; every one of them can be repeated, so a new `make up` goes on where the last one stopped."""

    name: str
    does: str
    command: list[str]
    after: tuple[str, ...] = ()


def stages(apps: Sequence[str] = (), nodes: int = 1) -> list[Stage]:
    """In their order; one that needs nothing of its neighbours runs beside them."""
    local = [sys.executable, "-m", "local"]
    make = ["make", "--no-print-directory"]
    extra = [
        Stage(
            f"{app}-image",
            f"image of {app}",
            [*make, "build", f"SERVICE={app}", "MISSING=1"],
            ("clouds",),
        )
        for app in apps
    ]
    more = [
        Stage(
            f"droplet-{number}",
            "another one",
            [*local, "droplet", "--node", str(number)],
            ("image",),
        )
        for number in range(2, nodes + 1)
    ]
    return [
        Stage("image", "disk image of the droplet", [*local, "image"]),
        Stage("clouds", "registry, Postgres, S3, Auth, model, Git", [*local, "clouds", "start"]),
        Stage("droplet", "virtual machine: 2 vCPU, 2 GB, 25 GB", [*local, "droplet"], ("image",)),
        *more,
        Stage("panel-image", "stand-in for EasyPanel's image", [*make, "panel-image"], ("clouds",)),
        *extra,
        Stage(
            "provision",
            "playbooks/provision.yml",
            [*make, "provision"],
            ("droplet", "clouds", "panel-image", *(stage.name for stage in [*more, *extra])),
        ),
        Stage("build", "images of the apps, pushed by digest", [*make, "build"], ("panel-image",)),
        Stage("migrate", "migrations by the Supabase CLI", [*make, "migrate"], ("clouds",)),
        Stage(
            "deploy",
            "release by digest, smoke test, audit",
            [*make, "deploy"],
            ("provision", "build", "migrate"),
        ),
        Stage("backup", "a verified backup into the local bucket", [*make, "backup"], ("deploy",)),
    ]


class StageFailed(Exception):
    """A stage ended with an error; the text is what to show."""


@dataclass
class Job:
    """A stage on its way; `seconds` is final once `process` has ended."""

    stage: Stage
    log: Path
    process: subprocess.Popen[bytes]
    started: float
    said: float
    seconds: float = 0.0


class Progress:
    """What is shown meanwhile: a live table on a terminal, plain lines elsewhere."""

    def __init__(self, todo: Sequence[Stage], console: Console) -> None:
        self.todo = todo
        self.console = console
        self.jobs: dict[str, Job] = {}
        self.live = (
            Live(console=console, get_renderable=self.table, refresh_per_second=2)
            if console.is_terminal
            else None
        )

    def table(self) -> RenderableType:
        """Every stage with its time and, while it runs, the last line of its log."""
        table = Table("stage", "seconds", "", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        table.columns[2].no_wrap = True
        for stage in self.todo:
            job = self.jobs.get(stage.name)
            if job is None:
                table.add_row(stage.name, "", stage.does, style="dim")
            elif job.process.returncode is None:
                seconds = time.monotonic() - job.started
                table.add_row(
                    stage.name, f"{seconds:.0f}", escape(last_line(job.log)), style="bold"
                )
            else:
                style, word = (
                    ("bold red", "failed") if job.process.returncode else ("green", stage.does)
                )
                table.add_row(stage.name, f"{job.seconds:.0f}", word, style=style)
        return table

    def line(self, stage: Stage, text: str, style: str = "") -> None:
        """One line, where there is no table."""
        if self.live is None:
            self.console.print(f"{stage.name:<12} {escape(text)}", style=style)

    def heartbeat(self) -> None:
        """A sign of life for each stage that has been silent for long."""
        now = time.monotonic()
        for job in self.jobs.values():
            if job.process.returncode is None and now - job.said >= HEARTBEAT:
                job.said = now
                self.line(job.stage, f"{now - job.started:4.0f} s  {last_line(job.log)}", "dim")


def run_all(
    todo: Sequence[Stage],
    logs: Path,
    console: Console,
    finished: Callable[[dict[str, float]], None] = lambda _: None,
) -> dict[str, float]:
    """Seconds by stage. Raises StageFailed at the first that fails, after ending those beside it."""
    logs.mkdir(parents=True, exist_ok=True)
    progress = Progress(todo, console)
    jobs = progress.jobs
    done: dict[str, float] = {}
    if progress.live:
        progress.live.start()
    try:
        while len(done) < len(todo):
            if STOP.is_set():
                raise KeyboardInterrupt
            running = [job for job in jobs.values() if job.process.returncode is None]
            for stage in todo:
                free = len(running) < AT_ONCE and stage.name not in jobs
                if free and all(name in done for name in stage.after):
                    jobs[stage.name] = _start(stage, logs)
                    running.append(jobs[stage.name])
                    progress.line(stage, f"{stage.does} …")
            if not running:
                raise LocalError(f"up: nothing can follow {', '.join(done)}: wrong order of stages")
            time.sleep(0.1)
            progress.heartbeat()
            for job in running:
                if job.process.poll() is None:
                    continue
                job.seconds = time.monotonic() - job.started
                if job.process.returncode:
                    progress.line(job.stage, f"failed after {job.seconds:.0f} s", "bold red")
                    raise StageFailed(_report(job, [other for other in running if other != job]))
                done[job.stage.name] = job.seconds
                finished(done)
                progress.line(job.stage, f"{job.seconds:4.0f} s  done", "green")
    finally:
        for job in jobs.values():
            _end(job)
        if progress.live:
            progress.live.stop()
    return done


def _start(stage: Stage, logs: Path) -> Job:
    path = logs / f"{stage.name}.log"
    # A session of its own: Ctrl-C reaches us alone, and we end the whole stage.
    with path.open("w") as log:
        process = subprocess.Popen(
            stage.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ENV": "local"},
        )
    now = time.monotonic()
    return Job(stage, path, process, now, now)


def _end(job: Job) -> None:
    """Nothing of a stage stays behind: asked first, then killed. Daemons it started live on."""
    if job.process.poll() is not None:
        return
    os.killpg(job.process.pid, signal.SIGTERM)
    try:
        job.process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait()
    job.seconds = time.monotonic() - job.started


def _report(job: Job, others: Sequence[Job]) -> str:
    """What the user needs to know about a failed stage, with the command to type next at the end."""
    name = job.stage.name
    lines = [f"  {line}" for line in job.log.read_text(errors="replace").splitlines()[-TAIL:]]
    beside = [other.stage.name for other in others if other.process.returncode is None]
    stopped = f" Stopped with it: {', '.join(beside)}." if beside else ""
    retry = "make up (goes on from there)"
    if job.stage.command[0] == "make":
        verb = " ".join(word for word in job.stage.command if not word.startswith("-"))
        retry = f"{verb}, and when that works: {retry}"
    lines += [
        "",
        f"up: stage {name} failed (whole log: {os.path.relpath(job.log)}).{stopped} Next: {retry}",
    ]
    return "\n".join(lines)


def last_line(path: Path) -> str:
    """The last line of a log that says something (Ansible: its task), cut to a terminal's width."""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 4096))
        text = log.read().decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    tasks = [
        line.rstrip("* ") for line in lines if line.startswith(("TASK [", "RUNNING HANDLER ["))
    ]
    return (tasks or lines or ["(nothing yet)"])[-1][:100]


def check(settings: Settings) -> None:
    """All that can be known to be wrong before anything is made; raises LocalError."""
    machine.check_image(settings)
    if not machine.running_pid(settings):
        check_ports(settings, DROPLET_PORTS)
    check_ports(
        settings,
        [
            name
            for name, cloud in clouds.CLOUDS.items()
            if not cloud.asked and not clouds.running_pid(settings, name)
        ],
    )


def up(settings: Settings) -> None:
    """Run every stage; raises StageFailed with name, log and next command of the one that failed."""
    console = Console(highlight=False, soft_wrap=True)
    with machine.alone(settings, "up"):
        check(settings)
        save_ports(settings)
        started = time.monotonic()
        timings = settings.logs / "timings.json"

        def keep(done: dict[str, float]) -> None:
            write_atomic(timings, json.dumps(done | {"total": time.monotonic() - started}) + "\n")

        done = run_all(stages(settings.apps, settings.nodes), settings.logs, console, keep)
        summary(settings, done, time.monotonic() - started, console)


def summary(settings: Settings, done: dict[str, float], total: float, console: Console) -> None:
    """The table of stages, the addresses, and what to try next."""
    table = Table("stage", "seconds", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, seconds in done.items():
        table.add_row(name, f"{seconds:.0f}")
    table.add_row("total", f"{total:.0f}", style="bold")
    console.print()
    console.print(table)
    kind = machine.state(settings).get("acceleration")
    speed = (
        "accelerated by KVM" if kind == "kvm" else "emulated: several times slower than a real one"
    )
    console.print(f"\nThe product runs. The droplet is {speed}.")
    url = f"https://api.cimt.localhost:{settings.ports['https']}"
    console.print(f"  curl --cacert .local/ca.crt {url}/healthz")
    console.print(f"  curl --cacert .local/ca.crt -X POST {url}/chat")
    page = f"https://{domain('web')}:{settings.ports['https']}"
    console.print(f"Open {page} in a browser (its authority is .local/ca.crt), sign in, and ask.")
    console.print("Or without a browser, streamed:")
    python = os.path.relpath(sys.executable)
    console.print(
        f"  curl --cacert .local/ca.crt -N {url}/chat -H 'Content-Type: application/json' \\\n"
        f'    -H "Authorization: Bearer $({python} -m local sign-in --up)" \\\n'
        """    -d '{"message": "How long is the warranty?", "stream": true}'""",
        markup=False,
    )
    console.print(f"Mail of the local sign-in: http://127.0.0.1:{settings.ports['supabase']}/inbox")
    console.print("Next: make audit, make history, make ssh, make deploy, make down", markup=False)


def main(settings: Settings) -> int:
    """Exit code of `python -m local up`."""

    def interrupt(*_: object) -> None:
        STOP.set()

    STOP.clear()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # end the stages, then go
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup make up` wants to live on
            signal.signal(number, interrupt)
    try:
        up(settings)
    except StageFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nup: stopped. Next: make up (goes on from there), or: make down", file=sys.stderr)
        return 130
    except LocalError as error:
        print(f"up: {str(error).removeprefix('up: ')}", file=sys.stderr)
        return 1
    return 0
