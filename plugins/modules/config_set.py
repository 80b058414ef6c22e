#!/usr/bin/python
"""Ansible module `config_set`: files that belong together change together, or not at all.

Why not `template` tasks and handlers: a template task is two module calls, a handler is lost when
a run is interrupted between the file and the handler, and a validator sees one file at a time.
Here one call compares the whole set, validates the complete candidate, installs it, puts it in
force, and puts everything back if that fails. A set that can lock us out is installed *on trial*:
the machine itself restores what was before, unless a second call over a new connection confirms it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: config_set
short_description: Install a set of configuration files as one transaction
description:
  - Compares every file of the set with the machine. When any differs, validates the whole
    candidate, installs it and activates it.
  - When activation fails, the previous files are put back and activated, and the module fails.
  - All files belong to root.
options:
  name:
    description: Name of the set; its state is kept below /var/lib/cimt/config.
    type: str
    required: true
  state:
    description: C(present) installs the set. C(confirmed) ends its trial.
    type: str
    choices: [present, confirmed]
    default: present
  files:
    description: Each says exactly one of C(content), C(link), C(directory) and C(absent).
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      content: {description: The whole content of a regular file., type: str}
      link: {description: Target of a symbolic link., type: str}
      directory: {description: Whether it is a directory., type: bool, default: false}
      absent: {description: Whether it must not exist., type: bool, default: false}
      mode: {description: Octal mode of a file ('0644') or a directory ('0755')., type: str}
  secret_files:
    description:
      - Absolute path to content, of files for root only (0600). No output shows a content.
      - An empty content means that the file must not exist.
    type: dict
    default: {}
  validate:
    description:
      - Commands run before anything is installed, in a private mount namespace where the
        candidate is already in place. In check mode, one whose program is missing is left out.
    type: list
    elements: dict
    default: []
    suboptions:
      argv: {description: The command; it must exit 0., type: list, elements: str, required: true}
      prints: {description: Lines its output must contain., type: list, elements: str, default: []}
      message: {description: What to tell when it fails., type: str, default: ''}
  activate:
    description: Commands that put the files in force.
    type: list
    elements: list
    default: []
  revert:
    description: Commands that undo a first activation, run before its files are removed.
    type: list
    elements: list
    default: []
  units:
    description: systemd units to be enabled and active.
    type: list
    elements: str
    default: []
  observe:
    description:
      - Command whose output is what is in force. It is recorded after activation; when it
        differs later, the set is activated again.
    type: list
    elements: str
    default: []
  trial_seconds:
    description: Restore the previous files after so many seconds unless confirmed. 0 is no trial.
    type: int
    default: 0
"""

STATE_ROOT = Path("/var/lib/cimt/config")
OWNER = (0, 0)  # user and group of every file: root's
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


@dataclass(frozen=True)
class Entry:
    """One member of a set: what must be at `path`.

    `kind` is file, link, directory or absent; `data` is a content or a target.
    """

    path: Path
    kind: str
    data: str = ""
    mode: int = 0
    secret: bool = False

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> Entry:
        """Build from one item of `files`. Raises ValueError when it does not say exactly one thing."""
        path = Path(params["path"])
        given = [
            kind
            for kind, said in (
                ("file", params.get("content") is not None),
                ("link", params.get("link") is not None),
                ("directory", params.get("directory")),
                ("absent", params.get("absent")),
            )
            if said
        ]
        if len(given) != 1 or not path.is_absolute():
            raise ValueError(
                f"{path}: give an absolute path and exactly one of content, link, directory, absent"
            )
        default_mode = {"file": "0644", "directory": "0755"}.get(given[0])
        mode = int(params.get("mode") or default_mode, 8) if default_mode else 0
        data = {"file": params.get("content"), "link": params.get("link")}.get(given[0]) or ""
        return cls(path, given[0], data, mode)

    @classmethod
    def from_secret(cls, path: str, content: str) -> Entry:
        """A file for root only, or none. Raises ValueError for a path that is not absolute."""
        if not Path(path).is_absolute():
            raise ValueError(f"{path}: give an absolute path")
        if not content:
            return cls(Path(path), "absent", secret=True)
        return cls(Path(path), "file", content, 0o600, secret=True)

    def found(self) -> Entry:
        """What is at the path now, in the same shape.

        `kind` is "other" for what we would never replace, such as a device.
        """
        try:
            status = self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return Entry(self.path, "absent")
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            return Entry(self.path, "link", str(self.path.readlink()))
        if stat.S_ISDIR(status.st_mode):
            return Entry(self.path, "directory", "", mode)
        if stat.S_ISREG(status.st_mode):
            owned = (status.st_uid, status.st_gid) == OWNER
            # A file of another owner is never equal: its mode is reported as one we do not ask for.
            return Entry(
                self.path, "file", self.path.read_text("utf-8", "replace"), mode if owned else -1
            )
        return Entry(self.path, "other")

    def text(self) -> str:
        """What a diff shows."""
        return {"file": self.data, "link": f"-> {self.data}\n", "directory": "directory\n"}.get(
            self.kind, ""
        )

    def title(self) -> str:
        """The header of its diff."""
        return f"{self.path} ({self.kind}{f' {self.mode:04o}' if self.mode > 0 else ''})"

    def install(self, path: Path | None = None) -> None:
        """Put it at `path` (default: its own), atomically: a reader sees the old or the new, never a half."""
        path = path or self.path
        if self.kind == "absent":
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.kind == "directory":
            path.mkdir(exist_ok=True)
            os.chown(path, *OWNER)
            path.chmod(self.mode)
            return
        beside = path.with_name(f".{path.name}.cimt")
        beside.unlink(missing_ok=True)
        if self.kind == "link":
            beside.symlink_to(self.data)
        else:
            # Created with its mode: no moment in which others can read it.
            with open(
                os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self.mode),
                "w",
                encoding="utf-8",
            ) as out:
                out.write(self.data)
                os.fchmod(out.fileno(), self.mode)
                os.fchown(out.fileno(), *OWNER)
                out.flush()
                os.fsync(out.fileno())
        os.replace(beside, path)


def restore_script(
    name: str,
    differing: list[Entry],
    found: list[Entry],
    activate: list[list[str]],
    revert: list[list[str]],
    new: bool,
) -> str:
    """The shell script that puts back `found`, and exits with 1 when that did not work.

    It claims the trial by renaming it, so that it and a confirmation exclude each other. With the
    argument `boot` it restores files only: services start later, and will read what was restored.
    """
    home = STATE_ROOT / name
    restore = []
    # Last first: a directory is empty again when its turn comes.
    for index, (entry, before) in reversed(list(enumerate(zip(differing, found, strict=True)))):
        path = shlex.quote(str(entry.path))
        if before.kind == "directory":
            restore.append(f"chmod {before.mode:04o} {path} || failed=1")
        elif before.kind != "absent":
            restore.append(f"cp -a --remove-destination {index} {path} || failed=1")
        elif entry.kind == "directory":
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


class ConfigSet:
    """One set on this machine: compare, validate, install, confirm."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.name: str = module.params["name"]
        self.home = STATE_ROOT / self.name
        self.trial = self.home / "trial"
        self.observed = self.home / "observed"
        try:
            self.entries = [Entry.from_params(item) for item in module.params["files"]]
            secrets = module.params["secret_files"]
            self.entries += [Entry.from_secret(path, text) for path, text in secrets.items()]
        except ValueError as error:
            module.fail_json(msg=f"config_set {self.name}: {error}")

    def run(self, argv: list[str]) -> tuple[int, str]:
        """Exit status and output (both streams)."""
        try:
            status, out, err = self.module.run_command(
                argv,
                environ_update={"LC_ALL": "C", "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
                handle_exceptions=False,
            )
        except OSError as error:
            return 127, f"{argv[0]}: {error.strerror}"
        return status, out + err

    def idle_units(self) -> list[str]:
        """Which of `units` are not enabled or not active."""
        idle = []
        for unit in self.module.params["units"]:
            status, out = self.run(
                ["systemctl", "show", "--property=UnitFileState,ActiveState", unit]
            )
            shown = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
            enabled = shown.get("UnitFileState") in ("enabled", "static", "alias", "generated")
            if status or not enabled or shown.get("ActiveState") != "active":
                idle.append(unit)
        return idle

    def drift(self) -> dict[str, str] | None:
        """The diff between what is in force and what was once activated; None without one."""
        if not self.module.params["observe"]:
            return None
        status, live = self.run(self.module.params["observe"])
        recorded = self.observed.read_text() if self.observed.exists() else "never activated\n"
        if not status and live == recorded:
            return None
        title = shlex.join(self.module.params["observe"])
        return {
            "before_header": f"in force: {title}",
            "after_header": "as activated",
            "before": live,
            "after": recorded,
        }

    def validate(self, differing: list[Entry]) -> list[str]:
        """Run the validators on the complete candidate. Returns those left out (check mode only)."""
        left_out: list[str] = []
        if not self.module.params["validate"]:
            return left_out
        with tempfile.TemporaryDirectory(prefix="cimt-candidate-") as scratch:
            for entry in differing:
                place = Path(scratch, "tree", *entry.path.parts[1:])
                if entry.kind == "absent":
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.mknod(place, stat.S_IFCHR, os.makedev(0, 0))  # how an overlay says "deleted"
                else:
                    entry.install(place)
            tops = sorted({entry.path.parts[1] for entry in differing})
            for validator in self.module.params["validate"]:
                argv = validator["argv"]
                if self.module.check_mode and not shutil.which(
                    argv[0], path=os.environ["PATH"] + ":/usr/sbin:/sbin"
                ):
                    left_out.append(
                        argv[0]
                    )  # the package which brings it would have been installed by now
                    continue
                status, out = self.run(
                    [
                        "unshare",
                        "--mount",
                        "--propagation",
                        "private",
                        "sh",
                        "-c",
                        self.overlay(tops),
                        "sh",
                        scratch,
                        *argv,
                    ]
                )
                missing = [line for line in validator["prints"] if line not in out.splitlines()]
                if status or missing:
                    why = validator["message"] or (
                        f"it does not print: {'; '.join(missing)}"
                        if missing and not status
                        else out.strip()
                    )
                    self.module.fail_json(
                        msg=f"Nothing was changed: the new files of {self.name} do not pass "
                        f"`{shlex.join(argv)}`: {why}",
                        output=out,
                    )
        return left_out

    @staticmethod
    def overlay(tops: list[str]) -> str:
        """Shell script that runs its other arguments where $1/tree is merged into the file system.

        Only that process and its children see it so: it runs in a mount namespace of its own.
        """
        steps = [
            "set -e",
            'scratch=$1; shift; mkdir -p "$scratch/tree" "$scratch/mnt"',
            'mount -t tmpfs none "$scratch/mnt"',
        ]
        for top in tops:
            steps += [
                f'layer="$scratch/mnt/{top}"; mkdir "$layer" "$layer/work"',
                f'cp -a "$scratch/tree/{top}" "$layer/upper"',
                f'layers="lowerdir=/{top},upperdir=$layer/upper,workdir=$layer/work"',
                f'mount -t overlay none -o "$layers" /{top}',
            ]
        return "\n".join([*steps, 'exec "$@"'])

    def prepare(self, differing: list[Entry], found: list[Entry]) -> None:
        """Keep what is there now, with the script that puts it back."""
        params = self.module.params
        preparing = self.home / "preparing"
        shutil.rmtree(preparing, ignore_errors=True)
        preparing.mkdir(parents=True, mode=0o700)
        for index, before in enumerate(found):
            if before.kind in ("file", "link"):
                shutil.copy2(before.path, preparing / str(index), follow_symlinks=False)
                os.chown(
                    preparing / str(index),
                    before.path.lstat().st_uid,
                    before.path.lstat().st_gid,
                    follow_symlinks=False,
                )
        new = not self.observed.exists() and all(
            before.kind in ("absent", "directory") for before in found
        )
        (preparing / "restore").write_text(
            restore_script(self.name, differing, found, params["activate"], params["revert"], new)
        )
        os.sync()
        preparing.rename(self.trial)

    def arm(self) -> None:
        """Start the clock of the trial, and make a reboot during it restore as well."""
        if not RESTORE_UNIT.exists() or RESTORE_UNIT.read_text() != RESTORE_UNIT_TEXT:
            Entry(RESTORE_UNIT, "file", RESTORE_UNIT_TEXT, 0o644).install()
        self.must("systemctl", "daemon-reload")
        self.must("systemctl", "enable", "--quiet", f"cimt-restore@{self.name}.service")
        self.must(
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit=cimt-trial-{self.name}",
            f"--on-active={self.module.params['trial_seconds']}s",
            "--timer-property=AccuracySec=1s",
            "/bin/sh",
            str(self.trial / "restore"),
        )

    def disarm(self) -> None:
        """Stop the clock (a timer that has fired is gone by itself)."""
        if self.run(["systemctl", "is-active", "--quiet", f"cimt-trial-{self.name}.timer"])[0] == 0:
            self.must("systemctl", "stop", f"cimt-trial-{self.name}.timer")

    def must(self, *argv: str) -> None:
        """Run a command of our own machinery; when it fails, put everything back and fail."""
        status, out = self.run(list(argv))
        if status:
            self.put_back(f"`{shlex.join(argv)}` failed: {out.strip()}")

    def put_back(self, why: str) -> None:
        """Restore the previous files and fail, saying why."""
        status, out = self.run(["sh", str(self.trial / "restore")])
        then = (
            "The previous configuration was put back."
            if status == 0
            else f"Putting the previous configuration back failed too: {out.strip()}"
        )
        self.module.fail_json(msg=f"config_set {self.name}: {why} {then}")

    def present(self) -> None:
        """Make the set what it must be."""
        module, params = self.module, self.module.params
        interrupted = self.trial.exists()
        if interrupted and not module.check_mode:
            # A run died between install and confirmation: begin from where it began.
            self.disarm()
            status, out = self.run(["sh", str(self.trial / "restore")])
            if status:
                module.fail_json(
                    msg=f"config_set {self.name}: undoing an interrupted change failed: {out.strip()}"
                )
        compared = [(entry, entry.found()) for entry in self.entries]
        differing = [
            (entry, before)
            for entry, before in compared
            if replace(before, secret=entry.secret) != entry
        ]
        blocked = [
            str(entry.path)
            for entry, before in differing
            if before.kind == "other" or (before.kind == "directory" and entry.kind != "directory")
        ]
        if blocked:
            module.fail_json(
                msg=f"config_set {self.name}: move these away first, they are not files: "
                f"{', '.join(blocked)}"
            )
        diff = [
            {
                "before_header": before.title(),
                "after_header": entry.title(),
                "before": "(hidden)\n" if entry.secret and before.data else before.text(),
                "after": "(hidden, differs)\n" if entry.secret and entry.data else entry.text(),
            }
            for entry, before in differing
        ]
        idle, drift = self.idle_units(), self.drift()
        if drift and not differing:
            diff.append(drift)
        if idle:
            diff.append(
                {
                    "before_header": "units",
                    "after_header": "units",
                    "before": "",
                    "after": "".join(f"enable and start {unit}\n" for unit in idle),
                }
            )
        changed = bool(differing or idle or drift or interrupted)
        left_out = self.validate([entry for entry, _ in differing]) if differing else []
        result = {"changed": changed, "diff": diff, "not_validated": left_out, "on_trial": False}
        if module.check_mode or not changed:
            module.exit_json(**result)

        self.prepare([entry for entry, _ in differing], [before for _, before in differing])
        if params["trial_seconds"]:
            self.arm()
        try:
            for entry, _ in differing:
                entry.install()
        except OSError as error:
            self.put_back(f"{error}.")
        if any(entry.path.is_relative_to("/etc/systemd/system") for entry, _ in differing):
            self.must("systemctl", "daemon-reload")
        if differing or drift or interrupted:
            for argv in params["activate"]:
                self.must(*argv)
        for unit in idle:
            self.must("systemctl", "enable", "--quiet", "--now", unit)
        if params["observe"]:
            status, live = self.run(params["observe"])
            if status:
                self.put_back(f"`{shlex.join(params['observe'])}` failed: {live.strip()}")
            Entry(self.observed, "file", live, 0o600).install()
        if not params["trial_seconds"]:
            shutil.rmtree(self.trial)
        module.exit_json(**{**result, "on_trial": bool(params["trial_seconds"])})

    def confirmed(self) -> None:
        """End the trial: what is installed stays."""
        kept = self.home / "confirmed"
        shutil.rmtree(kept, ignore_errors=True)
        try:
            self.trial.rename(kept)  # from here on the restore script finds nothing to claim
        except FileNotFoundError:
            self.module.fail_json(
                msg=f"config_set {self.name}: the trial ended before it was confirmed, and the "
                "previous configuration was put back. Run the same command again; if it happens "
                "again, raise the trial's seconds."
            )
        self.disarm()
        shutil.rmtree(kept)
        self.module.exit_json(changed=True)


def main() -> None:
    """Entry point."""
    os.umask(0o022)  # directories on the way to a file are readable, whatever the admin's umask
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "confirmed"], "default": "present"},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str"},
                    "link": {"type": "str"},
                    "directory": {"type": "bool", "default": False},
                    "absent": {"type": "bool", "default": False},
                    "mode": {"type": "str"},
                },
            },
            "secret_files": {"type": "dict", "default": {}, "no_log": True},
            "validate": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "argv": {"type": "list", "elements": "str", "required": True},
                    "prints": {"type": "list", "elements": "str", "default": []},
                    "message": {"type": "str", "default": ""},
                },
            },
            "activate": {"type": "list", "elements": "list", "default": []},
            "revert": {"type": "list", "elements": "list", "default": []},
            "units": {"type": "list", "elements": "str", "default": []},
            "observe": {"type": "list", "elements": "str", "default": []},
            "trial_seconds": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    config_set = ConfigSet(module)
    if module.params["state"] == "confirmed":
        config_set.confirmed()
    config_set.present()


if __name__ == "__main__":
    main()
