"""Role services: every app of services/compose.yaml runs as declared and answers under its name."""

from __future__ import annotations

import calendar
import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest

from tools.declared import Declared

pytestmark = pytest.mark.droplet

ISO = "%Y-%m-%dT%H:%M:%SZ"


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


def test_old_chats_go_when_their_time_is_over(
    declared: Declared,
    collected: dict[str, Any],
    ledger: list[dict[str, Any]],
    record_property: Callable[[str, object], None],
) -> None:
    """The api deletes them once a day, and five minutes after its start for the first time."""
    (days,) = (app["env"]["CHAT_RETENTION_DAYS"] for app in declared.apps() if app["name"] == "api")
    told = collected["figures"]
    workers = {one["id"] for one in collected["docker"]["nodes"] if one["role"] == "worker"}
    (api,) = (one["id"] for one in collected["docker"]["services"] if one["name"].endswith("_api"))
    running = [
        one["node"]
        for one in collected["docker"]["tasks"]
        if (one["service"], one["state"]) == (api, "running")
    ]
    if told is None and running and workers.issuperset(running):
        record_property("retention", "not asked: the api runs on a worker, and no etl is here")
        return
    told = told or {}
    ran = told.get("cimt_retention_run_timestamp_seconds", 0)
    began = max((calendar.timegm(time.strptime(one["time"], ISO)) for one in ledger), default=0)
    record_property(
        "retention",
        f"{time.strftime(ISO, time.gmtime(ran))}: {told.get('cimt_retention_deleted')} answers",
    )
    assert "cimt_retention_deleted" in told, "the api's /metrics cannot be read. Next: make logs"
    assert int(days) == 0 or time.time() - max(ran, began) < 30 * 3600, (
        f"answers older than {days} days were deleted for the last time {(time.time() - ran) / 3600:.0f} hours ago. "
        "Next: look for `retention` in the api's log"
    )


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
    for domain in (domain for domain in app["domains"] if domain["https"]):
        door = (domain["host"], 443) if declared["proxied"] else declared.door(443)
        assert door is not None
        assert domain["host"], f"no domain for {app['name']}. Next: docs/setup.md, the domains"
        authority = None if declared["proxied"] else collected["ca"]
        try:
            left, status = visit(door, domain["host"], domain["path"], authority)
        except OSError as error:
            pytest.fail(f"https://{domain['host']}{domain['path']}: {error}")
        assert left > 0.1, f"{domain['host']}: its certificate ends soon and was not renewed"
        assert status < 500, f"https://{domain['host']}{domain['path']} answers {status}"


def test_no_change_was_left_undone(collected: dict[str, Any]) -> None:
    """A run that was killed between writing to the panel and deploying leaves a note."""
    assert json.dumps(collected["unfinished"]) == "[]", "Next: make provision, or make deploy again"
