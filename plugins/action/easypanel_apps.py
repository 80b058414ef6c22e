"""Modules that a pipeline runs: on the host as always or, where only its door is open, by asking that.

One file, with a link to it for each such module (role door). The door is asked where the inventory says `door_entered`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

PACK = Path(__file__).resolve().parents[2] / "roles/door/files/pack.py"


class ActionModule(ActionBase):
    """The module that is called as this file, or the link to it."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the module answers. Raises AnsibleActionFail when the door does not, and as a host out of reach does."""
        known = task_vars or {}
        result: dict[str, Any] = super().run(tmp, known)
        if not self._templar.template(known.get("door_entered", False)):
            return result | self._execute_module(task_vars=known)
        done = subprocess.run([sys.executable, PACK], capture_output=True, text=True, check=True)
        request = {
            "door": done.stdout.strip(),
            "do": self._task.action.rpartition(".")[2],
            "with": self._task.args,
            "check": self._task.check_mode,
            "diff": self._task.diff,
        }
        told = json.dumps(request, default=str).encode()
        try:
            _, out, err = self._connection.exec_command("cimt-door", in_data=told, sudoable=False)
            answer: dict[str, Any] = json.loads(out)
        except (AnsibleConnectionFailure, ValueError) as error:
            said = str(error)
            if isinstance(error, ValueError):
                said = (err or out).decode(errors="replace")
            elif "denied" not in said:
                raise
            raise AnsibleActionFail(
                f"the droplet's door does not answer: {' '.join(said.split())[-300:] or 'nothing'}. "
                "Next: Operate → provision opens it, for the key whose public half is in DROPLET_CI_KEYS"
            ) from None
        answer.pop("invocation", None)
        return result | answer
