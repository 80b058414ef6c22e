"""Ansible callback: what a play changed, how long its slow tasks took, and why it failed, for tools/step.py.

Nothing is taken but names of tasks, of what changed, the plan of the apps, the timeline of a release and the message
of a failure; of a task with no_log not even those. Without the variable RECEIPT_FACTS it does nothing.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: receipt
type: notification
short_description: Keep what a play did, for the receipt of a release
description:
  - Writes the names of what changed, the seconds of slow tasks and the reason of a failure to a JSON file.
requirements:
  - enabled in the configuration
  - E(RECEIPT_FACTS) names the file
"""

SLOW = 2.0  # seconds


class CallbackModule(CallbackBase):
    """One play run."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "receipt"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, list[Any]] = {
            name: [] for name in ("changed", "plan", "notes", "slow", "timeline", "failed")
        }
        self.task, self.started = "", time.monotonic()

    def _next(self, task: str) -> None:
        seconds = time.monotonic() - self.started
        if self.task and seconds >= SLOW:
            self.facts["slow"].append([self.task, round(seconds, 1)])
        self.task, self.started = task, time.monotonic()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:  # noqa: ARG002, D102
        self._next(task.get_name())

    v2_playbook_on_handler_task_start = v2_playbook_on_task_start

    def v2_runner_on_ok(self, result: Any) -> None:  # noqa: D102
        found = result.result
        for name in ("timeline", "plan", "notes"):
            self.facts[name] += found.get(name) or []
        if result.is_changed():
            diffs = found.get("diff") or []
            diffs = diffs if isinstance(diffs, list) else [diffs]
            what = [*(found.get("changes") or []), *(found.get("steps") or [])]
            what = what or [one["after_header"] for one in diffs if one.get("after_header")]
            told = ", ".join(map(str, what))
            self.facts["changed"].append(f"{self.task}: {told}" if told else self.task)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:  # noqa: D102
        found = result.result
        self.facts["timeline"] += found.get("timeline") or []
        if not ignore_errors:
            self.facts["failed"].append([self.task, str(found.get("msg") or "(not shown)")])

    def v2_runner_on_unreachable(self, result: Any) -> None:  # noqa: D102
        self.v2_runner_on_failed(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:  # noqa: ARG002, D102
        self._next("")
        if path := os.environ.get("RECEIPT_FACTS"):
            Path(path).write_text(json.dumps(self.facts, default=str))
