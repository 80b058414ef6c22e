"""`make init` in a fresh clone, and verbs that take what it wrote: by 1Password's stand-in, or by a file instead."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.github.__main__ import application
from testbed.served import served
from testbed.tree import ROOT, copy_tree

SETTINGS = yaml.safe_load((ROOT / "services/settings.yaml").read_text())["settings"]
MADE = {name for name, one in SETTINGS.items() if one.get("make")}
ANSWERS = {
    "DOMAIN": "example.com",
    "REGION": "nyc3",
    "REPOSITORY": "Example/CIMT",
    "EMAIL": "ops@example.com",
    "PROJECT": "abcdefghijklmnopqrst",
}
DATABASE = "postgresql://postgres.abcdefghijklmnopqrst:p%40ss-word@127.0.0.1:9/postgres"
MODEL_KEY = "a-key-of-the-model"
Done = subprocess.CompletedProcess[str]


class Clone:
    """A clone of this repository, a home, and perhaps 1Password on the PATH."""

    def __init__(self, folder: Path, op: bool) -> None:
        self.root = folder / "a clone"
        copy_tree(self.root)
        self.env = self.root / "production.env"
        self.kept = folder / ".config/cimt/production.secrets"
        self.account = folder / "op.json"
        # Of this machine's environment nothing: a setting of the shell would be taken.
        self.shell = {"HOME": str(folder), "LC_ALL": "C.UTF-8", "ENV": "production"}
        self.shell["OP_STAND_IN"] = str(self.account)
        # Every program of this machine, but for a real 1Password.
        self.bin = folder / "bin"
        self.bin.mkdir()
        for place in reversed(os.environ["PATH"].split(os.pathsep)):
            for program in Path(place).glob("*") if place else ():
                (self.bin / program.name).unlink(missing_ok=True)
                (self.bin / program.name).symlink_to(program)
        (self.bin / "op").unlink(missing_ok=True)
        self.shell["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), str(self.bin)])
        if op:
            self.install_op()

    def install_op(self) -> None:
        (self.bin / "op").symlink_to(ROOT / "local/onepassword/op")
        self.account.write_text("{}")

    def init(self, **given: str) -> Done:
        return self._run([sys.executable, "-m", "tools.init"], given)

    def make(self, *arguments: str, **given: str) -> Done:
        if not (self.root / ".venv").exists():
            (self.root / ".venv").symlink_to(ROOT / ".venv")
            (self.root / "node_modules").symlink_to(ROOT / "node_modules")
        old = [word for name in (".venv", "node_modules") for word in ("-o", f"{name}/.installed")]
        return self._run(["make", "--no-print-directory", *old, *arguments], given)

    def _run(self, command: list[str], given: dict[str, str]) -> Done:
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.shell | given,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def item(self) -> dict[str, str]:
        """The secrets in 1Password."""
        (found,) = json.loads(self.account.read_text())["vaults"]["cimt"]
        return {one["label"]: one["value"] for one in found["fields"]}

    def add_field(self, name: str, value: str) -> None:
        """What a person does in 1Password."""
        account: dict[str, Any] = json.loads(self.account.read_text())
        field = {"id": name.lower(), "type": "CONCEALED", "label": name, "value": value}
        account["vaults"]["cimt"][0]["fields"].append(field)
        self.account.write_text(json.dumps(account))

    def values(self) -> dict[str, str]:
        """The lines of production.env that count."""
        found = re.findall(r"^([A-Z0-9_]+)=(.*)$", self.env.read_text(), re.MULTILINE)
        assert len(dict(found)) == len(found)
        return dict(found)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """With 1Password."""
    return Clone(tmp_path, op=True)


@pytest.fixture
def alone(tmp_path: Path) -> Clone:
    """Without it."""
    return Clone(tmp_path, op=False)


def test_five_answers_make_the_file_and_every_secret_that_can_be_made(clone: Clone) -> None:
    done = clone.init(**ANSWERS)
    assert done.returncode == 0, done.stderr
    values, item = clone.values(), clone.item()
    assert set(item) == MADE
    assert len(set(item.values())) == len(MADE)
    assert values["API_DOMAIN"] == "api.example.com"
    assert values["IMAGE_REPOSITORY"] == "ghcr.io/example/cimt"
    assert values["SUPABASE_URL"] == "https://abcdefghijklmnopqrst.supabase.co"
    assert {name: values[name] for name in MADE} == {
        name: f"op://cimt/production/{name}" for name in MADE
    }
    assert "# BACKUP_REPOSITORY=s3:https://nyc3.digitaloceanspaces.com/example-cimt" in (
        clone.env.read_text()
    )
    # What is shown, committed, or in a process list holds no secret.
    calls = str(json.loads(clone.account.read_text())["calls"])
    for secret in item.values():
        for line in secret.strip().splitlines():
            assert line not in done.stdout + done.stderr + clone.env.read_text() + calls
    # What only a person can bring is named, with the place where it comes from.
    assert "  OPENAI_API_KEY: key of the OpenAI project (platform.openai.com" in done.stdout
    assert "  DROPLET_HOST: address of the droplet (`make droplet`" in done.stdout
    # The public half is for the droplet, and in the file.
    (public,) = re.findall(r"admin user: (ssh-ed25519 \S+)", done.stdout)
    assert f"# its public half: {public}\nDROPLET_SSH_KEY=op://" in clone.env.read_text()


def test_a_second_run_asks_and_changes_nothing(clone: Clone) -> None:
    assert clone.init(**ANSWERS).returncode == 0
    before = clone.env.read_bytes(), clone.item()
    done = clone.init()
    assert done.returncode == 0, done.stderr
    assert (clone.env.read_bytes(), clone.item()) == before
    assert "production.env: as it was" in done.stdout
    # Other answers do not overwrite either.
    assert clone.init(DOMAIN="example.org").returncode == 0
    assert (clone.env.read_bytes(), clone.item()) == before


def test_what_has_come_since_is_taken(clone: Clone) -> None:
    assert clone.init(**ANSWERS).returncode == 0
    clone.add_field("SUPABASE_DB_URL", DATABASE)
    clone.add_field("REGISTRY_PASSWORD", "a-token")
    edited = clone.env.read_text().replace("api.example.com", "edge.example.com")
    clone.env.write_text(edited + "\n# a remark of ours\n")
    done = clone.init(
        DROPLET_HOST="203.0.113.7",
        DROPLET_KNOWN_HOSTS="203.0.113.7 ssh-ed25519 AAAA",
        OPENAI_API_KEY=MODEL_KEY,
        SUPABASE_PUBLISHABLE_KEY="sb_publishable_x",
    )
    assert done.returncode == 0, done.stderr
    values = clone.values()
    assert values["API_DOMAIN"] == "edge.example.com", "a line that is there stays"
    assert "# a remark of ours" in clone.env.read_text()
    assert values["SUPABASE_DB_URL"] == "op://cimt/production/SUPABASE_DB_URL"
    assert values["REGISTRY_PASSWORD"] == "op://cimt/production/REGISTRY_PASSWORD"
    assert values["API_DATABASE_URL"] == (
        "postgresql://cimt_api.abcdefghijklmnopqrst@127.0.0.1:9/postgres?sslmode=require"
    )
    assert values["DROPLET_HOST"] == "203.0.113.7"
    assert clone.item()["OPENAI_API_KEY"] == MODEL_KEY
    assert "still missing" not in done.stdout
    assert "Next: git add production.env" in done.stdout


def test_a_person_is_asked_what_nobody_knows_and_a_secret_is_not_shown(clone: Clone) -> None:
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.init"],
        cwd=clone.root,
        env=clone.shell | {"DOMAIN": "example.com"},
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
    )
    os.close(side)
    replies = [
        ("region", "mars"),
        ("region", "fra1"),
        ("Repository on GitHub", "example/cimt"),
        ("E-mail", "ops@example.com"),
        ("Supabase project", "abcdefghijklmnopqrst"),
        ("SUPABASE_DB_URL", "postgresql://postgres:x@db.example.com:6543/postgres"),
        ("SUPABASE_DB_URL", DATABASE),
        ("OPENAI_API_KEY", MODEL_KEY),
    ]
    shown = ""
    for prompt, reply in replies:
        told = ""
        while not (prompt in told and told.endswith(": ")):
            told += os.read(main, 4096).decode()
        shown += told
        os.write(main, f"{reply}\n".encode())
    while process.poll() is None:
        try:
            shown += os.read(main, 4096).decode()
        except OSError:  # the other side is closed: it has ended
            process.wait()
    assert process.returncode == 0, shown
    assert "'mars' is none." in shown
    assert "session pooler's URL" in shown, "why the address with port 6543 cannot be it"
    assert DATABASE not in shown
    assert MODEL_KEY not in shown
    assert clone.item()["SUPABASE_DB_URL"] == DATABASE
    assert "# BACKUP_REPOSITORY=s3:https://fra1." in clone.env.read_text()


def test_what_is_not_answered_is_named_at_once(clone: Clone) -> None:
    done = clone.init(DOMAIN="example.com")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.endswith("Next: make init REGION=… REPOSITORY=… EMAIL=… PROJECT=…\n")
    assert not clone.env.exists()
    wrong = clone.init(**ANSWERS | {"DOMAIN": "https://example.com"})
    assert wrong.returncode == 2
    assert "DOMAIN='https://example.com' is none." in wrong.stderr
    raw = clone.init(**ANSWERS, CORS_ORIGINS="https://ops:hunter2@app.example.com")
    assert raw.returncode == 2
    assert "CORS_ORIGINS holds a secret" in raw.stderr
    assert "hunter2" not in raw.stderr
    assert json.loads(clone.account.read_text()).get("vaults", {}) == {}
    assert not clone.env.exists()


def test_nobody_signed_in_or_may_write(clone: Clone) -> None:
    clone.account.unlink()
    done = clone.init(**ANSWERS)
    assert done.returncode == 1
    assert re.fullmatch(
        r"init: op vault list: .*not currently signed in.* Next: op signin, .*\n", done.stderr
    )
    clone.account.write_text('{"service": 1, "vaults": {"cimt": []}}')
    done = clone.init(**ANSWERS)
    assert done.returncode == 1
    assert "permission to write" in done.stderr
    assert not clone.env.exists(), "a reference that leads nowhere"


def test_two_at_once_make_one_key(clone: Clone) -> None:
    with ThreadPoolExecutor(2) as two:
        ended = [one.result() for one in [two.submit(clone.init, **ANSWERS) for _ in range(2)]]
    assert [one.returncode for one in ended] == [0, 0], ended
    assert set(clone.item()) == MADE


def test_without_1password_the_secrets_are_in_a_file_of_one_s_own(alone: Clone) -> None:
    done = alone.init(**ANSWERS, SUPABASE_DB_URL=DATABASE, OPENAI_API_KEY=MODEL_KEY)
    assert done.returncode == 0, done.stderr
    assert alone.kept.stat().st_mode & 0o777 == 0o600
    before = alone.kept.read_text()
    assert DATABASE in before
    assert alone.init().returncode == 0
    assert alone.kept.read_text() == before
    # A colleague's clone, without the secrets: none is made anew, for that would be another one.
    alone.kept.rename(alone.kept.with_name("elsewhere"))
    done = alone.init()
    assert done.returncode == 0
    assert "N8N_ENCRYPTION_KEY" in done.stdout
    assert "op://cimt/production/N8N_ENCRYPTION_KEY leads nowhere here" in done.stdout
    assert not alone.kept.exists()
    # With 1Password they move there, as they are.
    alone.kept.with_name("elsewhere").rename(alone.kept)
    alone.install_op()
    done = alone.init()
    assert f"Next: rm {alone.kept}" in done.stdout
    assert alone.item()["SUPABASE_DB_URL"] == DATABASE
    assert {*MADE, "SUPABASE_DB_URL", "OPENAI_API_KEY"} == set(alone.item())
    assert f"INGEST_KEY={alone.item()['INGEST_KEY']}" in before


def test_a_file_that_others_read_or_that_is_in_the_repository(alone: Clone) -> None:
    assert alone.init(**ANSWERS).returncode == 0
    alone.kept.chmod(0o644)
    done = alone.make("migrate-plan", "ENV=production")
    assert (
        f"settings: {alone.kept} may be read by others. Next: chmod 600 {alone.kept}" in done.stderr
    )
    done = alone.init(CIMT_SECRETS=str(alone.root / "kept"))
    assert done.returncode == 2
    assert "is in the repository" in done.stderr


@pytest.mark.parametrize("op", [True, False])
def test_a_verb_takes_its_values_from_there(tmp_path: Path, op: bool) -> None:
    """The database does not answer (port 9); that it was asked as the owner shows where the address came from."""
    clone = Clone(tmp_path, op)
    assert clone.init(**ANSWERS, SUPABASE_DB_URL=DATABASE).returncode == 0
    done = clone.make("migrate-plan", "ENV=production")
    told = done.stdout + done.stderr
    assert "127.0.0.1" in told, told
    assert "onnection refused" in told, told
    assert "p@ss-word" not in told
    assert "p%40ss-word" not in told
    # What the shell says counts before the file.
    done = clone.make("migrate-plan", "ENV=production", SUPABASE_DB_URL="nothing")
    assert "SUPABASE_DB_URL is not postgresql://" in done.stderr, done.stderr
    # A verb of a playbook finds the domains of the file, and names what nobody has yet.
    done = clone.make("history", "ENV=production")
    assert "  DROPLET_HOST: address of the droplet" in done.stderr
    assert "API_DOMAIN" not in done.stderr
    # On GitHub, where neither is, a reference is a setting that is not set.
    (clone.bin / "op").unlink(missing_ok=True)
    clone.kept.unlink(missing_ok=True)
    done = clone.make("migrate-plan", "ENV=production")
    assert "not set: SUPABASE_DB_URL" in done.stderr, done.stderr


def test_a_reference_that_leads_nowhere_stops_a_verb(clone: Clone) -> None:
    assert clone.init(**ANSWERS).returncode == 0
    clone.env.write_text(clone.env.read_text() + "OPENAI_API_KEY=op://cimt/production/NOTHING\n")
    done = clone.make("migrate-plan", "ENV=production")
    assert done.returncode
    assert "does not have a field 'NOTHING'" in done.stderr
    assert "Next: op signin; or make init ENV=production" in done.stderr
    assert "migrate" not in done.stdout


SECRETS = {
    "INGEST_KEY": "0123456789abcdef",
    "API_DATABASE_URL": "postgresql://cimt_api:hunter2@db.example.com/postgres",
    "NOTIFY_MAIL_TO": "sk-live-0123456789",
    "ETL_KEY": "op:/cimt/production/ETL_KEY",
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_the_file_is_refused_everywhere_and_not_shown(clone: Clone, name: str) -> None:
    clone.env.write_text(f"API_DOMAIN=api.example.com\n{name}={SECRETS[name]}\n")
    check = subprocess.run(
        [sys.executable, "-m", "tools.settings", "check"],
        cwd=clone.root,
        env=clone.shell,
        capture_output=True,
        text=True,
    )
    for done in (check, clone.init(**ANSWERS), clone.make("migrate-plan", "ENV=production")):
        told = done.stdout + done.stderr
        assert done.returncode, told
        assert name in told
        assert "Next: " in told
        assert SECRETS[name] not in told
    assert clone.account.read_text() == "{}", "1Password was not asked"


def files(root: Path) -> dict[str, bytes]:
    """What would be committed, by path; production.env is made here too."""
    found = (one for one in root.rglob("*") if one.is_file())
    kept = {str(one.relative_to(root)): one.read_bytes() for one in found}
    left = (".venv", "node_modules", ".local", "production.env")
    return {
        name: text
        for name, text in kept.items()
        if not name.startswith(left) and "__pycache__" not in name
    }


def test_a_second_environment_is_a_file_and_an_inventory_more(clone: Clone) -> None:
    before = files(clone.root)
    block = (
        (clone.root / "docs/setup.md").read_text().partition("```sh\nmkdir inventory/staging")[2]
    )
    commands, init = ("mkdir inventory/staging" + block.partition("```")[0]).split("make init ")
    subprocess.run(["bash", "-euc", commands], cwd=clone.root, check=True)
    given = dict(word.split("=") for word in init.partition("#")[0].split())
    assert clone.init(**ANSWERS).returncode == 0
    brought = {
        "DROPLET_HOST": "127.0.0.1",
        "DROPLET_PORT": "9",
        "DROPLET_KNOWN_HOSTS": "[127.0.0.1]:9 ssh-ed25519 AAAA",
        "SUPABASE_DB_URL": DATABASE,
        "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_x",
        "OPENAI_API_KEY": MODEL_KEY,
        "LEAVE_OUT": "n8n",
    }
    done = clone.init(**ANSWERS | given | {"PROJECT": "stagingstagingstagin"} | brought)
    assert done.returncode == 0, done.stderr
    after = files(clone.root)
    assert {name for name in after if after[name] != before.get(name)} == {
        "staging.env",
        "inventory/staging/hosts.yml",
    }, "and a link"
    assert before.keys() <= after.keys()
    text = (clone.root / "staging.env").read_text()
    assert "API_DOMAIN=api.staging.example.com" in text
    assert "INGEST_KEY=op://cimt/staging/INGEST_KEY" in text
    items = {
        one["title"]: one["fields"]
        for one in json.loads(clone.account.read_text())["vaults"]["cimt"]
    }
    assert set(items) == {"production", "staging"}
    secrets = [{one["value"] for one in fields} for fields in items.values()]
    assert not (secrets[0] & secrets[1]) - {DATABASE, MODEL_KEY}
    assert "digitaloceanspaces.com/example-cimt-staging" in text
    # GitHub: its own environment; what is the repository's stays as production has it.
    kept = clone.root.parent / "github"
    kept.mkdir()
    permissions = {"administration": "write", "environments": "write", "variables": "write"}
    rights = {"token": {"permissions": permissions | {"actions": "read", "metadata": "read"}}}
    (kept / "tokens.json").write_text(json.dumps(rights))
    with served(application(kept, kept)) as port:
        place = f"http://127.0.0.1:{port}/api"
        asked = {"GITHUB_API_URL": place, "GITHUB_TOKEN": "token", "CONFIRM": "yes"}
        asked |= {"GITHUB_REPOSITORY": "example/cimt", "NO_PROXY": "127.0.0.1", "ENV": "staging"}
        done = clone.make("github", **asked)
    assert done.returncode == 0, done.stdout + done.stderr
    settings = kept / "settings"
    there = {str(one.relative_to(settings)) for one in settings.rglob("*") if one.is_file()}
    assert {"staging/variables/API_DOMAIN", "staging/secrets/INGEST_KEY"} <= there
    assert not any(name.startswith(("production", "repository/")) for name in there)
    # A playbook goes to the droplet of that inventory, with the values of that file.
    done = clone.make("history", ENV="staging", ALLOW_OLDER="true")
    assert "fatal: [staging]: UNREACHABLE!" in done.stdout, done.stdout
