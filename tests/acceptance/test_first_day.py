"""The first day, from nothing: what docs/setup.md tells a person to type, against the stand-ins, up to a live release.

Then the day on which the droplet is gone: what docs/operations/recovery.md says, up to the same product on another one.
The droplet that DigitalOcean's stand-in makes is a virtual machine of its own, with a volume: beside the one of
`make up`, in a clone of its own below `.local/first-day`, which stays for a look when something fails.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local import aside, clouds, pipeline, rehearsal
from local.cloudflare.app import ALL_RIGHTS, Cloud
from local.droplet import machine
from local.github.repository import Repository
from local.github.runner import REPOSITORY
from local.settings import ROOT, Settings, load, write_atomic
from testbed.served import served
from testbed.supabase_management import REF, management
from tools.settings import values

ANSWERS = {
    "DOMAIN": "cimt.localhost",
    "REGION": "fra1",
    "REPOSITORY": REPOSITORY,
    "EMAIL": "ann@example.com",
    "PROJECT": REF,
}
TOKENS = {
    "DIGITALOCEAN_TOKEN": "dop_v1_" + "a1" * 32,
    "CLOUDFLARE_API_TOKEN": secrets.token_hex(20),
    "SUPABASE_ACCESS_TOKEN": "sbp_" + "a1" * 20,
    "GITHUB_TOKEN": "github_pat_of_a_person",
    "SMTP_PASSWORD": secrets.token_hex(20),
}
LOG_IN = (
    'ENV=production .venv/bin/python -m tools.settings with bash -c \'ssh-add - <<<"$DROPLET_SSH_KEY" '
    '&& echo "$DROPLET_KNOWN_HOSTS" >>~/.ssh/known_hosts\''
)
# In the document's order. `make github` wants what `make droplet` and `make dns` have found.
TYPED = (
    "make init DOMAIN=example.com REGION=nyc3 REPOSITORY=example/cimt EMAIL=… PROJECT=…",
    "make droplet ENV=production",
    "make droplet ENV=production CONFIRM=yes",
    LOG_IN,
    "make dns ENV=production",
    "make dns ENV=production CONFIRM=yes",
    "make build ENV=production",
    "make plan ENV=production",
    "make provision ENV=production",
    "make auth ENV=production CONFIRM=yes",
    "make github ENV=production",
    "make github ENV=production CONFIRM=yes",
)
# Said again, they have nothing to do.
AGAIN = (
    ("make init", "production.env: as it was"),
    ("make droplet ENV=production CONFIRM=yes", "all is as it should be"),
    ("make dns ENV=production CONFIRM=yes", "all is as it should be"),
    ("make provision ENV=production", "changed=0 "),
    ("make github ENV=production CONFIRM=yes", "all is as it should be"),
)
# The chapter "The droplet is gone", in its order; the new host key is known until the old one is back.
GONE = (
    "make droplet ENV=production CONFIRM=yes",
    LOG_IN,
    "make provision ENV=production",
    "make restore WHAT=host ENV=production INTO=production",
    "git checkout production.env",
    LOG_IN,
    "make backup ENV=production",
)
RUNBOOK = "docs/operations/recovery.md"
FOLDER = ROOT / ".local/first-day/cimt"
PERMISSIONS = {
    **dict.fromkeys(("administration", "environments", "variables"), "write"),
    **dict.fromkeys(("actions", "metadata"), "read"),
}


def documented(command: str, document: str = pipeline.DOCUMENT) -> None:
    """Raise unless a person finds this command in the document."""
    text = (ROOT / document).read_text()
    assert command in text or command.removesuffix(" CONFIRM=yes") in text, command


def in_full(command: str, profile: Path) -> str:
    """What is typed for a command of the document: with its answers, and where the stand-ins are."""
    if command.startswith("make init"):
        return shlex.join(["make", "init", *(f"{name}={value}" for name, value in ANSWERS.items())])
    if command.startswith("make auth"):
        # The only account whose address the name of a project makes.
        return f"SUPABASE_URL=https://{REF}.supabase.co ARGS='--profile {profile}' {command}"
    return command


def of_the_person(settings: Settings) -> dict[str, str]:
    """What is set in the shell of whoever types: their tokens, and where the stand-ins are."""
    return (
        TOKENS
        | rehearsal.world(settings)
        | {
            "DIGITALOCEAN_API_URL": f"http://127.0.0.1:{settings.ports['digitalocean']}",
            "GITHUB_API_URL": f"http://127.0.0.1:{settings.ports['github']}/api",
            "DNS_PROVIDER": "cloudflare",
            "REGISTRY": rehearsal.registry(settings),
            "SMTP_USER": "mailer",
            "NO_PROXY": "127.0.0.1,localhost,.localhost",
        }
    )


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The clone in which the days are lived; it stays when one of them fails."""
    yield FOLDER
    if not request.session.testsfailed:
        aside.remove(FOLDER)


def reached(settings: Settings, text: str) -> None:
    """What only this machine does: its own way into the droplet of this production.env, and the panel's certificate."""
    kept = values.read(settings.state / "person/production.secrets")
    pinned = re.search(r"^DROPLET_KNOWN_HOSTS=\"?\S+ (\S+ [^\s\"]+)", text, re.MULTILINE)
    assert pinned
    machine.log_in_by(settings, kept["DROPLET_SSH_KEY"], pinned[1])
    rehearsal.prepare_droplet(settings)


def test_from_nothing_to_live(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    # As a new droplet is: all that roles need, they install.
    monkeypatch.setenv("DROPLET_BARE", "1")
    settings = aside.make(folder, "first-day")
    print(f"first day: in {folder}; when it fails, that stays until: make -C {folder} down")
    for name in ("registry", "postgres", "s3", "supabase", "openai", "github", "digitalocean"):
        clouds.start(settings, name)
    subprocess.run(["make", "panel-image"], cwd=settings.root, check=True)
    rehearsal.prepare_runner(settings)
    tokens = {TOKENS["GITHUB_TOKEN"]: {"permissions": PERMISSIONS}}
    write_atomic(settings.state / "github/tokens.json", json.dumps(tokens))
    tmp_path.chmod(0o755)  # the person is another user, where root runs this
    cloud = Cloud()
    cloud.tokens[TOKENS["CLOUDFLARE_API_TOKEN"]] = ALL_RIGHTS
    cloud.add_zone(ANSWERS["DOMAIN"])
    with served(cloud.application()) as dns, management(tmp_path) as (auth, profile):
        given = of_the_person(settings)
        given["CLOUDFLARE_API_URL"] = f"http://127.0.0.1:{dns}/client/v4"
        lines = ['eval "$(ssh-agent -s)" >/dev/null']
        for command in TYPED:
            documented(command)
            lines.append(in_full(command, profile))
        for command, says in AGAIN:
            lines.append(f"{command} >~/again; cat ~/again; grep -q {shlex.quote(says)} ~/again")
        lines += ["mkdir ~/out", "cp production.env ~/.config/cimt/production.secrets ~/out"]
        script = pipeline.registry_login(settings) + pipeline.exported(given) + "\n".join(lines)
        out = settings.state / "person"
        pipeline.type_in(settings, script, out, 60, {})
        assert auth.written, "sign-in was not declared"
    typed_in = time.monotonic() - started
    text = (out / "production.env").read_text()
    leads = {
        one["name"]: one["content"]
        for zone in cloud.zones.values()
        for one in zone["records"].values()
        if one["type"] == "A"
    }
    host = re.search(r"^DROPLET_HOST=(.+)$", text, re.MULTILINE)
    assert host
    assert leads == dict.fromkeys(("api.cimt.localhost", "app.cimt.localhost"), host[1])
    reached(settings, text)
    mounted = machine.as_root(
        settings, "findmnt -no SOURCE /etc/easypanel/projects/cimt/n8n/volumes"
    )
    assert mounted.startswith("/dev/sd"), mounted
    number = pipeline.propose(settings, "production.env", text)
    pipeline.live(settings, number)
    live = time.monotonic() - started
    # And the first night finds nothing, with every value tried.
    (night,) = Repository(settings.state / "github", pipeline.say).dispatch("nightly.yml", {})
    told = [one.read_text() for one in (settings.state / "github").glob("issues-*.md")]
    assert night.jobs["look"].result == "success", "\n".join(told)
    print(
        f"first day: {typed_in:.0f} s of commands, {live:.0f} s until it was live; typed: "
        f"{len(TYPED)} commands, {len(ANSWERS)} answers, {len(TOKENS)} tokens; no other step by hand"
    )


def test_the_droplet_is_gone(folder: Path) -> None:
    for command in GONE:
        documented(command, RUNBOOK)
    settings = load(folder)
    repository = Repository(settings.state / "github", pipeline.say)
    # The person's clone is one of what was merged; this day's backup is the newest.
    for arguments in (
        ["fetch", "-q", str(repository.bare), "main"],
        ["reset", "-q", "--hard", "FETCH_HEAD"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    kept = (settings.state / "person/production.secrets").read_text()
    begins = (
        pipeline.exported(of_the_person(settings))
        + "mkdir -pm 700 ~/.config/cimt; (umask 077; cat >~/.config/cimt/production.secrets "
        + f"<<<{shlex.quote(kept)}); mkdir ~/out\n"
        + 'eval "$(ssh-agent -s)" >/dev/null\n'
    )
    before = f"make setup\n{LOG_IN}\nmake backup ENV=production; make history ENV=production >~/out/history"
    pipeline.type_in(settings, begins + before, settings.state / "before", 10, {})
    cloud = httpx.Client(
        base_url=f"http://127.0.0.1:{settings.ports['digitalocean']}/v2",
        headers={"Authorization": f"Bearer {TOKENS['DIGITALOCEAN_TOKEN']}"},
    )
    (droplet,) = cloud.get("/droplets").json()["droplets"]
    started = time.monotonic()
    cloud.delete(f"/droplets/{droplet['id']}").raise_for_status()
    lines = [
        *GONE,
        "make history ENV=production >~/out/history",
        "git status --short >~/out/status",
    ]
    pipeline.type_in(settings, begins + "\n".join(lines), settings.state / "after", 60, {})
    ready = time.monotonic() - started
    then, now = (
        re.findall(r"^.* -> .*$", (settings.state / day / "history").read_text(), re.MULTILINE)
        for day in ("before", "after")
    )
    assert then
    assert now == then, "the ledger is not the one of the old droplet"
    assert (settings.state / "after/status").read_text() == "", "production.env is another one"
    reached(settings, (folder / "production.env").read_text())
    # GitHub is told nothing: address and host key are those that it knows.
    (run,) = repository.dispatch("deploy.yml", {})
    assert run.green, run.folder
    live = time.monotonic() - started
    print(
        f"droplet gone: {ready:.0f} s until another one was provisioned and had its ledger, host key and backup, "
        f"{live:.0f} s until it was live; typed: {len(GONE)} commands, and one workflow was started"
    )
