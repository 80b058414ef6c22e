"""Production, rehearsed on the local droplet: what a user would give, and what stands in for the world around it.

The inventory is production's, and so is every command. What a test machine cannot reach is replaced by addresses in one
place, `replaced`, which each run prints; the droplet learns the names and authorities that the internet would give it.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

from local import clouds, s3
from local.droplet import machine
from local.github.runner import REPOSITORY
from local.images import base
from local.registry.rights import grant
from local.settings import LocalError, Settings, domain, write_atomic

OWNER = REPOSITORY.partition("/")[0]
PANEL_CA = "/etc/easypanel/traefik/ca.crt"  # of the stand-in panel; Let's Encrypt in production
BIN = Path(__file__).parent / "github/bin"
WORLD = """\
set -eu
cp {panel_ca} /usr/local/share/ca-certificates/cimt-panel.crt
update-ca-certificates >/dev/null
cat {panel_ca}
"""
REGISTRIES = """\
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "docker.io"
location = "127.0.0.1:{port}"
insecure = true
"""
PROFILE = """\
export PATH="$HOME/bin:$PATH" SSL_CERT_FILE="$HOME/ca.pem"
"""
# Else buildah copies every layer where fuse-overlayfs is missing.
STORAGE = '[storage]\ndriver = "overlay"\n'


def registry(settings: Settings) -> str:
    """Host and port of the registry that stands in for ghcr.io."""
    return f"{clouds.GHCR}:{settings.ports['ghcr']}"


def replaced(settings: Settings) -> dict[str, str]:
    """What stands in for what this machine cannot reach: {what: with what}."""
    ghcr = registry(settings)
    return {
        "ghcr.io (REGISTRY)": ghcr,
        "Docker Hub's easypanel/easypanel (EASYPANEL_IMAGE)": panel_image(settings),
        "Docker Hub's base images": f"127.0.0.1:{settings.ports['registry']}, made of Debian packages",
        "Docker's own packages (DOCKER_SOURCE)": "distribution",
        "Supabase, OpenAI": "the local clouds",
        "names and authorities of the internet": "/etc/hosts and certificates, of droplet and runner",
        "the droplet's address (CONNECT_TO)": "forwarded ports of 127.0.0.1",
    }


def world(settings: Settings) -> dict[str, str]:
    """What a user knows before the first day, by name: accounts, and where everything is."""
    secret = functools.partial(_secret, settings)
    ports = settings.ports
    doors = {22: "ssh", 80: "http", 443: "https", 3000: "panel", 2377: "swarm"}
    from_droplet = "10.0.2.2"
    return {
        "DROPLET_PORT": str(ports["ssh"]),
        "CONNECT_TO": ",".join(f"{port}=127.0.0.1:{ports[name]}" for port, name in doors.items()),
        "DOCKER_SOURCE": "distribution",
        "IMAGE_REPOSITORY": f"{registry(settings)}/{REPOSITORY}",
        "REGISTRY_USERNAME": OWNER,
        "REGISTRY_PASSWORD": secret("pull-token"),
        "LEAVE_OUT": "n8n,etl",
        "EASYPANEL_IMAGE": panel_image(settings),
        "SUPABASE_DB_URL": f"postgresql://postgres@127.0.0.1:{ports['postgres']}/postgres?sslmode=disable",
        "API_DATABASE_URL": f"postgresql://cimt_api@{from_droplet}:{ports['postgres']}/postgres?sslmode=disable",
        "SUPABASE_URL": f"http://127.0.0.1:{ports['supabase']}",
        "SUPABASE_PUBLISHABLE_KEY": clouds.PUBLISHABLE_KEY,
        "SMTP_HOST": "smtp.cimt.localhost",  # nobody is asked there: the stand-in of Supabase sends no mail
        "SMTP_FROM": "no-reply@cimt.localhost",
        "SUPABASE_JWKS_URL": f"http://{from_droplet}:{ports['supabase']}/auth/v1/.well-known/jwks.json",
        "OPENAI_BASE_URL": f"http://{from_droplet}:{ports['openai']}/v1",
        "OPENAI_API_KEY": secret("openai-key"),
        "BACKUP_REPOSITORY": f"s3:http://{from_droplet}:{ports['s3']}/{s3.BUCKET}",
        "BACKUP_KEY_ID": s3.KEY_ID,
        "BACKUP_KEY_SECRET": s3.key(settings.state),
    }


def values(settings: Settings) -> dict[str, str]:
    """Every setting of production as a user would give it, by name; made once, then kept in `.local/production`."""
    secret = functools.partial(_secret, settings)
    host_key, public = (
        " ".join((settings.droplet / f"{name}_ed25519.pub").read_text().split()[:2])
        for name in ("host", "ci")
    )
    (volume,) = machine.state(settings).get("volumes") or [""]  # none: made by an older checkout
    return world(settings) | {
        "DROPLET_HOST": "127.0.0.1",
        **({"DROPLET_VOLUME": volume} if volume else {}),
        "DROPLET_USER": "cimt",
        "DROPLET_KNOWN_HOSTS": f"[127.0.0.1]:{settings.ports['ssh']} {host_key}",
        "DROPLET_SSH_KEY": (settings.droplet / "id_ed25519").read_text(),
        "DROPLET_CI_KEY": (settings.droplet / "ci_ed25519").read_text(),
        "DROPLET_CI_KEYS": public,
        "API_DOMAIN": "api.cimt.localhost",
        "WEB_DOMAIN": domain("web"),
        "N8N_DOMAIN": "n8n.cimt.localhost",
        "EASYPANEL_ADMIN_EMAIL": "admin@cimt.localhost",
        "EASYPANEL_ADMIN_PASSWORD": (settings.state / "panel-password").read_text().strip(),
        "API_DATABASE_PASSWORD": secret("api-database-password"),
        # The same password as that of `make up`: it is the same droplet, and the same bucket.
        "BACKUP_PASSWORD": secret("../backup-password"),
        "BACKUP_DATABASE_PASSWORD": secret("backup-database-password"),
        "INGEST_KEY": secret("ingest-key"),
        "ETL_KEY": secret("etl-key"),
        "N8N_ENCRYPTION_KEY": secret("n8n-encryption-key"),
        "N8N_OWNER_EMAIL": "owner@cimt.localhost",
        "N8N_OWNER_PASSWORD": secret("n8n-owner-password"),
        "N8N_WEBHOOK_KEY": secret("n8n-webhook-key"),
    }


def _secret(settings: Settings, name: str) -> str:
    """A secret of this production, made when it is asked for first."""
    path = settings.state / "production" / name
    if not path.exists():
        write_atomic(path, secrets.token_hex(24), 0o600)
    return path.read_text().strip()


def panel_image(settings: Settings) -> str:
    """The stand-in for the panel, as `make up` has it too: another one would restart the panel."""
    text = (settings.root / "roles/easypanel/defaults/main.yml").read_text()
    version = text.partition('easypanel_version: "')[2].partition('"')[0]
    return f"10.0.2.2:{settings.ports['registry']}/cimt/easypanel:{version}"


def prepare_runner(settings: Settings) -> None:
    """Make what a job finds, and a person beside it: the registry, base images, a home. Needs the local clouds."""
    _name_leads_here()
    if not clouds.running_pid(settings, "ghcr"):
        clouds.start(settings, "ghcr")
    state = settings.clouds / "ghcr"
    push = settings.state / "production/push-token"
    if not push.exists():
        write_atomic(push, f"ghp_{secrets.token_hex(18)}", 0o600)
    grant(state, push.read_text(), user=OWNER, scopes=("read:packages", "write:packages"))
    grant(state, _secret(settings, "pull-token"), user=OWNER, scopes=("read:packages",))
    image = base.ensure(settings)
    for name in ("python:3.12-slim", "debian:13-slim"):
        mirror = f"docker://127.0.0.1:{settings.ports['registry']}/library/{name}"
        options = ["--quiet", "--tls-verify=false", "--disable-compression"]
        _run("buildah", "push", *options, image, mirror)
    _home(settings)


def prepare_droplet(settings: Settings) -> None:
    """Make the world around the droplet. Raises LocalError without a running one."""
    if not machine.running_pid(settings):
        raise LocalError("rehearsal: the local droplet is off. Next: make up")
    script = WORLD.format(panel_ca=PANEL_CA)
    try:
        authority = machine.as_root(settings, script)
    except LocalError as reason:
        raise LocalError(
            f"{reason}\nrehearsal: the droplet was not prepared. Next: make up"
        ) from None
    write_atomic(settings.state / "production/panel-ca.crt", authority)
    _home(settings)


def _name_leads_here() -> None:
    """Of the registry. Root says it to its runners alone (tools/unprivileged.py); nobody else can."""
    try:
        leads = socket.gethostbyname(clouds.GHCR) == "127.0.0.1"
    except OSError:
        leads = False
    if os.geteuid() != 0 and not leads:
        raise LocalError(
            f"rehearsal: the name {clouds.GHCR} has to lead to this machine. "
            f"Next: echo '127.0.0.1 {clouds.GHCR}' | sudo tee -a /etc/hosts"
        )


def _home(settings: Settings) -> None:
    """What a runner's machine knows: certificates, names of registries, where GitHub is."""
    panel = settings.state / "production/panel-ca.crt"
    authorities = [settings.clouds / "ghcr/ca.crt", *([panel] if panel.exists() else [])]
    home = settings.state / "github/home"
    if home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True)
    system = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    trusted = Path(system).read_text() if system else ""
    (home / "ca.pem").write_text("\n".join([trusted, *(one.read_text() for one in authorities)]))
    (home / ".profile").write_text(PROFILE)
    api = f"http://127.0.0.1:{settings.ports['github']}/api"
    (home / "environment").write_text(f"GITHUB_API_URL={api}\n")
    containers = home / ".config/containers"
    containers.mkdir(parents=True)
    (containers / "registries.conf").write_text(REGISTRIES.format(port=settings.ports["registry"]))
    (containers / "storage.conf").write_text(STORAGE)
    (home / "hosts").write_text(f"127.0.0.1 {clouds.GHCR}\n")
    if BIN.is_dir():
        shutil.copytree(BIN, home / "bin", symlinks=True)


def _run(*command: str, text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise LocalError(f"rehearsal: {command[0]} {command[1]}: {done.stderr.strip()[-500:]}")
