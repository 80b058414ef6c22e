"""`make github` against the stand-in, over HTTP: what a repository is set to afterwards, and who learns a secret."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from local.github.__main__ import application
from plugins.filter.settings import of_verb
from testbed.served import served
from tools import github_settings
from tools.github_settings import wanted
from tools.init import first_day
from tools.settings.__main__ import read

TOKEN = "github_pat_a-token-that-nobody-may-see"
DECLARED = read()
RIGHTS = {"metadata": "read", "actions": "read", "administration": "write"}
RIGHTS |= {"environments": "write", "variables": "write"}
GIVEN = {
    name: f"value of {name}, secret-{name.lower()}" if one.get("secret") else f"value-of-{name}"
    for name, one in DECLARED["settings"].items()
    if name in first_day(DECLARED)
} | {
    "DROPLET_SSH_KEY": "-----BEGIN KEY-----\nAAAA secret-key\n-----END KEY-----\n",
    "LEAVE_OUT": "n8n",
}
Done = subprocess.CompletedProcess[str]


class Repository:
    """A repository of the stand-in, and the verb."""

    def __init__(self, state: Path, url: str) -> None:
        self.state, self.url = state, url
        self.permit(RIGHTS)

    def permit(self, permissions: dict[str, str]) -> None:
        (self.state / "tokens.json").write_text(json.dumps({TOKEN: {"permissions": permissions}}))

    def github(self, values: dict[str, str] = GIVEN, **given: str) -> Done:
        kept = {"PATH": os.environ["PATH"], "HOME": str(self.state), "ENV": "production"}
        kept |= {"GITHUB_API_URL": self.url, "GITHUB_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
        kept |= {"GITHUB_REPOSITORY": "example/cimt", **values, **given}
        out, error = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, kept, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(error),
        ):
            code = github_settings.main()
        return subprocess.CompletedProcess([], code, out.getvalue(), error.getvalue())

    def changed(self, values: dict[str, str] = GIVEN, **given: str) -> str:
        """What a confirmed run says; it succeeded, and the next plan has nothing to change."""
        done = self.github(values, CONFIRM="yes", **given)
        assert done.returncode == 0, done.stderr
        again = self.github(values)
        assert "all is as it should be" in again.stdout, again.stdout + again.stderr
        return done.stdout

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        place = f"{self.url}/repos/example/cimt/{path}"
        return httpx.request(method, place, headers=headers, **options)

    def files(self) -> dict[str, str]:
        """All that is kept, by path."""
        there = self.state / "settings"
        found = {str(one.relative_to(there)): one for one in there.rglob("*") if one.is_file()}
        return {name: one.read_text() for name, one in found.items() if name != "key"}


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Repository]:
    with served(application(tmp_path, tmp_path)) as port:
        yield Repository(tmp_path, f"http://127.0.0.1:{port}/api")


def refused(done: Done, *words: str, code: int = 1) -> None:
    assert done.returncode == code, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Next: " in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_a_plan_changes_nothing_and_shows_no_secret(there: Repository) -> None:
    done = there.github()
    assert done.returncode == 0, done.stderr
    assert there.files() == {}
    lines = done.stdout.splitlines()
    assert "+ variable API_DOMAIN = value-of-API_DOMAIN" in lines
    assert "+ variable of the repository LEAVE_OUT = n8n" in lines
    assert "+ secret INGEST_KEY" in lines
    assert lines[-1].endswith("Next: make github ENV=production CONFIRM=yes")
    assert not re.search(r"secret-|Bearer|github_pat", done.stdout + done.stderr)


def test_from_nothing_to_all_that_the_workflows_take(there: Repository) -> None:
    said = there.changed()
    files = there.files()
    secret = {name for name in GIVEN if DECLARED["settings"][name].get("secret")}
    for name, value in GIVEN.items():
        if name == "IMAGE_REPOSITORY":  # the workflow says it
            continue
        kind = "secrets" if name in secret else "variables"
        for host in (False, True):
            at = "production-host" if host else "production"
            where = "repository" if name == "LEAVE_OUT" else at
            taken = any(name in names for names in wanted(DECLARED, {}, host).names.values())
            assert files.get(f"{where}/{kind}/{name}") == (value if taken else None), (name, at)
    assert "production/secrets/SUPABASE_SECRET_KEY" not in files
    # Closed before anything secret goes in.
    lines = said.splitlines()
    first = next(index for index, one in enumerate(lines) if one.startswith("+ secret"))
    assert "the branch main deploys into it" in "\n".join(lines[:first])
    kept = json.loads(files["environments.json"])
    assert kept["production-host"]["sent"]["reviewers"] == [{"type": "User", "id": 7}]
    assert "reviewers" not in kept["production"]["sent"], "a merge waits for nobody"
    environment = there.ask("GET", "environments/production").json()
    assert environment["deployment_branch_policy"]["custom_branch_policies"] is True
    (policy,) = there.ask("GET", "environments/production/deployment-branch-policies").json()[
        "branch_policies"
    ]
    assert (policy["name"], policy["type"]) == ("main", "branch")
    (ruleset,) = json.loads(files["rulesets.json"])
    rules = {one["type"]: one.get("parameters") for one in ruleset["rules"]}
    assert {"pull_request", "deletion", "non_fast_forward"} < set(rules)
    checks = rules["required_status_checks"]["required_status_checks"]
    assert checks == [{"context": "Gate", "integration_id": 15368}]


def test_every_name_of_the_workflows_is_one_of_them() -> None:
    """None is forgotten: a job would run without it."""
    for host, verbs in (
        (False, ("door", "migrate", "services", "deploy")),
        (True, ("access", "provision")),
    ):
        names = set().union(*wanted(DECLARED, {}, host).names.values())
        for verb in verbs:
            apart = {"IMAGE_REPOSITORY"}
            assert set(of_verb(DECLARED, verb)) - apart <= names, verb
    ours, hosts = (wanted(DECLARED, {}, host).names["secret"] for host in (False, True))
    assert {"DROPLET_SSH_KEY", "EASYPANEL_ADMIN_PASSWORD", "BACKUP_PASSWORD"} <= hosts - ours
    assert "SUPABASE_DB_URL" in ours - hosts


def test_what_differs_is_shown_and_only_that_is_changed(there: Repository) -> None:
    there.changed()
    before = there.files()
    path = "environments/production/variables"
    there.ask("PATCH", f"{path}/N8N_DOMAIN", json={"value": "other.example.org"})
    there.ask("POST", path, json={"name": "CORS_ORIGINS", "value": "https://old.example.org"})
    there.ask("POST", path, json={"name": "OF_SOMEBODY", "value": "1"})
    for branch in ("*", "release/*"):
        there.ask(
            "POST", "environments/production/deployment-branch-policies", json={"name": branch}
        )
    said = there.changed()
    expected = [
        "- environment production: * deploys into it no more",
        "- environment production: release/* deploys into it no more",
        "~ variable N8N_DOMAIN: other.example.org → value-of-N8N_DOMAIN",
        "- variable CORS_ORIGINS (was https://old.example.org)",
        "? variable OF_SOMEBODY: no workflow takes it from here; it stays",
    ]
    assert said.splitlines()[1:-1] == expected
    after = there.files()
    assert after.pop("production/variables/OF_SOMEBODY") == "1"
    after["environments.json"] = before["environments.json"]  # the ids of its branches
    assert after == before


def test_a_secret_is_written_again_only_when_it_is_named(there: Repository) -> None:
    there.changed()
    new = GIVEN | {"INGEST_KEY": "another-key", "ETL_KEY": "another-key-too"}
    assert "all is as it should be" in there.github(new).stdout
    said = there.changed(new, ROTATE="INGEST_KEY")
    assert re.search(r"^~ secret INGEST_KEY, there since 20", said, re.MULTILINE)
    assert there.files()["production/secrets/INGEST_KEY"] == "another-key"
    assert there.files()["production/secrets/ETL_KEY"] == GIVEN["ETL_KEY"]
    refused(there.github(ROTATE="API_DOMAIN"), "no secret of a workflow", code=2)
    refused(there.github(ROTATE="BACKUP_KEY_ID"), "no new value here", code=2)


def test_an_old_secret_goes_when_it_is_named_and_has_no_value_any_more(there: Repository) -> None:
    kept = "production/secrets/INGEST_KEY_OLD"
    there.changed(GIVEN | {"INGEST_KEY_OLD": "the-old-key"})
    assert there.files()[kept] == "the-old-key"
    assert "? secret INGEST_KEY_OLD" in there.github(GIVEN).stdout
    assert "- secret INGEST_KEY_OLD" in there.changed(GIVEN, ROTATE="INGEST_KEY_OLD")
    assert kept not in there.files()
    # Where it is gone already, the same again has nothing to do.
    done = there.github(GIVEN, ROTATE="INGEST_KEY_OLD")
    assert "all is as it should be" in done.stdout, done.stderr


def test_a_token_for_sign_in_is_given_only_when_it_is_named(there: Repository) -> None:
    given = GIVEN | {"SUPABASE_ACCESS_TOKEN": "a-token-of-supabase", "SMTP_PASSWORD": "of-mails"}
    there.changed(given)
    kept = "production/secrets/SUPABASE_ACCESS_TOKEN"
    assert kept not in there.files()
    said = there.changed(given, ROTATE="SUPABASE_ACCESS_TOKEN")
    assert "+ secret SUPABASE_ACCESS_TOKEN" in said
    assert there.files()[kept] == "a-token-of-supabase"
    assert "production/secrets/SMTP_PASSWORD" not in there.files()
    assert "all is as it should be" in there.github(given).stdout


def test_a_stricter_rule_and_reviewers_of_a_team_stay(there: Repository) -> None:
    there.changed()
    (ruleset,) = json.loads(there.files()["rulesets.json"])
    number = ruleset.pop("id")
    body = {name: ruleset[name] for name in ("name", "target", "conditions", "bypass_actors")}
    rules = [
        one for one in ruleset["rules"] if one["type"] not in ("deletion", "required_status_checks")
    ]
    next(one for one in rules if one["type"] == "pull_request")["parameters"] |= {
        "required_approving_review_count": 2
    }
    checks = {
        "required_status_checks": [{"context": "Ours"}],
        "strict_required_status_checks_policy": True,
    }
    rules += [
        {"type": "required_linear_history"},
        {"type": "required_status_checks", "parameters": checks},
    ]
    put = there.ask(
        "PUT", f"rulesets/{number}", json={**body, "enforcement": "disabled", "rules": rules}
    )
    assert put.status_code == 200, put.text
    reviewers = [{"type": "User", "id": 7}]
    there.ask("PUT", "environments/production", json={"wait_timer": 5, "reviewers": reviewers})
    there.changed()
    (ruleset,) = json.loads(there.files()["rulesets.json"])
    assert ruleset["enforcement"] == "active"
    rules = {one["type"]: one.get("parameters") or {} for one in ruleset["rules"]}
    assert {"deletion", "required_linear_history"} < set(rules)
    assert rules["pull_request"]["required_approving_review_count"] == 2
    assert rules["required_status_checks"]["strict_required_status_checks_policy"] is True
    contexts = [one["context"] for one in rules["required_status_checks"]["required_status_checks"]]
    assert contexts == ["Ours", "Gate"]
    sent = json.loads(there.files()["environments.json"])["production"]["sent"]
    assert (sent["wait_timer"], sent["reviewers"]) == (5, reviewers)


def test_a_run_that_was_cut_is_finished_by_the_next(there: Repository) -> None:
    """By a token that may do only a part of it."""
    there.permit(RIGHTS | {"administration": "read"})
    refused(there.github(CONFIRM="yes"), "403", "Administration")
    there.permit(RIGHTS | {"environments": "read"})
    refused(there.github(CONFIRM="yes"), "403")  # the environment is made, no value is in it
    assert set(there.files()) == {"environments.json"}
    there.permit(RIGHTS)
    there.changed()


@pytest.mark.parametrize("plan", ["free", "team"])
def test_a_private_repository(there: Repository, plan: str) -> None:
    (there.state / "settings").mkdir()
    account = there.state / "settings/repository.json"
    account.write_text(json.dumps({"private": True, "plan": plan}))
    if plan == "free":
        refused(
            there.github(CONFIRM="yes"), "Upgrade to GitHub", "Next: make the repository public"
        )
    else:
        assert "whoever may start Operate deploys into it" in there.changed()


def test_what_is_missing_here_is_named_before_github_is_asked(there: Repository) -> None:
    less = {
        name: value for name, value in GIVEN.items() if name not in ("API_DOMAIN", "INGEST_KEY")
    }
    refused(
        there.github(less, GITHUB_API_URL="http://127.0.0.1:9"),
        "not set: API_DOMAIN, INGEST_KEY",
        code=2,
    )
    refused(there.github(GITHUB_TOKEN="", GH_TOKEN=""), "whose token? Next: gh auth login", code=2)
    refused(there.github(GITHUB_TOKEN="ghp_wrong"), "401")
    refused(there.github(GIVEN | {"CORS_ORIGINS": "x" * 50000}, CONFIRM="yes"), "422")


BAD = {
    "a variable without a value": ("POST", "environments/production/variables", {"name": "A"}),
    "a name that GitHub keeps": ("POST", "actions/variables", {"name": "GITHUB_A", "value": ""}),
    "a secret that is not sealed": (
        *("PUT", "environments/production/secrets/A"),
        {"encrypted_value": "YWJj", "key_id": "1"},
    ),
    "a ruleset without enforcement": ("POST", "rulesets", {"name": "a"}),
    "half a rule": (
        *("POST", "rulesets"),
        {
            "name": "a",
            "enforcement": "active",
            "rules": [{"type": "pull_request", "parameters": {}}],
        },
    ),
    "half a policy": (
        *("PUT", "environments/production"),
        {"deployment_branch_policy": {"custom_branch_policies": True}},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_the_stand_in_refuses_what_github_refuses(there: Repository, case: str) -> None:
    there.ask("PUT", "environments/production", json={})
    method, path, body = BAD[case]
    before = there.files()
    assert there.ask(method, path, json=body).status_code == 422
    assert there.files() == before


def test_the_stand_in_has_pages(there: Repository) -> None:
    there.ask("PUT", "environments/production", json={})
    path = "environments/production/variables"
    for number in range(35):
        assert there.ask("POST", path, json={"name": f"A{number}", "value": "1"}).status_code == 201
    assert there.ask("POST", path, json={"name": "A1", "value": "1"}).status_code == 409
    assert len(there.ask("GET", path).json()["variables"]) == 10
    assert len(there.ask("GET", f"{path}?per_page=100").json()["variables"]) == 30
    assert there.github().stdout.count("? variable A") == 35
