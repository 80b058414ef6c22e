"""playbooks/deploy.yml itself, with a stand-in for its module: what is put back, and what one red command says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.declared import Declared

ROOT = Path(__file__).parents[2]
TASKS = yaml.safe_load((ROOT / "roles/release/tasks/main.yml").read_text())
NAMES = [*TASKS[0]["block"][0]["easypanel_release"], "entries"]
MODULE = f"""
import json, pathlib
from ansible.module_utils.basic import AnsibleModule

module = AnsibleModule(argument_spec={{name: {{"type": "raw"}} for name in {NAMES!r}}})
said = module.params
service, deploys = said["service"], said["action"] == "deploy"
world = json.loads(pathlib.Path("WORLD").read_text())
if said["action"] == "history":
    module.exit_json(entries=world["ledger"])
with pathlib.Path("CALLS").open("a") as stream:
    stream.write(json.dumps([said["action"], service, said["image"], said["reason"]]) + "\\n")
if service in world["locked_once"] and not pathlib.Path("TRIED").exists():
    pathlib.Path("TRIED").touch()
    module.fail_json(msg="the apps of this host are locked by somebody", locked=True)
if service in world["do_not_come_up" if deploys else "cannot_be_undone"]:
    module.fail_json(msg=f"{{said['action']}} of {{service}} failed; so it is.\\nreason: words", timeline=["failed"])
switched = service not in world["run_already"]
answer = {{"switched": switched, "image": said["image"]}}
answer = answer if deploys else {{"fate": f"{{service}}: the old one is back"}}
module.exit_json(changed=switched, timeline=["steps"], **answer)
"""
INVENTORY = {
    "required_settings": {},
    "release_contracts": {},
    "release_image": "image-of-{{ release_service }}",
    "release_who": "ops",
    "release_lock_wait": 60,
    "release_first_lacks": "{{ lookup('ansible.builtin.env', 'LACKS') if release_service == 'hello' else '' }}",
    "release_attestation": "none",
    "ansible_connection": "local",
    "ansible_become": False,
    "ansible_python_interpreter": sys.executable,
}
SMOKE = """
import json, os, pathlib

def test_greeting():
    assert os.environ["ENV"] == "rehearsal"
    assert "greeting" not in json.loads(pathlib.Path("WORLD").read_text())["findings"], "no greeting"
"""
CONFTEST = """
from tests.audit.conftest import pytest_addoption, pytest_configure, pytest_runtest_makereport, pytest_sessionfinish
"""
AUDIT = """
import json, pathlib, pytest

FINDINGS = json.loads(pathlib.Path("WORLD").read_text())["findings"]

def test_host():
    assert "host" not in FINDINGS, "a stray port"

@pytest.mark.parametrize("app", [{"name": "api"}, {"name": "hello"}], ids=lambda app: app["name"])
def test_app(app):
    assert app["name"] not in FINDINGS, "another limit"
"""


@dataclass
class World:
    """What happens to a deploy."""

    findings: list[str] = field(default_factory=list)
    do_not_come_up: list[str] = field(default_factory=list)
    locked_once: list[str] = field(default_factory=list)
    run_already: list[str] = field(default_factory=list)
    cannot_be_undone: list[str] = field(default_factory=list)
    ledger: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Ended:
    """How it ended: exit code, all that was said, and what the module was asked."""

    code: int
    said: str
    calls: list[list[str]]
    report: bool

    def undone(self) -> list[str]:
        return [service for action, service, *_ in self.calls if action == "undo"]


def deploy(home: Path, world: World, *apps: str) -> Ended:
    """Run the playbook on apps in a copy of what it needs."""
    for name in ("playbooks", "plugins", "roles/release", "tools"):
        shutil.copytree(ROOT / name, home / name)
    shutil.copy(ROOT / "ansible.cfg", home)
    (home / "services").mkdir()
    shutil.copy(ROOT / "services/settings.yaml", home / "services")
    files = {
        "roles/release/library/easypanel_release.py": MODULE,
        "tests/smoke/test_smoke.py": SMOKE,
        "tests/audit/conftest.py": CONFTEST,
        "tests/audit/test_audit.py": AUDIT,
    }
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(
            text.replace("WORLD", f"{home}/world")
            .replace("CALLS", f"{home}/calls")
            .replace("TRIED", f"{home}/tried")
        )
    (home / "world").write_text(json.dumps(vars(world)))
    (home / "state").mkdir()
    (home / "state/releases.jsonl").write_text(
        "".join(f"{json.dumps(one)}\n" for one in world.ledger)
    )
    variables: dict[str, Any] = {**INVENTORY, "release_services": list(apps)}
    variables |= {"release_state_directory": str(home / "state")}
    (home / "inventory/rehearsal").mkdir(parents=True)
    (home / "inventory/rehearsal/hosts.yml").write_text(
        yaml.safe_dump({"droplets": {"hosts": {"droplet": variables}}})
    )
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            *("-i", "inventory/rehearsal", "playbooks/deploy.yml"),
        ],
        cwd=home,
        env={**os.environ, "ANSIBLE_CONFIG": str(home / "ansible.cfg"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(done.stdout, done.stderr)
    calls = (home / "calls").read_text().splitlines() if (home / "calls").exists() else []
    report = home / ".local/reports/audit-rehearsal.xml"
    return Ended(
        done.returncode, done.stdout, [json.loads(line) for line in calls], report.exists()
    )


def test_a_good_release_stays_and_both_reports_are_shown(tmp_path: Path) -> None:
    done = deploy(tmp_path, World(locked_once=["hello"]), "api", "hello")
    assert done.code == 0
    services = [call[1] for call in done.calls]
    assert services == ["api", "hello", "hello"], "the second time nobody else held the lock"
    assert "FAILED - RETRYING" in done.said, "that it waits is said while it does"
    assert "1 passed" in done.said
    assert "3 passed" in done.said
    assert done.report


def test_a_page_that_no_mail_would_lead_into_is_not_opened_and_nothing_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACKS", "SMTP_HOST")
    failed = [{"service": "hello", "from": "", "result": "failed"}]
    done = deploy(tmp_path / "first", World(ledger=failed), "api", "hello")
    assert done.code != 0
    assert (
        "the first release of hello is refused, nothing was changed. Not set: SMTP_HOST"
        in done.said
    )
    assert done.calls == []
    live = [{"service": "hello", "from": "", "result": "live"}]
    assert deploy(tmp_path / "fix", World(ledger=live), "api", "hello").code == 0


def test_a_failing_smoke_test_puts_back_all_that_was_switched_the_last_first(
    tmp_path: Path,
) -> None:
    done = deploy(
        tmp_path, World(findings=["greeting"], cannot_be_undone=["hello"]), "api", "hello"
    )
    assert done.code != 0
    reason = "smoke: FAILED tests/smoke/test_smoke.py::test_greeting"
    assert [call[:3] for call in done.calls[2:]] == [
        ["undo", "hello", "image-of-hello"],
        ["undo", "api", "image-of-api"],
    ]
    assert all(call[3].startswith(reason) for call in done.calls[2:])
    verdict = done.said.partition("TASK [The release was not good]")[2]
    for words in ("no greeting", reason, "api: the old one is back", "Next: mend it"):
        assert words in verdict
    assert "hello could not be put back: undo of hello failed" in verdict
    assert not done.report, "nothing is audited that does not answer"


@pytest.mark.parametrize(
    ("service", "asked"), [("", ["api", "web"]), ("api", ["api"]), ("web", ["web"])]
)
def test_a_release_of_one_app_is_not_taken_back_for_another(service: str, asked: list[str]) -> None:
    """The page that is down, or was never released, must not keep a mend of the api from going live."""
    domains = {"API_DOMAIN": "api.example.com", "WEB_DOMAIN": "app.example.com"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--collect-only",
            "tests/smoke",
        ],
        cwd=ROOT,
        env=os.environ | domains | {"ENV": "production", "SERVICE": service},
        capture_output=True,
        text=True,
    )
    assert re.findall(r"version_and_revision\[(\w+)\]", done.stdout) == asked, done.stdout


def test_a_finding_about_a_released_app_puts_it_back(tmp_path: Path) -> None:
    done = deploy(tmp_path, World(findings=["host", "api"]), "api")
    assert done.code != 0
    assert done.undone() == ["api"]
    assert done.calls[-1][3].startswith("audit: FAILED tests/audit/test_audit.py::test_app[api]")
    assert "another limit" in done.said.partition("TASK [The release was not good]")[2]


def test_any_other_finding_is_red_and_leaves_the_release(tmp_path: Path) -> None:
    done = deploy(tmp_path, World(findings=["host", "hello"]), "api")
    assert done.code != 0
    assert done.undone() == []
    verdict = done.said.partition("TASK [The release is good, something else is not]")[2]
    for words in (
        "nothing of it is about api",
        "Next: mend that",
        "::test_host",
        "::test_app[hello]",
    ):
        assert words in verdict


def test_one_that_does_not_come_up_takes_those_before_it_along(tmp_path: Path) -> None:
    done = deploy(tmp_path, World(do_not_come_up=["hello"]), "api", "hello")
    assert done.code != 0
    assert done.undone() == ["api"]
    assert done.calls[-1][3] == "deploy of hello failed; so it is."
    verdict = done.said.partition("TASK [The release was not good]")[2]
    assert "deploy of hello failed; so it is." in verdict
    assert "api: the old one is back" in verdict
    assert "1 passed" not in done.said, "nobody asks what did not come up"


def test_what_ran_already_is_asked_but_not_put_back(tmp_path: Path) -> None:
    done = deploy(tmp_path, World(findings=["greeting"], run_already=["api"]), "api")
    assert done.code != 0
    assert done.undone() == []
    assert "no greeting" in done.said.partition("TASK [The release was not good]")[2]


def test_production_asks_for_the_mail_server_of_the_page_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for service, host, lacks in [("web", "", True), ("web", "smtp.x", False), ("api", "", False)]:
        given = {"SERVICE": service, "SMTP_HOST": host, "SMTP_FROM": "no-reply@example.com"}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        told = Declared("production")["release_first_lacks"].strip()
        assert told.startswith("SMTP_HOST and SMTP_FROM: without a mail server") is lacks
        assert bool(told) is lacks
