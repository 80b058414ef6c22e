"""Every setting is said once, in services/settings.yaml, and every place agrees with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from plugins.filter import compose, settings
from services.api.cimt_api.settings import Settings
from tools.init import QUESTIONS, first_day
from tools.settings import __main__ as tool

ROOT = Path(__file__).parents[2]
DECLARED = tool.read()
SETTINGS: dict[str, dict[str, Any]] = DECLARED["settings"]
COMPOSE = (ROOT / "services/compose.yaml").read_text()
# What the inventory makes of settings and files for compose.yaml.
DERIVED = {"N8N_TAG", "ETL_TAG", "ETL_SOURCES", "DATABASE_POOL"}
DERIVED |= {"N8N_OWNER_PASSWORD_HASH", "N8N_PROXY_HOPS"}
FIELDS = {"what", "from", "make", "needed_by", "used_by", "secret", "app", "audit", "default"}
FIELDS |= {"example", "choices", "github", "init", "rotate"}
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def names_in(pattern: str, *paths: Path) -> set[str]:
    """Names that a pattern finds in files."""
    return {name for path in paths for name in re.findall(pattern, path.read_text())}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_says_what_it_is_and_who_takes_it(name: str) -> None:
    setting = SETTINGS[name]
    assert set(setting) <= FIELDS
    assert setting["what"]
    assert setting["from"]
    verbs = {*setting.get("needed_by", ()), *setting.get("used_by", ())}
    assert verbs <= set(DECLARED["verbs"])
    assert not (setting.get("secret") and settings.audited(setting)), "an audit sees no secret"
    assert not ("needed_by" in setting and "default" in setting), "a default is never missing"
    if settings.audited(setting) and "needed_by" in setting:
        assert "audit" in setting["needed_by"], "the audit compares it, so it needs it"


def test_init_fills_what_the_first_day_needs() -> None:
    """Of what cannot be left out, people bring only what somebody else gave them."""
    # Of droplet, database and the door's key.
    outputs = {"DROPLET_HOST", "DROPLET_KNOWN_HOSTS", "API_DATABASE_URL", "DROPLET_CI_KEYS"}
    accounts = {"SUPABASE_DB_URL", "SUPABASE_PUBLISHABLE_KEY", "OPENAI_API_KEY"}
    by_hand = {name for name in first_day(DECLARED) if not {"init", "make"} & set(SETTINGS[name])}
    assert by_hand == outputs | accounts
    for setting in SETTINGS.values():
        known = {*QUESTIONS, "owner", "environment"}
        assert set(re.findall(r"\{(\w+)\}", setting.get("init", ""))) <= known
        assert not ("init" in setting and setting.get("secret"))


def test_compose_names_the_settings_of_each_app_and_no_others() -> None:
    apps = yaml.safe_load(COMPOSE)["services"]
    named = {app: set(re.findall(r"\$\{(\w+)", yaml.safe_dump(body))) for app, body in apps.items()}
    declared = {
        app: {name for name, setting in SETTINGS.items() if app in setting.get("app", ())}
        for app in apps
    }
    assert {app: names - DERIVED for app, names in named.items()} == declared
    assert set().union(*(setting.get("app", ()) for setting in SETTINGS.values())) <= set(apps)


def test_the_api_knows_what_it_is_given_and_has_the_same_defaults() -> None:
    given = yaml.safe_load(COMPOSE)["services"]["api"]["environment"]
    fields = {name.upper(): field for name, field in Settings.model_fields.items()}
    own = {name: text for name, text in given.items() if not name.startswith("OTEL_")}
    assert set(own) <= set(fields), "OTEL_… alone are read by OpenTelemetry itself"
    for variable, text in own.items():
        if variable == "DATABASE_POOL":  # computed from the replicas
            continue
        if variable == "CORS_ORIGINS":  # of the web page, and others
            assert text == "${WEB_DOMAIN:+https://${WEB_DOMAIN},}${CORS_ORIGINS}"
            continue
        setting, field = SETTINGS[text.strip("${}")], fields[variable]
        assert field.is_required() == ("needed_by" in setting), variable
        hidden = setting.get("secret") or variable == "DATABASE_URL"  # which gets the password
        assert (field.annotation is SecretStr) == bool(hidden), variable
        if not field.is_required():
            assert str(field.default or "") == setting.get("default", ""), variable


def test_an_audit_shows_nothing_of_what_is_secret() -> None:
    known = settings.values(DECLARED, {name: name for name in SETTINGS})
    plain = settings.of_apps(DECLARED, known) | dict.fromkeys(DERIVED, "derived")
    names = {*settings.of_apps(DECLARED, known, secret=True), "N8N_OWNER_PASSWORD_HASH"}
    secret = {name: f"hidden {name}" for name in names}
    declared = compose.panel_apps(COMPOSE, plain, secret)
    assert "hidden" not in str(declared["apps"])
    hidden = {value for env in declared["secret_env"].values() for value in env.values()}
    assert hidden == set(secret.values()), "one that no app gets would not be hidden either"


def test_workflows_name_only_settings() -> None:
    named = names_in(r"\$\{\{[^}]*?\b(?:vars|secrets)\.(\w+)", *WORKFLOWS)
    assert named <= set(SETTINGS)
    unused = {
        name
        for name, setting in SETTINGS.items()
        if "needed_by" not in setting and "used_by" not in setting and name not in named
    }
    assert not unused


def test_inventories_and_credentials_name_only_settings() -> None:
    files = [path for path in (ROOT / "inventory").rglob("*.yml") if not path.is_symlink()]
    assert names_in(r"\bsetting\.(\w+)", *files) <= set(SETTINGS)
    assert names_in(r"\$\{(\w+)\}", ROOT / "services/n8n/credentials.yaml") <= set(SETTINGS)
    local = yaml.safe_load((ROOT / "inventory/local/group_vars/all/environment.yml").read_text())
    assert set(local["local_values"]) <= set(SETTINGS)
    required = settings.needed(DECLARED)["provision"]
    access = {"DROPLET_HOST", "API_DATABASE_PASSWORD"}  # the local ones need neither
    domains = {name for name in SETTINGS if name.endswith("_DOMAIN")}  # made of the names
    assert set(required) - access - domains <= set(local["local_values"])


@pytest.mark.parametrize("path", tool.texts(DECLARED), ids=lambda path: path.name)
def test_what_is_written_from_it_is_fresh(path: Path) -> None:
    assert path.read_text() == tool.texts(DECLARED)[path], "next: make settings"


def test_a_password_goes_into_an_address_encoded() -> None:
    url = "postgresql://cimt_api.x@pooler:5432/postgres?sslmode=require"
    assert settings.with_password(url, "p @/%") == url.replace("@pooler", ":p%20%40%2F%25@pooler")
    assert settings.with_password(url, "") == url
    assert settings.with_password("", "secret") == ""


def test_a_verb_takes_what_it_includes_takes() -> None:
    declared = {
        "verbs": {"small": [], "big": ["small"]},
        "settings": {"A": {"needed_by": ["small"]}, "B": {"used_by": ["big"]}, "C": {}},
    }
    assert settings.of_verb(declared, "small") == ["A"]
    assert settings.of_verb(declared, "big") == ["A", "B"]
    assert settings.of_verb(declared, "big", "needed_by") == ["A"]
    with pytest.raises(KeyError):
        settings.of_verb(declared, "other")


def test_the_catalogue_of_workflow_settings_is_filled() -> None:
    """Every channel that the inventory fills exists in the node Settings of its workflow."""
    common = yaml.safe_load((ROOT / "inventory/common.yml").read_text())
    for workflow, filled in common["n8n_workflows_settings"].items():
        file = json.loads((ROOT / f"n8n_workflows/{workflow}.json").read_text())
        node = next(node for node in file["nodes"] if node["name"] == "Settings")
        assert set(filled) <= set(json.loads(node["parameters"]["jsonOutput"]))
