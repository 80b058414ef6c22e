"""Runs workflow files as GitHub would: each job by nektos/act, in a fresh checkout and home, as an ordinary user.

act alone hands every secret to every job and leaves out what GitHub enforces around a job. So each job is a call of
its own, and here are: filters of events, `needs` across calls, an environment's own secrets and its rules of branches
and reviewers, a token with the job's permissions, time-outs, groups of concurrency, and the search for secrets in what
was printed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local.registry.rights import TOKENS, change, grant, revoke
from local.settings import LocalError, write_atomic

ROOT = Path(__file__).resolve().parents[2]
ACTIONS = Path(__file__).parent / "actions"
MINUTES = 360  # of a job that says nothing else
TAIL = 100  # lines of the log of a job that failed, which are shown
AT_ONCE = max(1, (os.cpu_count() or 2) // 2)  # jobs: on GitHub each has a machine of its own
# Ubuntu's AppArmor lets buildah make user namespaces, and nothing else of ours.
NAMESPACES = re.compile(r"buildah|make build")
HAND_ON = 'for name in $NAMES; do printf "%s<<_END_\\n%s\\n_END_\\n" "$name" "${!name}" >>"$GITHUB_OUTPUT"; done'

Say = Callable[[str], None]


@dataclass(frozen=True)
class Event:
    """What a workflow is started by: `ref` is refs/heads/… or refs/pull/N/merge, `payload` as in a webhook."""

    name: str
    ref: str
    payload: dict[str, Any] = field(default_factory=dict)
    changed: tuple[str, ...] = ()  # paths, for the filters of a push
    actor: str = "developer"
    attempt: int = 1


@dataclass
class Job:
    """How a job ended: success, failure, skipped or cancelled."""

    result: str
    outputs: dict[str, str]
    seconds: float


def parse(text: str) -> dict[str, Any]:
    """A workflow as GitHub's own parser reads it. Raises LocalError with everything that it finds wrong."""
    command = ["node", str(Path(__file__).parent / "parse.mjs")]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise LocalError(f"workflow: {done.stderr.strip()[-500:]}. Next: make setup")
    read: dict[str, Any] = json.loads(done.stdout)
    if read["errors"]:
        raise LocalError("workflow: " + "\n".join(read["errors"]))
    return dict(read["workflow"])


def starts(workflow: dict[str, Any], event: Event) -> bool:
    """Whether the event starts it."""
    on = workflow["on"]
    on = {on: None} if isinstance(on, str) else dict.fromkeys(on) if isinstance(on, list) else on
    if event.name not in on:
        return False
    filters = on[event.name] or {}
    branches, ignored = filters.get("branches"), filters.get("paths-ignore", [])
    if branches and not any(
        _matches(one, event.ref.removeprefix("refs/heads/")) for one in branches
    ):
        return False
    words = [any(_matches(one, path) for one in ignored) for path in event.changed]
    return not (ignored and words and all(words))


def _matches(pattern: str, text: str) -> bool:
    """GitHub's patterns: `*` stays in a folder, `**` does not."""
    parts = {"**": ".*", "*": "[^/]*"}
    expression = "".join(parts.get(one, re.escape(one)) for one in re.split(r"(\*\*|\*)", pattern))
    return re.fullmatch(expression, text) is not None


class Run:
    """One run of one workflow. `state` holds the repository, environments and runs; `say` takes a line of progress.

    A job whose environment has reviewers runs where `approved` names it: nobody else is there who could be waited for.
    """

    def __init__(
        self,
        state: Path,
        path: str,
        event: Event,
        say: Say = print,
        sha: str = "",
        approved: Collection[str] = (),
    ) -> None:
        self.state, self.path, self.event, self.say = state, path, event, say
        self.approved = approved
        git = ["git", "-C", str(state / "cimt.git")]
        named = sha or event.ref  # a run that is started again keeps its commit
        self.sha = subprocess.check_output([*git, "rev-parse", named], text=True).strip()
        text = subprocess.check_output([*git, "show", f"{self.sha}:{path}"], text=True)
        self.workflow = parse(text)
        self.name = str(self.workflow.get("name", path))
        self.jobs: dict[str, Job] = {}
        self.leaked: list[str] = []
        runs = state / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        with open(runs / ".lock", "w") as lock:  # two pushes at once get two numbers
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.number = 1 + max((int(one.name) for one in runs.glob("[0-9]*")), default=0)
            self.folder = runs / str(self.number)
            self.folder.mkdir()

    @classmethod
    def read(cls, state: Path, number: int) -> Run:
        """A run that has ended, as it was kept."""
        run = cls.__new__(cls)
        run.state, run.number, run.folder = state, number, state / "runs" / str(number)
        kept = json.loads((run.folder / "run.json").read_text())
        run.jobs = {name: Job(**job) for name, job in kept.pop("jobs").items()}
        event = kept.pop("event")
        run.event = Event(**{**event, "changed": tuple(event["changed"])})
        vars(run).update(kept)
        return run

    @property
    def green(self) -> bool:
        """Whether every job succeeded or was left out, and nothing secret was printed."""
        results = {job.result for job in self.jobs.values()}
        return not self.leaked and results <= {"success", "skipped"}

    def run(self, again: dict[str, Job] | None = None) -> Run:
        """Run the jobs, or only those that did not succeed when the jobs of an earlier run are given (`again`)."""
        kept = {name: job for name, job in (again or {}).items() if job.result == "success"}
        self.jobs.update(kept)
        self.say(
            f"{self.name} #{self.number}: {self.event.name} on {self.event.ref} ({self.sha[:12]})"
        )
        todo = {name: job for name, job in self.workflow["jobs"].items() if name not in kept}
        with _group(self.state, self.workflow.get("concurrency"), self.event, self.say):
            self._all(todo)
        ended: dict[str, Any] = {"event": vars(self.event)}
        ended |= {one: getattr(self, one) for one in ("path", "name", "sha", "leaked")}
        ended["jobs"] = {one: vars(job) for one, job in self.jobs.items()}
        write_atomic(self.folder / "run.json", json.dumps(ended, indent=1) + "\n")
        self.say(f"{self.name} #{self.number}: {'green' if self.green else 'RED'} ({self.folder})")
        return self

    def _all(self, todo: dict[str, dict[str, Any]]) -> None:
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            running: dict[concurrent.futures.Future[Job], str] = {}
            while todo or running:
                for name in list(todo):
                    if all(one in self.jobs for one in _needs(todo[name])):
                        running[pool.submit(self._job, name, todo.pop(name))] = name
                ended, _ = concurrent.futures.wait(
                    running, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in ended:
                    self.jobs[running.pop(future)] = future.result()

    # -- one job ----------------------------------------------------------------------------------------

    def _job(self, name: str, job: dict[str, Any]) -> Job:
        environment = job.get("environment") or ""
        environment = environment if isinstance(environment, str) else environment["name"]
        if environment and self.event.ref != "refs/heads/main":
            self.say(
                f"  {name}: {self.event.ref} is not allowed to deploy to {environment} (environment protection rules)"
            )
            return Job("failure", {}, 0)
        if self._reviewers(environment) and environment not in self.approved:
            self.say(f"  {name}: waits for a reviewer of {environment}, in vain")
            return Job("cancelled", {}, 0)
        permissions = job.get("permissions", self.workflow.get("permissions")) or {}
        variables, secret = self._given(""), self._given("", secret=True)
        if environment:
            variables |= self._given(environment)
            secret |= self._given(environment, secret=True)
        started = time.monotonic()
        with self._token(permissions) as token, tempfile.TemporaryDirectory() as home:
            self._home(Path(home), name, job, variables, secret | {"GITHUB_TOKEN": token})
            done = self._act(Path(home), name, job)
            self._search(name, {**secret, "GITHUB_TOKEN": token})
        record = self.folder / name / "needs.json"
        ended = json.loads(record.read_text())[name] if record.exists() else {}
        result = str(ended.get("result", "failure"))
        if done == 124:
            self.say(f"  {name}: its time of {job.get('timeout-minutes', MINUTES)} minutes was up")
            result = "cancelled"
        seconds = time.monotonic() - started
        if result != "success" and (self.folder / f"{name}.log").exists():
            lines = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
            self.say("\n".join(f"  {name} | {line}" for line in lines[-TAIL:]))
        self.say(f"  {name}: {result} in {seconds:.0f} s")
        return Job(result, dict(ended.get("outputs") or {}), round(seconds, 1))

    def _reviewers(self, environment: str) -> list[Any]:
        """Who has to approve a job of that environment, as `make github` left it (settings.py)."""
        path = self.state / "settings/environments.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        return list(kept.get(environment, {}).get("sent", {}).get("reviewers") or [])

    def _given(self, environment: str, *, secret: bool = False) -> dict[str, str]:
        """Variables or secrets of the repository, or of an environment, as `gh` left them (bin/gh)."""
        path = (
            self.state
            / "settings"
            / (environment or "repository")
            / ("secrets" if secret else "variables")
        )
        return {one.name: one.read_text() for one in path.glob("*")} if path.is_dir() else {}

    @contextlib.contextmanager
    def _token(self, permissions: dict[str, str]) -> Iterator[str]:
        """A token that lives as long as the job, with its permissions, for the API and for the registry."""
        token, registry = f"ghs_{secrets.token_hex(18)}", self.state.parent / "clouds/ghcr"
        with change(self.state, TOKENS) as tokens:
            tokens[token] = {"permissions": permissions}
        grant(registry, token, repository=REPOSITORY, packages=permissions.get("packages", ""))
        try:
            yield token
        finally:
            revoke(registry, token)
            with change(self.state, TOKENS) as tokens:
                del tokens[token]

    def _home(
        self,
        home: Path,
        name: str,
        job: dict[str, Any],
        variables: dict[str, str],
        secret: dict[str, str],
    ) -> None:
        """All that act reads, and what a runner's home has: settings of this machine (`state/home`)."""
        if (self.state / "home").is_dir():
            shutil.copytree(self.state / "home", home, symlinks=True, dirs_exist_ok=True)
        act = home / ".act"
        shutil.copytree(ACTIONS, act / "actions")
        shutil.copy(shutil.which("act") or ROOT / ".venv/bin/act", act / "act")
        (home / "out").mkdir()
        needs = {one: self._stub(self.jobs[one]) for one in _needs(job)}
        record = {
            "needs": [name],
            "if": "always()",
            "runs-on": job["runs-on"],
            "steps": [
                {
                    "env": {"NEEDS": "${{ toJSON(needs) }}"},
                    "run": 'printf %s "$NEEDS" >"$HOME/out/needs.json"',
                }
            ],
        }
        one = {**self.workflow, "jobs": {**needs, name: job, "record": record}}
        (act / "job.yml").write_text(json.dumps(one))
        (act / "event.json").write_text(json.dumps(self._payload()))
        for kind, values in (("variables", variables), ("secrets", secret)):
            # YAML, because a value may have several lines; JSON is YAML.
            write_atomic(act / f"{kind}.yaml", json.dumps(values), 0o600)

    @staticmethod
    def _stub(job: Job) -> dict[str, Any]:
        """A job that ends as an earlier one did, with its outputs."""
        step = {
            "id": "outputs",
            "shell": "bash",
            "env": {**job.outputs, "NAMES": " ".join(job.outputs)},
            "run": HAND_ON if job.result == "success" else "exit 1",
        }
        return {
            "runs-on": "ubuntu-24.04",
            "outputs": {one: f"${{{{ steps.outputs.outputs.{one} }}}}" for one in job.outputs},
            "steps": [step],
            **({"if": "${{ false }}"} if job.result == "skipped" else {}),
        }

    def _payload(self) -> dict[str, Any]:
        owner, _, name = REPOSITORY.partition("/")
        repository = {
            "full_name": REPOSITORY, "name": name, "owner": {"login": owner}, "default_branch": "main", "private": True,
        }  # fmt: skip
        return {"ref": self.event.ref, "repository": repository, **self.event.payload}

    def _act(self, home: Path, name: str, job: dict[str, Any]) -> int:
        steps: list[dict[str, Any]] = job.get("steps", [])
        scripts = "\n".join(str(step.get("run", "")) for step in steps)
        uses = {str(step["uses"]) for step in steps if "uses" in step}
        local = [one for one in sorted(uses) if (ACTIONS / _action(one)).is_dir()]
        checkouts = (one for one in steps if str(one.get("uses")).startswith("actions/checkout@"))
        checkout = dict(next(checkouts, {"with": {}}).get("with", {}))
        full = str(checkout.get("fetch-depth", 1)) == "0"
        environment = {
            "GITHUB_RUN_ID": self.number, "GITHUB_RUN_NUMBER": self.number, "GITHUB_RUN_ATTEMPT": self.event.attempt,
            "GITHUB_REPOSITORY": REPOSITORY, "GITHUB_REPOSITORY_OWNER": REPOSITORY.partition("/")[0],
            "GITHUB_SHA": self.sha, "GITHUB_REF": self.event.ref, "GITHUB_REF_NAME": self.event.ref.split("/", 2)[2],
        }  # fmt: skip
        words = [
            # act gives a terminal, which GitHub does not.
            'export DOCKER_HOST=unix:///nonexistent TERM=dumb GIT_PAGER=cat CHECKOUT="$PWD";',
            '[ ! -e "$HOME/.profile" ] || . "$HOME/.profile";',
            f'exec "$HOME/.act/act" {self.event.name} --workflows "$HOME/.act/job.yml" --job record --json',
            f'--eventpath "$HOME/.act/event.json" --actor {self.event.actor} --platform ubuntu-24.04=-self-hosted',
            '--var-file "$HOME/.act/variables.yaml" --secret-file "$HOME/.act/secrets.yaml"',
            *(f"--env {key}={value}" for key, value in environment.items()),
            '--env-file "$HOME/environment"' if (home / "environment").exists() else "",
            *(f'--local-repository {one}="$HOME/.act/actions/{_action(one)}"' for one in local),
        ]
        kind, _, branch = self.event.ref.removeprefix("refs/").partition("/")
        command = [
            *(sys.executable, str(ROOT / "tools/unprivileged.py")),
            *(
                "--repository",
                str(self.state / "cimt.git"),
                "--ref",
                self._value(checkout.get("ref", "")) or self.sha,
            ),
            *(["--branch", branch] if kind == "heads" else []),
            *("--home", str(home), "--out", str(self.folder / name)),
            *("--minutes", str(job.get("timeout-minutes", MINUTES)), *(["--full"] if full else [])),
            *(["--user-namespaces"] if NAMESPACES.search(scripts) else []),
            *("bash", "-c", " ".join(words)),
        ]
        (self.folder / name).mkdir()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        _CHILDREN.add(process)
        try:
            self._listen(name, process)
            return process.wait()
        finally:
            _CHILDREN.discard(process)

    def _value(self, text: str) -> str:
        """An expression of `ref:`, as far as ours use them: paths into the event, with `||`."""
        known = {
            "github": {"event": self._payload(), "sha": self.sha},
            "inputs": self.event.payload.get("inputs", {}),
        }
        found = re.fullmatch(r"\$\{\{ (.*) \}\}", text)
        for path in found[1].split("||") if found else ():
            value: Any = known
            for part in path.strip().split("."):
                value = value.get(part, "") if isinstance(value, dict) else ""
            if value:
                return str(value)
        return text if not found else ""

    def _listen(self, name: str, process: subprocess.Popen[str]) -> None:
        """Write what the job prints into its log, and say each step with its time."""
        summary: list[str] = []
        with (self.folder / f"{name}.log").open("w") as log:
            for line in process.stdout or ():
                try:
                    said = json.loads(line)
                except ValueError:
                    log.write(line)
                    continue
                if said.get("jobID") != name:
                    if said.get("level") == "error":
                        log.write(f"{said['msg']}\n")
                    continue
                if said.get("command") == "summary":
                    summary.append(said["content"])
                step, top = (
                    said.get("step", ""),
                    len(said.get("stepID") or said.get("stepid") or ()) == 1,
                )
                if said.get("raw_output"):
                    log.write(said["msg"])
                else:
                    log.write(f"## {said['msg'].strip()}\n")
                if (
                    said.get("stage") == "Main"
                    and top
                    and "stepResult" in said
                    and said["stepResult"] != "skipped"
                ):
                    seconds = said.get("executionTime", 0) / 1e9
                    mark = "✓" if said["stepResult"] == "success" else "✗"
                    self.say(f"  {name}: {mark} {step} ({seconds:.0f} s)")
                log.flush()
        if summary:
            (self.folder / f"{name}.summary.md").write_text("".join(summary))

    def _search(self, name: str, secret: dict[str, str]) -> None:
        """Whether a line of a secret stands in what the job printed or kept."""
        kept = [path for path in (self.folder / name).rglob("*") if path.is_file()]
        printed = [self.folder / f"{name}.log", *self.folder.glob(f"{name}.summary.md"), *kept]
        text = "\n".join(path.read_text(errors="replace") for path in printed if path.exists())
        for key, value in secret.items():
            if any(len(line.strip()) > 7 and line.strip() in text for line in value.splitlines()):
                self.leaked.append(f"{name}: {key}")
                self.say(f"  {name}: the secret {key} was printed")


REPOSITORY = "example/cimt"
_CHILDREN: set[subprocess.Popen[str]] = set()


def stop_all() -> None:
    """End every job that runs: whoever started them is being ended."""
    for process in list(_CHILDREN):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)


def _needs(job: dict[str, Any]) -> list[str]:
    needs = job.get("needs", [])
    return [needs] if isinstance(needs, str) else list(needs)


def _action(uses: str) -> str:
    """The name of what stands in an action's place: a folder of `actions/`."""
    return uses.partition("@")[0].rpartition("/")[2]


@contextlib.contextmanager
def _group(state: Path, concurrency: Any, event: Event, say: Say) -> Iterator[None]:
    """Wait until no other run of the group goes on. A run that is cancelled by a newer one is not played here."""
    if not concurrency:
        yield
        return
    name = str(concurrency if isinstance(concurrency, str) else concurrency["group"])
    if "${{" in name:  # the only expression that we use: one group a pull request
        name = f"pull-request-{event.payload.get('number', event.ref)}"
    with open(state / f".group-{re.sub('[^a-z0-9-]', '-', name)}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"  waiting for the other run of the group {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
