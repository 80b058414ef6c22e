"""Runs one step of a release, or of the nightly look, and keeps what came of it for the receipt.

usage: python -m tools.step NAME COMMAND…        (the verbs of the Makefile do)

The command's exit code is this one's. `.local/receipt/NAME.json` then holds {"step", "env", "ended", "seconds",
"code"} and what the command itself noted: Ansible's callback `receipt`, or `note` here. It may be shown to everybody:
what stands in a secret of services/settings.yaml is taken out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tools.database.address import secrets

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".local/receipt"


def note(**facts: Any) -> None:
    """Keep facts for the receipt, when this process is a step."""
    if path := os.environ.get("RECEIPT_FACTS"):
        Path(path).write_text(json.dumps(facts))


def read(name: str) -> dict[str, Any]:
    """What step ``name`` of this environment left; empty when it did not run."""
    path = FOLDER / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("env") == os.environ.get("ENV", "local") else {}


def hidden(found: Any, values: list[str]) -> Any:
    """What was found, without these values in any text of it."""
    if isinstance(found, dict):
        return {name: hidden(one, values) for name, one in found.items()}
    if isinstance(found, list):
        return [hidden(one, values) for one in found]
    for value in values if isinstance(found, str) else ():
        found = found.replace(value, "***")
    return found


def secret_values() -> list[str]:
    """The values of secrets as this process has them, line by line and as JSON spells them too; the longest first."""
    declared = yaml.safe_load((ROOT / "services/settings.yaml").read_text())["settings"]
    plain = [os.environ.get(name, "") for name, one in declared.items() if one.get("secret")]
    spelled = {part for one in plain for part in (one, json.dumps(one)[1:-1], *one.split("\n"))}
    return sorted({one for one in (*spelled, *secrets(os.environ)) if len(one) > 3}, key=len)[::-1]


def main() -> int:
    """Command line; returns the command's exit code."""
    name, *command = sys.argv[1:]
    FOLDER.mkdir(parents=True, exist_ok=True)
    facts = FOLDER / f"{name}.{os.getpid()}.facts"  # two at once keep apart
    (FOLDER / f"{name}.json").unlink(missing_ok=True)
    started = time.monotonic()
    # Who ends this step ends its command, also while that begins: until it is there, what came waits for it.
    process: subprocess.Popen[bytes] | None = None
    waiting: list[int] = []

    def end(got: int, _: object) -> None:
        process.send_signal(got) if process else waiting.append(got)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    process = subprocess.Popen(command, env=os.environ | {"RECEIPT_FACTS": str(facts)})
    for got in waiting:
        process.send_signal(got)
    # A Ctrl-C reaches the command too: it is of the same group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = process.wait()
    kept = json.loads(facts.read_text()) if facts.exists() else {}
    facts.unlink(missing_ok=True)
    kept |= {"step": name, "env": os.environ.get("ENV", "local"), "code": code}
    kept |= {"ended": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}
    kept |= {"seconds": round(time.monotonic() - started, 1)}
    kept = hidden(kept, secret_values())
    (FOLDER / f"{name}.json").write_text(json.dumps(kept, indent=1))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
