"""The TLS proxy: Caddy behind the Swarm service name ``traefik``, configured from the domains."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from .engine_api import UnixConnection

ROOT = Path("/etc/easypanel/traefik")
ORIGIN = "easypanel"
DATA = "/data"  # what Traefik calls ROOT
TRUSTED = re.compile(r"^TRAEFIK_ENTRYPOINTS_\w+_FORWARDEDHEADERS_TRUSTEDIPS=(.*)$", re.MULTILINE)
# Traefik's defaults: 200 idle connections to a server, each kept for 90 s, 30 s to connect, no retry of its own. What
# is left is Go's transport, which Caddy has too: a request that changes nothing (GET, HEAD, …) is sent once more when
# the kept connection turns out to be closed; a POST is lost with it.
TRANSPORT = {
    "protocol": "http",
    "keep_alive": {"enabled": True, "max_idle_conns_per_host": 200, "idle_timeout": "90s"},
    "dial_timeout": "30s",
}


def own_certificates(config: str, root: Path) -> list[dict[str, str]]:
    """Those that the panel's custom configuration names, in Caddy's terms; as Traefik, without what is not there."""
    try:
        said = yaml.safe_load(config) or {}
    except yaml.YAMLError:
        return []  # Traefik says so in its log, and goes on
    pairs = [
        {
            kind: str(root / one[f"{ending}File"].removeprefix(f"{DATA}/"))
            for kind, ending in (("certificate", "cert"), ("key", "key"))
        }
        for one in (said.get("tls") or {}).get("certificates") or ()
    ]
    return [pair for pair in pairs if all(Path(one).exists() for one in pair.values())]


def configuration(
    domains: list[dict[str, Any]], root: Path = ROOT, config: str = "", env: str = ""
) -> dict[str, Any]:
    """Caddy's JSON configuration for the panel's domains (see models.Domain).

    Of the proxy's own `config` and `env`, as Traefik reads them: certificates, which go before those that it makes, and
    networks that are believed about clients.
    """
    networks = sorted({one for found in TRUSTED.findall(env) for one in found.split(",") if one})
    # Longest path first; of two equal rules the older one answers.
    ordered = sorted(domains, key=lambda domain: -len(domain["path"]))
    plain: list[dict[str, Any]] = []
    secure: list[dict[str, Any]] = []
    for domain in ordered:
        if domain["https"]:
            location = "https://{http.request.host}{http.request.uri}"
            redirect = {
                "handler": "static_response",
                "status_code": 308,
                "headers": {"Location": [location]},
            }
            plain.append({"match": [_match(domain)], "handle": [redirect], "terminal": True})
        route = {
            "match": [_match(domain)],
            "handle": _handlers(domain, networks),
            "terminal": True,
        }
        (secure if domain["https"] else plain).append(route)
    names = sorted({_host(domain) for domain in domains if domain["https"]})
    internal = [{"module": "internal"}]
    policies: list[dict[str, Any]] = [
        # A name that nobody declared gets a certificate on demand, slowly, and then a 404.
        {"issuers": internal, "on_demand": True, "disable_ocsp_stapling": True}
    ]
    if names:
        policies.insert(0, {"subjects": names, "issuers": internal, "disable_ocsp_stapling": True})
    return {
        "admin": {
            "listen": f"unix/{root}/run/admin.sock",
            "origins": [ORIGIN],
            "config": {"persist": False},
        },
        "storage": {"module": "file_system", "root": str(root / "caddy")},
        "logging": {"logs": {"default": {"level": "WARN"}}},
        "apps": {
            "pki": {
                "certificate_authorities": {
                    "local": {
                        "name": "EasyPanel stand-in (development only)",
                        "install_trust": False,
                    }
                }
            },
            "tls": {
                "certificates": {"load_files": own_certificates(config, root)},
                "automation": {
                    "policies": policies,
                    "on_demand": {"rate_limit": {"interval": 60_000_000_000, "burst": 10}},
                },
            },
            "http": {
                "servers": {
                    "plain": _server(":80", plain) | {"automatic_https": {"disable": True}},
                    "secure": _server(":443", secure)
                    | {
                        "automatic_https": {"disable_redirects": True},
                        "tls_connection_policies": [{"default_sni": "easypanel.localhost"}],
                    },
                }
            },
        },
    }


def _host(domain: dict[str, Any]) -> str:
    return f"*.{domain['host']}" if domain["wildcard"] else str(domain["host"])


def _match(domain: dict[str, Any]) -> dict[str, Any]:
    match: dict[str, Any] = {"host": [_host(domain)]}
    path = domain["path"].rstrip("/")
    if path:
        match["path"] = [path, f"{path}/*"]
    return match


def _handlers(domain: dict[str, Any], trusted: list[str]) -> list[dict[str, Any]]:
    prefix = "/"
    if domain["destinationType"] == "service":
        target = domain["serviceDestination"]
        host = f"{target['projectName']}_{target['serviceName']}"
        upstreams = [{"dial": f"{host}:{int(target['port'])}"}]
        encrypted = target["protocol"] == "https"
        prefix = target["path"]
    else:
        servers = [urlsplit(server["url"]) for server in domain["customDestination"]["servers"]]
        encrypted = any(server.scheme == "https" for server in servers)
        upstreams = [
            {
                "dial": f"{server.hostname}:{server.port or (443 if server.scheme == 'https' else 80)}"
            }
            for server in servers
        ]
    transport: dict[str, Any] = dict(TRANSPORT)
    if encrypted:
        transport["tls"] = {"insecure_skip_verify": True}
    handlers: list[dict[str, Any]] = []
    if prefix.rstrip("/"):
        handlers.append({"handler": "rewrite", "uri": prefix.rstrip("/") + "{http.request.uri}"})
    # No flush_interval: Caddy flushes event streams at once anyway, and with -1 it breaks off every
    # request under way when the configuration is loaded anew (caddyserver/caddy#5663).
    handlers.append(
        {
            "handler": "reverse_proxy",
            "upstreams": upstreams,
            "transport": transport,
            "trusted_proxies": trusted,
        }
    )
    return handlers


def _server(listen: str, routes: list[dict[str, Any]]) -> dict[str, Any]:
    missing = {"handler": "static_response", "status_code": 404, "body": "404 page not found\n"}
    return {
        "listen": [listen],
        "protocols": ["h1", "h2"],
        "routes": [*routes, {"handle": [missing]}],
        "errors": {
            "routes": [
                {
                    "handle": [
                        {
                            "handler": "static_response",
                            "status_code": "{http.error.status_code}",
                            "headers": {"Content-Type": ["text/html; charset=utf-8"]},
                            "body": "<!doctype html><title>{http.error.status_code}</title>"
                            "<h1>{http.error.status_code} {http.error.status_text}</h1>"
                            "<p>The service does not answer.\n",
                        }
                    ]
                }
            ]
        },
    }


class ProxyRefused(Exception):
    """Caddy did not take the configuration."""


class Proxy:
    """Keeps Caddy at the panel's domains, also when Caddy or the panel starts later."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._wanted: dict[str, Any] | None = None
        self._stale = threading.Event()

    def start(self) -> None:
        """Retry in the background what could not be loaded at once."""
        threading.Thread(target=self._keep, name="proxy", daemon=True).start()

    def apply(self, state: dict[str, Any]) -> None:
        """Load what the panel's state declares; a proxy that does not answer gets it when it is back."""
        own = state["proxy"]
        with self._lock:
            self._wanted = configuration(
                state["domains"], self._root, own["config"], own.get("runs_by", "")
            )
            self._load()

    def _keep(self) -> None:
        while True:
            self._stale.wait()
            time.sleep(2)
            with self._lock:
                try:
                    self._load()
                except (ProxyRefused, OSError) as error:
                    print(f"panel: {error}", flush=True)

    def _load(self) -> None:
        text = json.dumps(self._wanted, indent=1)
        try:
            connection = UnixConnection(str(self._root / "run/admin.sock"), 60, ORIGIN)
            headers = {"Content-Type": "application/json"}
            if self._wanted and self._wanted["apps"]["tls"]["certificates"]["load_files"]:
                headers["Cache-Control"] = "must-revalidate"  # the files may be others
            connection.request("POST", "/load", text, headers)
            response = connection.getresponse()
            answer = response.read().decode(errors="replace")
            connection.close()
        except (OSError, http.client.HTTPException):
            write(self._root / "config/main.json", text)  # Caddy starts with it
            self._stale.set()
            return
        if response.status != 200:
            raise ProxyRefused(f"The proxy refused its configuration: {answer.strip()}")
        write(self._root / "config/main.json", text)
        self._publish_ca()

    def _publish_ca(self) -> None:
        """Copy the root certificate, never the key, to where clients may read it."""
        source = self._root / "caddy/pki/authorities/local/root.crt"
        try:
            write(self._root / "ca.crt", source.read_text())
        except FileNotFoundError:
            self._stale.set()
        else:
            self._stale.clear()


def write(path: Path, text: str) -> None:
    """Replace a file by a whole new one that everybody may read."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(0o644)
    os.replace(temporary, path)


def prepare(root: Path = ROOT) -> Path:
    """Directories, first configuration; returns the configuration's path."""
    for name, mode in (("caddy", 0o700), ("run", 0o700), ("config", 0o755)):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    config = root / "config/main.json"
    if not config.exists():
        write(config, json.dumps(configuration([], root), indent=1))
    return config


def main() -> int:
    """Become Caddy, with the configuration it had last: it does not wait for the panel."""
    config = prepare()
    with contextlib.suppress(FileNotFoundError):
        (ROOT / "run/admin.sock").unlink()  # left by a killed Caddy
    os.environ |= {"HOME": str(ROOT / "caddy"), "XDG_DATA_HOME": str(ROOT / "caddy")}
    os.execvp("caddy", ["caddy", "run", "--config", str(config)])  # noqa: S606 - its own arguments
