"""`make rotate SECRET=NAME`: a new value for a secret, while the old one is still good; then the end of the old one.

The field `rotate` of services/settings.yaml says how a secret changes hands. The first call puts the new value where
secrets are kept, and the old one beside it as NAME_OLD: one that we make is made; one of a provider is asked for
(hidden, or read from standard input) and tried live before anything is changed. What brings it to the product is a
release, as with every other change; each call says what to type next. With CONFIRM=revoke, once that release serves,
the new one is tried, and the old one ends: at the database here, at a provider by hand. A call that was cut short is
run again.
Exit codes: 0 done, as far as it goes; 1 something outside failed; 2 refused, nothing was changed.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import psycopg.sql

from plugins.filter.settings import with_password
from tools import doctor
from tools.database.address import Refused as Unfit
from tools.database.address import database_url, hide_secrets, told
from tools.database.migrate import api_login
from tools.host import door
from tools.host.way_in import NoWayIn, way_in
from tools.init import VAULT, Failed, Store, fit, made, public_half, store_of, write
from tools.settings import values
from tools.settings.__main__ import read

ROOT = Path(__file__).parents[1]
SECONDS = 300  # for the droplet's answer: its backup may be at work
URL = "API_DATABASE_URL"
PUBLIC = "DROPLET_CI_KEYS"
OTHER = {"cimt_api": "cimt_api_b", "cimt_api_b": "cimt_api"}
# On the droplet, as the admin user: the first key of the arguments opens the door, the second does not any more.
KEYS = """\
import os, pathlib, sys
path = pathlib.Path.home() / ".ssh/authorized_keys"
opens, ends = sys.argv[1:]
gone = ends.split()[1:]
lines = [one for one in path.read_text().splitlines() if not set(gone) & set(one.split())]
if not any(opens.split()[1] in one.split() for one in lines):
    lines.append(opens)
new = path.with_name("authorized_keys.new")
with open(new, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
    print(*lines, sep="\\n", file=file, flush=True)
    os.fsync(file.fileno())
os.replace(new, path)
"""


class Rotation:
    """One secret of one environment, on its way from one value to the next."""

    def __init__(self, environment: str, name: str) -> None:
        """Raises Refused for what is no secret, or cannot be given another value here; Failed."""
        self.environment, self.name, self.old = environment, name, name + values.OLD
        self.declared = read()
        setting = self.declared["settings"].get(name, {})
        if not setting.get("secret"):
            known = [one for one, it in self.declared["settings"].items() if it.get("secret")]
            raise values.Refused(
                f"SECRET={name!r} is none. Next: make rotate ENV={environment} SECRET=…, one of {', '.join(known)}"
            )
        self.setting: dict[str, Any] = setting
        self.way: dict[str, str] = setting["rotate"]
        if self.way["how"] == "never":
            raise values.Refused(f"{name} does not change: {self.way['why']}")
        if self.way["how"] == "hand":
            raise values.Refused(f"{name} changes by hand. Next: {self.way['why']}")
        self.store: Store = store_of(environment)
        self.there = self.store.read()
        # What changes hands together, each beside its value of before.
        self.pairs = {one: one + values.OLD for one in (name, self.way.get("with")) if one}
        if missing := [one for one in self.pairs if not self.there.get(one)]:
            raise values.Refused(
                f"{missing[0]} is not in {self.store.where}. Next: make init ENV={environment}"
            )
        self.path = ROOT / f"{environment}.env"
        self.reference = f"op://{VAULT}/{environment}/{self.old}"  # while both are good

    def begin(self, ask: Callable[[str], str]) -> None:
        """Put the new value in the place of the old one, and the old one beside it. Raises Refused, Failed."""
        if self.way["how"] == "door":  # by the key that is in use, before anything is changed
            self._open(self.there.get(self.old, self.there[self.name]))
        if self.old not in self.there:
            self._put(ask)
            self.there = self.store.read()
        if self.way["how"] == "door":
            self._open(self.there[self.old], self.there[self.name])
            self._open(self.there[self.name])
            self._name_the_other_key()
        if self.way["how"] == "passwords":
            self._tell_backup(add=self.there[self.name])
        if self.way["how"] == "login":
            self._name_the_other_login()
        if self.way["how"] == "beside":
            self._line(self.old, f"{self.old}={self.reference}")
        if self.way["how"] == "public":
            self._name_public_halves(self.name, self.old)
        here = f"ENV={self.environment}"
        named = f"{self.name},{self.old}" if self.way["how"] == "beside" else ",".join(self.pairs)
        print(f"rotate: {self.name} is new in {self.store.where}; the old one is beside it")
        if self.way.get("why"):
            print(f"rotate: meanwhile: {self.way['why']}")
        following = [f"make github {here} CONFIRM=yes ROTATE={named}   (where workflows take it)"]
        if apply := self.way.get("apply"):
            by = "Operate" if self.way["how"] == "public" else "Deploy"
            bring = f"make {apply} {here}   (or {by}, after {self.path.name} is merged)"
            # A door has to know the key before anybody comes by it.
            following.insert(0 if self.way["how"] == "public" else 1, bring)
        following.append(f"make rotate SECRET={self.name} {here} CONFIRM=revoke")
        print("Next:", "\n      ".join(following))

    def finish(self) -> None:
        """Try the new value, end the old one, and keep it no longer. Raises Refused, Failed."""
        if self.old not in self.there:
            raise values.Refused(
                f"{self.name} is not changing hands. Next: make rotate SECRET={self.name} ENV={self.environment}"
            )
        self._try({name: self.there[name] for name in self.pairs})
        if self.way["how"] == "public":
            at = {"DROPLET_SSH_KEY": self.there[self.name], "DROPLET_USER": door.account()}
            self._on_droplet("cimt-door", door.request("hello"), **at)
            self._name_public_halves(self.name)
        if self.way["how"] == "door":
            self._open(self.there[self.name], self.there[self.name], self.there[self.old])
        if self.way["how"] == "passwords":
            self._tell_backup(end=self.there[self.old])
        if self.way["how"] == "login":
            self._end_login(api_login(self.there[self.old]))
        self.store.replace({}, list(self.pairs.values()))
        print(f"rotate: {self.store.where} has no old {self.name} any more")
        if self.way["how"] == "beside":
            self._line(self.old, f"# {self.old}={self.reference}")
            here = f"ENV={self.environment}"
            print(
                f"Next: make github {here} CONFIRM=yes ROTATE={self.old}   (which takes it from GitHub)\n"
                f"      make {self.way['apply']} {here}   (or merge {self.path.name}; it ends the old one)"
            )
        if self.way.get("revoke"):
            print(f"Next: the old one ends by your hand: {self.way['revoke']}")

    def _put(self, ask: Callable[[str], str]) -> None:
        """Make the new value or ask for it, try it, and store it with the old one in one edit."""
        old = {beside: self.there[name] for name, beside in self.pairs.items()}
        if self.way["how"] in ("brought", "pair"):
            new = {name: self._asked(name, ask) for name in self.pairs}
            self._try(new)
        else:
            new = {self.name: made(self.setting["make"])}
        if self.way["how"] == "login":  # with the name of its role: that is what ends then
            old = {self.old: with_password(self._url(), old[self.old])}
        self.store.replace(new | old)

    def _asked(self, name: str, ask: Callable[[str], str]) -> str:
        """The new value that somebody brings. Raises Refused for none, an unfit one or the old one."""
        setting = self.declared["settings"][name]
        new = ask(f"{name}, {setting['what']}\n  from {setting['from']}: ").strip()
        if not new:
            raise values.Refused(f"{name}: no new value was given. Next: the same again")
        if why := fit(name, new):
            raise values.Refused(f"{name}: {why}")
        if new == self.there.get(name):
            raise values.Refused(f"{name}: this is the old one. Next: a new one, and again")
        return new

    def _try(self, new: dict[str, str]) -> None:
        """Ask what takes the secret, as doctor does, or the droplet's backup. Raises Refused where it does not."""
        if self.way["how"] == "pair":
            key, secret = new.values()
            keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
            self._on_droplet("sudo -n cimt-backup opens", json.dumps(keys))
        if not (check := self.way.get("check")):
            return
        os.environ.update(new)
        patient = doctor.production(self.environment)
        patient = replace(patient, known=patient.known | new)
        asked = [one for one in doctor.CHECKS if one.__name__ == check]
        found = [finding for finding in doctor.examine(patient, asked) if finding.sign == "✗"]
        if found:
            said = doctor.discreet("; ".join(map(str, found)), patient)
            raise values.Refused(f"{self.name}: nothing was changed, it does not work yet: {said}")

    def _open(self, key: str, opens: str = "", ends: str = "") -> None:
        """Enter the droplet by a private key, and there let in another one, or shut a third out. Raises Refused."""
        halves = [public_half(one) if one else "" for one in (opens, ends)]
        command = shlex.join(["python3", "-I", "-", *halves]) if opens else "true"
        self._on_droplet(command, KEYS, DROPLET_SSH_KEY=key)

    def _tell_backup(self, **passwords: str) -> None:
        """Have another password open the backups, or the old one no longer. Raises Refused."""
        self._on_droplet("sudo -n cimt-backup passwords", json.dumps(passwords))

    def _on_droplet(self, command: str, told: str, **known: str) -> None:
        """Run a command there; its standard input is `told`, which no process list shows. Raises Refused."""
        try:
            with way_in(self.environment, {**os.environ, **known}) as ssh:
                done = subprocess.run(
                    [*ssh, command], input=told, capture_output=True, text=True, timeout=SECONDS
                )
        except (NoWayIn, subprocess.TimeoutExpired) as reason:
            raise values.Refused(f"{self.name}: {reason}") from None
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            after = "" if "Next: " in why else f". Next: make doctor ENV={self.environment}"
            raise values.Refused(
                f"{self.name}: the droplet says: {why.rstrip('.')}{after}; then the same again"
            )

    # -- what stands in ENV.env ---------------------------------------------------------------------

    def _line(self, name: str, wanted: str) -> None:
        """Give ENV.env this line in the place of the one with that name, also where that waits as a comment."""
        lines = self.path.read_text().rstrip("\n").split("\n")
        found = [at for at, one in enumerate(lines) if re.match(rf"(?:# )?{name}=", one)]
        if found:
            lines[found[0]] = wanted
        else:
            lines.append(wanted)
        self._write("\n".join([*lines, ""]), name)

    def _write(self, text: str, name: str) -> None:
        if text != self.path.read_text():
            write(self.path, text, 0o644)
            print(f"rotate: {self.path.name} has another line {name}. Next: commit it")

    def _name_the_other_key(self) -> None:
        """Have the comment of `make init` show the new public half."""
        old, new = (public_half(self.there[name]) for name in (self.old, self.name))
        self._write(self.path.read_text().replace(old, new), f"above {self.name}")

    def _name_public_halves(self, *names: str) -> None:
        """Have ENV.env show what the droplet's door shall take."""
        halves = ",".join(public_half(self.there[name]) for name in names)
        self._line(PUBLIC, values.line(PUBLIC, halves))

    def _url(self) -> str:
        """The address of the database that ENV.env holds. Raises Refused."""
        url = values.read(self.path).get(URL, "")
        if not re.match(r"\w+://cimt_api(_b)?[.:@]", url):
            raise values.Refused(
                f"{self.path.name} has no {URL} with the role cimt_api. Next: make init ENV={self.environment}"
            )
        return url

    def _name_the_other_login(self) -> None:
        """Have API_DATABASE_URL name the login that the new password is for."""
        url, old = self._url(), api_login(self.there[self.old])
        if api_login(url) == old:
            self._line(URL, values.line(URL, url.replace(f"//{old}", f"//{OTHER[old]}", 1)))

    def _end_login(self, role: str) -> None:
        """Take its password from the login of before. Raises Refused while it is in use."""
        with psycopg.connect(database_url(), autocommit=True, connect_timeout=30) as owner:
            used = "select count(*) from pg_stat_activity where usename = %s"
            ((sessions,),) = owner.execute(used, [role]).fetchall()
            if sessions:
                raise values.Refused(
                    f"{role} is still in use ({sessions} sessions). Next: make {self.way['apply']} "
                    f"ENV={self.environment}, or wait until the pooler lets go, then the same again"
                )
            owner.execute(
                psycopg.sql.SQL("alter role {} password null").format(psycopg.sql.Identifier(role))
            )
        print(f"rotate: {role} has no password any more")


def typed(question: str) -> str:
    """What a person types, hidden; without a terminal, a line of standard input."""
    return getpass.getpass(question) if sys.stdin.isatty() else sys.stdin.readline()


def main() -> int:
    """Command line; returns the exit code."""
    environment, name = os.environ.get("ENV", "local"), os.environ.get("SECRET", "")
    confirm = os.environ.get("CONFIRM", "")
    lock = ROOT / ".local/init.lock"
    lock.parent.mkdir(exist_ok=True)
    try:
        if environment == "local":
            raise values.Refused(
                "local secrets are made anew with the local droplet. Next: make rotate ENV=production SECRET=…"
            )
        if confirm not in ("", "revoke"):
            raise values.Refused(f"CONFIRM={confirm!r} is nothing here. Next: CONFIRM=revoke")
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            rotation = Rotation(environment, name)
            rotation.finish() if confirm else rotation.begin(typed)
    except (values.Refused, Unfit) as reason:
        print(f"rotate: {told(reason)}", file=sys.stderr)
        return 2
    except (Failed, psycopg.Error) as reason:
        print(f"rotate: {told(reason)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print("\nrotate: left; nothing was changed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    hide_secrets("stdout", "stderr")
    sys.exit(main())
