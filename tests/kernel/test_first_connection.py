"""The first login of `make droplet`: the real play, and an `ssh` that judges host keys and runs the rest here.

/etc/ssh is a folder of the test, by a mount namespace; `systemctl` reloads what its `sshd` would show.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from local.digitalocean.app import Api
from testbed.served import served
from testbed.tree import copy_tree

PROGRAMS = {
    # Strict, as OpenSSH is told to be: the key that is shown must stand in the file, for this host.
    "ssh": """\
import os, re, sys
machine, here = os.environ["MACHINE"], os.path.dirname(sys.argv[0])
words = " ".join(sys.argv[1:-1])
assert "StrictHostKeyChecking=yes" in words and "ControlMaster=no" in words, words
known = open(re.search(r"UserKnownHostsFile=(\\S+)", words)[1]).read().splitlines()
shown = open(machine + "/shown").read().split()[:2]
port = re.search(r"Port=(\\d+)", words)[1]
host = sys.argv[-2] if port == "22" else f"[{sys.argv[-2]}]:{port}"
if [host, *shown] not in [one.split()[:3] for one in known]:
    print("Host key verification failed.", file=sys.stderr)
    sys.exit(255)
os.environ["PATH"] = here + ":" + os.environ["PATH"]
os.execv("/bin/sh", ["sh", "-c", sys.argv[-1]])
""",
    "sudo": "import os, sys; found = sys.argv.index('/bin/sh'); os.execv('/bin/sh', sys.argv[found:])\n",
    "systemctl": """\
import os, shutil, sys
machine = os.environ["MACHINE"]
if os.path.exists(machine + "/broken"):
    sys.exit("broken")
shutil.copy("/etc/ssh/ssh_host_ed25519_key.pub", machine + "/shown")
""",
}


class Droplet:
    """A machine that comes to be when the droplet is made, and the play."""

    def __init__(self, folder: Path, api: Api, url: str) -> None:
        self.folder, self.api, self.url = folder, api, url
        self.tree = folder / "clone"
        copy_tree(self.tree)
        self.values = self.tree / "production.env"
        for name in ("bin", "etc"):
            (folder / name).mkdir()
        for name, text in PROGRAMS.items():
            # Not by the first line alone: it may hold no path with a space.
            python = shlex.quote(sys.executable)
            (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {python} "$0.py" "$@"\n')
            (folder / "bin" / f"{name}.py").write_text(text)
            (folder / "bin" / name).chmod(0o755)
        key = folder / "deploy"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        self.key = key.read_text()
        api.after = self.boot

    def boot(self, method: str, path: str) -> None:
        """cloud-init, as far as host keys go."""
        if (method, path) == ("POST", "/v2/droplets"):
            keys = yaml.safe_load(self.api.kept["droplets"][-1]["user_data"])["ssh_keys"]
            (self.folder / "etc/ssh_host_ed25519_key").write_text(keys["ed25519_private"])
            (self.folder / "etc/ssh_host_ed25519_key.pub").write_text(keys["ed25519_public"])
            (self.folder / "shown").write_text(keys["ed25519_public"])

    @property
    def shown(self) -> str:
        return " ".join((self.folder / "shown").read_text().split()[:2])

    @property
    def pinned(self) -> str:
        match = re.search(r'^DROPLET_KNOWN_HOSTS="(.*)"$', self.values.read_text(), re.MULTILINE)
        return match[1] if match else ""

    def play(
        self, seconds: int = 60, environment: str = "production"
    ) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("ansible-playbook")
        command = [sys.executable, "-m", "tools.settings", "with", str(program)]
        command += ["-i", f"inventory/{environment}", "playbooks/droplet.yml"]
        command += ["-e", f"droplet_boot_seconds={seconds}"]
        mounted = 'mount --bind "$0" /etc/ssh && exec "$@"'
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", mounted, str(self.folder / "etc"), *command],
            cwd=self.tree,
            env={
                "PATH": f"{self.folder / 'bin'}:{program.parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
                "HOME": str(self.folder),
                # Root of a user namespace has root's home by name, and may not write there.
                "ANSIBLE_REMOTE_TMP": str(self.folder / "tmp"),
                "MACHINE": str(self.folder),
                "ENV": environment,
                "NO_PROXY": "127.0.0.1",
                "DIGITALOCEAN_API_URL": self.url,
                "DIGITALOCEAN_TOKEN": "dop_v1_of-nobody",
                "DROPLET_REGION": "fra1",
                "DROPLET_SSH_KEY": self.key,
            },
            capture_output=True,
            text=True,
            timeout=600,
        )


@pytest.fixture
def droplet(tmp_path: Path) -> Iterator[Droplet]:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # of a network of our own
    api = Api()
    with served(api.application()) as port:
        yield Droplet(tmp_path, api, f"http://127.0.0.1:{port}")


def test_the_first_key_is_replaced_and_the_one_that_is_kept_is_shown(droplet: Droplet) -> None:
    """Stopped after the new key is kept and before it is in use, it goes on; then there is nothing to do."""
    (droplet.folder / "broken").touch()
    stopped = droplet.play()
    assert stopped.returncode != 0
    assert "Next: make droplet again" in stopped.stdout
    first, kept = droplet.shown, droplet.pinned
    assert kept
    assert first not in kept
    (droplet.folder / "broken").unlink()
    done = droplet.play()
    assert done.returncode == 0, done.stdout + done.stderr
    address, *key = droplet.pinned.split()
    assert droplet.pinned == kept
    assert f"DROPLET_HOST={address}" in droplet.values.read_text()
    assert droplet.shown == " ".join(key[:2])
    assert key[2] == f"droplet-{droplet.api.kept['droplets'][0]['id']}"
    assert [one.name for one in (droplet.folder / "etc").glob("*.own*")] == []
    again = droplet.play()
    assert re.search(r"localhost +: ok=\d+ +changed=0 ", again.stdout), again.stdout + again.stderr
    assert "PRIVATE KEY" not in stopped.stdout + done.stdout + again.stdout


def test_the_key_of_a_lost_droplet_is_known_again_where_a_backup_has_brought_it(
    droplet: Droplet,
) -> None:
    """docs/operations/recovery.md: another droplet with the old host key, and production.env as it was."""
    first = droplet.play()
    assert first.returncode == 0, first.stdout + first.stderr
    files = ("etc/ssh_host_ed25519_key", "etc/ssh_host_ed25519_key.pub", "shown")
    backup = {name: (droplet.folder / name).read_text() for name in files}
    kept = droplet.values.read_text()
    (lost,) = droplet.api.kept["droplets"]
    token = {"Authorization": "Bearer dop_v1_of-nobody"}
    httpx.delete(f"{droplet.url}/v2/droplets/{lost['id']}", headers=token).raise_for_status()
    second = droplet.play()
    assert second.returncode == 0, second.stdout + second.stderr
    assert droplet.shown not in kept, "another droplet has another key at first"
    assert droplet.api.kept["droplets"][0]["id"] != lost["id"]
    for name, text in backup.items():
        (droplet.folder / name).write_text(text)
    droplet.values.write_text(kept)
    known = droplet.pinned
    again = droplet.play()
    assert again.returncode == 0, again.stdout + again.stderr
    assert (droplet.pinned, droplet.shown) == (known, " ".join(backup["shown"].split()[:2]))
    assert [one.name for one in (droplet.folder / "etc").glob("*.own*")] == []


def test_a_key_that_nobody_knows_is_not_trusted(droplet: Droplet) -> None:
    other = droplet.folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)

    def between(method: str, path: str) -> None:
        droplet.boot(method, path)
        (droplet.folder / "shown").write_text(other.with_suffix(".pub").read_text())

    droplet.api.after = between
    done = droplet.play(seconds=5)
    assert done.returncode != 0
    assert "was not reached by a host key that is known" in " ".join(done.stdout.split())
    assert droplet.pinned == ""


def test_the_local_droplet_is_the_one_that_is_made(tmp_path: Path) -> None:
    """`make droplet ENV=local`: the same play, at the stand-in; its host key is known and stays."""
    api = Api("127.0.0.1")
    with served(api.application()) as port:
        droplet = Droplet(tmp_path, api, "")
        api.after = lambda *_: None
        local = droplet.tree / ".local"
        (local / "droplet").mkdir(parents=True)
        (local / "ports.json").write_text(json.dumps({"digitalocean": port, "ssh": 2222}))
        (local / "droplet/id_ed25519").write_text(droplet.key)
        public = (droplet.folder / "deploy.pub").read_text()
        (local / "droplet/host_ed25519.pub").write_text(public)
        (droplet.folder / "shown").write_text(public)
        done = droplet.play(environment="local")
        assert done.returncode == 0, done.stdout + done.stderr
        assert api.kept["droplets"][0]["name"] == "cimt-local"
        assert not list(droplet.tree.glob("*.env"))
        assert droplet.shown == " ".join(public.split()[:2])
