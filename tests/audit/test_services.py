"""Role services: every app of services/compose.yaml runs as declared and answers under its name."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from typing import Any

import pytest

from tools.declared import Declared


@pytest.fixture
def service(app: dict[str, Any], declared: Declared, collected: dict[str, Any]) -> dict[str, Any]:
    """The app's service in Swarm."""
    name = f"{declared['services_project']}_{app['name']}"
    services = {item["name"]: item for item in collected["docker"]["services"]}
    assert name in services, f"{name} was never released. Next: make deploy SERVICE={app['name']}"
    return dict(services[name])


def test_it_runs_with_all_its_replicas(
    app: dict[str, Any], service: dict[str, Any], collected: dict[str, Any]
) -> None:
    """Swarm's own view. The panel only knows what it once asked for."""
    assert service["replicas"] == app["replicas"]
    tasks = [
        task
        for task in collected["docker"]["tasks"]
        if task["service"] == service["id"] and task["wanted"] == "running"
    ]
    assert [task["state"] for task in tasks] == ["running"] * app["replicas"], tasks
    assert {task["image"] for task in tasks} == {service["image"]}


def test_its_limits_are_the_declared_ones(app: dict[str, Any], service: dict[str, Any]) -> None:
    """An app without a limit takes the droplet down with it."""
    limits = service["resources"].get("Limits") or {}
    reserved = service["resources"].get("Reservations") or {}
    assert {
        "memoryLimit": limits.get("MemoryBytes", 0) / 2**20,
        "cpuLimit": limits.get("NanoCPUs", 0) / 10**9,
        "memoryReservation": reserved.get("MemoryBytes", 0) / 2**20,
        "cpuReservation": reserved.get("NanoCPUs", 0) / 10**9,
    } == app["resources"]
    assert service["order"] == ("start-first" if app["zero_downtime"] else "stop-first")


def test_its_settings_are_the_declared_ones(app: dict[str, Any], service: dict[str, Any]) -> None:
    """What was edited in the panel is lost with the next provision. Values that hold a secret stay on the host."""
    assert service["environment"] == app["env"]


def test_it_runs_an_image_by_digest(app: dict[str, Any], service: dict[str, Any]) -> None:
    """A tag can mean another image tomorrow."""
    name, _, digest = service["image"].partition("@")
    assert digest.startswith("sha256:"), f"it runs {name}. Next: make services"
    assert app["released"] or name == app["image"].split("@")[0]


def visit(door: tuple[str, int], name: str, path: str, authority: str | None) -> tuple[float, int]:
    """Share of the certificate's life that is left, and HTTP status of a page.

    ``authority``: a CA (PEM) to trust instead of the system's.
    """
    context = ssl.create_default_context(cadata=authority)
    with (
        socket.create_connection(door, timeout=30) as raw,
        context.wrap_socket(raw, server_hostname=name) as tls,
    ):
        certificate = tls.getpeercert() or {}
        connection = http.client.HTTPConnection(name, timeout=30)
        connection.sock = tls
        connection.request("GET", path, headers={"Connection": "close"})
        status = connection.getresponse().status
    begins, ends = (
        ssl.cert_time_to_seconds(str(certificate[name])) for name in ("notBefore", "notAfter")
    )
    return (ends - time.time()) / (ends - begins), status


@pytest.mark.logs("traefik")
def test_its_domains_are_served_with_a_valid_certificate(
    app: dict[str, Any], declared: Declared, collected: dict[str, Any]
) -> None:
    """What a browser sees. Proxies renew with a third of a certificate's life left; with a tenth, they failed to."""
    door = declared.door(443)
    assert door is not None
    for domain in (domain for domain in app["domains"] if domain["https"]):
        assert domain["host"], f"no domain for {app['name']}. Next: docs/setup.md, the domains"
        try:
            left, status = visit(door, domain["host"], domain["path"], collected["ca"])
        except OSError as error:
            pytest.fail(f"https://{domain['host']}{domain['path']}: {error}")
        assert left > 0.1, f"{domain['host']}: its certificate ends soon and was not renewed"
        assert status < 500, f"https://{domain['host']}{domain['path']} answers {status}"


def test_no_change_was_left_undone(collected: dict[str, Any]) -> None:
    """A run that was killed between writing to the panel and deploying leaves a note."""
    assert json.dumps(collected["unfinished"]) == "[]", "Next: make provision, or make deploy again"
