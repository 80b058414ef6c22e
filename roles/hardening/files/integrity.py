#!/usr/bin/python3
"""Compare the files of the system with the night before, by AIDE. Run by cimt-integrity.timer.

What came with packages of the distribution, and is still as they brought it, explains itself. Each other difference is
printed and told once: exit code 1, a failed unit, an alarm; what is there now is what the next night compares with.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

CONFIG = "/etc/aide/aide.conf"
KEPT = Path("/var/lib/aide/aide.db")
NEW = Path("/var/lib/aide/aide.db.new")
LISTS = Path("/var/lib/dpkg/info")
FINDINGS = 7  # bits of AIDE's exit code: 1 added, 2 removed, 4 changed; above them, an error
LISTED = re.compile(r"^[a-zA-Z|?!>-][^/]*: (/.+)$", re.MULTILINE)
# What maintainer scripts make of the files of packages.
MADE = re.compile(
    r"/boot/(initrd\.img|grub/)|/etc/(ld\.so\.cache|alternatives/|rc.\.d/|mailcap$)"
    r"|/usr/lib/modules/[^/]+/modules\.|/usr/lib/(x86_64-linux-gnu|udev)/.*cache|/usr/share/(info|mime|glib-2\.0)/"
)


def main() -> int:
    """Returns the exit code."""
    first = not KEPT.exists()
    command = ["/usr/bin/aide", f"--config={CONFIG}", "--init" if first else "--update"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode & ~FINDINGS or not NEW.exists():
        print(f"integrity: aide failed: {(done.stderr or done.stdout)[-800:]}", file=sys.stderr)
        return 2
    since = KEPT.stat().st_mtime if not first else 0.0
    found = set() if first else set(LISTED.findall(done.stdout))
    surprising = sorted(found - explained(found, since))
    NEW.replace(KEPT)
    if first:
        print("integrity: first database made")
    elif not surprising:
        print(f"integrity: {len(found)} files differ, all by packages")
    else:
        print(f"integrity: {len(surprising)} files differ, and no package says why:")
        print("\n".join(surprising[:200]))
        print("integrity: was it a provision or a person? Next: docs/operations/hardening.md")
    return 1 if surprising else 0


def explained(found: Iterable[str], since: float) -> set[str]:
    """Of the paths, those that packages installed after `since` (seconds, Unix) account for."""
    lists = [path for path in LISTS.glob("*.list") if path.stat().st_mtime > since]
    if not lists:
        return set()
    brought = {usual(line) for path in lists for line in path.read_text().splitlines()}
    names = [path.stem for path in lists]
    verified = subprocess.run(["dpkg", "--verify", *names], capture_output=True, text=True)
    altered = {usual(line.split()[-1]) for line in verified.stdout.splitlines() if line.strip()}
    gone = {path for path in found if path.startswith(("/usr/", "/boot/")) and not exists(path)}
    made = {path for path in found if MADE.match(path)}
    return (brought | {path for path in gone if "/local/" not in path} | made) - altered


def exists(path: str) -> bool:
    """Whether there is something at the path, a broken link too."""
    return Path(path).is_symlink() or Path(path).exists()


def usual(path: str) -> str:
    """A package's path as the system has it: /bin, /lib and /sbin are links into /usr."""
    return re.sub(r"^/(s?bin|lib(32|64|x32)?)(?=/)", r"/usr/\1", path)


if __name__ == "__main__":
    sys.exit(main())
