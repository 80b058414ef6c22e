"""`python -m tools.plan.live`: how much `make plan` has found, on one line, and whole in .local/plan.json.

Exit code 0: nothing would change; 2: something would; 1: no plan was made. The file holds {"env", "time", "count",
"apps": [changes, as app, path, kind, old, new or secret, origin], "tasks": [what else would change], "notes": […]}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tools.step import ROOT, read

FILE = ROOT / ".local/plan.json"
# Its changes are told one by one.
TASK = "services : Apps as declared, but for what only a release may change: "


def plan(step: dict[str, Any]) -> dict[str, Any]:
    """The plan of what the step `plan` has left."""
    apps = step.get("plan", [])
    tasks = [one for one in step.get("changed", []) if not one.startswith(TASK)]
    return {
        "env": step["env"],
        "time": step["ended"],
        "count": len(apps) + len(tasks),
        "apps": apps,
        "tasks": tasks,
        "notes": step.get("notes", []),
    }


def main() -> int:
    """Command line; returns the exit code."""
    step = read("plan")
    if not step or step["code"]:
        FILE.unlink(missing_ok=True)
        print("plan: no plan was made, the words above say why", file=sys.stderr)
        return 1
    found = plan(step)
    FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False))
    by_hand = sum(change.get("origin") == "by hand" for change in found["apps"])
    hand = f", {by_hand} of them by hand" if by_hand else ""
    told = f"apps {len(found['apps'])} changes{hand}; tasks of the host {len(found['tasks'])}"
    print(f"plan: {found['count'] or 'nothing'} would change ({told}); .local/plan.json has it")
    return 2 if found["count"] else 0


if __name__ == "__main__":
    sys.exit(main())
