"""Ansible filter: which revisions of the main branch a checkout lacks."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

MAIN = "origin/main"


def _git(checkout: str, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", checkout, *arguments], capture_output=True, text=True)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["no answer"])[0].rstrip(".")
        raise AnsibleFilterError(
            f"whether {MAIN} has moved on cannot be seen: git {arguments[0]}: {told}. Next: git fetch origin main; "
            "on GitHub the step that checks out takes `fetch-depth: 0`; to go on without looking: ALLOW_OLDER=true"
        )
    return done.stdout.strip()


def newer_on_main(revision: str, checkout: str) -> list[str]:
    """Revisions of origin/main that are no part of ``revision`` (empty: HEAD), by the history in ``checkout``.

    Raises AnsibleFilterError where that history does not say it: shallow, without origin/main, or an unknown revision.
    """
    if _git(checkout, "rev-parse", "--is-shallow-repository") != "false":
        raise AnsibleFilterError(
            f"whether {MAIN} has moved on cannot be seen: the checkout is shallow. Next: git fetch --unshallow; "
            "on GitHub the step that checks out takes `fetch-depth: 0`"
        )
    committed = re.sub(r"-dirty-[0-9a-f]{8}$", "", revision) or "HEAD"
    return _git(checkout, "rev-list", "--end-of-options", f"{committed}..{MAIN}").split()


class FilterModule:
    """Filter of production's inventory."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name in a template to function."""
        return {"revisions_newer_on_main": newer_on_main}
