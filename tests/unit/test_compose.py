"""services/compose.yaml to panel apps: what a wrong file or a missing value says, and what stays secret."""

from __future__ import annotations

import pathlib
import re

import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter import compose

ROOT = pathlib.Path(__file__).parents[2]

SAMPLE = """
services:
  api:
    build: ./api
    image: registry.example/api
    environment:
      LEVEL: ${LEVEL:-info}
      PRICE: $$5
      DATABASE_URL: postgresql://cimt:${DB_PASSWORD:?the database password}@db/cimt
    volumes: [data:/var/lib/data, /srv/files:/files]
    deploy:
      update_config: {order: start-first}
      resources: {limits: {cpus: "0.5", memory: 1G}}
    x-easypanel:
      domains: [{host: "${API_DOMAIN}", port: 8000}]
"""


def test_an_app_is_translated_whole() -> None:
    declared = compose.panel_apps(
        SAMPLE, {"API_DOMAIN": "api.example.com"}, {"DB_PASSWORD": "s3cret"}
    )
    app = declared["apps"][0]
    assert app["released"] is True
    assert app["zero_downtime"] is True
    assert app["env"] == {"LEVEL": "info", "PRICE": "$5"}
    assert app["resources"] == {
        "memoryReservation": 0,
        "memoryLimit": 1024,
        "cpuReservation": 0.0,
        "cpuLimit": 0.5,
    }
    assert app["mounts"] == [
        {"type": "volume", "name": "data", "mountPath": "/var/lib/data"},
        {"type": "bind", "hostPath": "/srv/files", "mountPath": "/files"},
    ]
    assert app["domains"][0]["host"] == "api.example.com"


def test_only_images_of_our_registry_are_pulled_with_our_credentials() -> None:
    sample = """
services:
  mine: {image: "${IMAGE_REPOSITORY}/mine:1"}
  theirs: {image: "docker.io/library/theirs:1"}
"""
    apps = compose.panel_apps(sample, {"IMAGE_REPOSITORY": "registry.example/cimt"})["apps"]
    assert {app["name"]: app["ours"] for app in apps} == {"mine": True, "theirs": False}


def test_a_value_that_holds_a_secret_travels_apart() -> None:
    declared = compose.panel_apps(SAMPLE, {"API_DOMAIN": "a"}, {"DB_PASSWORD": "s3cret"})
    assert "s3cret" not in str(declared["apps"])
    assert declared["secret_env"] == {"api": {"DATABASE_URL": "postgresql://cimt:s3cret@db/cimt"}}


def test_every_missing_variable_is_named_at_once() -> None:
    with pytest.raises(
        AnsibleFilterError, match=r"API_DOMAIN, DB_PASSWORD \(the database password\)"
    ):
        compose.panel_apps(SAMPLE, {})


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ("deploy:", "deploi:", "deploi"),
        ("order: start-first", "order: sometimes", "'sometimes' is not one of"),
        ("build: ./api", "healthcheck: {test: 'true'}", "HEALTHCHECK into the image"),
        ("build: ./api", "ports: ['80:80']", "the panel has nothing for ports"),
        ("image: registry.example/api", "hostname: x", "hostname"),
        ("memory: 1G", "memory: lots", "'lots' is not a size"),
        ("data:/var/lib/data", "./data:/var/lib/data", "must be a name or an absolute path"),
        ("port: 8000", "port: 8000, tls: no", "the panel has nothing for tls"),
        ("services:", "services: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_place(
    wrong: str, right: str, message: str
) -> None:
    assert wrong in SAMPLE
    with pytest.raises(AnsibleFilterError, match=r"^services/compose\.yaml: ") as caught:
        compose.panel_apps(SAMPLE.replace(wrong, right), {"API_DOMAIN": "a"}, {"DB_PASSWORD": "b"})
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_n8n_never_has_two_containers_on_its_volume() -> None:
    text = (ROOT / "services/compose.yaml").read_text()
    values = dict.fromkeys(re.findall(r"\$\{(\w+)", text), "x")
    app = next(app for app in compose.panel_apps(text, values)["apps"] if app["name"] == "n8n")
    assert app["replicas"] == 1
    assert not app["zero_downtime"]
    assert app["mounts"] == [{"type": "volume", "name": "n8n", "mountPath": "/home/node/.n8n"}]
    assert app["resources"]["memoryLimit"] <= 1100
