"""`make doctor`: tries every value of an environment live, all at once, and changes nothing.

One line each: ✓, ! (look at it soon) or ✗ (it does not work), with what to type next. Nothing it prints holds a secret.
ENV=local tries the local droplet and the local clouds. What nobody set (DIGITALOCEAN_TOKEN, CLOUDFLARE_API_TOKEN, a
token of GitHub, channels of alerts) is not asked; GitHub's own runners look neither at GitHub nor for what is not set:
a job has the settings of its verbs alone, and each verb names what it misses. --before-release tries what a release
would stumble over at its end only: registry, database, sign-in, model.
Exit codes: 0 nothing is wrong, 1 something is, 2 there is nothing to look at.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import json
import os
import re
import shlex
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLong
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import psycopg

from plugins.filter.settings import doors, values, with_password
from tools import cloudflare, dns, github, github_settings
from tools.database.address import Refused as Unfit
from tools.database.address import database_url
from tools.database.address import secrets as spelled
from tools.database.migrate import api_login
from tools.host import door
from tools.host.way_in import way_in
from tools.init import first_day
from tools.settings.__main__ import read, refused
from tools.step import note

ROOT = Path(__file__).parents[1]
LOCAL = ROOT / ".local"
SECONDS = 10  # for one answer
PATIENCE = 40  # for one check, which may want several
SOON = 60  # days
CERTIFICATE_DAYS = 14  # the panel renews a month before
# The last day with security updates: Ubuntu's standard support, Debian's with LTS.
SUPPORTED = {
    "ubuntu 22.04": datetime.date(2027, 4, 30),
    "ubuntu 24.04": datetime.date(2029, 4, 30),
    "debian 12": datetime.date(2028, 6, 30),
    "debian 13": datetime.date(2030, 6, 30),
}
SLACK, TELEGRAM = "https://slack.com/api", "https://api.telegram.org"
# Tokens of clouds that a person may have in the shell: who is asked, and what the answer says of a good one.
TOKENS = {
    "DIGITALOCEAN_TOKEN": (
        "https://api.digitalocean.com/v2/account",
        ("account", "status"),
        "account:read",
    ),
    "CLOUDFLARE_API_TOKEN": (
        *("https://api.cloudflare.com/client/v4/user/tokens/verify", ("result", "status")),
        "the rights that docs/setup.md §3 says",
    ),
}
Sign = Literal["✓", "!", "✗"]
SHOW = "cat /etc/os-release"


@dataclass(frozen=True)
class Finding:
    """What came of one question; ``following`` is what to type where it is not well."""

    sign: Sign
    what: str
    following: str = ""

    def __str__(self) -> str:
        return f"{self.sign} {self.what}" + (f". Next: {self.following}" if self.following else "")


def well(what: str) -> Finding:
    """It works."""
    return Finding("✓", what)


def soon(what: str, following: str) -> Finding:
    """It works today."""
    return Finding("!", what, following)


def wrong(what: str, following: str) -> Finding:
    """It does not."""
    return Finding("✗", what, following)


@dataclass
class Patient:
    """An environment, as it is reached from here."""

    environment: str
    declared: dict[str, Any]
    known: dict[str, str]  # every setting with its value
    places: dict[int, tuple[str, int]] = field(default_factory=dict)  # by public port
    authority: str | None = (
        None  # a file with the authority of its certificates; None: the system's
    )
    registry: tuple[str, str | None] = (
        "",
        None,
    )  # address in place of the registry's, and its authority
    pinned: str = ""  # lines of known_hosts

    def __getitem__(self, name: str) -> str:
        return self.known.get(name, "")

    def here(self, url: str) -> str:
        """An address that the local droplet knows, as this machine knows it."""
        return url.replace("//10.0.2.2", "//127.0.0.1").replace("@10.0.2.2", "@127.0.0.1")

    def left_out(self) -> set[str]:
        """Apps that it does without."""
        return {one.strip() for one in self["LEAVE_OUT"].split(",")}

    def domains(self) -> dict[str, str]:
        """The names of the product by their settings."""
        return dns.hosts(self.declared, self.known)

    @property
    def proxied(self) -> bool:
        """Whether users come through Cloudflare."""
        return self["DNS_PROXIED"] == "on"


def production(environment: str) -> Patient:
    """By the values of the shell and ENV.env."""
    declared = read()
    known = values(declared)
    return Patient(
        environment=environment,
        declared=declared,
        known=known,
        places=doors(known["CONNECT_TO"]),
        pinned=known["DROPLET_KNOWN_HOSTS"],
    )


def local() -> Patient:
    """By what `make up` has left in .local. Raises OSError where there is no droplet."""
    config = LOCAL / "ssh_config"
    config.stat()
    ports = json.loads((LOCAL / "ports.json").read_text())
    host_key = (LOCAL / "droplet/host_ed25519.pub").read_text()
    from tools.declared import Declared  # Ansible: what the inventory makes of the settings

    declaration = Declared("local")
    known = {str(name): str(value) for name, value in dict(declaration["setting"]).items()}
    known |= {"DROPLET_HOST": "127.0.0.1", "DROPLET_PORT": str(ports["ssh"])}
    known["LEAVE_OUT"] = ",".join(declaration["services_leave_out"])
    authority = LOCAL / "ca.crt"  # kept there by `make smoke`, over SSH
    return Patient(
        environment="local",
        declared=read(),
        known=known,
        places=doors(known["CONNECT_TO"]),
        authority=str(authority) if authority.exists() else None,
        registry=(f"127.0.0.1:{ports['registry']}", str(LOCAL / "clouds/ghcr/ca.crt")),
        pinned=f"[127.0.0.1]:{ports['ssh']} {host_key}",
    )


# -- the questions -----------------------------------------------------------------------------------


def settings(patient: Patient) -> Iterator[Finding]:
    """Every value that the first day needs is there, and no secret is in a file that is committed."""
    if patient.environment == "local":
        return
    for told in refused(patient.declared):
        what, _, following = told.partition(". Next: ")
        yield wrong(what, following)
    if os.environ.get("GITHUB_ACTIONS"):
        return
    apart = patient.left_out()
    for name in first_day(patient.declared):
        setting = patient.declared["settings"][name]
        app = name.partition("_")[0].lower()
        if not patient[name] and app not in apart:
            yield wrong(
                f"{name} is not set: {setting['what']}", f"make init ENV={patient.environment}"
            )


def addresses(host: str) -> set[str]:
    """All that a name resolves to, both kinds. Raises OSError."""
    return {str(one[4][0]) for one in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}


def names(patient: Patient) -> Iterator[Finding]:
    """Each name leads to the droplet, or to Cloudflare and nowhere else."""
    if patient.proxied:
        bad = {
            line.partition(" ")[0]: line for line in dns.astray(list(patient.domains().values()))
        }
        for host in patient.domains().values():
            yield (
                wrong(bad[host], f"make dns ENV={patient.environment}")
                if host in bad
                else well(f"{host} leads to Cloudflare")
            )
        return
    if 443 in patient.places:
        yield well(f"names are reached by CONNECT_TO, as {':'.join(map(str, patient.places[443]))}")
        return
    droplet = addresses(patient["DROPLET_HOST"]) | {patient["DROPLET_IPV6"]}
    for name, host in patient.domains().items():
        record = f"at your DNS: {host} A {patient['DROPLET_HOST']}"
        if patient["DNS_PROVIDER"] == "cloudflare":
            record = f"make dns ENV={patient.environment}"
        try:
            found = addresses(host)
        except OSError:
            yield wrong(f"{name}: nobody knows the name {host}", record)
            continue
        other = sorted(found - droplet)
        if not found & droplet:
            yield wrong(f"{name}: {host} leads to {', '.join(other)}, not to the droplet", record)
        elif other:
            yield soon(
                f"{name}: {host} leads to {', '.join(other)} too",
                f"delete what is not the droplet's; {record}",
            )
        else:
            yield well(f"{host} leads to the droplet")


def certificates(patient: Patient) -> Iterator[Finding]:
    """Each name shows a certificate that the world trusts, for some time yet."""
    context = ssl.create_default_context(cafile=patient.authority)
    for host in patient.domains().values():
        place = (host, 443) if patient.proxied else patient.places.get(443, (host, 443))
        try:
            with (
                socket.create_connection(place, SECONDS) as raw,
                context.wrap_socket(raw, server_hostname=host) as tls,
            ):
                shown = tls.getpeercert() or {}
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or str(error.reason)
            following = (
                "make smoke"
                if patient.environment == "local"
                else "docker service logs of the proxy: why is there none"
            )
            yield wrong(f"certificate of {host}: {reason}", following)
            continue
        except OSError as error:
            yield wrong(
                f"{host} does not answer on 443 ({type(error).__name__})",
                f"make provision ENV={patient.environment}",
            )
            continue
        end = datetime.datetime.fromtimestamp(
            ssl.cert_time_to_seconds(str(shown["notAfter"])), datetime.UTC
        )
        days = (end - datetime.datetime.now(datetime.UTC)).days
        if days < CERTIFICATE_DAYS:
            yield soon(
                f"certificate of {host} ends in {days} days",
                "look into the proxy's log: it renews a month before",
            )
        else:
            yield well(f"certificate of {host}: {days} days")


# What Cloudflare answers for a droplet that it cannot ask, and what to do about it.
BEHIND = {
    521: ("the droplet refuses it", "make provision: is 443 open to services/cloudflare.json"),
    522: ("the droplet does not answer it", "make ranges, then make provision"),
    525: ("the droplet's proxy ends the handshake", "docker service logs of the proxy"),
    526: ("the droplet's certificate is none for it", "make provision, with CLOUDFLARE_API_TOKEN"),
}


def proxy(patient: Patient) -> Iterator[Finding]:
    """Behind Cloudflare: it reaches the droplet, and the firewall lets in all of its networks."""
    if not patient.proxied:
        return
    context = ssl.create_default_context(cafile=patient.authority)
    with httpx.Client(verify=context, timeout=SECONDS) as client:
        for host in patient.domains().values():
            status = client.get(f"https://{host}/").status_code
            if 520 <= status <= 527:
                what, following = BEHIND.get(status, ("the droplet's answer is none", "make smoke"))
                yield wrong(f"Cloudflare cannot serve {host} ({status}): {what}", following)
            else:
                yield well(f"Cloudflare reaches the droplet for {host}")
    try:
        differ = cloudflare.differences(cloudflare.kept(), cloudflare.published())
    except github.NotDone as error:
        yield soon(f"Cloudflare's networks: {error}", "make ranges")
        return
    if differ:
        yield soon(
            f"Cloudflare's networks changed: {', '.join(differ)}", "make ranges ARGS=--write"
        )
    else:
        yield well("the firewall knows all of Cloudflare's networks")


def keys(lines: str) -> set[tuple[str, str]]:
    """Kind and key of lines of known_hosts."""
    return set(re.findall(r"\b((?:ssh|ecdsa)-[\w@.-]+) (AAAA[\w+/=]+)", lines))


def host_key(patient: Patient) -> Iterator[Finding]:
    """The droplet shows the key that is pinned."""
    host, port = patient["DROPLET_HOST"], patient["DROPLET_PORT"] or "22"
    pinned = keys(patient.pinned)
    if not pinned:
        yield wrong(
            "DROPLET_KNOWN_HOSTS holds no key",
            "docs/setup.md §3 says how to read it where it cannot be forged",
        )
        return
    command = [
        "ssh-keyscan",
        "-T",
        "5",
        "-p",
        port,
        "-t",
        ",".join(sorted({kind.removeprefix("ssh-") for kind, _ in pinned})),
        host,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS)
    shown = keys(done.stdout)
    if not shown:
        yield wrong(
            f"nobody speaks SSH at {host} port {port}",
            "is the droplet on, and its address DROPLET_HOST?",
        )
    elif shown & pinned:
        yield well("the droplet's SSH host key is the pinned one")
    else:
        yield wrong(
            "the droplet shows another SSH host key than DROPLET_KNOWN_HOSTS",
            "read the key on its console (docs/setup.md §3); until then let nobody in",
        )


def droplet(patient: Patient) -> Iterator[Finding]:
    """The admin user gets in, or a pipeline through the door, and the system gets updates."""
    pipeline = os.environ.get("DROPLET_DOOR", "")
    user = pipeline or patient["DROPLET_USER"]
    with way_in(patient.environment, {**patient.known, "DROPLET_USER": user}) as ssh:
        done = subprocess.run(
            [*ssh, "cimt-door" if pipeline else SHOW],
            input=door.request("hello"),
            capture_output=True,
            text=True,
            timeout=3 * SECONDS,
        )
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        yield wrong(
            f"SSH lets {user or 'nobody'} not in: {told}",
            (
                "make provision, with its public half in DROPLET_CI_KEYS"
                if pipeline
                else "its public half into ~cimt/.ssh/authorized_keys"
            )
            if "denied" in told
            else "is the droplet on, and its address DROPLET_HOST?",
        )
        return
    shown = done.stdout
    if pipeline:
        hello = json.loads(done.stdout)
        shown = hello["system"]
        if hello["door"] != door.program():
            yield wrong(
                "the droplet's door is of another revision, and takes no release of this one",
                "Operate → provision",
            )
    facts = dict(part.split("=", 1) for part in shlex.split(shown) if "=" in part)
    system = f"{facts.get('ID')} {facts.get('VERSION_ID')}"
    yield well(f"SSH lets {user or 'the admin user'} in")
    end = SUPPORTED.get(system)
    if not end:
        yield soon(
            f"{system}: it is not known here how long it gets updates", "tools/doctor.py, SUPPORTED"
        )
    elif (days := (end - _today()).days) < 0:
        yield wrong(
            f"{system} gets no updates since {end}",
            "a droplet with the next system, its data by make restore",
        )
    elif days < 180:
        yield soon(
            f"{system} gets updates until {end}",
            "a droplet with the next system, its data by make restore",
        )
    else:
        yield well(f"{system} gets updates until {end}")


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def registry(patient: Patient) -> Iterator[Finding]:
    """The registry gives the api's image to whoever the droplet is."""
    host, _, path = patient["IMAGE_REPOSITORY"].partition("/")
    place, authority = patient.registry
    user, password = patient["REGISTRY_USERNAME"], patient["REGISTRY_PASSWORD"]
    base = f"https://{place or host}/v2/"
    tags = f"{base}{path}/api/tags/list"
    context = ssl.create_default_context(cafile=authority)
    with httpx.Client(verify=context, timeout=SECONDS) as client:
        answer = client.get(tags, params={"n": 1})
        asked = dict(re.findall(r'(\w+)="([^"]*)"', answer.headers.get("www-authenticate", "")))
        if answer.status_code == 401 and asked.get("realm", "").startswith("https://"):
            sign_in = (user, password) if password else None
            query = {"service": asked.get("service", ""), "scope": f"repository:{path}/api:pull"}
            given = client.get(asked["realm"], params=query, auth=sign_in)
            token = given.json().get("token", "") if given.is_success else ""
            answer = (
                client.get(tags, params={"n": 1}, headers={"Authorization": f"Bearer {token}"})
                if token
                else given
            )
    who = f"{user} pulls" if password else "anybody pulls"
    if answer.is_success:
        yield well(f"{who} {host}/{path}/api")
    elif answer.status_code == 404:
        yield soon(f"{host} has no image {path}/api yet", f"make build ENV={patient.environment}")
    else:
        yield wrong(
            f"{who} no image from {host} ({answer.status_code})",
            "REGISTRY_USERNAME and a token (classic) of that user with read:packages as REGISTRY_PASSWORD",
        )


def database(patient: Patient) -> Iterator[Finding]:
    """The database lets its roles in, with the passwords that they have here."""
    urls = {}
    if patient.environment == "local" or patient["SUPABASE_DB_URL"]:
        try:
            urls["its owner"] = (
                database_url(),
                "Supabase → Connect → Session pooler, as SUPABASE_DB_URL",
            )
        except Unfit as reason:
            what, _, following = str(reason).partition(" Next: ")
            yield wrong(what.rstrip("."), following)
    api = patient["API_DATABASE_URL"]
    password = "" if patient.environment == "local" else patient["API_DATABASE_PASSWORD"]
    migrate = f"make migrate ENV={patient.environment} (it sets the password)"
    if api:
        urls[api_login(api)] = (with_password(api, password), migrate)
    password = "" if patient.environment == "local" else patient["BACKUP_DATABASE_PASSWORD"]
    # A job whose verbs do without it has none; from a person's shell its lack is found.
    of_others = patient.environment != "local" and os.environ.get("GITHUB_ACTIONS") and not password
    if api and patient["BACKUP_REPOSITORY"] and not of_others:
        url = re.sub(r"//cimt_api(_b)?\b", "//cimt_backup", api)
        urls["cimt_backup"] = (with_password(url, password), migrate)
    for role, (url, following) in urls.items():
        try:
            with psycopg.connect(
                patient.here(url), connect_timeout=SECONDS, autocommit=True
            ) as connection:
                connection.execute("select 1")
            yield well(f"the database lets {role} in")
        except psycopg.Error as error:
            yield wrong(
                f"the database lets {role} not in: {' '.join(str(error).split())[:200]}", following
            )


def sign_in(patient: Patient) -> Iterator[Finding]:
    """Supabase shows the keys by which the api knows who asks."""
    url = (
        patient["SUPABASE_JWKS_URL"]
        or f"{patient['SUPABASE_URL'].rstrip('/')}/auth/v1/.well-known/jwks.json"
    )
    answer = httpx.get(patient.here(url), timeout=SECONDS, follow_redirects=True)
    found = answer.json().get("keys", []) if answer.is_success else []
    if found:
        yield well(
            f"sign-in: {len(found)} keys ({', '.join(sorted({one.get('alg', one['kty']) for one in found}))})"
        )
    elif patient["SUPABASE_JWT_SECRET"] and answer.is_success:
        yield soon(
            "sign-in: no keys, tokens are checked by SUPABASE_JWT_SECRET",
            "Supabase → Settings → JWT Keys → Migrate",
        )
    else:
        yield wrong(
            f"sign-in: no keys at {url} ({answer.status_code})",
            "Supabase → Settings → JWT Keys → Migrate JWT secret",
        )


def model(patient: Patient) -> Iterator[Finding]:
    """OpenAI takes the key, and has both models for some time yet."""
    base = patient.here(patient["OPENAI_BASE_URL"] or "https://api.openai.com/v1").rstrip("/")
    headers = {"Authorization": f"Bearer {patient['OPENAI_API_KEY']}"}
    answer = httpx.get(f"{base}/models", headers=headers, timeout=SECONDS)
    if not answer.is_success:
        yield wrong(
            f"OpenAI refuses OPENAI_API_KEY ({answer.status_code})",
            "platform.openai.com → API keys, a new one",
        )
        return
    listed = {one["id"]: one.get("shutdown_date") for one in answer.json()["data"]}
    for name in ("CHAT_MODEL", "EMBEDDING_MODEL"):
        following = (
            "docs/operations/alarms.md, «model»: a successor"
            if name == "CHAT_MODEL"
            else "make reembed with a successor"
        )
        if patient[name] not in listed:
            yield wrong(f"{name}: OpenAI has no {patient[name]} for this key", following)
        elif (end := listed[patient[name]]) and (
            datetime.date.fromisoformat(end) - _today()
        ).days <= SOON:
            yield soon(f"{name}: {patient[name]} is shut down on {end}", following)
        else:
            yield well(f"{name}: OpenAI has {patient[name]}" + (f" until {end}" if end else ""))


def ingest(patient: Patient) -> Iterator[Finding]:
    """The api takes INGEST_KEY, by which the etl brings documents."""
    host = patient["API_DOMAIN"]
    address, port = patient.places.get(443, (host, 443))
    with httpx.Client(
        verify=ssl.create_default_context(cafile=patient.authority), timeout=SECONDS
    ) as client:
        answer = client.get(
            f"https://{address}:{port}/documents",
            params={"limit": 1},
            headers={"Host": host, "Authorization": f"Bearer {patient['INGEST_KEY']}"},
            extensions={"sni_hostname": host},
        )
    if answer.is_success:
        yield well("the api takes INGEST_KEY")
    elif answer.status_code == 401:
        yield wrong("the api refuses INGEST_KEY (401)", f"make services ENV={patient.environment}")
    else:
        yield soon(
            f"the api does not list its documents ({answer.status_code})",
            f"make smoke ENV={patient.environment}",
        )


def alerts(patient: Patient) -> Iterator[Finding]:
    """Each channel of alerts takes its token; nothing is sent."""
    channels = {one.strip() for one in patient["NOTIFY_CHANNELS"].split(",")} - {""}
    if "n8n" in patient.left_out():
        return
    if not channels:
        yield soon(
            "alerts reach nobody", "NOTIFY_CHANNELS=webhook,slack,telegram,mail: one of them"
        )
    if "slack" in channels:
        headers = {"Authorization": f"Bearer {patient['NOTIFY_SLACK_TOKEN']}"}
        said = httpx.post(f"{SLACK}/auth.test", headers=headers, timeout=SECONDS).json()
        yield (
            well("Slack takes its token")
            if said.get("ok")
            else wrong(
                f"Slack refuses NOTIFY_SLACK_TOKEN ({said.get('error')})",
                "api.slack.com → your app → OAuth",
            )
        )
    if "telegram" in channels:
        place = f"{TELEGRAM}/bot{patient['NOTIFY_TELEGRAM_TOKEN']}/getChat"
        said = httpx.get(
            place, params={"chat_id": patient["NOTIFY_TELEGRAM_CHAT"]}, timeout=SECONDS
        ).json()
        yield (
            well("Telegram knows bot and chat")
            if said.get("ok")
            else wrong(
                f"Telegram refuses NOTIFY_TELEGRAM_TOKEN or NOTIFY_TELEGRAM_CHAT ({said.get('description')})",
                "Telegram → BotFather, and let the bot into the chat",
            )
        )
    for name in ("NOTIFY_WEBHOOK_URL", "ALERTS_HEARTBEAT_URL"):
        url = httpx.URL(patient[name])
        if url.host:
            try:
                socket.create_connection(
                    (url.host, url.port or (443 if url.scheme == "https" else 80)), SECONDS
                ).close()
                yield well(f"{name}: {url.host} answers")
            except OSError as error:
                yield wrong(
                    f"{name}: {url.host} does not answer ({type(error).__name__})", f"mend {name}"
                )


def mail(patient: Patient) -> Iterator[Finding]:
    """The mail server takes the user's password; nothing is sent."""
    host = patient["NOTIFY_SMTP_HOST"]
    if not host or "mail" not in patient["NOTIFY_CHANNELS"]:
        return
    name, _, port = host.partition(":")
    try:
        with smtplib.SMTP_SSL(
            name, int(port or 465), timeout=SECONDS, context=ssl.create_default_context()
        ) as server:
            server.login(patient["NOTIFY_SMTP_USER"], patient["NOTIFY_SMTP_PASSWORD"])
        yield well(f"the mail server {host} takes the sign-in")
    except smtplib.SMTPException as error:
        code = getattr(error, "smtp_code", type(error).__name__)
        yield wrong(
            f"the mail server {host} refuses the sign-in ({code})",
            "NOTIFY_SMTP_USER and NOTIFY_SMTP_PASSWORD of your mail service",
        )
    except OSError as error:
        yield wrong(
            f"the mail server {host} does not answer with TLS on port {port or 465} ({type(error).__name__})",
            "mend NOTIFY_SMTP_HOST",
        )


def on_github(patient: Patient) -> Iterator[Finding]:
    """GitHub has every name, value and rule."""
    if patient.environment == "local" or os.environ.get("GITHUB_ACTIONS"):
        return
    url, name, token = github_settings.access()
    verb = f"make github ENV={patient.environment}"
    if not name or not token:
        yield soon(
            "GitHub was not asked", "gh auth login" if name else "GITHUB_REPOSITORY=owner/name"
        )
        return
    found: list[github_settings.Change] = []
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"}
    given = {one: value for one, value in patient.known.items() if os.environ.get(one)}
    wants = github_settings.by_environment(patient.declared, given, patient.environment)
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=SECONDS) as client:
            for at, want in wants.items():
                found += github_settings.Settings(client, name, at).plan(want)
    except github.NotDone as error:
        what, _, following = github_settings.told(str(error), token).partition(". Next: ")
        # A token that may not look proves nothing about GitHub.
        yield (soon if ": 403 " in what else wrong)(f"GitHub: {what}", following)
        return
    for change in found:
        if change.do:
            yield wrong(f"GitHub differs: {change.sign} {change.what.partition(' = ')[0]}", verb)
    if not any(change.do for change in found):
        yield well(f"GitHub: {name} has all that its workflows take, and the rule for main")


def tokens(_: Patient) -> Iterator[Finding]:
    """Tokens of clouds that are in the shell are good."""
    for name, (url, path, scopes) in TOKENS.items():
        if token := os.environ.get(name, ""):
            answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=SECONDS)
            said: Any = answer.json() if answer.is_success else {}
            for part in path:
                said = said.get(part) if isinstance(said, dict) else None
            if said == "active":
                yield well(f"{name} is active")
            else:
                yield wrong(
                    f"{name} is refused ({answer.status_code}, {said})", f"a token with {scopes}"
                )


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    *(settings, names, certificates, proxy, host_key, droplet, registry, database),
    *(sign_in, model, ingest, mail, alerts, on_github, tokens),
)
BEFORE_RELEASE = (registry, database, sign_in, model)
# Without these a check asks nothing: `settings` names them.
ASKED_WITH = {
    "names": "DROPLET_HOST",
    "host_key": "DROPLET_HOST",
    "droplet": "DROPLET_HOST",
    "registry": "IMAGE_REPOSITORY",
    "sign_in": "SUPABASE_URL",
    "model": "OPENAI_API_KEY",
    "ingest": "INGEST_KEY",
}


def examine(
    patient: Patient, checks: Sequence[Callable[[Patient], Iterator[Finding]]] = CHECKS
) -> Iterator[Finding]:
    """All checks at once, their findings in a fixed order."""

    def ask(check: Callable[[Patient], Iterator[Finding]]) -> list[Finding]:
        found: list[Finding] = []
        if (needed := ASKED_WITH.get(check.__name__)) and not patient[needed]:
            return found
        try:
            found.extend(check(patient))
        except (OSError, httpx.HTTPError, subprocess.TimeoutExpired) as error:
            found.append(
                wrong(
                    f"{check.__name__}: no answer ({type(error).__name__})",
                    "the same again; then look at its address",
                )
            )
        except (AttributeError, KeyError, TypeError, ValueError, httpx.InvalidURL) as error:
            found.append(
                wrong(
                    f"{check.__name__}: this is no answer that it can be ({type(error).__name__})",
                    "look at its address",
                )
            )
        return found

    pool = ThreadPoolExecutor(len(checks))
    asked = [(check, pool.submit(ask, check)) for check in checks]
    end = time.monotonic() + PATIENCE
    for check, answer in asked:
        try:
            yield from answer.result(max(0, end - time.monotonic()))
        except TooLong:
            yield wrong(f"{check.__name__}: no answer in {PATIENCE} s", "the same again")
    pool.shutdown(wait=False, cancel_futures=True)


def discreet(text: str, patient: Patient) -> str:
    """A text without any secret of the environment, however it is spelled."""
    hidden = {
        value
        for name, one in patient.declared["settings"].items()
        if one.get("secret") and (value := patient[name])
    }
    hidden |= {os.environ.get(name, "") for name in (*TOKENS, "GITHUB_TOKEN", "GH_TOKEN")}
    parts = {
        part
        for value in hidden
        for part in (value, *value.split("\n"), base64.b64encode(value.encode()).decode())
    }
    for value in sorted(
        {one for one in (*parts, *spelled(patient.known)) if len(one) > 3}, key=len, reverse=True
    ):
        text = text.replace(value, "***")
    return text


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make doctor", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--before-release", action="store_true", help="what a release needs, alone")
    checks = BEFORE_RELEASE if parser.parse_args().before_release else CHECKS
    environment = os.environ.get("ENV", "local")
    started = time.monotonic()
    try:
        patient = local() if environment == "local" else production(environment)
    except OSError as error:
        print(f"doctor: {error.filename} is not there. Next: make up", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"doctor: {error}. Next: mend it", file=sys.stderr)
        return 2
    told: dict[Sign, list[str]] = {"✓": [], "!": [], "✗": []}
    for finding in examine(patient, checks):
        told[finding.sign].append(discreet(str(finding), patient))
        print(told[finding.sign][-1], flush=True)
    note(changed=told["✗"], notes=told["!"])
    count = {sign: len(lines) for sign, lines in told.items()}
    took = time.monotonic() - started
    print(f"doctor: {count['✓']} well, {count['!']} to look at, {count['✗']} wrong; {took:.0f} s")
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(1 if count["✗"] else 0)  # a thread that still waits for an answer holds nobody up


if __name__ == "__main__":
    sys.exit(main())
