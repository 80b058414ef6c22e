"""A change of configuration files on trial: what was before is kept with the script that puts it back.

The machine itself runs that script when the clock of the trial runs out, or when it boots during it. Standard
library only: it runs on the droplet.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import NoReturn

from ansible.module_utils.config_files import Change, ConfigError, Entry, Run

STATE_ROOT = Path("/var/lib/cimt/config")
RESTORE_UNIT = Path("/etc/systemd/system/cimt-restore@.service")
RESTORE_UNIT_TEXT = """\
# Written by Ansible (module config_set).
[Unit]
Description=Put back the configuration set %i: the machine restarted during its trial
ConditionPathExists=/var/lib/cimt/config/%i/trial/restore
DefaultDependencies=no
After=local-fs.target
Before=%i.service cimt-%i.service
[Service]
Type=oneshot
ExecStart=/bin/sh /var/lib/cimt/config/%i/trial/restore boot
[Install]
WantedBy=sysinit.target
"""


class Trial:
    """The way back of the set ``name``, which is kept in `home`; ``run`` runs a command."""

    def __init__(self, name: str, run: Run) -> None:
        self.name = name
        self.run = run
        self.home = STATE_ROOT / name
        self.path = self.home / "trial"
        self.observed = self.home / "observed"

    def prepare(
        self, changes: list[Change], activate: list[list[str]], revert: list[list[str]]
    ) -> None:
        """Keep what is there now, with the script that puts it back."""
        preparing = self.home / "preparing"
        shutil.rmtree(preparing, ignore_errors=True)
        preparing.mkdir(parents=True, mode=0o700)
        found = [change.found for change in changes]
        for index, before in enumerate(found):
            if before.kind in ("file", "link"):
                kept, status = preparing / str(index), before.path.lstat()
                shutil.copy2(before.path, kept, follow_symlinks=False)
                os.chown(kept, status.st_uid, status.st_gid, follow_symlinks=False)
        new = not self.observed.exists() and all(
            before.kind in ("absent", "directory") for before in found
        )
        script = restore_script(self.name, changes, activate, revert, new)
        (preparing / "restore").write_text(script)
        os.sync()
        preparing.rename(self.path)

    def arm(self, seconds: int) -> None:
        """Start the clock of the trial, and make a reboot during it restore as well."""
        if not RESTORE_UNIT.exists() or RESTORE_UNIT.read_text() != RESTORE_UNIT_TEXT:
            Entry(RESTORE_UNIT, "file", RESTORE_UNIT_TEXT, 0o644).install()
        self.must("systemctl", "daemon-reload")
        self.must("systemctl", "enable", "--quiet", f"cimt-restore@{self.name}.service")
        self.must(
            *("systemd-run", "--quiet", "--collect", f"--unit=cimt-trial-{self.name}"),
            *(f"--on-active={seconds}s", "--timer-property=AccuracySec=1s"),
            *("/bin/sh", str(self.path / "restore")),
        )

    def disarm(self) -> None:
        """Stop the clock (a timer that has fired is gone by itself)."""
        timer = f"cimt-trial-{self.name}.timer"
        if self.run(["systemctl", "is-active", "--quiet", timer])[0] == 0:
            self.must("systemctl", "stop", timer)

    def must(self, *argv: str) -> str:
        """Output of a command; when it fails, everything is put back, and ConfigError is raised."""
        status, out = self.run(argv)
        if status:
            self.put_back(f"`{shlex.join(argv)}` failed: {out.strip()}")
        return str(out)

    def put_back(self, why: str) -> NoReturn:
        """Restore the previous files and raise ConfigError, saying why."""
        if problem := self._restore():
            then = f"Putting the previous configuration back failed too: {problem}"
        else:
            then = "The previous configuration was put back."
        raise ConfigError(f"{why} {then}")

    def begin_again(self) -> None:
        """After a run that died between install and confirmation: from where that began."""
        self.disarm()
        if problem := self._restore():
            raise ConfigError(f"undoing an interrupted change failed: {problem}")

    def _restore(self) -> str:
        status, out = self.run(["sh", str(self.path / "restore")])
        return out.strip() or f"exit code {status}" if status else ""

    def confirm(self) -> None:
        """End it: what is installed stays. Raises ConfigError when the clock was quicker."""
        kept = self.home / "confirmed"
        shutil.rmtree(kept, ignore_errors=True)
        try:
            self.path.rename(kept)  # from here on the restore script finds nothing to claim
        except FileNotFoundError:
            raise ConfigError(
                "the trial ended before it was confirmed, and the previous configuration was put back. "
                "Run the same command again; if it happens again, raise the trial's seconds."
            ) from None
        self.disarm()
        shutil.rmtree(kept)


def restore_script(
    name: str,
    changes: list[Change],
    activate: list[list[str]],
    revert: list[list[str]],
    new: bool,
) -> str:
    """The shell script that puts back what was found, and exits with 1 when that did not work.

    It claims the trial by renaming it, so that it and a confirmation exclude each other. With the
    argument `boot` it restores files only: services start later, and will read what was restored.
    """
    home = STATE_ROOT / name
    restore = []
    # Last first: a directory is empty again when its turn comes.
    for index, change in reversed(list(enumerate(changes))):
        path, before = shlex.quote(str(change.wanted.path)), change.found
        if before.kind == "directory":
            restore.append(f"chmod {before.mode:04o} {path} || failed=1")
        elif before.kind != "absent":
            restore.append(f"cp -a --remove-destination {index} {path} || failed=1")
        elif change.wanted.kind == "directory":
            restore.append(f"rmdir {path} 2>/dev/null")  # not ours to empty
        else:
            restore.append(f"rm -f {path} || failed=1")

    def unless_boot(commands: list[list[str]], then: str) -> list[str]:
        steps = [f"  {shlex.join(argv)}{then}" for argv in commands]
        return ['if [ "${1:-}" != boot ]; then', "  :", *steps, "fi"]

    # What was never in force may be unable to come into force without its files: no failure then.
    activation = unless_boot(activate, "" if new else " || failed=1")
    return "\n".join(
        [
            "#!/bin/sh",
            f"# Puts back what was before the last change of {name}.",
            f"mv -T {home}/trial {home}/expired 2>/dev/null || exit 0",
            f"cd {home}/expired || exit 1",
            "failed=0",
            f"rm -f {home}/observed",
            *(unless_boot(revert, "") if new and revert else []),
            *restore,
            "systemctl daemon-reload",
            *([] if new and revert else activation),
            f"rm -rf {home}/expired",
            "exit $failed",
            "",
        ]
    )
