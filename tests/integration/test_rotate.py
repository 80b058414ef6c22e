"""`make rotate`: where both values are kept meanwhile, what is refused, and that nothing secret is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from testbed.api import stand_in
from testbed.tree import ROOT
from tests.integration.test_init import ANSWERS, Clone, Done
from tools.init import public_half
from tools.settings import values

SETTINGS = yaml.safe_load((ROOT / "services/settings.yaml").read_text())["settings"]
SECRET = {name: one for name, one in SETTINGS.items() if one.get("secret")}


def rotate(clone: Clone, name: str, typed: str = "", **given: str) -> Done:
    """The verb in the environment of that clone, as `make` starts it."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.settings", "with", sys.executable, "-m", "tools.rotate"],
        cwd=clone.root,
        env=clone.shell | {"SECRET": name} | given,
        input=typed,
        capture_output=True,
        text=True,
    )
    kept = clone.item() if clone.account.exists() else {}
    for value in (*kept.values(), typed.strip()):
        for line in filter(None, value.splitlines()):
            assert line not in done.stdout + done.stderr
    return done


@pytest.fixture(params=[True, False], ids=["1Password", "a file"])
def clone(request: pytest.FixtureRequest, tmp_path: Path) -> Clone:
    made = Clone(tmp_path, op=request.param)
    assert made.init(**ANSWERS, OPENAI_API_KEY="the-first-key-of-the-model").returncode == 0
    return made


def kept(clone: Clone) -> dict[str, str]:
    """The secrets, wherever they are."""
    if clone.account.exists():
        return clone.item()
    return values.read(clone.kept)


def test_a_shared_key_is_good_beside_the_one_from_before(clone: Clone) -> None:
    before, text = kept(clone), clone.env.read_text()
    done = rotate(clone, "ETL_KEY")
    assert done.returncode == 0, done.stderr
    after = kept(clone)
    assert after.pop("ETL_KEY_OLD") == before["ETL_KEY"]
    assert after["ETL_KEY"] != before["ETL_KEY"]
    assert after | {"ETL_KEY": before["ETL_KEY"]} == before, "all else is as it was"
    assert clone.values()["ETL_KEY_OLD"] == "op://cimt/production/ETL_KEY_OLD"
    assert "ROTATE=ETL_KEY,ETL_KEY_OLD" in done.stdout
    # A second call begins nothing anew: two new values would leave none that is in use.
    assert rotate(clone, "ETL_KEY").returncode == 0
    assert kept(clone) == after | {"ETL_KEY_OLD": before["ETL_KEY"]}
    done = rotate(clone, "ETL_KEY", CONFIRM="revoke")
    assert done.returncode == 0, done.stderr
    assert "make github ENV=production CONFIRM=yes ROTATE=ETL_KEY_OLD" in done.stdout
    assert kept(clone) == after
    assert clone.env.read_text() == text


def test_a_provider_s_key_is_tried_before_it_takes_the_old_one_s_place(
    clone: Clone, tmp_path: Path
) -> None:
    before = kept(clone)
    with stand_in(tmp_path, "openai") as url:
        here = {"OPENAI_BASE_URL": f"{url}/v1", "CHAT_MODEL": "gpt-6-luna"}
        gone = {**here, "CHAT_MODEL": "a-model-that-this-key-may-not-use"}
        done = rotate(clone, "OPENAI_API_KEY", "another-key-of-the-model\n", **gone)
        assert done.returncode == 2
        assert "nothing was changed" in done.stderr
        assert kept(clone) == before
        done = rotate(clone, "OPENAI_API_KEY", "another-key-of-the-model\n", **here)
        assert done.returncode == 0, done.stderr
        assert kept(clone)["OPENAI_API_KEY"] == "another-key-of-the-model"
        done = rotate(clone, "OPENAI_API_KEY", CONFIRM="revoke", **here)
    assert "platform.openai.com → API keys" in done.stdout, done.stderr
    assert "OPENAI_API_KEY_OLD" not in kept(clone)
    if clone.account.exists():
        calls = str(json.loads(clone.account.read_text())["calls"])
        assert "key-of-the-model" not in calls, "a process list shows none"
    else:
        assert clone.kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "says", "given"),
    [
        ("N8N_ENCRYPTION_KEY", "does not change: every credential in n8n", {}),
        ("BACKUP_KEY_SECRET", "by hand. Next: make rotate SECRET=BACKUP_KEY_ID", {}),
        ("API_DOMAIN", "SECRET='API_DOMAIN' is none", {}),
        ("OPENAI_API_KEY", "no new value was given", {}),
        ("OPENAI_API_KEY", "is not changing hands", {"CONFIRM": "revoke"}),
        ("REGISTRY_PASSWORD", "is not in", {}),
        ("INGEST_KEY", "CONFIRM='yes' is nothing here", {"CONFIRM": "yes"}),
        ("INGEST_KEY", "ENV=production", {"ENV": "local"}),
    ],
)
def test_what_does_not_change_here_says_what_to_do(
    tmp_path: Path, name: str, says: str, given: dict[str, str]
) -> None:
    clone = Clone(tmp_path, op=True)
    assert clone.init(**ANSWERS, OPENAI_API_KEY="the-first-key-of-the-model").returncode == 0
    before = clone.item(), clone.env.read_text()
    done = rotate(clone, name, **given)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert (clone.item(), clone.env.read_text()) == before


# Stands in for ssh and the droplet's sshd: whoever's public half is in authorized_keys gets in, and runs the command.
SSH = """\
#!/bin/sh
while [ "$1" != -- ]; do [ "$1" = -i ] && key=$2; shift; done
half=$(ssh-keygen -y -f "$key" | cut -d' ' -f2)
grep -qF "$half" "$HOME/.ssh/authorized_keys" || { echo 'Permission denied (publickey).' >&2; exit 255; }
[ ! -e "$HOME/cut" ] || { echo 'Connection closed by remote host' >&2; exit 255; }
shift 2; exec sh -c "$*"
"""


def test_the_door_takes_both_keys_and_then_the_new_one_alone(clone: Clone, tmp_path: Path) -> None:
    (clone.bin / "ssh").unlink()
    (clone.bin / "ssh").write_text(SSH)
    (clone.bin / "ssh").chmod(0o755)
    door = tmp_path / ".ssh/authorized_keys"
    door.parent.mkdir()
    at = {"DROPLET_HOST": "203.0.113.7"}
    before, text = kept(clone), clone.env.read_text()
    first = public_half(before["DROPLET_SSH_KEY"])
    owner = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFXHCVsE8hvveBIa91VpfgNDk22hC8wvSYoEB0UxGPaa owner"
    # A key that is not in: nothing is changed, or the next release could not enter.
    door.write_text(f"{owner}\n")
    done = rotate(clone, "DROPLET_SSH_KEY", **at)
    assert (done.returncode, kept(clone), clone.env.read_text()) == (2, before, text)
    assert "Permission denied (publickey)" in done.stderr
    door.write_text(f"{owner}\nno-pty {first} cimt\n")
    done = rotate(clone, "DROPLET_SSH_KEY", **at)
    assert done.returncode == 0, done.stderr
    after = kept(clone)
    second = public_half(after["DROPLET_SSH_KEY"])
    assert (after["DROPLET_SSH_KEY_OLD"], second != first) == (before["DROPLET_SSH_KEY"], True)
    both = f"{owner}\nno-pty {first} cimt\n{second}\n"
    assert (door.read_text(), door.stat().st_mode & 0o777) == (both, 0o600)
    assert clone.env.read_text() == text.replace(first, second)
    # Again, as after a first call that was cut short: no third key.
    assert rotate(clone, "DROPLET_SSH_KEY", **at).returncode == 0
    assert (kept(clone), door.read_text()) == (after, both)
    (tmp_path / "cut").touch()
    assert rotate(clone, "DROPLET_SSH_KEY", CONFIRM="revoke", **at).returncode == 2
    assert kept(clone) == after, "the old one is kept as long as it may be needed"
    (tmp_path / "cut").unlink()
    done = rotate(clone, "DROPLET_SSH_KEY", CONFIRM="revoke", **at)
    assert done.returncode == 0, done.stderr
    assert door.read_text() == f"{owner}\n{second}\n"
    assert kept(clone) == {**before, "DROPLET_SSH_KEY": after["DROPLET_SSH_KEY"]}


def droplet(clone: Clone, backup: str) -> dict[str, str]:
    """Where a droplet is that the key in use opens; there `sudo` is only the backup's program, a script of sh."""
    for name, text in (("ssh", SSH), ("sudo", f"#!/bin/sh\n{backup}\n")):
        (clone.bin / name).unlink(missing_ok=True)
        (clone.bin / name).write_text(text)
        (clone.bin / name).chmod(0o755)
    door = Path(clone.shell["HOME"], ".ssh/authorized_keys")
    door.parent.mkdir()
    door.write_text(public_half(kept(clone)["DROPLET_SSH_KEY"]))
    return {"DROPLET_HOST": "203.0.113.7"}


def test_both_passwords_open_the_backups_meanwhile(clone: Clone, tmp_path: Path) -> None:
    at = droplet(clone, f'echo "$*" $(cat) >>"{tmp_path}/told"')
    before = kept(clone)
    done = rotate(clone, "BACKUP_PASSWORD", **at)
    assert done.returncode == 0, done.stderr
    assert "make provision backup ENV=production" in done.stdout
    new = kept(clone)["BACKUP_PASSWORD"]
    assert rotate(clone, "BACKUP_PASSWORD", CONFIRM="revoke", **at).returncode == 0
    told = [{"add": new}, {"end": before["BACKUP_PASSWORD"]}]
    lines = [f"-n cimt-backup passwords {json.dumps(one)}" for one in told]
    assert (tmp_path / "told").read_text().splitlines() == lines
    assert kept(clone) == {**before, "BACKUP_PASSWORD": new}


def test_the_doors_new_key_is_tried_before_the_old_one_ends(clone: Clone) -> None:
    at = droplet(clone, "exit 1")
    (clone.bin / "cimt-door").write_text("#!/bin/sh\ngrep -q hello\n")
    (clone.bin / "cimt-door").chmod(0o755)
    first = public_half(kept(clone)["DROPLET_CI_KEY"])
    assert values.read(clone.env)["DROPLET_CI_KEYS"] == first
    done = rotate(clone, "DROPLET_CI_KEY", **at)
    assert done.returncode == 0, done.stderr
    second = public_half(kept(clone)["DROPLET_CI_KEY"])
    assert values.read(clone.env)["DROPLET_CI_KEYS"] == f"{second},{first}"
    told = done.stdout
    assert told.index("make provision") < told.index("make github"), "first the droplet knows it"
    done = rotate(clone, "DROPLET_CI_KEY", CONFIRM="revoke", **at)
    assert done.returncode == 2
    assert "Permission denied" in done.stderr, "it does not get in before `make provision`"
    with Path(clone.shell["HOME"], ".ssh/authorized_keys").open("a") as door:
        door.write(f"\n{second}\n")
    done = rotate(clone, "DROPLET_CI_KEY", CONFIRM="revoke", **at)
    assert done.returncode == 0, done.stderr
    assert values.read(clone.env)["DROPLET_CI_KEYS"] == second


def test_a_key_and_its_secret_change_hands_together(clone: Clone, tmp_path: Path) -> None:
    told = tmp_path / "told"
    refuse = "{ echo 'backup: not let in' >&2; exit 1; }"
    at = droplet(clone, f'echo "$*" >"{told}"; cat >>"{told}"; ! grep wrong "{told}" || {refuse}')
    old = {"BACKUP_KEY_ID": "DO00OLD", "BACKUP_KEY_SECRET": "old-secret"}
    new = {"BACKUP_KEY_ID": "DO00NEW", "BACKUP_KEY_SECRET": "new-secret"}
    assert clone.init(**ANSWERS, BACKUP_KEY_ID=old["BACKUP_KEY_ID"]).returncode == 0
    half = rotate(clone, "BACKUP_KEY_ID", "DO00NEW\nnew-secret\n", **at)
    assert (half.returncode, "BACKUP_KEY_SECRET is not in" in half.stderr) == (2, True)
    assert clone.init(**ANSWERS, **old).returncode == 0
    before = kept(clone)
    refused = rotate(clone, "BACKUP_KEY_ID", "DO00NEW\nwrong-secret\n", **at)
    assert refused.returncode == 2
    assert "not let in" in refused.stderr
    assert kept(clone) == before, "nothing was changed"
    done = rotate(clone, "BACKUP_KEY_ID", "DO00NEW\nnew-secret\n", **at)
    assert done.returncode == 0, done.stderr
    assert "ROTATE=BACKUP_KEY_ID,BACKUP_KEY_SECRET" in done.stdout
    asked = {"AWS_ACCESS_KEY_ID": "DO00NEW", "AWS_SECRET_ACCESS_KEY": "new-secret"}
    assert told.read_text() == f"-n cimt-backup opens\n{json.dumps(asked)}"
    beside = {f"{name}_OLD": value for name, value in old.items()}
    assert kept(clone) == {**before, **new, **beside}
    assert rotate(clone, "BACKUP_KEY_ID", CONFIRM="revoke", **at).returncode == 0
    assert kept(clone) == {**before, **new}


def test_every_secret_says_how_it_changes_hands() -> None:
    ways = {
        "login",
        "beside",
        "door",
        "public",
        "passwords",
        "made",
        "brought",
        "pair",
        "hand",
        "never",
    }
    for name, setting in SECRET.items():
        way = setting["rotate"]
        assert way["how"] in ways, name
        assert set(way) <= {"how", "check", "apply", "revoke", "why", "with"}
        if way["how"] in ("login", "beside", "passwords", "made"):
            assert setting["make"], "one that we make"
            assert way["apply"]
        if way["how"] in ("hand", "never"):
            assert way["why"]
        if way["how"] == "beside":
            assert SETTINGS[f"{name}_OLD"]["secret"]
    from tools.doctor import CHECKS

    checks = {check.__name__ for check in CHECKS}
    assert {one["rotate"]["check"] for one in SECRET.values() if "check" in one["rotate"]} <= checks
