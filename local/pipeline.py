"""`make pipeline`: from a clone to a live release as docs/setup.md says it, then a pull request and its merge.

Everything is production's: inventory, workflows, commands of the document. The droplet is the local one of `make up`.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from local import rehearsal
from local.github.repository import Repository
from local.github.runner import REPOSITORY, Run, stop_all
from local.settings import LocalError, Settings, load, write_atomic
from local.up import HEARTBEAT, last_line

DOCUMENT = "docs/setup.md"
CHANGE = "services/api/cimt_api/__init__.py"
AUTHOR = ("-c", "user.name=developer", "-c", "user.email=developer@example.com")
PLACEHOLDER = re.compile(r"([A-Z][A-Z0-9_]*)=…")


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def prepare(settings: Settings) -> None:
    """The world around production's droplet, and what stands in for what of it."""
    for what, place in rehearsal.replaced(settings).items():
        say(f"  {what}: {place}")
    rehearsal.prepare_runner(settings)
    rehearsal.prepare_droplet(settings)


def section(settings: Settings, number: int) -> str:
    """A chapter of the document."""
    text = (settings.root / DOCUMENT).read_text()
    found = re.search(rf"^## {number}\..*?(?=^## )", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise LocalError(f"pipeline: {DOCUMENT} has no chapter {number}")
    return found[0]


def commands(settings: Settings, number: int) -> str:
    """What a chapter tells a person to type: its blocks of shell."""
    return "\n".join(
        re.findall(r"^ *```sh\n(.*?)^ *```", section(settings, number), re.MULTILINE | re.DOTALL)
    )


def rows(settings: Settings) -> dict[str, tuple[str, str]]:
    """Where GitHub keeps each setting, by the document's table: {NAME: (variable or secret, of which environments)}."""
    found = re.findall(
        r"^\| `([A-Z0-9_]+)` \|.*\| (variable|secret|variable of the repository)(, host|, both|) \|$",
        section(settings, 3),
        re.MULTILINE,
    )
    return {name: (kind, where) for name, kind, where in found}


def type_in(
    settings: Settings, script: str, out: Path, minutes: float, keys: Mapping[str, str]
) -> None:
    """Do what a person types, in a fresh checkout and a home with `keys`: {name of a file in .ssh: what it holds}.

    What they leave in ~/out comes into the folder `out`. Raises LocalError.
    """
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        shutil.copytree(settings.state / "github/home", home, symlinks=True, dirs_exist_ok=True)
        (home / ".ssh").mkdir(mode=0o700)
        for file, text in keys.items():
            write_atomic(home / ".ssh" / file, f"{text.rstrip()}\n", 0o600)
        (home / "script").write_text(script)
        # The clone of a repository on GitHub: its images are linked to it by that.
        origin = f"https://github.com/{REPOSITORY}.git"
        command = [
            *(sys.executable, str(settings.root / "tools/unprivileged.py")),
            *("--home", name, "--out", str(out), "--origin", origin, "--minutes", str(minutes)),
            *("--full", "--user-namespaces", "bash", "-euo", "pipefail", "-c"),
        ]
        log = settings.logs / "pipeline-setup.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command += ['. "$HOME/.profile"; . "$HOME/script"']
        started = time.monotonic()
        with log.open("w") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream)
        while process.poll() is None:
            try:
                process.wait(HEARTBEAT)
            except subprocess.TimeoutExpired:
                say(f"  {time.monotonic() - started:4.0f} s  {last_line(log)}")
        done = process.returncode
    if done:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise LocalError(
            f"{tail}\npipeline: what {DOCUMENT} says ended with {done} (whole log: {log})"
        )


def registry_login(settings: Settings) -> str:
    """What a person types before they push images."""
    token = (settings.state / "production/push-token").read_text()
    login = f"buildah login --username {rehearsal.OWNER} --password-stdin"
    return f"printf %s {shlex.quote(token)} | {login} {rehearsal.registry(settings)}\n"


def exported(given: Mapping[str, str]) -> str:
    """A shell's lines that export these values."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in given.items())


def first_time(settings: Settings) -> None:
    """Chapter 4: build, plan, provision, and provision again, from a person's machine."""
    given = rehearsal.values(settings)
    login = registry_login(settings)
    exports = exported({name: value for name, value in given.items() if name != "DROPLET_SSH_KEY"})
    typed = commands(settings, 4)
    unknown = set(PLACEHOLDER.findall(typed)) - given.keys()
    if unknown:
        raise LocalError(
            f"pipeline: {DOCUMENT} asks for what the rehearsal does not give: {sorted(unknown)}"
        )
    filled = PLACEHOLDER.sub(lambda found: f"{found[1]}={shlex.quote(given[found[1]])}", typed)
    type_in(settings, f"{exports}{login}{filled}", settings.logs / "pipeline", 60, _keys(given))


def _keys(given: Mapping[str, str]) -> dict[str, str]:
    return {"known_hosts": given["DROPLET_KNOWN_HOSTS"], "id_ed25519": given["DROPLET_SSH_KEY"]}


def environment(settings: Settings) -> None:
    """Chapter 5: every row of the table into GitHub's environment, by the commands that the chapter shows."""
    given = rehearsal.values(settings) | {"REGISTRY": rehearsal.registry(settings)}
    of_repository = "variable of the repository"
    shown = commands(settings, 5)
    if "gh variable set " not in shown or "gh secret set " not in shown:
        raise LocalError(
            f"pipeline: chapter 5 of {DOCUMENT} shows no gh variable set and gh secret set"
        )
    lines = []
    places = {"": ["production"], ", host": ["production-host"]}
    places[", both"] = places[""] + places[", host"]
    for name, (kind, where) in rows(settings).items():
        for environment in places[where] if name in given else ():
            place = "" if kind == of_repository else f" --env {environment}"
            typed = f"gh {kind.partition(' ')[0]} set {name}{place}"
            lines.append(f"printf %s {shlex.quote(given[name])} | {typed}")
    type_in(settings, "\n".join(lines), settings.state / "github", 5, {})


def change(repository: Repository, branch: str, path: str, added: str) -> None:
    """Push a branch with a line more in a file, as a person does; what it starts runs by the hook of the push."""
    with tempfile.TemporaryDirectory() as name:
        git = ["git", "-C", name, *AUTHOR]
        subprocess.run(["git", "clone", "-q", str(repository.bare), name], check=True)
        with open(Path(name, path), "a") as file:
            file.write(added)
        subprocess.run([*git, "add", path], check=True)
        subprocess.run([*git, "commit", "-q", "-m", f"Change {path}"], check=True)
        subprocess.run([*git, "push", "-q", "origin", f"HEAD:refs/heads/{branch}"], check=True)


def propose(
    settings: Settings, path: str = CHANGE, added: str = "# Nothing changes by this line.\n"
) -> int:
    """A pull request of what is checked out, with a line more in a file; its number.

    Raises LocalError when Gate is red.
    """
    repository = Repository(settings.state / "github", say)
    repository.create(settings.root)
    change(repository, f"harmless-{time.time_ns()}", path, added)
    number = int(repository.known()["pulls"][-1]["number"])
    repository.mergeable(number)
    return number


def live(settings: Settings, number: int) -> Run:
    """The merge of a pull request, up to the verified release. Raises LocalError where something is red."""
    runs = Repository(settings.state / "github", say).merge(number)
    for run in runs:
        if not run.green:
            raise LocalError(f"pipeline: {run.name} is red. Its logs: {run.folder}")
    return runs[0]


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("only", nargs="?", choices=["propose"], help="the pull request alone")
    only = parser.parse_args().only
    settings = load(running=True)
    number = 0

    def merged() -> None:
        live(settings, number)

    def proposed() -> None:
        nonlocal number
        number = propose(settings)

    steps: dict[str, Callable[[], object]]
    if only:
        steps = {
            "what stands in": lambda: rehearsal.prepare_runner(settings),
            "the pull request": proposed,
        }
    else:
        steps = {
            "what stands in": lambda: prepare(settings),
            "chapter 4, the first time": lambda: first_time(settings),
            "chapter 5, the environment on GitHub": lambda: environment(settings),
            "the pull request": proposed,
            "the merge": merged,
        }
    try:
        for told, step in steps.items():
            started = time.monotonic()
            say(f"pipeline: {told} …")
            step()
            say(f"pipeline: {told}: {time.monotonic() - started:.0f} s")
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        stop_all()
        return 130
    say("pipeline: Gate is green" if only else "pipeline: live")
    return 0


if __name__ == "__main__":
    sys.exit(main())
