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
from collections.abc import Sequence

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.config_files import ConfigError, Entry, changes, entries, validate
from ansible.module_utils.config_trial import Trial

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


class ConfigSet:
    """One set on this machine: compared, validated, installed and put in force."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.trial = Trial(module.params["name"], self.run)

    def run(self, argv: Sequence[str]) -> tuple[int, str]:
        """Exit status and output (both streams)."""
        try:
            status, out, err = self.module.run_command(
                list(argv),
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
        recorded = (
            self.trial.observed.read_text() if self.trial.observed.exists() else "never activated\n"
        )
        if not status and live == recorded:
            return None
        title = shlex.join(self.module.params["observe"])
        return {
            "before_header": f"in force: {title}",
            "after_header": "as activated",
            "before": live,
            "after": recorded,
        }

    def present(self) -> None:
        """Make the set what it must be."""
        module, params, trial = self.module, self.module.params, self.trial
        wanted = entries(params["files"], params["secret_files"])
        interrupted = trial.path.exists()
        if interrupted and not module.check_mode:
            trial.begin_again()
        differing = changes(wanted)
        diff = [change.diff() for change in differing]
        idle, drift = self.idle_units(), self.drift()
        if drift and not differing:
            diff.append(drift)
        if idle:
            start = "".join(f"enable and start {unit}\n" for unit in idle)
            headers = {"before_header": "units", "after_header": "units"}
            diff.append({**headers, "before": "", "after": start})
        changed = bool(differing or idle or drift or interrupted)
        candidate = [change.wanted for change in differing]
        left_out = validate(candidate, params["validate"], self.run, check_mode=module.check_mode)
        result = {"changed": changed, "diff": diff, "not_validated": left_out, "on_trial": False}
        if module.check_mode or not changed:
            module.exit_json(**result)

        trial.prepare(differing, params["activate"], params["revert"])
        if params["trial_seconds"]:
            trial.arm(params["trial_seconds"])
        try:
            for entry in candidate:
                entry.install()
        except OSError as error:
            trial.put_back(f"{error}.")
        if any(entry.path.is_relative_to("/etc/systemd/system") for entry in candidate):
            trial.must("systemctl", "daemon-reload")
        if differing or drift or interrupted:
            for argv in params["activate"]:
                trial.must(*argv)
        for unit in idle:
            trial.must("systemctl", "unmask", "--quiet", unit)
            trial.must("systemctl", "enable", "--quiet", "--now", unit)
        if params["observe"]:
            live = trial.must(*params["observe"])
            Entry(trial.observed, "file", live, 0o600).install()
        if not params["trial_seconds"]:
            shutil.rmtree(trial.path)
        module.exit_json(**{**result, "on_trial": bool(params["trial_seconds"])})


def main() -> None:
    """Entry point."""
    os.umask(0o022)  # directories on the way to a file are readable, whatever the admin's umask
    texts = {"type": "list", "elements": "str", "default": []}
    file = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str"},
        "link": {"type": "str"},
        "directory": {"type": "bool", "default": False},
        "absent": {"type": "bool", "default": False},
        "mode": {"type": "str"},
    }
    validator = {
        "argv": {"type": "list", "elements": "str", "required": True},
        "prints": texts,
        "message": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "confirmed"], "default": "present"},
            "files": {**texts, "elements": "dict", "options": file},
            "secret_files": {"type": "dict", "default": {}, "no_log": True},
            "validate": {**texts, "elements": "dict", "options": validator},
            "activate": {**texts, "elements": "list"},
            "revert": {**texts, "elements": "list"},
            "units": texts,
            "observe": texts,
            "trial_seconds": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    config_set = ConfigSet(module)
    try:
        if module.params["state"] == "confirmed":
            config_set.trial.confirm()
            module.exit_json(changed=True)
        config_set.present()
    except ConfigError as error:
        module.fail_json(msg=f"config_set {module.params['name']}: {error}", **error.output)


if __name__ == "__main__":
    main()
