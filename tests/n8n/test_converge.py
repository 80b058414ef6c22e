"""The role n8n_workflows on the real n8n. The tests of this module build on each other, in their order."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.waiting import free_port
from plugins.module_utils import n8n_files
from testbed.n8n.server import KEY as SERVER_KEY
from testbed.n8n.server import PASSWORD, N8n
from tests.n8n.conftest import FILES as PATHS
from tests.n8n.conftest import SECRETS, Role

FILES = {workflow["id"]: workflow for path in PATHS for workflow in [json.loads(path.read_text())]}
HOOK = "release-notice"  # has a webhook


def running(n8n: N8n) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in n8n.api("GET", "/workflows?limit=100")["data"]}


def edit(n8n: N8n, identity: str, **values: Any) -> None:
    """Save a workflow as the editor does: as a draft, not published."""
    now = n8n.session().get(f"/rest/workflows/{identity}").json()["data"]
    saved = n8n.session().patch(
        f"/rest/workflows/{identity}", json={"versionId": now["versionId"], **values}
    )
    assert saved.status_code == 200, saved.text


def test_check_mode_of_a_first_run_makes_nothing(n8n: N8n, role: Role) -> None:
    answer = role(check=True)
    assert answer["changed"]
    assert running(n8n) == {}
    assert not role.state.exists()


def test_the_first_run_makes_all_and_publishes_it(n8n: N8n, role: Role) -> None:
    answer = role.play()
    assert answer["changed"], answer["msg"]
    found = running(n8n)
    assert sorted(found) == sorted(FILES), "the ids are those of the files"
    for identity, workflow in FILES.items():
        assert n8n_files.text(found[identity]) == n8n_files.text(workflow)
        assert found[identity]["active"]
        assert found[identity]["activeVersionId"] == found[identity]["versionId"]
    hook = next(node for node in FILES[HOOK]["nodes"] if node["type"].endswith(".webhook"))
    path = hook["parameters"]["path"]
    assert n8n.webhook(path, {}).status_code == 403, "it is there, and wants its key"


def test_no_secret_is_shown_and_the_key_is_for_root_only(role: Role) -> None:
    answer = role.play("-vvv")
    for secret in (*SECRETS.values(), PASSWORD, (role.state / "n8n.api-key").read_text().strip()):
        assert secret not in answer["output"]
    for name in ("n8n.api-key", "n8n.credentials.json"):
        assert stat.S_IMODE((role.state / name).stat().st_mode) == 0o600
        assert not any(secret in (role.state / name).read_text() for secret in SECRETS.values())


@pytest.mark.parametrize("options", [(), ("--check",)], ids=["run", "check"])
def test_the_second_run_changes_nothing(role: Role, options: tuple[str, ...]) -> None:
    answer = role.play(*options)
    assert not answer["changed"], answer["changes"]
    assert answer["unmanaged"] == []


def test_an_edit_in_the_editor_is_shown_and_put_right(n8n: N8n, role: Role) -> None:
    name = FILES[HOOK]["name"]
    nodes = [{**node, "notes": "edited by hand"} for node in FILES[HOOK]["nodes"]]
    edit(n8n, HOOK, nodes=nodes)
    checked = role(check=True)
    assert f"workflow {name}: differs from its file" in checked["changes"]
    assert '"notes": "edited by hand"' in checked["diff"][0]["before"]
    assert '"notes": "edited by hand"' not in checked["diff"][0]["after"]
    assert running(n8n)[HOOK]["nodes"][0]["notes"] == "edited by hand", "check mode wrote nothing"

    role()
    found = running(n8n)[HOOK]
    assert n8n_files.text(found) == n8n_files.text(FILES[HOOK])
    assert found["active"]
    assert found["activeVersionId"] == found["versionId"]


def test_what_a_workflow_remembers_survives_a_new_version_of_it(n8n: N8n, role: Role) -> None:
    """Alerts keeps there what is down: forgotten, every alarm would be told again after a merge."""
    now = running(n8n)["alerts"]
    body = {key: now[key] for key in ("name", "nodes", "connections", "settings")}
    memory = {"global": {"checks": {"api": {"failing": True}}}}
    n8n.api("PUT", "/workflows/alerts", {**body, "name": "Renamed", "staticData": memory})
    assert role()["changes"] == ["workflow Alerts: differs from its file"]
    found = n8n.api("GET", "/workflows/alerts")
    assert found["name"] == "Alerts"
    assert found["staticData"] == memory


def test_unpublished_and_archived_workflows_come_back(n8n: N8n, role: Role) -> None:
    others = [identity for identity in FILES if identity != HOOK]
    n8n.api("POST", f"/workflows/{HOOK}/unpublish")
    n8n.api("POST", f"/workflows/{others[0]}/archive")
    changes = role(check=True)["changes"]
    assert f"workflow {FILES[HOOK]['name']}: is not published" in changes
    assert f"workflow {FILES[others[0]]['name']}: was archived in n8n" in changes
    role()
    assert all(one["active"] and not one["isArchived"] for one in running(n8n).values())


def test_what_was_made_in_the_editor_is_left_alone_and_reported(n8n: N8n, role: Role) -> None:
    body = {"name": "By hand", "nodes": [], "connections": {}, "settings": {}}
    made = n8n.api("POST", "/workflows", body)
    answer = role()
    assert not answer["changed"]
    assert answer["unmanaged"] == [f"workflow By hand ({made['id']})"]
    n8n.api("DELETE", f"/workflows/{made['id']}")


def test_only_the_credential_that_changed_is_written(n8n: N8n, role: Role) -> None:
    dates = {one["id"]: one["updatedAt"] for one in n8n.api("GET", "/credentials")["data"]}
    role.parameters["secrets"] = {**SECRETS, "ETL_KEY": "rotated-" + "0" * 40}
    answer = role()
    assert answer["changes"] == ["credential CIMT etl: secret or name changed"]
    assert "rotated-" not in answer["output"]
    now = {one["id"]: one["updatedAt"] for one in n8n.api("GET", "/credentials")["data"]}
    assert [one for one in now if now[one] != dates[one]] == ["cimt-etl"]

    body = {"data": {"name": "Authorization", "value": "Bearer by-hand"}}
    n8n.api("PATCH", "/credentials/cimt-etl", body)
    assert role()["changes"] == ["credential CIMT etl: was edited in n8n"]
    assert not role()["changed"]


def test_a_lost_api_key_is_made_again_and_the_old_one_ends(n8n: N8n, role: Role) -> None:
    path = role.state / "n8n.api-key"
    old = path.read_text().strip()
    path.unlink()
    assert role()["changes"] == ["an API key for this role"]
    answer = httpx.get(f"{n8n.url}/api/v1/workflows", headers={"X-N8N-API-KEY": old}, timeout=60)
    assert answer.status_code == 401


def test_settings_of_the_environment_reach_the_workflow(n8n: N8n, role: Role) -> None:
    identity, known = next(
        (one, found) for one in FILES if (found := n8n_files.settings_of(FILES[one]))
    )
    key = sorted(known)[0]
    answer = role(check=True, settings={identity: {"no_such_setting": 1}})
    assert answer["failed"]
    assert "it has no setting no_such_setting; known: " in answer["msg"]
    answer = role(check=True, settings={"no-such-workflow": {}})
    assert "settings for workflows that are in no file: no-such-workflow" in answer["msg"]
    answer = role(check=True, settings={identity: {key: "for this environment"}})
    assert answer["changes"] == [f"workflow {FILES[identity]['name']}: differs from its file"]
    assert "for this environment" in answer["diff"][0]["after"]


def test_wrong_owner_missing_secret_and_wrong_key_are_one_clear_line(role: Role, n8n: N8n) -> None:
    state = str(role.home / "other-state")
    answer = role(state_directory=state, owner_password="wrong-password")
    assert "is not accepted. Next: make services" in answer["msg"]
    answer = role(secrets={"N8N_WEBHOOK_KEY": "x"})
    assert answer["msg"] == "credentials of n8n: no value for ETL_KEY"
    volume = str(n8n.folder / ".n8n")
    right, wrong = SERVER_KEY, "another-key"
    assert not role(state="key", volume=volume, encryption_key=right).get("failed")
    answer = role.play(volume=volume, encryption_key=wrong)
    assert "is not the key that n8n's credentials" in answer["msg"]
    assert "nothing was changed, n8n runs on" in answer["msg"]
    assert wrong not in answer["output"]


def test_an_n8n_that_is_not_there(role: Role) -> None:
    answer = role(check=True, port=free_port(), state_directory=str(role.home / "fresh"))
    assert answer["changed"], "a plan before the first provision shows what would be made"
    assert f"n8n workflow {FILES[HOOK]['name']}" in [one["after_header"] for one in answer["diff"]]
    answer = role(check=True, service="cimt_n8n", state_directory=str(role.home / "fresh"))
    assert answer["changed"], "nor is Docker needed for a plan"
    answer = role(port=free_port(), timeout=1, state_directory=str(role.home / "fresh"))
    assert "not ready after 1 s" in answer["msg"]


def test_a_run_that_was_killed_half_way_is_finished_by_the_next(n8n: N8n, role: Role) -> None:
    """As after a kill between making and publishing: workflows there, unpublished, without tags."""
    for identity in FILES:
        n8n.api("POST", f"/workflows/{identity}/unpublish")
        n8n.api("PUT", f"/workflows/{identity}/tags", [])
    Path(role.state, "n8n.credentials.json").write_text("{ cut sho")
    assert role()["changed"]
    assert all(one["active"] for one in running(n8n).values())
    assert n8n_files.text(running(n8n)[HOOK]) == n8n_files.text(FILES[HOOK])
    assert not role()["changed"]
