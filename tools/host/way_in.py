"""The way to an environment's host: `ssh` with what its settings say."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 10


class NoWayIn(ValueError):
    """The host cannot be reached; one line with what to do."""


@contextlib.contextmanager
def way_in(environment: str, known: Mapping[str, str], tty: bool = False) -> Iterator[list[str]]:
    """A command that lacks only what shall be run there.

    ``known`` holds the settings DROPLET_*. Without DROPLET_SSH_KEY the keys of this shell's owner count, without
    DROPLET_KNOWN_HOSTS the hosts that they know. Raises NoWayIn.
    """
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={PATIENCE_SECONDS}"]
    ssh += ["-o", "ServerAliveInterval=15", *(["-t"] if tty else [])]
    if environment == "local":
        config = ROOT / ".local/ssh_config"
        if not config.exists():
            raise NoWayIn("there is no local droplet. Next: make up")
        yield [*ssh, "-F", str(config), "droplet"]
        return
    host = known.get("DROPLET_HOST", "")
    if not host or host.startswith("-"):
        raise NoWayIn(f"DROPLET_HOST is not set. Next: make init ENV={environment}, or export it")
    options = ["-o", "StrictHostKeyChecking=yes", "-p", known.get("DROPLET_PORT") or "22"]
    with tempfile.TemporaryDirectory() as folder:
        if pinned := known.get("DROPLET_KNOWN_HOSTS"):
            path = Path(folder, "known_hosts")
            path.write_text(pinned + "\n")
            options += ["-o", f"UserKnownHostsFile={json.dumps(str(path))}"]
        if key := known.get("DROPLET_SSH_KEY"):
            path = Path(folder, "key")
            path.touch(0o600)
            path.write_text(key.replace("\r", "").rstrip("\n") + "\n")
            options += ["-F", "none", "-o", "IdentitiesOnly=yes", "-i", str(path)]
        yield [*ssh, *options, "--", f"{known.get('DROPLET_USER') or 'cimt'}@{host}"]
