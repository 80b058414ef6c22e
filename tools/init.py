"""`make init`: production.env and the secrets of an environment, from a few answers.

Asked are: domain, region, GitHub repository, e-mail address, Supabase project; not what stands in the file already, nor
what is given as DOMAIN, REGION, REPOSITORY, EMAIL, PROJECT. What the shell has of services/settings.yaml is taken too.
Every secret with a command that makes it is made; they go into 1Password by `op`, or into a file of mode 0600 where
there is no `op` (tools/settings/values.py). Nothing that is there is ever changed. Run it again as often as you like:
it takes what has come since, and says what is missing and where it comes from.
Exit codes: 0 done, as far as it goes; 1 a tool failed; 2 refused, nothing was changed.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from plugins.filter.settings import of_verb
from tools.database.address import Refused as Unfit
from tools.database.address import database_url
from tools.settings import values

ROOT = Path(__file__).parents[1]
VAULT = "cimt"
# What is asked: {name: (question, its form)}; the answers' names are those of the field `init`.
QUESTIONS = {
    "domain": ("Domain of the product, such as example.com", r"(?:[a-z0-9-]{1,63}\.)+[a-z]{2,}"),
    "region": ("DigitalOcean's region, near your users and Supabase", r"[a-z]{3}[0-9]"),
    "repository": ("Repository on GitHub, as owner/name", r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+"),
    "email": ("E-mail address of whoever runs it", r"[^@\s]+@[^@\s]+\.[^@\s]+"),
    "project": ("Supabase project, its 20 letters (https://….supabase.co)", r"[a-z]{20}"),
}
# Verbs of the first day: what they need and only a person has is asked for, hidden, on a terminal.
FIRST_DAY = ("provision", "migrate", "deploy")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----"
HEAD = """\
# What {environment} is: plain values, and references to secrets. Made by `make init`, yours to edit and to commit.
# Each verb takes it by ENV={environment}; what the shell has set counts before it. A secret itself is refused here.
"""


class Failed(Exception):
    """Something outside did not do its part; the text says what to type next, and holds no secret."""


class Store(Protocol):
    """Where secrets are kept."""

    where: str  # for people

    def read(self) -> dict[str, str]:
        """All that is there. Raises Failed."""

    def add(self, found: Mapping[str, str]) -> None:
        """Keep what is not there yet. Raises Failed."""

    def replace(self, found: Mapping[str, str], gone: Collection[str] = ()) -> None:
        """Keep these in the place of what is there, and no longer what is gone: all at once. Raises Failed."""


class OnePassword:
    """One item of the vault, a field a secret. The values go to `op` by its standard input alone."""

    def __init__(self, item: str) -> None:
        self.where = f"1Password, vault {VAULT}, item {item}"
        self._item = item

    def _op(self, *arguments: str, sent: str = "") -> Any:
        command = ["op", *arguments, "--format", "json"]
        done = subprocess.run(command, input=sent, capture_output=True, text=True)
        if done.returncode:
            told = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise Failed(
                f"op {' '.join(arguments[:2])}: {told}. Next: op signin, then the same again"
            )
        return json.loads(done.stdout or "null")

    def _found(self) -> dict[str, Any] | None:
        if VAULT not in [one["name"] for one in self._op("vault", "list")]:
            return None
        titles = [
            one for one in self._op("item", "list", "--vault", VAULT) if one["title"] == self._item
        ]
        if len(titles) > 1:
            raise Failed(
                f"{self.where}: there are {len(titles)} of them. Next: delete all but the right one"
            )
        return self._op("item", "get", titles[0]["id"], "--vault", VAULT) if titles else None

    def read(self) -> dict[str, str]:
        """The fields by their labels."""
        fields = (self._found() or {}).get("fields", [])
        return {one["label"]: one["value"] for one in fields if one.get("value")}

    def add(self, found: Mapping[str, str]) -> None:
        """Make vault and item where they are not there, and the fields in it."""
        fields = [
            {"label": name, "type": "CONCEALED", "value": value} for name, value in found.items()
        ]
        item = self._found()
        if item is None:
            if VAULT not in [one["name"] for one in self._op("vault", "list")]:
                self._op("vault", "create", VAULT)
            item = {"title": self._item, "category": "SECURE_NOTE", "fields": fields}
            self._op("item", "create", "-", "--vault", VAULT, sent=json.dumps(item))
            return
        there = {one["label"] for one in item["fields"] if one.get("value")}
        item["fields"] = [
            one for one in item["fields"] if one["label"] in there or one["label"] not in found
        ]
        item["fields"] += [one for one in fields if one["label"] not in there]
        self._op("item", "edit", item["id"], "--vault", VAULT, sent=json.dumps(item))

    def replace(self, found: Mapping[str, str], gone: Collection[str] = ()) -> None:
        """Edit the item once."""
        item = self._found()
        if item is None:
            raise Failed(f"{self.where} is not there. Next: make init")
        item["fields"] = [
            {"label": name, "type": "CONCEALED", "value": value} for name, value in found.items()
        ] + [one for one in item["fields"] if one["label"] not in {*found, *gone}]
        self._op("item", "edit", item["id"], "--vault", VAULT, sent=json.dumps(item))


class File:
    """A file of mode 0600 in the home of whoever runs it."""

    def __init__(self, environment: str) -> None:
        self._path = values.kept(environment)
        self.where = str(self._path)

    def read(self) -> dict[str, str]:
        """Its lines."""
        return values.secrets(self._path)

    def add(self, found: Mapping[str, str]) -> None:
        """Write it anew, with these lines at its end."""
        there = (
            self._path.read_text()
            if self._path.exists()
            else "# Secrets, by NAME=VALUE. Keep a copy apart.\n"
        )
        known = self.read()
        lines = [values.line(name, value) for name, value in found.items() if name not in known]
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(self._path, "\n".join([there.rstrip("\n"), *lines, ""]), 0o600)

    def replace(self, found: Mapping[str, str], gone: Collection[str] = ()) -> None:
        """Write it anew, without the lines of these names, and with these at its end."""
        self.read()  # one that others may read is refused
        named = tuple(f"{name}=" for name in (*found, *gone))
        kept = [one for one in self._path.read_text().splitlines() if not one.startswith(named)]
        lines = [values.line(name, value) for name, value in found.items()]
        write(self._path, "\n".join([*kept, *lines, ""]), 0o600)


def store_of(environment: str) -> Store:
    """1Password where there is an `op`, else the file."""
    return OnePassword(environment) if shutil.which("op") else File(environment)


def write(path: Path, text: str, mode: int) -> None:
    """The whole file or nothing."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


def answers_in(text: str, declared: Mapping[str, Any]) -> dict[str, str]:
    """The answers of an earlier run, read back from the lines that it wrote (also from those that wait as comments)."""
    found: dict[str, str] = {}
    for name, setting in declared["settings"].items():
        if template := setting.get("init"):
            form = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^\\s\"]+?)", re.escape(template))
            match = re.search(rf'^(?:# )?{name}="?{form}"?$', text, re.MULTILINE)
            found = {**(match.groupdict() if match else {}), **found}
    return {
        name: value
        for name, value in found.items()
        if re.fullmatch(QUESTIONS.get(name, ("", ""))[1], value)
    }


def suggested(name: str) -> str:
    """What this machine knows of an answer: the clone's origin on GitHub, the e-mail address of its git."""
    asked = {"repository": ["remote", "get-url", "origin"], "email": ["config", "user.email"]}
    if name not in asked:
        return ""
    done = subprocess.run(["git", "-C", str(ROOT), *asked[name]], capture_output=True, text=True)
    told = done.stdout.strip()
    if name == "repository":
        match = re.search(r"github\.com[:/]([\w-]+/[\w.-]+?)(?:\.git)?/?$", told)
        return match[1] if match else ""
    return told


def answers(
    text: str, declared: Mapping[str, Any], ask: Callable[[str], str] | None
) -> dict[str, str]:
    """The answers: given, of before, or asked for where a setting still waits for one. Raises Refused."""
    waiting = {
        name
        for setting, one in declared["settings"].items()
        if "init" in one and not re.search(rf"^(?:# )?{setting}=", text, re.MULTILINE)
        for name in PLACEHOLDER.findall(one["init"])
    }
    before, lacking = answers_in(text, declared), {}
    found: dict[str, str] = {}
    for name, (question, form) in QUESTIONS.items():
        variable = name.upper()
        given = os.environ.get(variable, "").strip()
        if name == "project":
            given = re.sub(r"^https://([a-z]{20})\.supabase\.co/?$", r"\1", given)
        if given and not re.fullmatch(form, given):
            raise values.Refused(
                f"{variable}={given!r} is none. {question}. Next: make init {variable}=…"
            )
        known = given or before.get(name, "")
        if not known and name in waiting:
            default = suggested(name)
            offer = f" [{default}]" if default else ""
            while ask and not re.fullmatch(form, known):
                told = f"  {known!r} is none.\n" if known else ""
                known = ask(f"{told}{question}{offer}: ").strip() or default
            known = known or default
            if not re.fullmatch(form, known):
                lacking[f"{variable}=…"] = question
        found[name] = known
    if lacking:
        told = "; ".join(f"{variable} {question}" for variable, question in lacking.items())
        raise values.Refused(f"not answered: {told}. Next: make init {' '.join(lacking)}")
    owner, repository = found["repository"].partition("/")[0].lower(), found["repository"].lower()
    found |= {"owner": owner, "repository": repository}
    return {name: value for name, value in found.items() if value}


def made(command: str) -> str:
    """What a command of services/settings.yaml makes: its output, or the file that it writes (-f FILE)."""
    words = shlex.split(command)
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise Failed(
                f"{words[0]} failed: {done.stderr.strip()[-200:]}. Next: install {words[0]}"
            )
        file = Path(folder, words[words.index("-f") + 1]) if "-f" in words else None
        return file.read_text() if file else done.stdout.strip()


def public_half(key: str) -> str:
    """Of a private key of OpenSSH, one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "key")
        write(path, key.rstrip("\n") + "\n", 0o600)
        done = subprocess.run(
            ["ssh-keygen", "-y", "-P", "", "-f", str(path)], capture_output=True, text=True
        )
    return " ".join(done.stdout.split()[:2])


def first_day(declared: Mapping[str, Any]) -> list[str]:
    """Names of the settings without which the first day does not end."""
    wanted = {
        name
        for verb in (*FIRST_DAY, "access", "door")
        for name in of_verb(declared, verb, "needed_by")
    }
    return [name for name in declared["settings"] if name in wanted]


def for_api(url: str) -> str:
    """The address of the database for the role of the api, without a password; empty for one that is no address."""
    match = re.fullmatch(r"(postgres(?:ql)?://)postgres(\.\w+)?(?::[^@]*)?@([^@?]+)(?:\?.*)?", url)
    return f"{match[1]}cimt_api{match[2] or ''}@{match[3]}?sslmode=require" if match else ""


def fit(name: str, value: str) -> str:
    """Why this secret cannot be it; empty when it can."""
    if name != "SUPABASE_DB_URL":
        return (
            ""
            if value == value.strip() and "\n" not in value
            else "there is a space or a line end around it"
        )
    before = {one: os.environ.get(one) for one in ("SUPABASE_DB_URL", "ENV")}
    try:
        os.environ.update(SUPABASE_DB_URL=value, ENV="production")
        database_url()
    except Unfit as reason:
        return str(reason)
    finally:
        for one, was in before.items():
            os.environ.pop(one) if was is None else os.environ.update({one: was})
    return ""


def text_of(
    text: str, declared: Mapping[str, Any], known: Mapping[str, str], hints: Mapping[str, str]
) -> str:
    """The file with a line for every setting: its value, else a hint as a comment. A line that is there stays."""
    lines = text.rstrip("\n").split("\n")
    there = {match[1] for one in lines if (match := values.LINE.fullmatch(one.strip()))}
    for name, setting in declared["settings"].items():
        if name in there:
            continue
        hint = hints.get(name) or setting.get("example", setting.get("default", ""))
        wanted = values.line(name, known[name]) if name in known else f"# {name}={hint}"
        waiting = [index for index, one in enumerate(lines) if one.startswith(f"# {name}=")]
        if not waiting:
            optional = "" if "needed_by" in setting else " (optional)"
            lines += ["", f"# {setting['what']}{optional}; {setting['from']}", wanted]
        elif name in known:
            lines[waiting[0]] = wanted
    return "\n".join([*lines, ""])


def lacking(
    declared: Mapping[str, Any], environment: str, there: Mapping[str, str], store: Store
) -> Iterator[str]:
    """What the first day still needs, a line each."""
    known = values.read(ROOT / f"{environment}.env")
    for name in first_day(declared):
        setting = declared["settings"][name]
        ours = known.get(name, "").startswith(
            f"op://{VAULT}/{environment}/"
        )  # else it is of another vault
        if name in known and not (ours and name not in there):
            continue
        if name in known:
            where = (
                f"{known[name]} leads nowhere here: get it from whoever made it, into {store.where}"
            )
        elif setting.get("secret"):
            where = f"{setting['from']}; into {store.where}, as {name}"
        else:
            where = f"{setting['from']}; into {environment}.env"
        yield f"  {name}: {setting['what']} ({where})"


def init(
    environment: str, ask: Callable[[str], str] | None, hidden: Callable[[str], str] | None
) -> int:
    """Do it; the exit code. ``ask`` and ``hidden`` read an answer; None: nobody is there. Raises Failed, Refused."""
    declared = yaml.safe_load((ROOT / "services/settings.yaml").read_text())
    settings = declared["settings"]
    path = ROOT / f"{environment}.env"
    text = path.read_text() if path.exists() else ""
    known = values.read(path)
    if found := values.problems(known, declared):
        raise values.Refused(f"{path.name}: {found[0]}")
    plain = {
        name: os.environ[name]
        for name, one in settings.items()
        if not one.get("secret") and os.environ.get(name)
    }
    if found := values.problems(plain, declared):
        raise values.Refused(f"in the shell, {found[0]}")
    answered = answers(text, declared, ask) | {"environment": environment}
    file = File(environment)
    store = store_of(environment)
    there = store.read()
    new = {
        name: value for name, value in file.read().items() if name in settings and name not in there
    }
    referenced = {name for name in known if settings[name].get("secret")}
    for name, setting in settings.items():
        if not setting.get("secret") or name in there or name in new or name in referenced:
            continue
        value = os.environ.get(name, "")
        if not value and setting.get("make"):
            value = made(setting["make"])
        if not value and hidden and name in first_day(declared):
            told = f"{name}, {setting['what']}\n  from {setting['from']}; empty: later: "
            while (value := hidden(told).strip()) and (why := fit(name, value)):
                print(f"  {why}")
        if value and (why := fit(name, value) if not setting.get("make") else ""):
            raise values.Refused(f"{name}: {why}" if name not in why else why)
        if value:
            new[name] = value
    if new:
        store.add(new)
    there |= new
    hints = {
        name: f"op://{VAULT}/{environment}/{name}"
        for name, one in settings.items()
        if one.get("secret")
    }
    for name, one in settings.items():
        if "init" in one and set(PLACEHOLDER.findall(one["init"])) <= answered.keys():
            hints[name] = one["init"].format(**answered)
    certain = {name: hint for name, hint in hints.items() if "needed_by" in settings[name]}
    if derived := for_api(there.get("SUPABASE_DB_URL", "")):
        certain["API_DATABASE_URL"] = derived
    if (ci_key := there.get("DROPLET_CI_KEY", "")).startswith(PRIVATE_KEY):
        certain["DROPLET_CI_KEYS"] = public_half(ci_key)
    certain = {name: hint for name, hint in certain.items() if not settings[name].get("secret")}
    certain |= plain | {name: hints[name] for name in there if name in settings}
    key = there.get("DROPLET_SSH_KEY", "")
    public = public_half(key) if key.startswith(PRIVATE_KEY) else ""
    wanted = text_of(text or HEAD.format(environment=environment), declared, certain, hints)
    if public and public not in wanted:
        line = "\nDROPLET_SSH_KEY="
        wanted = wanted.replace(line, f"\n# its public half: {public}{line}")
    if wanted != text:
        write(path, wanted, 0o644)
    print(
        f"init: {path.name}: {'as it was' if wanted == text else 'written' if not text else 'lines were added'}"
    )
    print(f"init: {store.where}: {len(new)} new, {len(there)} in all")
    if not isinstance(store, File) and file.read():
        print(f"init: what was in {file.where} is in 1Password now. Next: rm {file.where}")
    if public:
        print(f"init: for the droplet's admin user: {public}")
    if missing := list(lacking(declared, environment, there, store)):
        print("init: still missing:", *missing, sep="\n")
        print(f"Next: bring these, then make init ENV={environment} again")
        return 0
    print(f"Next: git add {path.name}; make plan ENV={environment}")
    return 0


def main() -> int:
    """Command line; returns the exit code."""
    environment = os.environ.get("ENV", "local")
    environment = "production" if environment == "local" else environment
    terminal = sys.stdin.isatty()
    lock = ROOT / ".local/init.lock"
    lock.parent.mkdir(exist_ok=True)
    try:
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # two at once would make two keys
            return init(
                environment, input if terminal else None, getpass.getpass if terminal else None
            )
    except values.Refused as reason:
        print(f"init: {reason}", file=sys.stderr)
        return 2
    except Failed as reason:
        print(f"init: {reason}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print("\ninit: left; nothing was changed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
