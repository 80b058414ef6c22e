"""n8n workflows as files: the linter's rules, the normal form, settings, and what n8n-pull writes."""

# ruff: noqa: E501 - a table of cases is read line by line

from __future__ import annotations

import copy
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local.images.n8n import version
from plugins.module_utils import n8n_files
from tools.workflows import catalogue, pull
from tools.workflows.__main__ import main
from tools.workflows.lint import lint
from tools.workflows.repository import HERE, WORKFLOWS, Repository, declaration_findings

REPOSITORY = Repository.read()
HEADER_AUTH = {"httpHeaderAuth": {"id": "cimt-webhook", "name": "CIMT webhook"}}


def node(name: str, kind: str, version: float = 1, **parameters: Any) -> dict[str, Any]:
    return {
        "id": f"id of {name}",
        "name": name,
        "type": f"n8n-nodes-base.{kind}",
        "typeVersion": version,
        "position": [0, 0],
        "parameters": parameters,
    }


def to(*names: str) -> dict[str, Any]:
    return {"main": [[{"node": name, "type": "main", "index": 0} for name in names]]}


HANDLER = {
    "id": "handler",
    "name": "Handler",
    "nodes": [node("Failed", "errorTrigger")],
    "connections": {},
    "settings": {"executionOrder": "v1"},
    "tags": [],
}
GOOD = {
    "id": "good",
    "name": "Good",
    "nodes": [
        {**node("Call", "webhook", 2.1, path="x", authentication="headerAuth"), "webhookId": "w", "credentials": HEADER_AUTH},
        node("Hourly", "scheduleTrigger", 1.4, rule={"interval": [{"field": "cronExpression", "expression": "5 * * * *"}]}),
        node("Settings", "set", 3.5, mode="raw", jsonOutput='{"api": "http://localhost"}'),
        node("Ask", "httpRequest", 4.5, url="={{ $('Settings').item.json.api }}/x"),
    ],
    "connections": {"Call": to("Settings"), "Hourly": to("Settings"), "Settings": to("Ask")},
    "settings": {"executionOrder": "v1", "errorWorkflow": "handler"},
    "tags": ["cimt"],
}  # fmt: skip


def findings(folder: Path, *workflows: dict[str, Any]) -> list[str]:
    """What the linter says of these and the error handler, each in a file called after its id."""
    paths = []
    for workflow in (*workflows, HANDLER):
        path = folder / f"{workflow.get('id') or 'nameless'}.json"
        path.write_text(n8n_files.text(workflow), encoding="utf-8")
        paths.append(path)
    return [str(found) for found in lint(paths, REPOSITORY)]


def test_a_good_workflow_has_no_finding(tmp_path: Path) -> None:
    assert findings(tmp_path, GOOD) == []


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set (or, with ..., delete) one place of a workflow; a node is called by its name."""

    def apply(workflow: dict[str, Any]) -> None:
        *way, last = path.split("/")
        place: Any = workflow
        for step in way:
            steps = {one["name"]: one for one in place} if isinstance(place, list) else place
            place = steps[step]
        if value is ...:
            del place[last]
        else:
            place[last] = value

    return apply


CASES = {
    "no id": (change("id", ""), "its id must be 3 to 36 letters"),
    "two nodes of one name": (change("nodes/Hourly/name", "Call"), "2 nodes have this name"),
    "node id twice": (change("nodes/Hourly/id", "id of Call"), "its id is missing or used twice"),
    "wire to nowhere": (change("connections/Settings", to("Gone")), "goes to 'Gone', which is no node"),
    "wire from nowhere": (change("connections/Gone", to("Ask")), "starts at 'Gone', which is no node"),
    "wire from no output": (change("connections/Ask", {"main": [[], [{"node": "Settings", "type": "main", "index": 0}]]}), 'node "Ask": it has no output 2'),
    "wire to no input": (change("connections/Ask", to("Call")), 'node "Call": it has no input 1'),
    "address twice": (lambda workflow: workflow["nodes"].append({**node("Again", "webhook", 2.1, path="/x/", authentication="headerAuth"), "webhookId": "v", "credentials": HEADER_AUTH}), "GET /webhook/x is also another node's"),
    "loose node": (change("connections/Settings", to()), 'node "Ask": nothing leads to it'),
    "expression to nowhere": (change("nodes/Ask/parameters/url", "={{ $('Set').item.json.a }}"), "means the node 'Set'"),
    "unknown type": (change("nodes/Ask/type", "n8n-nodes-other.thing"), "has no node type 'n8n-nodes-other.thing'"),
    "unknown version": (change("nodes/Ask/typeVersion", 9), "typeVersion 9 of n8n-nodes-base.httpRequest is not in n8n"),
    "removed in 3": (change("nodes/Ask/type", "n8n-nodes-base.function"), "removed in n8n 3: use Code"),
    "switched off": (change("nodes/Ask/type", "n8n-nodes-base.executeCommand"), "is switched off in n8n 2"),
    "cron": (change("nodes/Hourly/parameters/rule", {"interval": [{"field": "cronExpression", "expression": "61 * * * *"}]}), "cron expression '61 * * * *': Bad minute"),
    "open webhook": (change("nodes/Call/parameters/authentication", "none"), "anybody may call it"),
    "no webhook id": (change("nodes/Call/webhookId", ...), "webhookId is missing"),
    "no credential": (change("nodes/Call/credentials", ...), "needs a credential of type httpHeaderAuth"),
    "unknown credential": (change("nodes/Call/credentials", {"httpHeaderAuth": {"id": "mine", "name": "Mine"}}), "credential 'Mine' (id mine) is not declared"),
    "credential's name": (change("nodes/Call/credentials", {"httpHeaderAuth": {"id": "cimt-webhook", "name": "Mine"}}), "is called 'CIMT webhook'"),
    "key in an address": (change("nodes/Ask/parameters/url", "https://ann:hunter2hunter2@example.com"), "a password in an address"),
    "key by its look": (change("nodes/Settings/parameters/jsonOutput", json.dumps({"x": "sk-" + "a" * 20})), "a key of OpenAI"),
    "key by its name": (change("nodes/Ask/parameters/headerParameters", {"parameters": [{"name": "X-Api-Key", "value": "hunter2"}]}), "the value of 'X-Api-Key' stands in the file"),
    "environment": (change("nodes/Ask/parameters/url", "={{ $env.API }}"), "reads $env, which is blocked"),
    "settings": (change("nodes/Settings/parameters/jsonOutput", "={{ {} }}"), "it must hold a plain JSON object"),
    "execution order": (change("settings/executionOrder", "v0"), 'settings.executionOrder must be "v1"'),
    "no error workflow": (change("settings/errorWorkflow", ...), "nobody hears when it fails"),
    "unknown error workflow": (change("settings/errorWorkflow", "other"), "'other' is no workflow here with an Error Trigger"),
    "no trigger": (change("nodes", [node("Alone", "noOp")]), "it has no trigger"),
    "unknown sub-workflow": (lambda workflow: workflow["nodes"].append(node("Sub", "executeWorkflow", 1.4, workflowId={"value": "gone"})), "calls the workflow 'gone'"),
}  # fmt: skip


@pytest.mark.parametrize(("apply", "message"), CASES.values(), ids=CASES.keys())
def test_what_is_wrong_is_named(
    apply: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    workflow = copy.deepcopy(GOOD)
    apply(workflow)
    assert any(message in finding for finding in findings(tmp_path, workflow))


def test_data_of_a_run_and_of_an_instance_is_named(tmp_path: Path) -> None:
    path = tmp_path / "good.json"
    raw = {**GOOD, "pinData": {"Ask": []}, "staticData": {"last": 1}, "shared": [{"role": "owner"}]}
    raw["pinData"] = {"Ask": [{"json": {}}]}
    path.write_text(json.dumps(raw))
    (tmp_path / "handler.json").write_text(n8n_files.text(HANDLER))
    said = "\n".join(map(str, lint(sorted(tmp_path.glob("*.json")), REPOSITORY)))
    for part in (
        "carries pinData",
        "carries staticData",
        "carries its owner",
        "not in the normal form",
    ):
        assert part in said
    path.write_text(n8n_files.text(raw))
    assert lint(sorted(tmp_path.glob("*.json")), REPOSITORY) == []


def test_an_id_cannot_change_unseen_nor_be_used_twice(tmp_path: Path) -> None:
    for name in ("good", "other"):
        (tmp_path / f"{name}.json").write_text(n8n_files.text(GOOD))
    said = "\n".join(map(str, lint(sorted(tmp_path.glob("*.json")), REPOSITORY)))
    assert "other.json: its id is 'good': call the file good.json" in said
    assert "its id 'good' is also that of another file" in said
    assert "its name 'Good' is also that of another file" in said


def test_an_error_workflow_does_not_go_round_in_circles(tmp_path: Path) -> None:
    called = {**GOOD, "id": "called", "name": "Called", "nodes": [node("In", "executeWorkflowTrigger", 1.2)], "connections": {}}  # fmt: skip
    handler = copy.deepcopy(HANDLER)
    handler["nodes"].append(node("Tell", "executeWorkflow", 1.4, workflowId={"value": "called"}))
    handler["connections"] = {"Failed": to("Tell")}
    for workflow in (called, handler):
        (tmp_path / f"{workflow['id']}.json").write_text(n8n_files.text(workflow))
    said = "\n".join(map(str, lint(sorted(tmp_path.glob("*.json")), REPOSITORY)))
    assert "called.json: an error workflow calls it" in said
    (tmp_path / "called.json").write_text(
        n8n_files.text({**called, "settings": {"executionOrder": "v1"}})
    )
    assert lint(sorted(tmp_path.glob("*.json")), REPOSITORY) == []


def test_a_file_that_is_no_workflow_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"id": ')
    (tmp_path / "list.json").write_text("[]")
    said = [str(one) for one in lint(sorted(tmp_path.glob("*.json")), REPOSITORY)]
    assert "list.json: not a workflow" in said[0]
    assert "torn.json: not JSON" in said[1]


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all that a value holds."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value if isinstance(value, list) else ())
    )
    return [one for key, below in inner for one in ((*way, key), *places(below, (*way, key)))]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=3,
)


@settings(max_examples=150, deadline=None)
@given(way=st.sampled_from(places(GOOD)), value=ANYTHING)
def test_whatever_stands_in_a_file_has_findings_and_no_crash(
    way: tuple[Any, ...], value: Any
) -> None:
    workflow: Any = copy.deepcopy(GOOD)
    place = workflow
    for step in way[:-1]:
        place = place[step]
    place[way[-1]] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.json"
        path.write_text(json.dumps(workflow), encoding="utf-8")
        lint([path], REPOSITORY)


def test_the_shipped_workflows_and_declarations_are_clean() -> None:
    paths = sorted(WORKFLOWS.glob("*.json"))
    assert {path.stem for path in paths} >= {
        "seed-etl",
        "alerts",
        "error-handler",
        "release-notice",
    }
    assert [str(one) for one in [*lint(paths, REPOSITORY), *declaration_findings()]] == []


def test_a_catalogue_of_another_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_bytes((HERE / "Dockerfile").read_bytes())
    (tmp_path / "catalogue.json").write_text('{"version": "2.0.0", "nodes": {}}')
    assert "made by n8n 2.0.0" in str(declaration_findings(tmp_path)[0])


def test_the_digest_of_the_update_bot_is_no_other_version(tmp_path: Path) -> None:
    for path in (HERE / "catalogue.json", HERE / "tag.sh"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = (HERE / "Dockerfile").read_text().splitlines()
    at = next(place for place, line in enumerate(lines) if line.startswith("ARG BASE_IMAGE="))
    lines[at] = f"{lines[at].partition('@')[0]}@sha256:{'0123456789abcdef' * 4}"
    (tmp_path / "Dockerfile").write_text("\n".join(lines) + "\n")
    assert declaration_findings(tmp_path) == []
    tag = subprocess.run(["sh", tmp_path / "tag.sh"], capture_output=True, text=True, check=True)
    assert tag.stdout.startswith(f"{version()}-")


def test_the_catalogue_joins_the_generations_of_a_node() -> None:
    needed = {"name": "key", "required": True}
    described = [
        {"name": "a", "version": [2, 2.1], "group": ["trigger"], "inputs": [], "credentials": [needed], "webhooks": [{}]},
        {"name": "a", "version": 1, "group": ["trigger"], "inputs": [], "credentials": [{**needed, "displayOptions": {}}, needed]},
        {"name": "b", "version": 1, "group": ["output"], "outputs": ["main", {"type": "main"}, "ai_tool"], "credentials": [{**needed, "displayOptions": {"show": {}}}]},
    ]  # fmt: skip
    assert catalogue.compact(described) == {
        "a": {"versions": [1, 2, 2.1], "trigger": True, "webhook": True, "needs": ["key"]},
        "b": {"versions": [1], "outputs": 2},
    }


# -- settings, order, credentials -----------------------------------------------------


def test_settings_of_an_environment_replace_those_of_the_file() -> None:
    rendered = n8n_files.render(GOOD, {"api": "https://api.example.com"})
    assert n8n_files.settings_of(rendered) == {"api": "https://api.example.com"}
    assert n8n_files.settings_of(GOOD) == {"api": "http://localhost"}
    with pytest.raises(n8n_files.FilesError, match="no setting apy; known: api"):
        n8n_files.render(GOOD, {"apy": ""})


def test_what_is_called_is_published_first() -> None:
    caller = {**GOOD, "id": "a", "settings": {"errorWorkflow": "z"}}
    circle = {**HANDLER, "id": "z", "nodes": [node("Sub", "executeWorkflow", workflowId="m")]}
    called = {**HANDLER, "id": "m"}
    assert [one["id"] for one in n8n_files.publish_order([caller, circle, called])] == [
        "m",
        "z",
        "a",
    ]
    around = {**HANDLER, "id": "m", "nodes": [node("Sub", "executeWorkflow", workflowId="z")]}
    assert len(n8n_files.publish_order([caller, circle, around])) == 3


def test_all_missing_secrets_are_named_at_once() -> None:
    declared = list(REPOSITORY.credentials.values())
    with pytest.raises(n8n_files.FilesError, match="no value for ETL_KEY, N8N_WEBHOOK_KEY"):
        n8n_files.credentials(declared, {})
    made = n8n_files.credentials(declared, {"ETL_KEY": "e", "N8N_WEBHOOK_KEY": "w"})
    values = {one["id"]: one["data"] for one in made}
    assert values["cimt-etl"] == {"name": "Authorization", "value": "Bearer e"}
    assert len(made) == len(declared)
    assert all(len(identifier) <= 16 for identifier in values), "n8n's API takes no longer ids"


def test_an_update_takes_away_settings_that_the_file_does_not_have() -> None:
    running = {
        "settings": {"executionOrder": "v1", "timezone": "Europe/Lisbon", "callerPolicy": "any"}
    }
    assert n8n_files.settings_for_update(GOOD, running) == {
        **GOOD["settings"],
        "timezone": "DEFAULT",
        "callerPolicy": "workflowsFromSameOwner",
    }


# -- pull -----------------------------------------------------------------------------


def running_form(workflow: dict[str, Any]) -> dict[str, Any]:
    """As n8n's API gives it back: with its own data, nodes in another order, defaults written out."""
    found = copy.deepcopy(n8n_files.render(workflow, {"api": "https://api.example.com"}))
    found["nodes"] = [{**one, "disabled": False} for one in reversed(found["nodes"])]
    found["settings"] |= {"callerPolicy": "workflowsFromSameOwner", "availableInMCP": False}
    found["tags"] = [{"id": "1", "name": "cimt", "createdAt": "2026-01-01"}]
    return {
        **found,
        "active": True,
        "versionId": "v",
        "createdAt": "2026-01-01",
        "shared": [],
        "triggerCount": 2,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.json").write_text(n8n_files.text(GOOD))
    return tmp_path


def test_a_workflow_as_n8n_returns_it_is_no_drift(folder: Path) -> None:
    assert pull.pull([running_form(GOOD)], [], folder, REPOSITORY, check=True) == ([], [])


def test_an_edit_comes_back_without_the_settings_of_the_environment(folder: Path) -> None:
    edited = running_form(GOOD)
    edited["nodes"][0]["parameters"]["url"] = "https://www.example.com/new"
    before = (folder / "good.json").read_text()
    differs, wrong = pull.pull([edited], [], folder, REPOSITORY, check=True)
    assert "good.json: edited in n8n" in differs[0]
    assert '+        "url": "https://www.example.com/new"' in differs
    assert (folder / "good.json").read_text() == before
    pull.pull([edited], [], folder, REPOSITORY, check=False)
    after = json.loads((folder / "good.json").read_text())
    assert n8n_files.settings_of(after) == {"api": "http://localhost"}
    assert not wrong
    assert pull.pull([edited], [], folder, REPOSITORY, check=True) == ([], [])


def test_a_secret_typed_into_the_editor_is_not_written(folder: Path) -> None:
    edited = running_form(GOOD)
    edited["nodes"][0]["parameters"]["url"] = "https://ann:hunter2hunter2@example.com"
    before = (folder / "good.json").read_text()
    differs, wrong = pull.pull([edited], [], folder, REPOSITORY, check=False)
    assert not differs
    assert 'not written: node "Ask"' in wrong[0]
    assert "hunter2" not in "".join(wrong)
    assert (folder / "good.json").read_text() == before


def test_what_only_n8n_has_gets_a_file_when_asked_for(folder: Path) -> None:
    made = {**running_form(GOOD), "id": "aB3dE5gH7jK9mN1p", "name": "Made in the editor"}
    differs, _ = pull.pull([running_form(GOOD), made], [], folder, REPOSITORY, check=False)
    assert "only in n8n. To give it a file: make n8n-pull ARGS=aB3dE5gH7jK9mN1p" in differs[0]
    pull.pull([made], [made["id"]], folder, REPOSITORY, check=False)
    assert json.loads((folder / f"{made['id']}.json").read_text())["name"] == "Made in the editor"
    assert pull.pull([], ["gone"], folder, REPOSITORY, check=False)[1] == [
        "gone: n8n has no such workflow"
    ]


def test_pull_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("N8N_URL", raising=False)
    assert main(["pull"]) == 2
    assert "set N8N_URL" in capsys.readouterr().err


def test_fix_brings_a_file_into_the_normal_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "handler.json").write_text(json.dumps({**HANDLER, "staticData": {"a": 1}}))
    assert main(["lint", str(tmp_path / "handler.json")]) == 1
    assert main(["lint", "--fix", str(tmp_path / "handler.json")]) == 0
    assert "brought into the normal form" in capsys.readouterr().out
