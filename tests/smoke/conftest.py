"""The product as a user's browser meets it: by its public address, every certificate checked."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from local.settings import domain
from plugins.filter.compose import declared_services, panel_domains
from plugins.filter.settings import doors, values

ROOT = Path(__file__).parents[2]
LOCAL = os.environ.get("ENV", "local") == "local"
COMPOSE = (ROOT / "services/compose.yaml").read_text()
APPS = declared_services(COMPOSE)
DECLARED = yaml.safe_load((ROOT / "services/settings.yaml").read_text())
DOMAINS = (
    {name: domain(name) for name in APPS} if LOCAL else panel_domains(COMPOSE, values(DECLARED))
)
RELEASED = [name for name, app in APPS.items() if app["released"] and app["domain"]]
# A release of one app is not taken back for another one that is down, or not there yet.
ASKED = [name for name in RELEASED if name == (os.environ.get("SERVICE") or name)]
DOMAIN = DOMAINS["api"]
Ask = Callable[..., httpx.Response]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop with one line when there is nothing to ask."""
    missing = [APPS[name]["domain"].strip("${}") for name in RELEASED if not DOMAINS[name]]
    if missing:
        raise pytest.UsageError(
            f"smoke: not set: {', '.join(missing)}. Next: docs/setup.md says where each comes from"
        )
    if LOCAL and not (ROOT / ".local/ssh_config").exists():
        raise pytest.UsageError("smoke: no local droplet. Next: make up")


def local_authority() -> Path:
    """The proxy's own CA, over the authenticated SSH connection: not from the network that it is to secure."""
    command = ["ssh", "-F", str(ROOT / ".local/ssh_config"), "-o", "BatchMode=yes", "droplet"]
    done = subprocess.run(
        [*command, "cat", "/etc/easypanel/traefik/ca.crt"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        next_step = "make up" if done.returncode == 255 else "make provision"
        pytest.exit(f"smoke: no CA from the droplet: {told}. Next: {next_step}", returncode=1)
    authority = ROOT / ".local/ca.crt"
    authority.write_text(done.stdout)
    return authority


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Send one request: ``ask("GET", "/healthz", scheme="https", host=DOMAIN)``. Redirects are not followed.

    Names under .localhost are loopback, whatever this machine's resolver thinks of them; the local droplet's
    ports are forwards, those of another one where CONNECT_TO says it. Only making the connection is tried again, an
    answer never is.
    """
    authority = local_authority() if LOCAL else None
    places = doors(values(DECLARED)["CONNECT_TO"])
    if LOCAL:
        ports = json.loads((ROOT / ".local/ports.json").read_text())
        places = {80: ("127.0.0.1", ports["http"]), 443: ("127.0.0.1", ports["https"])}
    transport = httpx.HTTPTransport(verify=ssl.create_default_context(cafile=authority), retries=3)
    client = httpx.Client(transport=transport, timeout=60)

    def send(
        method: str,
        path: str,
        scheme: str = "https",
        host: str = DOMAIN,
        headers: dict[str, str] | None = None,
        **options: object,
    ) -> httpx.Response:
        server = (
            host if host in DOMAINS.values() else DOMAIN
        )  # a name that is nobody's is asked of ours
        at = places.get(443 if scheme == "https" else 80)
        place = f"{at[0]}:{at[1]}" if at else server
        return client.request(
            method,
            f"{scheme}://{place}{path}",
            headers={"Host": host} | (headers or {}),
            extensions={"sni_hostname": server},
            **options,  # type: ignore[arg-type]
        )

    return send
