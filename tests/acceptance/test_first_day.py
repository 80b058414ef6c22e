"""The first day, from nothing: what docs/setup.md tells a person to type, against the stand-ins, up to a live release.

Then a day on which its secrets change hands, by docs/operations/rotation.md, while people ask; and the one on which the
droplet is gone: what docs/operations/recovery.md says, up to the same product on another one.
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
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from local import aside, clouds, pipeline, rehearsal
from local.cloudflare.app import ALL_RIGHTS, Cloud
from local.droplet import machine
from local.github.repository import Repository
from local.github.runner import REPOSITORY
from local.postgres import server as postgres
from local.registry import rights
from local.settings import ROOT, Settings, load, write_atomic
from testbed.droplet import Client, Traffic
from testbed.served import served
from testbed.supabase_management import REF, management
from tests.acceptance.test_pipeline_faults import Edits, proposed
from tools.host import door
from tools.host.way_in import way_in
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
# Of a droplet without n8n: what is made here, and what somebody brings.
MADE = (
    "API_DATABASE_PASSWORD",
    "INGEST_KEY",
    "BACKUP_PASSWORD",
    "BACKUP_DATABASE_PASSWORD",
    "EASYPANEL_ADMIN_PASSWORD",
    "DROPLET_CI_KEY",
    "DROPLET_SSH_KEY",
)
BROUGHT = ("OPENAI_API_KEY", "REGISTRY_PASSWORD")
ROTATE = "make rotate SECRET={} ENV=production"
REVOKE = ROTATE + " CONFIRM=revoke"
ROTATION = "docs/operations/rotation.md"
# What each call has named, in one.
NAMED = (
    "make github ENV=production CONFIRM=yes "
    "ROTATE=\"$(grep -o 'ROTATE=[A-Z_,]*' ~/told | cut -d= -f2 | paste -sd,)\""
)
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


def ask_for_passwords(settings: Settings) -> None:
    """As Supabase does, and the database of this machine else does not, of all who are not its owner."""
    rules = settings.clouds / "postgres/pg_hba.conf"
    names = "cimt_api,cimt_api_b,cimt_backup"
    rules.write_text(f"host all {names} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    with psycopg.connect(postgres.url(settings.ports["postgres"])) as owner:
        owner.execute("select pg_reload_conf()")


def typed(settings: Settings, lines: Iterable[str]) -> dict[str, str]:
    """Do what the person types later, in a clone of what was merged; their secrets then, by name."""
    bare = Repository(settings.state / "github", pipeline.say).bare
    for arguments in (["fetch", "-q", str(bare), "main"], ["reset", "-q", "--hard", "FETCH_HEAD"]):
        subprocess.run(["git", *arguments], cwd=settings.root, check=True)
    person = settings.state / "person"
    kept = (person / "production.secrets").read_text()
    there = values.read(person / "production.secrets")
    given = {name: one for name, one in of_the_person(settings).items() if name not in there}
    script = [
        pipeline.exported(given),
        "mkdir -pm 700 ~/.config/cimt; mkdir ~/out",
        f"(umask 077; cat >~/.config/cimt/production.secrets <<<{shlex.quote(kept)})",
        'eval "$(ssh-agent -s)" >/dev/null',
        "make setup",
        *lines,
        "cp production.env ~/.config/cimt/production.secrets ~/out",
    ]
    pipeline.type_in(settings, "\n".join(script), person, 60, {})
    return values.read(person / "production.secrets")


def gets_in(settings: Settings, user: str, key: str) -> bool:
    """Whether that key opens the droplet for that user."""
    known = {
        "DROPLET_HOST": "127.0.0.1",
        "DROPLET_PORT": str(settings.ports["ssh"]),
        "DROPLET_KNOWN_HOSTS": f"[127.0.0.1]:{settings.ports['ssh']} "
        + (settings.droplet / "host_ed25519.pub").read_text().strip(),
        "DROPLET_USER": user,
        "DROPLET_SSH_KEY": key,
    }
    hello = door.request("hello")
    with way_in("production", known) as ssh:
        done = subprocess.run([*ssh, "cimt-door"], input=hello, capture_output=True, text=True)
    assert done.returncode != 255 or "Permission denied (publickey)" in done.stderr, done.stderr
    return done.returncode != 255


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
    ask_for_passwords(settings)
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


def test_secrets_change_hands_while_people_ask(folder: Path, tmp_path: Path) -> None:
    documented(ROTATE.format("INGEST_KEY"), ROTATION)
    documented(REVOKE.format("INGEST_KEY"), ROTATION)
    settings = load(folder)
    repository = Repository(settings.state / "github", pipeline.say)
    before = values.read(settings.state / "person/production.secrets")
    brought = {name: secrets.token_hex(20) for name in BROUGHT}
    registry = settings.clouds / "ghcr"
    scopes = ("read:packages",)
    rights.grant(registry, brought["REGISTRY_PASSWORD"], user=rehearsal.OWNER, scopes=scopes)
    client = Client("api.cimt.localhost", settings.state, "production/panel-ca.crt")

    def merged(name: str) -> None:
        """What was typed has changed production.env; its merge is live."""
        text = (settings.state / "person/production.env").read_text()
        edits: Edits = {"production.env": lambda _: text}
        pipeline.live(settings, proposed(repository, tmp_path / name, edits))

    started = time.monotonic()
    with Traffic(client, before["INGEST_KEY"]) as users:
        now = typed(
            settings,
            (
                LOG_IN,
                "make backup ENV=production",  # the first: what has none has no password to change
                *(f"{ROTATE.format(name)} | tee -a ~/told" for name in MADE),
                *(
                    f"{ROTATE.format(name)} <<<{value} | tee -a ~/told"
                    for name, value in brought.items()
                ),
                "make migrate ENV=production",
                "make provision ENV=production",
                "make backup ENV=production",
                NAMED,
            ),
        )
        merged("both-are-good")
    users.assert_no_gap()
    assert {name for name in (*MADE, *BROUGHT) if now[name] == before[name]} == set()
    rights.revoke(registry, before["REGISTRY_PASSWORD"])
    with Traffic(client, now["INGEST_KEY"]) as users_of_the_new:
        after = typed(
            settings,
            (
                LOG_IN,
                *map(REVOKE.format, (*MADE, *BROUGHT)),
                "make provision ENV=production",
                "make github ENV=production CONFIRM=yes ROTATE=INGEST_KEY_OLD",
                "make backup ENV=production",
            ),
        )
        merged("the-old-ones-end")
    users_of_the_new.assert_no_gap()
    reached(settings, (settings.state / "person/production.env").read_text())
    seconds = time.monotonic() - started
    assert after == {name: one for name, one in now.items() if not name.endswith(values.OLD)}
    # What was good before is not any more, where it is ours to end it.
    for values_of, good in ((before, False), (after, True)):
        said = client.request("GET", "/documents?limit=1", key=values_of["INGEST_KEY"])
        assert said.status_code == (200 if good else 401)
        assert gets_in(settings, "cimt", values_of["DROPLET_SSH_KEY"]) == good
        assert gets_in(settings, door.account(), values_of["DROPLET_CI_KEY"]) == good
    with psycopg.connect(postgres.url(settings.ports["postgres"])) as owner:
        closed = owner.execute(
            "select rolname from pg_authid where rolname ~ '^cimt_api(_b)?$' and rolpassword is null"
        ).fetchall()
    assert closed == [("cimt_api",)]
    answered = users.answered + users_of_the_new.answered
    print(
        f"secrets: {len(after)} kept, {len(MADE) + len(BROUGHT)} changed hands in {seconds:.0f} s by two merges; "
        f"0 of {answered} requests failed meanwhile"
    )


def test_the_droplet_is_gone(folder: Path) -> None:
    for command in GONE:
        documented(command, RUNBOOK)
    settings = load(folder)
    repository = Repository(settings.state / "github", pipeline.say)
    # This day's backup is the newest.
    history = "make history ENV=production >~/out/history-{}"
    typed(settings, (LOG_IN, "make backup ENV=production", history.format("before")))
    cloud = httpx.Client(
        base_url=f"http://127.0.0.1:{settings.ports['digitalocean']}/v2",
        headers={"Authorization": f"Bearer {TOKENS['DIGITALOCEAN_TOKEN']}"},
    )
    (droplet,) = cloud.get("/droplets").json()["droplets"]
    started = time.monotonic()
    cloud.delete(f"/droplets/{droplet['id']}").raise_for_status()
    typed(settings, (*GONE, history.format("after"), "git status --short >~/out/status"))
    ready = time.monotonic() - started
    then, now = (
        re.findall(
            r"^.* -> .*$", (settings.state / f"person/history-{day}").read_text(), re.MULTILINE
        )
        for day in ("before", "after")
    )
    assert then
    assert now == then, "the ledger is not the one of the old droplet"
    assert (settings.state / "person/status").read_text() == "", "production.env is another one"
    reached(settings, (folder / "production.env").read_text())
    # GitHub is told nothing: address and host key are those that it knows.
    (run,) = repository.dispatch("deploy.yml", {})
    assert run.green, run.folder
    live = time.monotonic() - started
    print(
        f"droplet gone: {ready:.0f} s until another one was provisioned and had its ledger, host key and backup, "
        f"{live:.0f} s until it was live; typed: {len(GONE)} commands, and one workflow was started"
    )
