"""The plan of the panel's apps: what differs, what is shown of it, what is done at once, what only a release does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testbed.simulated_droplet import REGISTRY, Droplet, declared, image

TAG = f"{REGISTRY}/n8n:2.1"
DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def droplet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Droplet:
    return Droplet(tmp_path, monkeypatch)


def n8n(tag: str = TAG) -> dict[str, Any]:
    """An app whose image is named by a tag."""
    volume = {"type": "volume", "name": "n8n", "mountPath": "/data"}
    return declared("n8n", image=tag, released=False, zero_downtime=False, mounts=[volume])


def test_from_nothing_to_a_release_and_a_second_look_changes_nothing(droplet: Droplet) -> None:
    host = droplet.host
    host.projects, host.tags = [], {TAG: DIGEST}
    apps, secret = [declared(), n8n()], {"KEY": "hush"}
    planned = droplet.plan(*apps, secret=secret)
    assert "+ cimt.project: cimt" in planned["changes"]
    assert "+ api.env.KEY: (hidden)" in planned["changes"]
    assert f"+ n8n.image: {TAG}@{DIGEST}" in planned["changes"]
    assert planned["diff"]["prepared"].splitlines()[-1].startswith("Plan: ")
    assert (host.projects, host.apps) == ([], {}), "a plan writes nothing"
    made = droplet.plan(*apps, secret=secret, check=False)
    assert made["changed"]
    # Of an app that never ran all is there but the image; what has an image is for a release.
    assert host.env() == {"LOG_LEVEL": "info", "KEY": "hush"}
    assert host.apps["n8n"]["mounts"] == [{"type": "volume", "name": "n8n", "mountPath": "/data"}]
    assert made["releases"] == [
        {"service": "n8n", "image": f"{TAG}@{DIGEST}", "revision": "", "ours": True, "drop": []}
    ]
    droplet("deploy", "a", app=declared(), secret_env=secret)
    host.write("updateAppSourceImage", serviceName="n8n", image=f"{TAG}@{DIGEST}")
    host.tags = {}
    for check in (True, False):
        again = droplet.plan(*apps, secret=secret, check=check)
        assert (again["changed"], again["plan"], again["releases"]) == (False, [], [])
    newer = droplet.plan(declared(), n8n(f"{REGISTRY}/n8n:2.2"), secret=secret)
    assert "the registry does not say the digest" in newer["notes"][0], "and the plan goes on"


def test_what_differs_is_shown_field_by_field_and_a_secret_never(droplet: Droplet) -> None:
    host = droplet.host
    limits = {"memoryReservation": 0, "memoryLimit": 384, "cpuReservation": 0, "cpuLimit": 1.0}
    files = [{"type": "file", "content": "password: hush\n", "mountPath": "/etc/app.yaml"}]
    ports = [{"published": 9000, "target": 90, "protocol": "udp"}]
    first = declared(resources=limits, mounts=files, ports=ports, command="serve")
    droplet.plan(first, secret={"KEY": "hush"}, check=False)
    droplet("deploy", "a", app=first, secret_env={"KEY": "hush"})
    host.extra = {"of": "a newer panel"}
    lines = [*host.apps["api"]["env"].splitlines(), "TYPED=hush-hush"]
    host.apps["api"]["env"] = "\n".join(reversed(lines))  # another order is no change
    limits = {**limits, "memoryLimit": 512}
    files = [{**files[0], "content": "password: other\n"}]
    domain = {**declared()["domains"][0], "port": 9000}
    second = declared(
        resources=limits,
        mounts=files,
        ports=[{**ports[0], "target": 91}],
        domains=[domain],
        command=None,
        env={"LOG_LEVEL": "info", "NEW": ""},
    )
    told = droplet.plan(second, secret={"KEY": "other"})
    assert told["changes"] == [
        '+ api.env.NEW: ""',
        "~ api.env.KEY: (changed)",
        "~ api.command: serve -> null",
        "~ api.resources.memoryLimit: 384 -> 512",
        "~ api.mounts./etc/app.yaml: (changed)",
        "~ api.ports.9000/udp: 90 -> 91",
        "~ api.domains.api.example/: https to http port 8000 -> https to http port 9000",
        "- api.env.TYPED: (hidden)",
    ]
    by_path = {change["path"]: change for change in told["plan"]}
    assert by_path["resources.memoryLimit"] == {
        "app": "api",
        "path": "resources.memoryLimit",
        "kind": "change",
        "old": 384,
        "new": 512,
        "origin": "declared",
    }
    assert by_path["env.KEY"]["secret"]
    # What somebody typed into the panel is told from what the files say anew.
    assert by_path["env.TYPED"]["origin"] == "by hand"
    assert {one["origin"] for one in told["plan"]} == {"by hand", "declared"}
    text = json.dumps(told)
    assert "hush" not in text
    assert "password" not in text
    assert told["diff"]["prepared"].endswith("Plan: 1 to add, 6 to change, 1 to remove.\n")
    droplet("deploy", app=second, secret_env={"KEY": "other"}, revision="")
    assert droplet.plan(second, secret={"KEY": "other"})["plan"] == []
    assert host.apps["api"]["ports"] == [{"published": 9000, "target": 91, "protocol": "udp"}]
    assert host.apps["api"]["mounts"] == files


def test_by_whom_is_told_where_the_panel_knows(droplet: Droplet) -> None:
    droplet.plan(declared(), check=False)
    droplet("deploy", "a", app=declared())
    droplet.host.apps["api"]["env"] = "LOG_LEVEL=debug"
    hand = {"id": "x", "type": "env", "createdAt": "2027", "userEmail": "ana@example.com"}
    droplet.host.answers = {"listActions": [[hand, {**hand, "isApiAction": True}]]}
    told = droplet.plan(declared())
    assert told["changes"] == ["~ api.env.LOG_LEVEL: debug -> info"]
    assert told["plan"][0]["origin"] == "by hand"
    since = droplet.ledger()[-1]["time"]
    assert told["notes"] == [
        f"api: changed by hand since the release of {since}; the panel says: env at 2027 by ana@example.com"
    ]


def test_settings_wait_for_their_own_image(droplet: Droplet) -> None:
    droplet.plan(declared(), check=False)
    droplet("deploy", "a", app=declared(), secret_env={"KEY": "first"})
    new = declared(env={"LOG_LEVEL": "debug"})
    builds = {"api": {"image": image("b"), "revision": "b" * 40}}
    told = droplet.plan(new, builds=builds, check=False, secret={"KEY": "first"})
    assert told["releases"] == []
    assert "wait for the release of their own image" in told["notes"][0]
    droplet("deploy", "b", app=declared(), secret_env={"KEY": "first"})
    told = droplet.plan(new, builds=builds, check=False, secret={"KEY": "first"})
    (release,) = told["releases"]
    assert (release["image"], release["revision"]) == ("", "b" * 40)
    # After a rollback the settings of that release stay with it.
    droplet("rollback", app=new, secret_env={"KEY": "first"})
    secret = {"KEY": "rotated"}
    told = droplet.plan(new, builds=builds, check=False, secret=secret)
    assert "rolled back by ops" in told["notes"][0]
    assert [one["service"] for one in told["releases"]] == ["api"], "but for its secrets"
    for _ in range(2):
        droplet("deploy", app=new, secret_env=secret, revision="")
        assert droplet.host.runs() == (image("a"), {"LOG_LEVEL": "info", **secret})
        assert droplet.plan(new, builds=builds, secret=secret)["plan"] == []
    droplet("deploy", "b", app=new, secret_env=secret)
    assert droplet.host.runs() == (image("b"), {"LOG_LEVEL": "debug", **secret})


def test_what_the_file_does_not_name_goes_only_by_name(droplet: Droplet) -> None:
    host = droplet.host
    data = [{"type": "volume", "name": name, "mountPath": f"/{name}"} for name in ("one", "two")]
    old = declared(mounts=data, ports=[{"published": 1, "target": 2, "protocol": "tcp"}])
    droplet.plan(old, check=False)
    droplet("deploy", "a", app=old)
    host.write("createAppService", serviceName="stray")
    twice = {**host.domains[0], "id": "again"}
    host.domains.append(twice)
    new = declared(domains=[{**declared()["domains"][0], "host": "new.example"}])
    spare = [
        "api.mounts./one",
        "api.mounts./two",
        "api.ports.1/tcp",
        "api.domains.api.example/",
        "api.domains.api.example/#2",
        "app stray",
    ]
    told = droplet.plan(new, prune=[])
    assert told["unmanaged"] == spare
    assert told["changes"] == ["+ api.domains.new.example/: https to http port 8000"]
    told = droplet.plan(new, prune=["api.mounts./one", "api.domains.api.example/#2"], check=False)
    (release,) = told["releases"]
    assert release["drop"] == ["mounts./one", "domains.api.example/#2"]
    droplet("deploy", app=new, drop=release["drop"], revision="")
    assert host.apps["api"]["mounts"] == data[1:]
    assert [one["host"] for one in host.domains] == ["api.example", "new.example"]
    told = droplet.plan(new, prune=["app stray", "app api"], check=False)
    assert "undeclared that is called app api. Next: choose of: api.mounts./two, " in told["msg"]
    assert "stray" in host.apps
    host.apps["stray"]["mounts"] = data
    told = droplet.plan(new, prune=["app stray"], check=False)
    assert "app stray has volumes (mounts./one, mounts./two)" in told["msg"]
    host.apps["stray"]["mounts"] = []
    assert droplet.plan(new, prune=["app stray"], check=False)["changed"]
    assert "stray" not in host.apps
