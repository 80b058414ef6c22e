"""`make restore-drill`: a backup comes back on a fresh droplet and a fresh Postgres of this machine, and is used there.

Usage: python -m tools.restore_drill [--keep]

ENV names the environment whose backup it is; it is only read. All happens in a clone below `.local/restore-drill`, with
a droplet, ports and clouds of its own: what runs here goes on. From the restored droplet's containers no packet leaves
for anything but the stand-ins, so that what production would tell or call in the night wakes nobody. The evidence is
`.local/restore-drill.json`, and the environment's droplet gets it too: Alerts misses a drill for 30 days.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psycopg
from rich.console import Console

from local import aside, up
from local.droplet import machine
from local.postgres import server as postgres
from local.settings import ROOT, LocalError, Settings, load, write_atomic
from local.sign_in import sign_in
from local.waiting import eventually
from tools.declared import Declared, NotDeclared

FOLDER = ROOT / ".local/restore-drill"
EVIDENCE = ".local/restore-drill.json"
# Of the environment whose backup it is: where that is, what opens it, and what opens n8n's credentials.
NEEDED = (
    *("BACKUP_REPOSITORY", "BACKUP_PASSWORD", "BACKUP_KEY_ID", "BACKUP_KEY_SECRET"),
    "N8N_ENCRYPTION_KEY",
)
# Whoever restores may back up from then on: this droplet must not, into what it only reads. Then the walls: the first
# counts what tried to leave, and stops it; the second what left all the same. Of containers only: the host
# itself has to reach the repository.
CUT = """\
mkdir -p /etc/systemd/system/cimt-backup.service.d
printf '[Unit]\nConditionPathExists=!/\n' >/etc/systemd/system/cimt-backup.service.d/drill.conf
systemctl daemon-reload
nft -f - <<'END'
table inet cimt_drill {
  set inside { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 127.0.0.0/8, 172.16.0.0/12 } }
  chain stop { type filter hook forward priority filter - 10; ip daddr != @inside counter drop; }
  chain left { type filter hook postrouting priority srcnat - 10; fib saddr type != local ip daddr != @inside counter; }
}
END
"""
PACKETS = "nft --json list table inet cimt_drill"
N8N = "docker exec $(docker ps --quiet --filter name=cimt_n8n)"
ACTIVE = """python3 - <<'END'
import sqlite3
volume = "/etc/easypanel/projects/cimt/n8n/volumes/n8n/database.sqlite"
count = "select count(*), coalesce(sum(active), 0) from workflow_entity"
print(*sqlite3.connect(f"file:{volume}?mode=ro", uri=True).execute(count).fetchone())
END
"""
N8N_SECONDS = 1800  # an emulated droplet needs half of them
# The one of the repository's workflows that is called by others, so that it does not run by itself when it is called.
BY_HAND = "notify"


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.restore_drill", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--keep", action="store_true", help="leave droplet and clouds of the drill")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        if given.inside:
            drill(load(running=True))
            return 0
        with machine.alone(load(), "restore-drill"):
            return outside(given.keep)
    except (LocalError, NotDeclared, up.StageFailed) as reason:
        print(f"{reason}", file=sys.stderr)
        return 1
    except TimeoutError as reason:
        print(f"restore-drill: {reason}. Next: make logs NAME=console", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nrestore-drill: stopped. Next: make restore-drill (it begins anew)", file=sys.stderr
        )
        return 130


# -- outside: a place of its own, and what is left of it ---------------------------------------------


def outside(keep: bool) -> int:
    """Make the clone, let the drill run there, keep its evidence, take all of it away; the exit code."""
    environment = os.environ.get("ENV", "local")
    values = source(environment)
    clone = FOLDER / "cimt"
    state = aside.make(clone, "restore-drill").state
    write_atomic(state / "given.json", json.dumps(values), 0o600)
    # Where the environment has n8n, so has its backup.
    switch = {"N8N": "1"} if environment != "local" or "n8n" in load().apps else {}
    inner = {
        name: value
        for name, value in os.environ.items()
        if name not in (*NEEDED, "SUPABASE_DB_URL", "MAKEFLAGS", "MFLAGS", "GOALS")
    }
    process = subprocess.run(
        [sys.executable, "-m", "tools.restore_drill", "--inside"],
        cwd=clone,
        env=inner | {"ENV": "local"} | switch,
    )
    found = clone / EVIDENCE
    if found.exists():
        shutil.copyfile(found, ROOT / EVIDENCE)
    if keep or process.returncode:
        print(f"restore-drill: left for a look: make -C {clone} ssh. Next: make restore-drill")
    else:
        aside.remove(clone)
    if process.returncode:
        return process.returncode
    tell = ["make", "--no-print-directory", "drilled", f"ENV={environment}"]
    if subprocess.run(tell, cwd=ROOT).returncode:
        raise LocalError(
            f"restore-drill: passed, but {environment} was not told. Next: {' '.join(tell[:1] + tell[2:])}"
        )
    return 0


def source(environment: str) -> dict[str, str]:
    """The values of NEEDED as the environment has them. Raises LocalError."""
    declared = Declared(environment)["setting"]
    values = {name: str(declared[name]) for name in NEEDED}
    if missing := [name for name, value in values.items() if not value]:
        raise LocalError(
            f"restore-drill: {', '.join(missing)} is not set. Next: docs/setup.md says where each comes from"
        )
    return values


def run(command: list[str], folder: Path) -> None:
    """A command, whose lines are seen as they come. Raises LocalError."""
    if subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL).returncode:
        raise LocalError(f"restore-drill: {' '.join(command)} failed; its reasons stand above")


# -- inside the clone --------------------------------------------------------------------------------


class Evidence:
    """What was done, how long it took and what was seen; written after every step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = time.monotonic()
        self.found: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": {},
            "checks": {},
        }

    def save(self) -> None:
        """Write it, with the time until now."""
        self.found["seconds"]["total"] = round(time.monotonic() - self.started)
        write_atomic(self.path, json.dumps(self.found, indent=1) + "\n")

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step: a line before it, its seconds after it."""
        print(f"restore-drill: {name} …", flush=True)
        began = time.monotonic()
        try:
            yield
        finally:
            self.found["seconds"][name] = round(time.monotonic() - began)
            self.save()

    def check(self, name: str, good: bool, seen: Any) -> None:
        """Note what was seen. Raises LocalError when it is not what it must be."""
        self.found["checks"][name] = seen
        self.save()
        print(f"restore-drill: {'✓' if good else '❌'} {name}: {seen}", flush=True)
        if not good:
            raise LocalError(
                f"restore-drill: {name}: {seen}. Next: docs/operations/backup.md, The drill"
            )


def drill(settings: Settings) -> None:
    """Provision, restore all, use it. Raises LocalError, StageFailed."""
    console = Console(highlight=False, soft_wrap=True)
    evidence = Evidence(settings.root / EVIDENCE)
    bare = [one for one in up.stages(settings.apps) if one.name not in ("deploy", "backup")]
    with evidence.step("a fresh droplet, provisioned, and a fresh database, migrated"):
        up.run_all(bare, settings.logs, console)
    ssh = functools.partial(machine.as_root, settings)
    with evidence.step("rows of the database"):
        listed = json.loads(ssh("cimt-backup list"))
        if not listed["snapshots"]:
            raise LocalError("restore-drill: the repository has no backup. Next: make backup")
        newest = listed["snapshots"][-1]
        restore(settings, "postgres", newest["id"])
        run(
            [sys.executable, "-m", "tools.database.restore", ".local/restored/postgres.sql"],
            settings.root,
        )
    manifest = json.loads(
        ssh("cat /var/lib/cimt-restored/postgres-*/var/lib/cimt/backup/manifest.json")
    )
    evidence.found |= {
        "snapshot": newest["id"],
        "taken": manifest["time"],
        "age_hours": newest["age_hours"],
        "counts": manifest["counts"],
        "versions": versions(ssh, settings.apps),
    }
    with psycopg.connect(postgres.url(settings.ports["postgres"])) as database:
        rows = {
            name: count(database, name)
            for name in manifest["counts"]["postgres"]
            if not name.startswith("supabase_migrations.")
        }
        wanted = {name: manifest["counts"]["postgres"][name] for name in rows}
        evidence.check("rows by table, as in the backup", rows == wanted, rows)
        person = known_person(database)
    with evidence.step("release of the apps"):
        run(["make", "--no-print-directory", "deploy"], settings.root)
    ssh(CUT)
    if "n8n" in settings.apps:
        with evidence.step("n8n's volume"):
            restore(settings, "n8n", newest["id"])
            healthy = "docker ps --quiet --filter name=cimt_n8n --filter health=healthy"
            eventually(lambda: ssh(healthy), "the restored n8n", N8N_SECONDS)
        of_n8n(ssh, manifest["counts"]["n8n"], evidence)
    with evidence.step("ledger and host keys"):
        # The droplet answers by it from then on.
        (kept,) = ssh("ls -d /var/lib/cimt-restored/postgres-*").split()
        host_key = ssh(f"cat {kept}/etc/ssh/ssh_host_ed25519_key.pub").split()[:2]
        restore(settings, "host", newest["id"])
        write_atomic(settings.droplet / "known_hosts", f"droplet {' '.join(host_key)}\n")
        lines = ssh("cat /var/lib/cimt/releases.jsonl").splitlines()
    evidence.check("lines of the ledger, behind the restored host key", bool(lines), len(lines))
    with evidence.step("a person signs in, reads and asks"):
        of_a_person(settings, person, evidence)
    tried, left = packets(ssh)
    evidence.found["packets that tried to leave, and were stopped"] = tried
    evidence.check("packets of containers that left", left == 0, left)
    evidence.found["passed"] = True
    evidence.save()
    print(f"restore-drill: passed after {evidence.found['seconds']['total']} s", flush=True)


def restore(settings: Settings, what: str, snapshot: str) -> None:
    """`make restore`, as a person types it. Raises LocalError."""
    asked = [f"WHAT={what}", f"FROM={snapshot}", "INTO=local"]
    run(["make", "--no-print-directory", "restore", *asked], settings.root)


def versions(ssh: Callable[[str], str], apps: Sequence[str]) -> dict[str, str]:
    """Of what made the backup readable."""
    found = {
        "restic": ssh("restic version").split()[1],
        "pg_dump": ssh("/usr/lib/postgresql/17/bin/pg_dump --version").split()[2],
    }
    return found | ({"n8n": ssh(f"{N8N} n8n --version").split()[-1]} if "n8n" in apps else {})


def count(database: psycopg.Connection, table: str) -> int:
    """Rows of a table, named as pg_dump writes it."""
    row = database.execute(f"select count(*) from {table}".encode()).fetchone()  # noqa: S608 - pg_dump quotes
    return int(row[0]) if row else 0


def known_person(database: psycopg.Connection) -> dict[str, Any]:
    """Who has most conversations, their ids, and a passage that everybody may read."""
    row = database.execute(
        "select u.email, array_agg(c.id::text) from auth.users u join public.conversations c on c.user_id = u.id "
        "where u.email is not null group by u.email order by count(*) desc limit 1"
    ).fetchone()
    passage = database.execute(
        "select source, content from public.vectors where owner_id is null order by length(content) desc limit 1"
    ).fetchone()
    return {"email": row and row[0], "conversations": row and row[1], "passage": passage}


def of_n8n(ssh: Callable[[str], str], counts: dict[str, int], evidence: Evidence) -> None:
    """n8n has what it had, silent; its credentials open; a workflow runs when a hand starts it."""
    workflows, active = map(int, ssh(ACTIVE).split())
    evidence.check("workflows, as in the backup", workflows == counts["workflow_entity"], workflows)
    evidence.check("workflows that would run by themselves", active == 0, active)
    with evidence.step("n8n's credentials are decrypted"):
        said = ssh(
            f"{N8N} n8n export:credentials --all --decrypted --output=/dev/shm/credentials >&2\n"
            f"{N8N} node -p 'JSON.parse(fs.readFileSync(`/dev/shm/credentials`)).filter(one => one.data && "
            "typeof one.data === `object`).length'\n"
            f"{N8N} rm /dev/shm/credentials"
        )
    opened = int(said.split()[-1])
    evidence.check("credentials that open", opened == counts["credentials_entity"], opened)
    with evidence.step("one workflow runs by hand"):
        command = "env N8N_RUNNERS_BROKER_PORT=5690 n8n execute"
        # What it says is what counts: on an emulated CPU Node may end with 139, a crash of its own, once all is done.
        said = ssh(
            f'code=0; {N8N} {command} --id={BY_HAND} 2>&1 || code=$?; echo "ended with $code"'
        )
    done = '"finished": true' in said and '"status": "success"' in said
    *_, last = said.strip().splitlines()
    seen = f"ran; n8n {last}" if done else " ".join(said.split())[-500:]
    evidence.check(f"workflow {BY_HAND}", done, seen)


def of_a_person(settings: Settings, person: dict[str, Any], evidence: Evidence) -> None:
    """A known person signs in and sees what is theirs, and no more; the knowledge base answers."""
    if not person["email"]:
        evidence.check("a known person", True, "nobody has a conversation yet")
        return
    token = sign_in(f"http://127.0.0.1:{settings.ports['supabase']}", person["email"])
    with httpx.Client(
        base_url=f"https://127.0.0.1:{settings.ports['https']}",
        verify=ssl.create_default_context(cafile=settings.state / "ca.crt"),
        headers={"Host": "api.cimt.localhost", "Authorization": f"Bearer {token}"},
        timeout=120,
    ) as client:
        extensions = {"sni_hostname": "api.cimt.localhost"}
        seen = client.get("/conversations", params={"limit": 100}, extensions=extensions)
        mine = {one["id"] for one in seen.json()["items"]}
        # Of the first page; the smoke test of the release may have added one of its own.
        known = mine & set(person["conversations"])
        good = len(known) == min(len(person["conversations"]), len(mine))
        evidence.check("conversations of the backup, under RLS", good, len(known))
        chat = client.get(f"/conversations/{known.pop()}", extensions=extensions)
        evidence.check("one of them is read", chat.status_code == 200, chat.status_code)
        if person["passage"]:
            source, content = person["passage"]
            words = " ".join(content.split()[:12])
            answer = client.post("/chat", json={"message": words}, extensions=extensions)
            evidence.check("a document is found", source in answer.text, source)


def packets(ssh: Callable[[str], str]) -> tuple[int, int]:
    """How many packets of containers tried to leave for anywhere but the stand-ins, and how many did."""
    listed = json.loads(ssh(PACKETS))["nftables"]
    counted = {
        one["rule"]["chain"]: part["counter"]["packets"]
        for one in listed
        if "rule" in one
        for part in one["rule"]["expr"]
        if "counter" in part
    }
    return counted["stop"], counted["left"]


if __name__ == "__main__":
    sys.exit(main())
