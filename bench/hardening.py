"""Our host roles beside dev-sec's os_hardening and ssh_hardening, each on a new local droplet that runs Docker.

Usage: python -m bench.hardening --collection FOLDER      FOLDER: a checkout of dev-sec/ansible-collection-hardening

Ours are baseline, hardening, ssh and firewall. The collection is used as it comes, and is not a part of this
repository. Both droplets are made of the same image, which has the packages of ours already, and get those of the
collection before: no mirror is measured.
The seconds are of one run on an emulated machine: only what stands beside each other says something. Takes some 40
minutes; wants no other local droplet (make down), and leaves none.
"""

from __future__ import annotations

import argparse
import http.server
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from local.droplet import machine
from local.settings import ROOT, LocalError, Settings, load, save_ports

OURS = ("baseline", "hardening", "ssh", "firewall")
THEIRS = ("devsec.hardening.os_hardening", "devsec.hardening.ssh_hardening")
OUTSIDE = "10.0.2.2"  # this machine, for the droplet
DROPLET = "10.0.2.15"
RECAP = re.compile(r"ok=(\d+)\s+changed=(\d+)\s+unreachable=0\s+failed=0\s+skipped=(\d+)")
PACKAGES = "apt-get update -qq && apt-get install -qq --download-only libpam-passwdqc >/dev/null"
# A container of the host's own programs answers on a published port, and another one reaches it and the world by IP.
IMAGE = (
    "tar --create --directory / --exclude usr/share --exclude usr/lib/modules usr bin lib lib64 "
    "| docker import - own:1"
)
ANSWER = (
    "trap 'docker rm --force answers' EXIT\n"
    "docker run --detach --name answers --publish 80:8000 own:1 python3 -m http.server --directory /usr/bin 8000\n"
)
ASK = (
    "for attempt in 1 2 3 4 5; do docker run --rm own:1 python3 -c "
    "\"import urllib.request as u; u.urlopen('http://{0}', timeout=20)\" && exit; sleep 2; done; exit 1"
)


def converge(folder: Path, roles: tuple[str, ...]) -> str:
    """Run a play of these roles. Returns its seconds, tasks and changes. Raises LocalError when it fails."""
    # What the inventory reads, it finds beside a playbook's folder.
    play = ROOT / ".local/bench-hardening.yml"
    play.write_text(
        "- hosts: droplet\n  become: true\n  gather_facts: true\n"
        f"  roles: [{', '.join(roles)}]\n  vars: {{docker_source: distribution}}\n"
    )
    environment = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(folder),
        "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
        "ANSIBLE_NOCOLOR": "1",
    }
    inventory = ["-i", str(ROOT / "inventory/local")]
    program = Path(sys.executable).with_name("ansible-playbook")
    began = time.monotonic()
    done = subprocess.run(
        [program, *inventory, play],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=ROOT,
    )
    seconds = time.monotonic() - began
    recap = RECAP.search(done.stdout)
    if done.returncode or not recap:
        output = done.stdout + done.stderr
        # What tells the times of tasks comes after the task that failed.
        task = output.rfind("TASK [", 0, output.find("fatal: "))
        raise LocalError(f"{', '.join(roles)}: {output[max(task, 0) :][:1500]}")
    ok, changed, skipped = map(int, recap.groups())
    return f"{seconds:.0f} s, {ok + skipped} tasks, {changed} changed"


def scanned(settings: Settings) -> str:
    """Lynis' index and what ssh-audit warns of, by `make scan`'s own script without OpenSCAP, which takes its time."""
    script = (ROOT / "tools/scan/host.sh").read_text()
    script = re.sub(r'echo "== openscap".*?(?=echo "== ssh-audit")', "", script, flags=re.DOTALL)
    done = subprocess.run(
        machine.ssh_command(settings, "sudo", "sh", "-s", "--", "22"),
        input=script,
        capture_output=True,
        text=True,
        check=True,
    )
    index = re.search(r"^hardening_index=(\d+)", done.stdout, re.MULTILINE)
    if not index:
        raise LocalError(f"Lynis told no index: {done.stderr.strip()[-800:]}")
    levels = re.findall(r"\[(fail|warn)\]", done.stdout.partition("== ssh-audit")[2])
    return f"Lynis {index[1]}, ssh-audit {levels.count('fail')} fail / {levels.count('warn')} warn"


def docker(settings: Settings) -> str:
    """Whether a container answers on a published port, and whether one reaches the world."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ways = {
        "a published port": ANSWER + ASK.format(DROPLET),
        "the world": ASK.format(f"{OUTSIDE}:{server.server_port}"),
    }
    missed = []
    for way, script in ways.items():
        try:
            machine.as_root(settings, script)
        except LocalError:
            missed.append(f"{way} is not reached")
    server.shutdown()
    return "Docker: " + ", ".join(missed) if missed else "Docker whole"


def measured(settings: Settings, folder: Path, name: str, roles: tuple[str, ...]) -> None:
    """Print one candidate's lines, from a new droplet to its end."""
    machine.start(settings)
    try:
        converge(folder, ("docker",))
        machine.as_root(settings, f"{PACKAGES}\n{IMAGE}")
        if roles == OURS:  # the other one is made of the same image
            print(f"before:            {scanned(settings)}; {docker(settings)}", flush=True)
        print(f"{name}: first     {converge(folder, roles)}", flush=True)
        print(f"{name}: second    {converge(folder, roles)}", flush=True)
        print(f"{name}: after     {scanned(settings)}; {docker(settings)}", flush=True)
    finally:
        machine.destroy(settings)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--collection", type=Path, required=True)
    given = parser.parse_args()
    settings = load()
    if machine.state(settings):
        raise SystemExit("bench: there is a local droplet. Next: make down")
    if not (given.collection / "galaxy.yml").exists():
        raise SystemExit(f"bench: {given.collection} is no checkout of the collection")
    save_ports(settings)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shutil.copytree(given.collection, folder / "ansible_collections/devsec/hardening")
        try:
            measured(settings, folder, "ours   ", OURS)
            measured(settings, folder, "dev-sec", THEIRS)
        except LocalError as error:
            raise SystemExit(f"bench: {error}") from None


if __name__ == "__main__":
    main()
