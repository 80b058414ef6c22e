"""S3 on loopback: SeaweedFS, with a bucket whose objects have versions and can be locked."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from local.settings import LocalError, write_atomic
from local.waiting import eventually

BUCKET = KEY_ID = "cimt"
ADDRESS = "127.0.0.1"


def program() -> str:
    """SeaweedFS, from the locked environment. Raises LocalError."""
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if not found:
        raise LocalError("the program weed is missing. Next: make setup")
    return found


def key(state: Path) -> str:
    """The secret of the key `cimt`, which the inventory reads from the same file; made once."""
    path = state / "backup-key"
    if not path.exists():
        write_atomic(path, f"{secrets.token_hex(20)}\n", 0o600)
    return path.read_text().strip()


def command(port: int, folder: Path, secret: str) -> list[str]:
    """Command line of a server whose data lies in the folder; the seven ports after the first are its own, too.

    Raises LocalError when a killed server of another user has left its sockets, for which there is no option.
    """
    left = [
        f"{path}"
        for number in range(4, 8)
        for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port + number}.sock")  # noqa: S108
        if os.getuid() not in (0, path.stat().st_uid)
    ]
    if left:
        raise LocalError(
            f"another user's SeaweedFS has left sockets. Next: sudo rm {' '.join(left)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": KEY_ID, "secretKey": secret}]
    identities = [{"name": KEY_ID, "credentials": credentials, "actions": actions}]
    write_atomic(folder / "s3.json", json.dumps({"identities": identities}), 0o600)
    parts = ("s3", "master", "volume", "filer")
    return [
        *("env", "-C", str(folder), "GOMEMLIMIT=300MiB"),
        *(program(), "server", "-s3", f"-dir={folder}"),
        *(f"-ip={ADDRESS}", f"-ip.bind={ADDRESS}", f"-s3.config={folder / 's3.json'}"),
        *(f"-{part}.port={port + number}" for number, part in enumerate(parts)),
        *(f"-{part}.port.grpc={port + 4 + number}" for number, part in enumerate(parts)),
        # Not in /tmp, where another user may have left theirs; relative, as a socket may have a path of 107 bytes only.
        *("-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"),
        # Nothing but S3 listens, and nobody is told about it.
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
        # Each bucket takes several volumes at once: with fewer or larger ones the second bucket fails.
        *("-volume.max=200", "-master.volumeSizeLimitMB=64"),
    ]


def shell(port: int, line: str) -> str:
    """What SeaweedFS' own shell says to a command."""
    master = f"{ADDRESS}:{port + 1}.{port + 5}"
    filer = f"{ADDRESS}:{port + 3}.{port + 7}"
    try:
        done = subprocess.run(
            [program(), "shell", f"-master={master}", f"-filer={filer}"],
            input=f"{line}\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired as silent:
        return f"{silent}"
    return done.stdout


def prepare(port: int, server: subprocess.Popen[Any]) -> None:
    """Make the bucket, with versions and object lock, once the server takes it. Raises TimeoutError."""

    def there() -> bool:
        shell(port, f"s3.bucket.create -name {BUCKET} -withLock")
        return "Object Lock: Enabled" in shell(port, f"s3.bucket.versioning -name {BUCKET}")

    eventually(there, "the bucket", process=server)
