"""ENV.env, such as production.env: what an environment's settings are worth, in a file that may be committed.

A line is `NAME=VALUE`, the value as it is or quoted as JSON quotes it; a secret is a reference to 1Password,
`op://vault/item/field`. What a reference leads to comes from 1Password's `op`, or from a file of mode 0600 outside the
repository (`kept`), in which the lines hold the secrets themselves.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")
REFERENCE = re.compile(r"op://[^/\s]+(?:/[^/\s?]+){2,3}(?:\?\S+)?")
# What is a secret under whatever name: tokens by their beginning, private keys, an address with a password in it.
RAW = re.compile(
    r"\b(?:gh[opsu]_|github_pat_|sk-|sb_secret_|dop_v1_|xox[bp]-)\w"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|\w+://[^/\s:@]*:[^/\s@]+@"
)
BARE = re.compile(r"[^\s\"'#\\$]*")
OLD = "_OLD"  # ends the name of a value from before, beside its successor
WITHIN = "CIMT_VALUES_OF"  # the environment whose values a process has already


class Refused(Exception):
    """The file cannot be taken; the text says what to do, and quotes no value."""


def read(path: Path) -> dict[str, str]:
    """The values of a file by name; empty when there is none. Raises Refused."""
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = LINE.fullmatch(text)
        if not match:
            raise Refused(f"{path.name}:{number}: is not NAME=VALUE. Next: mend that line")
        name, value = match.groups()
        if value.startswith('"'):
            try:
                value = json.loads(value)
            except ValueError:
                raise Refused(
                    f"{path.name}:{number}: {name} is not quoted as JSON quotes. Next: mend that line"
                ) from None
        if name in found:
            raise Refused(f"{path.name}:{number}: {name} stands there twice. Next: delete one")
        found[name] = value
    return found


def line(name: str, value: str) -> str:
    """The line that `read` reads again."""
    return f"{name}={value if BARE.fullmatch(value) else json.dumps(value, ensure_ascii=False)}"


def problems(values: Mapping[str, str], declared: Mapping[str, Any]) -> list[str]:
    """Why a file with these values must not be committed, without any of them."""
    found = []
    for name, value in values.items():
        setting = declared["settings"].get(name)
        if setting is None:
            found.append(f"{name} is no setting. Next: services/settings.yaml has their names")
        elif REFERENCE.fullmatch(value):
            continue
        elif value.startswith("op:"):
            found.append(f"{name} is no reference. Next: write op://vault/item/field")
        elif value and (setting.get("secret") or RAW.search(value)):
            found.append(
                f"{name} holds a secret, in a file that is committed. Next: make it another one where it comes "
                f"from, put that into 1Password, and write op://cimt/ENV/{name} here"
            )
    return found


def kept(environment: str, env: Mapping[str, str] = os.environ) -> Path:
    """Where the secrets of an environment are without 1Password; CIMT_SECRETS names another folder. Raises Refused."""
    home = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "~")).expanduser() / ".config")
    folder = Path(env.get("CIMT_SECRETS") or home / "cimt").absolute()
    if folder.resolve().is_relative_to(ROOT):
        raise Refused(
            f"{folder} is in the repository. Next: CIMT_SECRETS=… names a folder outside of it"
        )
    return folder / f"{environment}.secrets"


def secrets(path: Path) -> dict[str, str]:
    """The secrets of such a file. Raises Refused when others may read it."""
    if path.exists() and path.stat().st_mode & 0o077:
        raise Refused(f"{path} may be read by others. Next: chmod 600 {path}")
    return read(path)


def given(environment: str, root: Path = ROOT) -> tuple[dict[str, str], dict[str, str]]:
    """What ENV.env adds to this process's environment: its values, and references that are still to be resolved.

    What is set already stays. Raises Refused.
    """
    import yaml

    values = read(root / f"{environment}.env")
    declared = yaml.safe_load((root / "services/settings.yaml").read_text())
    if found := problems(values, declared):
        raise Refused(f"{environment}.env: {found[0]}")
    values = {name: value for name, value in values.items() if not os.environ.get(name)}
    references = {name: value for name, value in values.items() if REFERENCE.fullmatch(value)}
    if references:
        there = secrets(kept(environment))
        values |= {name: there[name] for name in references if there.get(name)}
    references = {name: value for name, value in references.items() if values[name] == value}
    return {name: values[name] for name in values if name not in references}, references


def run(environment: str, command: list[str]) -> int:
    """Run a command with the values of ENV.env; its exit code. 1Password is asked where a reference is left.

    Without `op` such a setting is not set, as on GitHub, and the command names it when it needs it. Raises Refused.
    """
    if os.environ.get(WITHIN) == environment:
        os.execvp(command[0], command)  # noqa: S606
    values, references = given(environment)
    os.environ.update(values | {WITHIN: environment})
    if not references or not shutil.which("op"):
        os.execvp(command[0], command)  # noqa: S606
    os.environ.update(references)
    with tempfile.TemporaryDirectory() as folder:
        # `op run` ends with the command's exit code, or with its own: the command leaves a mark when it begins.
        mark = Path(folder, "begun")
        begun = ["sh", "-c", ': >"$0" && exec "$@"', str(mark), *command]
        code = _wait(["op", "run", "--", *begun])
        if mark.exists():
            return code
    raise Refused(
        f"1Password gave no values for {environment}.env (see above). "
        f"Next: op signin; or make init ENV={environment}, which says what is not there"
    )


def _wait(command: list[str]) -> int:
    """Run a command to its end, handing signals on; its exit code as a shell has it."""
    with subprocess.Popen(command) as process:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda got, _: process.send_signal(got))
        # A Ctrl-C reaches the command too: it is of the same group.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
