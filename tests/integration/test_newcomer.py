"""What a newcomer types too early, or wrongly, in a fresh clone: one line with what to type next, and nothing done."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.tree import ROOT, copy_tree

MAKEFILE = (ROOT / "Makefile").read_text()
RECIPES = dict(re.findall(r"^([a-z0-9-]+):.*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE))
ON_DROPLET = sorted(
    {"smoke", "audit"} | {verb for verb, recipe in RECIPES.items() if "$(call play," in recipe}
)
# Each would make a file of this name if anything evaluated it.
EXECUTED = "executed"
WRONG = [
    "a b",
    "a'b",
    'a"b',
    f"a`touch {EXECUTED}`",
    f"$(touch {EXECUTED})",
    f"$(shell touch {EXECUTED})",
    f"a; touch {EXECUTED}",
    f"{{{{ lookup('pipe', 'touch {EXECUTED}') }}}}",
    "../x\ny",
]
NOWHERE = "http://127.0.0.1:9/"  # "discard": nobody listens


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree as somebody clones it: nothing installed, nothing started, and nothing changed by a refusal."""
    folder = tmp_path_factory.mktemp("newcomer") / "a clone"
    copy_tree(folder)
    return folder


@pytest.fixture(scope="module")
def droplet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose droplet runs, as far as its files say."""
    folder = tmp_path_factory.mktemp("droplet") / "a clone"
    copy_tree(folder)
    home = folder / ".local/droplet"
    home.mkdir(parents=True)
    (folder / ".local/ssh_config").touch()
    (home / "qemu.pid").write_text(f"{os.getpid()}\n")
    return folder


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A clone that a test may change."""
    copy_tree(tmp_path / "a clone")
    return tmp_path / "a clone"


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In the environment of a person who has set up nothing."""
    places = os.environ["PATH"].split(os.pathsep)
    path = os.pathsep.join(one for one in places if not one.startswith(str(ROOT)))
    given = {"PATH": path, "HOME": str(folder.parent), "LC_ALL": "C.UTF-8", **environment}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env=given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def refusal(folder: Path, *arguments: str, **environment: str) -> str:
    """The one line that it says when it refuses, before anything is installed."""
    there = {path.name for path in folder.iterdir()}
    line = one_line(make(folder, *arguments, **environment))
    assert {path.name for path in folder.iterdir()} == there
    return line


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What was said, but for the last word of make itself, and for what `setup` says that it does."""
    assert done.returncode
    lines = (done.stdout + done.stderr).splitlines()
    told = [line for line in lines if not re.match(r"make: \*\*\* \[|setup: locked ", line)]
    assert len(told) == 1, done.stdout + done.stderr
    assert "Next: " in told[0] or "For example: " in told[0]
    return told[0]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- too early ------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ON_DROPLET)
def test_without_a_droplet(clone: Path, verb: str) -> None:
    assert refusal(clone, verb) == f"{verb}: no local droplet. Next: make up"


def test_every_verb_of_a_playbook_is_one_of_them() -> None:
    """The list is read from the Makefile; were its shape to change, it would be empty."""
    known = {"provision", "plan", "services", "deploy", "rollback", "history", "n8n-pull"}
    assert known < set(ON_DROPLET)


def test_with_a_droplet_that_is_off(droplet: Path) -> None:
    pid = droplet / ".local/droplet/qemu.pid"
    pid.rename(pid.with_name("kept"))  # as `python -m local stop` leaves it
    told = refusal(droplet, "plan")
    pid.with_name("kept").rename(pid)
    assert told == "plan: the local droplet is off. Next: make up"


@pytest.mark.parametrize("verb", ["build", "panel-image"])
def test_without_a_registry(fresh: Path, verb: str) -> None:
    assert refusal(fresh, verb) == f"{verb}: no local registry. Next: make up"
    (fresh / ".local").mkdir()
    port = closed_port()
    (fresh / ".local/ports.json").write_text(f'{{"ssh": 2222, "registry": {port}, "openai": 1}}')
    told = refusal(fresh, verb)
    assert told == f"{verb}: the local registry (port {port}) does not answer. Next: make up"


@pytest.mark.parametrize("where", ["local", "production"])
def test_a_deploy_without_an_image(droplet: Path, where: str) -> None:
    told = refusal(droplet, "deploy", f"ENV={where}", "REVISION=" + "a" * 40)
    assert told.startswith(
        f"deploy: IMAGE and REVISION are not set. Next: make build ENV={where} (prints them)"
    )


@pytest.mark.parametrize("verb", ["provision", "plan", "services", "deploy", "history"])
def test_settings_that_production_lacks_are_named_at_once(verb: str, fresh: Path) -> None:
    """And nothing of Ansible's about tasks and files: it has not been asked."""
    for name in (".venv", "node_modules"):
        (fresh / name).symlink_to(ROOT / name)
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    given = {"IMAGE": f"ghcr.io/example/api@sha256:{'0' * 64}", "REVISION": "0" * 40}
    done = subprocess.run(
        [
            "make",
            "--no-print-directory",
            verb,
            "ENV=production",
            *(f"{n}={v}" for n, v in given.items()),
        ],
        cwd=fresh,
        env=kept | {"API_DOMAIN": "api.example.com"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "  DROPLET_HOST: address of the droplet" in done.stderr
    assert "API_DOMAIN" not in done.stderr
    assert "Next: docs/setup.md" in done.stderr
    assert "TASK" not in done.stdout


# -- values ---------------------------------------------------------------------------


GIVEN = {
    "IMAGE": ["deploy"],
    "REVISION": ["deploy"],
    "ACCEPT": ["rollback"],
    "SERVICE": ["history", "build", "logs"],
    "SINCE": ["logs"],
    "NAME": ["logs"],
    "USER_ID": ["user-export", "user-erase"],
    "MONTH": ["usage"],
}
# An address may hold an apostrophe; between names there may be spaces.
RIGHT = {("USER_ID", "a'b"), ("ACCEPT", "a b")}


@pytest.mark.parametrize(
    ("verb", "name", "value"),
    [
        (verb, name, value)
        for name, verbs in GIVEN.items()
        for verb in verbs
        for value in WRONG
        if (name, value) not in RIGHT
    ],
)
def test_a_value_that_makes_no_sense_is_refused_and_never_run(
    droplet: Path, verb: str, name: str, value: str
) -> None:
    for told in (
        refusal(droplet, verb, f"{name}={value}"),
        refusal(droplet, verb, **{name: value}),
    ):
        assert told.startswith(f"{verb}: {name}="), told
        assert " is not " in told
        assert f". Next: make {verb}" in told
    assert not list(droplet.rglob(EXECUTED))


def test_ansible_takes_a_value_as_it_is(droplet: Path) -> None:
    """Whoever calls a playbook by hand has no `make` before it."""
    value = f"{{{{ lookup('pipe', 'touch {EXECUTED}') }}}}"
    (droplet / ".local/ports.json").write_text('{"registry": 1}')
    (droplet / "playbooks/show.yml").write_text(
        "- hosts: droplets\n  gather_facts: false\n"
        "  tasks: [{ansible.builtin.debug: {msg: 'it is {{ release_image }}'}}]\n"
    )
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "playbooks/show.yml"],
        cwd=droplet,
        env={**os.environ, "ANSIBLE_CONFIG": str(droplet / "ansible.cfg"), "IMAGE": value},
        capture_output=True,
        text=True,
    )
    assert f"it is {value}" in done.stdout, done.stdout + done.stderr
    assert not list(droplet.rglob(EXECUTED))


@pytest.mark.parametrize(
    "value",
    ["%", "", "l%", "*", "local production", "../x", "../inventory/local", *WRONG[1:-1]],
)
def test_an_unknown_environment(clone: Path, value: str) -> None:
    for told in (refusal(clone, "plan", f"ENV={value}"), refusal(clone, "plan", ENV=value)):
        assert f"unknown ENV '{value}': choose one of: local production" in told
    assert not (clone / EXECUTED).exists()


@pytest.mark.parametrize(
    ("verb", "following"),
    [
        ("up", "make up, or for the droplet of production: make provision ENV=production"),
        ("dev", "make dev"),
        ("test", "make test"),
        ("faults", "make faults"),
        ("panel-image", "make panel-image"),
        ("ssh", "ssh -p 22 cimt@203.0.113.5"),
        ("down", "make down"),
    ],
)
def test_verbs_of_the_local_droplet_refuse_production(
    clone: Path, verb: str, following: str
) -> None:
    told = refusal(clone, verb, "ENV=production", DROPLET_HOST="203.0.113.5")
    start = f"{verb}: it is about the local droplet, not about ENV=production. Next: "
    assert told.startswith(start + following)


# -- what setup needs -----------------------------------------------------------------


@pytest.mark.parametrize("value", ["missing", "a python", f"a`touch {EXECUTED}`", "a'b"])
def test_a_python_that_is_not_there(clone: Path, value: str) -> None:
    told = refusal(clone, "setup", f"PYTHON={value}")
    assert told.startswith("setup: there is no program ")
    assert told.endswith("Next: make PYTHON=python3.12 setup")
    assert not (clone / EXECUTED).exists()


def test_a_python_that_is_too_old(clone: Path) -> None:
    old = clone.parent / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" != --version ] || echo Python 3.9.2\n[ "$1" = --version ]\n')
    old.chmod(0o755)
    told = refusal(clone, "lint", f"PYTHON={old}")
    assert told == (
        "setup: Python 3.11 or newer is needed; found: Python 3.9.2. Next: make PYTHON=python3.12 lint"
    )


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, str]:
    """A machine whose package indexes do not answer, and whose caches are empty."""
    return {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": NOWHERE,
        "PIP_RETRIES": "0",
        "UV_NO_CONFIG": "1",
        "UV_DEFAULT_INDEX": NOWHERE,
        "UV_HTTP_RETRIES": "0",
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "npm_config_registry": NOWHERE,
        "npm_config_fetch_retries": "0",
        "npm_config_cache": str(tmp_path / "npm"),
    }


def no_index(tool: str, setting: str) -> str:
    return (
        f"setup: {tool} reaches no package index: the network, or the index that {tool} is set up for, is missing. "
        f"Next: try again with a network, or name an index that this machine reaches: make setup {setting}=https://…"
    )


def test_no_index_for_python(fresh: Path, offline: dict[str, str]) -> None:
    python = f"PYTHON={sys.executable}"
    assert one_line(make(fresh, "setup", python, **offline)) == no_index("pip", "PIP_INDEX_URL")
    # With uv in place it is uv that finds nobody.
    site = next((fresh / ".venv/lib").glob("python*/site-packages"))
    source = next((ROOT / ".venv/lib").glob("python*/site-packages"))
    for part in (source / "uv", *source.glob("uv-*")):
        shutil.copytree(part, site / part.name)
    shutil.copy(ROOT / ".venv/bin/uv", fresh / ".venv/bin/uv")
    assert one_line(make(fresh, "setup", python, **offline)) == no_index("uv", "UV_DEFAULT_INDEX")


def test_no_index_for_npm(fresh: Path, offline: dict[str, str]) -> None:
    (fresh / ".venv").mkdir()
    (fresh / ".venv/.installed").touch()
    told = one_line(make(fresh, "setup", **offline))
    assert told == no_index("npm", "npm_config_registry")
