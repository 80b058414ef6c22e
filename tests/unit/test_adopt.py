"""What a panel has becomes a Compose file with secrets as references, and the plan on it is empty."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from plugins.filter.compose import panel_apps
from plugins.module_utils.app_changes import changes, desired
from testbed.simulated_droplet import Droplet, declared
from tools.adopt import Adopted


def test_the_plan_on_what_was_adopted_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    droplet = Droplet(tmp_path, monkeypatch)
    image = f"registry.example/team/api@sha256:{'1' * 64}"
    secret = {
        "OPENAI_API_KEY": "sk-1",
        "DATABASE_URL": "postgresql://u:hush@db/x",
        "OPAQUE": "a1" * 16,
    }
    api = declared(
        image=image,
        released=False,
        env={"TIME": "12:30", "ON": "on", "PRICE": "$5 ${NOT}", "EMPTY": "", "N": "010"},
        mounts=[
            {"type": "volume", "name": "data", "mountPath": "/data"},
            {"type": "bind", "hostPath": "/srv", "mountPath": "/srv"},
        ],
        command="serve",
        cap_drop=["ALL"],
        resources={
            "memoryReservation": 64,
            "memoryLimit": 384,
            "cpuReservation": 0,
            "cpuLimit": 0.5,
        },
    )
    other = declared("other", image="docker.io/library/x:1@sha256:" + "2" * 64, released=False)
    other |= {"ours": False, "env": {"OPENAI_API_KEY": "sk-2"}, "zero_downtime": False}
    login = {"registry_username": "me", "registry_password": "pull"}
    made = droplet.plan(api, other, secret=secret, check=False, **login)
    assert len(made["releases"]) == 2
    droplet.host.apps["api"]["source"] = {"image": image, "username": "me", "password": "pull"}
    droplet.host.apps["other"]["source"] = {"image": other["image"]}

    states = droplet.plan(adopt=True)["states"]
    adopted = Adopted(states)
    text = yaml.safe_dump(adopted.document(), sort_keys=False)
    for value in ("sk-1", "sk-2", "hush", "a1a1", "pull"):
        assert value not in text
    assert set(adopted.values) == {
        "IMAGE_REPOSITORY",
        "API_OPENAI_API_KEY",
        "OTHER_OPENAI_API_KEY",
        "DATABASE_URL",
        "OPAQUE",
    }
    assert adopted.unsaid == []
    plain = {"IMAGE_REPOSITORY": adopted.values.pop("IMAGE_REPOSITORY")}
    found = panel_apps(text, plain, adopted.values)
    for app in found["apps"]:
        wanted = desired(app, found["secret_env"].get(app["name"], {}), ("me", "pull"))
        assert changes(wanted, states[app["name"]]) == []
        assert set(states[app["name"]]) == {*wanted.values, "init", "sysctls", "groups"}


def test_what_a_file_cannot_say_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    droplet = Droplet(tmp_path, monkeypatch)
    file = {"type": "file", "content": "hush", "mountPath": "/etc/x"}
    droplet.plan(declared(mounts=[file]), check=False)
    droplet.host.domains.append({**droplet.host.domains[0], "id": "again"})
    adopted = Adopted(droplet.plan(adopt=True)["states"])
    assert "hush" not in str(adopted.document())
    assert adopted.unsaid == [
        "api: the file that is mounted at /etc/x",
        "api: the domain api.example a second time",
    ]
