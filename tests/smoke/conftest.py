"""The product as a user's browser meets it."""

from __future__ import annotations

import json
import os
import pathlib
import ssl
import subprocess
from collections.abc import Callable

import httpx
import pytest

ROOT = pathlib.Path(__file__).parents[2]
LOCAL = os.environ.get("ENV", "local") == "local"
Ask = Callable[..., httpx.Response]


def stop(message: str) -> None:
    """End the run with one line."""
    pytest.exit(f"smoke: {message}", returncode=1)


@pytest.fixture(scope="session")
def domain() -> str:
    """Public name of the api."""
    if LOCAL:
        return "api.cimt.localhost"
    if not (name := os.environ.get("API_DOMAIN")):
        stop(
            "not set: API_DOMAIN (domain of the api). Next: docs/setup.md says where it comes from"
        )
    return str(name)


@pytest.fixture(scope="session")
def ask(domain: str) -> Ask:
    """Send one request to the public address; every certificate is checked."""
    if not LOCAL:
        context = ssl.create_default_context()

        def ask_public(
            method: str, path: str, scheme: str = "https", **options: object
        ) -> httpx.Response:
            with httpx.Client(verify=context, timeout=60) as client:
                return client.request(method, f"{scheme}://{domain}{path}", **options)

        return ask_public

    ports_file, config = ROOT / ".local/ports.json", ROOT / ".local/ssh_config"
    if not config.exists():
        stop("there is no local droplet. Next: make up")
    ports = json.loads(ports_file.read_text())
    # The proxy's own CA comes over the authenticated SSH connection, not from the network that it is to secure.
    read = ["ssh", "-F", str(config), "droplet", "cat", "/etc/easypanel/traefik/ca.crt"]
    done = subprocess.run(read, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        stop(
            f"no certificate authority on the droplet: {done.stderr.strip()}. Next: make provision"
        )
    ca = ROOT / ".local/ca.crt"
    ca.write_text(done.stdout)
    context = ssl.create_default_context(cafile=ca)

    def ask_local(
        method: str, path: str, scheme: str = "https", host: str = domain, **options: object
    ) -> httpx.Response:
        # Names under .localhost are loopback, whatever this machine's resolver thinks of them.
        with httpx.Client(verify=context, timeout=60) as client:
            return client.request(
                method,
                f"{scheme}://127.0.0.1:{ports[scheme]}{path}",
                headers={"Host": host},
                extensions={"sni_hostname": domain},
                **options,
            )

    return ask_local
