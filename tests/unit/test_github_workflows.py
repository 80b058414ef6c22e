"""The workflows of .github: each `make VERB` gets what the verb needs, and an audit reads what a release wrote.

Nothing is known here of how the workflows write it down: a step's environment is computed as GitHub does it, its
script is run with a stand-in for make, and what make would have got is given to Ansible's own loading.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.filter import settings
from tools.host import door

ROOT = Path(__file__).parents[2]
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted((ROOT / ".github/workflows").glob("*.yml"))
}
DECLARED_SETTINGS = yaml.safe_load((ROOT / "services/settings.yaml").read_text())
REQUIRED = settings.needed(DECLARED_SETTINGS)
# What verbs need that run no playbook; a playbook says it itself (preflight_for).
NEEDED = {
    "build": {"IMAGE_REPOSITORY"},
    "migrate": {"SUPABASE_DB_URL", "API_DATABASE_PASSWORD"},
    "migrate-plan": {"SUPABASE_DB_URL"},
    "smoke": {"API_DOMAIN"},
    "audit": set(REQUIRED["audit"]),
    "check": set(),
    "setup": set(),
    "pull-request-plan": set(),
    "ranges": set(),
    "sbom": set(),
    "vulnerabilities": set(),
    "checklist": {"DROPLET_HOST", "API_DOMAIN", "SUPABASE_DB_URL"},
    "auth": set(REQUIRED["auth-plan"]),
    "doctor": {"DROPLET_HOST", "IMAGE_REPOSITORY", "API_DATABASE_PASSWORD"},
}
# Verbs that write what an audit compares, and the audit.
COMPARED = {"services", "provision", "plan", "deploy", "audit"}
MAKE = """#!/bin/sh
call=$(mktemp "$CALLS/XXXXXX")
printf '%s\\0' "$@" >"$call.arguments"
env -0 >"$call.environment"
"""
# One process for all environments: Ansible takes two seconds to be imported, and reads a variable when it renders.
DECLARED = """
import json, os, sys
from tools.declared import Declared, files_of
system = {"distribution": "Debian", "distribution_version": "13", "distribution_major_version": "13",
          "distribution_release": "trixie"}
answers = []
for environment in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(environment)
    declared = Declared("production")
    declared.set_system(system)
    answers.append({
        "host": declared.hostspec(),
        "apps": declared.apps(),
        "sets": {name: files_of(found) for name, found in declared.sets().items()},
        "packages": declared.packages(),
    })
json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True)
class Call:
    """One call of make by a step."""

    where: str
    verb: str
    environment: dict[str, str]


def filled(text: Any, inputs: dict[str, str], *, optional: bool) -> str:
    """A value of a workflow with its expressions evaluated, as far as ours use them; anything else is an error.

    Settings have a value; with `optional` false only those that some verb requires.
    """

    def value(match: re.Match[str]) -> str:
        for alternative in match[1].split("||"):
            condition = re.match(r"\s*inputs\.(\w+) == '([^']*)' *&&", alternative)
            if condition and inputs[condition[1]] != condition[2]:
                continue
            part = alternative.rpartition("&&")[2].strip(" ()")
            context, _, name = part.strip().partition(".")
            if literal := re.fullmatch(r"'([^']*)'", part.strip()):
                return literal[1]
            if context in ("vars", "secrets"):
                if optional or any(
                    name in names for names in [*REQUIRED.values(), *NEEDED.values()]
                ):
                    setting = DECLARED_SETTINGS["settings"].get(name, {})
                    if "choices" in setting:
                        return str(setting["choices"][-1])
                    if setting.get("default", "").isdigit():
                        return f"{setting['default']}0"
                    return f"{name.lower().replace('_', '-')}.example.com"
            elif context == "inputs":
                if inputs[name]:
                    return inputs[name]
            elif context in ("needs", "github", "job", "runner") or part.startswith("toJSON("):
                return f"a-{name}"
            else:
                raise AssertionError(f"an expression that this test cannot evaluate: {match[0]}")
        return ""

    return re.sub(r"\$\{\{ *(.*?) *\}\}", value, str(text))


def choices(workflow: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Inputs of a run: one for each choice of a verb."""
    # YAML 1.1 reads the key `on` as true.
    dispatch = (workflow[True].get("workflow_dispatch") or {}).get("inputs", {})
    given = {name: str(one.get("default", "")).lower() for name, one in dispatch.items()}
    for verb in dispatch.get("verb", {}).get("options", [""]):
        yield given | {"verb": verb}


def runs(job: dict[str, Any], verb: str) -> bool:
    """Whether the job is for that verb, as its condition says."""
    of = re.search(r"(!?)contains\(fromJSON\('(.*?)'\), inputs\.verb\)", str(job.get("if", "")))
    return not of or (verb in json.loads(of[2])) is not bool(of[1])


def calls(folder: Path, *, optional: bool) -> list[Call]:
    """Every call of make that the workflows can make."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "make").write_text(MAKE)
    (programs / "make").chmod(0o755)
    found: dict[tuple[str, str], Call] = {}
    for name, workflow in WORKFLOWS.items():
        for inputs in choices(workflow):
            for job in workflow["jobs"].values():
                if not runs(job, inputs["verb"]):
                    continue
                for number, step in enumerate(job["steps"]):
                    if not re.search(r"(^|&& )make ", step.get("run", ""), re.MULTILINE):
                        continue
                    kept = folder / f"{name}-{inputs['verb']}-{len(found)}-{number}"
                    kept.mkdir(exist_ok=True)
                    environment = {"GITHUB_REPOSITORY": "Example/CIMT", "GITHUB_BASE_REF": "main"}
                    for level in (workflow, job, step):
                        for key, text in level.get("env", {}).items():
                            environment[key] = filled(text, inputs, optional=optional)
                    given = environment | {
                        "PATH": f"{programs}:/usr/bin:/bin",
                        "CALLS": str(kept),
                    }
                    script = filled(step["run"], inputs, optional=optional)
                    # Programs that such a step runs after make are not here: its exit code says nothing.
                    subprocess.run(
                        ["bash", "-e", "-c", script], env=given, cwd=kept, capture_output=True
                    )
                    for path in kept.glob("*.arguments"):
                        text = path.with_suffix(".environment").read_text().rstrip("\0")
                        got = dict(line.split("=", 1) for line in text.split("\0"))
                        arguments = path.read_text().rstrip("\0").split("\0")
                        got |= dict(one.split("=", 1) for one in arguments if "=" in one)
                        del got["CALLS"], got["PATH"]
                        call = Call(f"{name}.yml, step '{step['name']}'", "", got)
                        for verb in (one for one in arguments if "=" not in one and one[0] != "-"):
                            found[call.where, verb] = replace(call, verb=verb)
    return list(found.values())


@pytest.fixture(scope="module", params=[True, False], ids=["all set", "required set"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    return calls(tmp_path_factory.mktemp("calls"), optional=request.param)


def needed(verb: str) -> set[str]:
    """Settings without which a verb stops."""
    if verb in NEEDED:
        return NEEDED[verb]
    # Nightly plans what a merge changes; the host is planned where there is its key.
    playbook = ROOT / "playbooks" / f"{'services' if verb == 'plan' else verb}.yml"
    return set(REQUIRED[yaml.safe_load(playbook.read_text())[0]["vars"]["preflight_for"]])


def test_every_verb_of_every_workflow_is_seen(made: list[Call]) -> None:
    seen = {call.verb for call in made}
    playbooks = "services deploy rollback history plan provision backup backups"
    assert set(NEEDED) | set(playbooks.split()) == seen


def test_every_verb_gets_what_it_requires(made: list[Call]) -> None:
    missing = {
        f"{call.where}: make {call.verb}": sorted(names)
        for call in made
        if (names := {name for name in needed(call.verb) if not call.environment.get(name)})
    }
    assert missing == {}


def test_sign_in_is_changed_by_operate_alone(made: list[Call]) -> None:
    """Deploy never, and Nightly gets no password of mails."""
    calls = {call.where.partition(".")[0]: call for call in made if call.verb == "auth"}
    assert set(calls) == {"nightly", "operate"}
    assert "CONFIRM" in calls["operate"].environment
    assert calls["operate"].environment["SMTP_PASSWORD"]
    assert not {"CONFIRM", "SMTP_PASSWORD"} & set(calls["nightly"].environment)


def test_each_verb_of_operate_has_one_job_and_one_key() -> None:
    """The door's account is the role's; what rules the host comes by the other environment."""
    accounts = {
        (job["environment"]["name"], job["env"].get("DROPLET_DOOR"))
        for workflow in WORKFLOWS.values()
        for job in workflow["jobs"].values()
        if "environment" in job
    }
    assert accounts == {("production", door.account()), ("production-host", None)}
    operate = WORKFLOWS["operate"]
    for inputs in choices(operate):
        assert sum(runs(job, inputs["verb"]) for job in operate["jobs"].values()) == 1, inputs


def test_a_merge_that_changes_what_releases_stops_before_its_migrations(tmp_path: Path) -> None:
    """The script that lets a job in, with a host of another revision, then of this one."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    (tmp_path / "ssh").write_text(f"#!/bin/sh\ngrep -q hello && cat {tmp_path}/door 2>/dev/null\n")
    (tmp_path / "ssh").chmod(0o755)
    given = {
        "GITHUB_ACTIONS": "true",
        "HOME": str(tmp_path),
        "DROPLET_HOST": "203.0.113.7",
        "DROPLET_KNOWN_HOSTS": f"203.0.113.7 {public}",
        "DROPLET_DOOR": door.account(),
        "DROPLET_CI_KEY": key.read_text(),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    for there, said in (
        (None, "does not open for DROPLET_CI_KEY"),
        ("0" * 64, "changes the program that releases on the droplet, so nothing was done"),
        (door.program(), ""),
    ):
        if there:
            (tmp_path / "door").write_text(json.dumps({"door": there}))
        script = [ROOT / ".github/droplet-access.sh", "--same-program"]
        done = subprocess.run(script, cwd=ROOT, env=given, capture_output=True, text=True)
        assert (done.returncode, said in done.stdout) == (1 if said else 0, True), done
    (release,) = (job for job in WORKFLOWS["deploy"]["jobs"].values() if "environment" in job)
    steps = [step.get("run", "") for step in release["steps"]]
    assert steps.index(".github/droplet-access.sh --same-program") < steps.index("make migrate")


def test_a_rollback_by_operate_names_one_of_the_apps_that_are_released(made: list[Call]) -> None:
    apps = yaml.safe_load((ROOT / "services/compose.yaml").read_text())["services"]
    asked = WORKFLOWS["operate"][True]["workflow_dispatch"]["inputs"]["service"]
    assert asked["options"] == [name for name, app in apps.items() if "build" in app]
    named = {
        call.verb: call.environment.get("SERVICE", "")
        for call in made
        if call.where.startswith("operate")
    }
    assert named.pop("rollback") == asked["default"]
    assert set(named.values()) == {""}


def test_who_asks_what_is_newer_has_the_whole_history() -> None:
    """`make plan` and what changes apps ask `git rev-list`; of a shallow checkout they want more."""
    asking = re.compile(r"make \"?(\$\{VERB\}|plan|provision|services|deploy|rollback)\b")
    shallow = []
    for name, workflow in WORKFLOWS.items():
        for job, one in workflow["jobs"].items():
            if any(asking.search(step.get("run", "")) for step in one["steps"]):
                (checkout,) = (
                    step for step in one["steps"] if "actions/checkout" in step.get("uses", "")
                )
                if checkout["with"].get("fetch-depth") != 0:
                    shallow.append(f"{name}.{job}")
    assert shallow == []


def test_an_audit_declares_what_the_release_wrote(made: list[Call]) -> None:
    compared = [call for call in made if call.verb in COMPARED]
    tools = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        [sys.executable, "-c", DECLARED],
        input=json.dumps([tools | call.environment for call in compared]),
        env=tools | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, *others = json.loads(done.stdout)
    assert {app["name"] for app in first["apps"]} >= {"api", "n8n"}
    for one in (first, *others):  # who comes in is another matter
        one["host"] = one["host"].rpartition("@")[2]
    for call, declared in zip(compared[1:], others, strict=True):
        assert declared == first, f"{call.where} and {compared[0].where} differ"


def test_a_report_is_kept_only_where_there_is_one() -> None:
    """An audit that cannot begin leaves no report: an upload that fails for it would hide why."""
    uploads = [
        step
        for workflow in WORKFLOWS.values()
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "upload-artifact@" in step.get("uses", "") and step["with"]["name"] != "sbom"
    ]
    assert len(uploads) == 2
    for step in uploads:
        assert f"always() && hashFiles('{step['with']['path']}') != ''" in step["if"]
