"""``setup``: Swarm, networks, and the panel and its proxy as Swarm services. Repeating it converges."""

from __future__ import annotations

import os
import time
from typing import Any

from .engine_api import EngineApi, EngineError
from .proxy import prepare
from .swarm import NETWORK, SECOND, ensure_network

TIMEOUT = 600
"""Seconds for a service to run; an emulated machine is slow."""


def main() -> int:
    """Set up this host; says every step. Exit code 1 with one line when one fails."""
    api = EngineApi(timeout=120)
    try:
        _swarm(api)
        if ensure_network(api, NETWORK):
            print(f"setup: network {NETWORK} made", flush=True)
        prepare()
        image = _own_image(api)
        version = os.environ.get("RELEASE_TAG", "unknown")
        for name, spec in services(image, version).items():
            _ensure(api, name, spec)
        for name in ("traefik", "easypanel"):
            _wait(api, name)
    except (EngineError, TimeoutError) as error:
        print(f"setup: {error}", flush=True)
        return 1
    print(f"setup: the panel {version} answers on port 3000", flush=True)
    return 0


def _swarm(api: EngineApi) -> None:
    """A Swarm of this one node, unless there is a Swarm already: that one is never left."""
    state = api.call("GET", "/info")["Swarm"]["LocalNodeState"]
    if state == "active":
        return
    if state != "inactive":
        raise EngineError(0, f"this host's Swarm is {state}. Next: docker info")
    # The engine chooses the address it advertises; a host with several must be told.
    body = {
        "ListenAddr": "0.0.0.0:2377",
        "AdvertiseAddr": os.environ.get("ADVERTISE_ADDR", ""),
        # Swarm's own choice includes 10.0.2.0/24: QEMU's network, and with it the host's registry.
        "DefaultAddrPool": ["10.200.0.0/16"],
        "SubnetSize": 24,
    }
    api.call("POST", "/swarm/init", body=body)
    print("setup: Swarm made", flush=True)


def _own_image(api: EngineApi) -> str:
    """The image that this very container runs from, as it was asked for."""
    container: dict[str, Any] = api.call("GET", f"/containers/{os.uname().nodename}/json")
    return str(container["Config"]["Image"])


def services(image: str, version: str) -> dict[str, dict[str, Any]]:
    """Specs of the two services."""

    def bind(path: str, read_only: bool = False) -> dict[str, Any]:
        return {"Type": "bind", "Source": path, "Target": path, "ReadOnly": read_only}

    def spec(
        name: str, command: str, ports: list[int], mounts: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": image,
                    "Args": [command],
                    "Env": [f"RELEASE_TAG={version}"],
                    "Mounts": mounts,
                    "StopGracePeriod": 30 * SECOND,
                },
                "Placement": {"Constraints": ["node.role == manager"]},
                "RestartPolicy": {"Condition": "any", "Delay": 2 * SECOND},
                "Networks": [{"Target": NETWORK}],
            },
            "Mode": {"Replicated": {"Replicas": 1}},
            "UpdateConfig": {"Parallelism": 1, "Order": "stop-first", "FailureAction": "pause"},
            "EndpointSpec": {
                "Ports": [
                    {
                        "Protocol": "tcp",
                        "PublishedPort": port,
                        "TargetPort": port,
                        "PublishMode": "host",
                    }
                    for port in ports
                ]
            },
        }

    return {
        "traefik": spec("traefik", "proxy", [80, 443], [bind("/etc/easypanel/traefik")]),
        "easypanel": spec(
            "easypanel",
            "serve",
            [3000],
            [bind("/etc/easypanel"), bind("/var/run/docker.sock", read_only=True)],
        ),
    }


def _ensure(api: EngineApi, name: str, spec: dict[str, Any]) -> None:
    """Create the service, or update it when its image or version differs."""
    try:
        current = api.call("GET", f"/services/{name}")
    except EngineError as error:
        if error.status != 404:
            raise
        api.call("POST", "/services/create", body=spec)
        print(f"setup: service {name} made", flush=True)
        return
    was = current["Spec"]["TaskTemplate"]["ContainerSpec"]
    now = spec["TaskTemplate"]["ContainerSpec"]
    if (was["Image"], was.get("Env")) != (now["Image"], now["Env"]):
        version = {"version": current["Version"]["Index"]}
        api.call("POST", f"/services/{current['ID']}/update", version, spec)
        print(f"setup: service {name} updated", flush=True)


def _wait(api: EngineApi, name: str) -> None:
    """Until the service has a running task."""
    deadline = time.monotonic() + TIMEOUT
    said = ""
    while True:
        tasks = api.call(
            "GET", "/tasks", {"filters": {"service": [name], "desired-state": ["running"]}}
        )
        states = [task["Status"] for task in tasks or []]
        if any(status["State"] == "running" for status in states):
            return
        now = ", ".join(f"{status['State']} {status.get('Err', '')}".strip() for status in states)
        if now != said:
            said = now
            print(f"setup: {name}: {now or 'no task yet'}", flush=True)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} does not run after {TIMEOUT} s: {now}")
        time.sleep(1)
