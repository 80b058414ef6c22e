"""The container base of local builds: Debian 13 with Python, made from packages because no registry is needed then.

The image is called `localhost/cimt/base:<hash of all that goes into it>`. The root file system is
kept in the cache; the image itself lives in buildah's own storage.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from local.cache import building
from local.settings import LocalError, Settings, check_tools

NAME = "localhost/cimt/base"
SUITE = "trixie"
PACKAGES = ("python3", "python3-venv", "ca-certificates")
# Never read by a service. Left in: copyright files, as licences ask.
LEAVE_OUT = (
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/doc/*",
    "/usr/share/bash-completion/*",
    "/usr/share/lintian/*",
)
KEEP = ("/usr/share/doc/*/copyright",)
# Package lists and logs go; so does the machine's id, which every container would share.
CLEAN = """
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/cache/debconf/*-old "$1"/var/log/* "$1"/tmp/*
rm -f "$1"/etc/machine-id "$1"/var/lib/dpkg/*-old
"""
CONTAINERFILE = """\
FROM scratch
ADD root.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
CMD ["bash"]
"""


def inputs() -> dict[str, object]:
    """All that decides what the image holds, apart from the archive's own state on the day."""
    parts = {"suite": SUITE, "packages": PACKAGES, "leave_out": LEAVE_OUT, "keep": KEEP}
    return {**parts, "clean": CLEAN, "containerfile": CONTAINERFILE}


def name() -> str:
    """`localhost/cimt/base:<16 hex>`."""
    return (
        f"{NAME}:{hashlib.sha256(json.dumps(inputs(), sort_keys=True).encode()).hexdigest()[:16]}"
    )


def ensure(settings: Settings) -> str:
    """The name of the base image; makes root file system and image when they are missing.

    Says on stderr what it does. Raises LocalError when a tool is missing or fails.
    """
    image = name()
    check_tools("buildah")
    if exists(image):
        return image
    target = settings.cache / "base" / image.rpartition(":")[2]
    if not target.is_dir():
        check_tools("mmdebstrap")
        with building(target) as part:
            if part is not None:
                started = time.monotonic()
                _say(f"building the root file system of {image} from Debian packages")
                _bootstrap(part / "root.tar")
                (part / "Containerfile").write_text(CONTAINERFILE)
                (part / "inputs.json").write_text(json.dumps(inputs(), indent=1) + "\n")
                size = (part / "root.tar").stat().st_size / 1e6
                _say(f"root file system ready: {size:.0f} MB, {time.monotonic() - started:.0f} s")
    started = time.monotonic()
    # Two at once make the same image twice, harmlessly: the tag moves in one step.
    _run(["buildah", "build", "--quiet", "--format", "docker", "--tag", image, str(target)])
    _say(f"image {image} made in {time.monotonic() - started:.0f} s")
    return image


def exists(image: str) -> bool:
    """Whether buildah's own storage has the image."""
    return (
        subprocess.run(
            ["buildah", "inspect", "--type", "image", image], capture_output=True
        ).returncode
        == 0
    )


def _bootstrap(tar: Path) -> None:
    # No mirror is named: mmdebstrap then takes the suite's security and update archives too.
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--components=main"]
    command += [f"--include={','.join(PACKAGES)}", '--aptopt=Acquire::Retries "3"']
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEAVE_OUT]
    command += [f"--dpkgopt=path-include={pattern}" for pattern in KEEP]
    command += [f"--customize-hook={CLEAN.strip()}", SUITE, str(tar)]
    _run(command)


def _run(command: list[str]) -> None:
    """Run with the output on stderr: stdout is for the image's name."""
    result = subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL)
    if result.returncode:
        program = shutil.which(command[0]) or command[0]
        raise LocalError(
            f"base image: {program} failed with exit code {result.returncode} (its output is above)."
        )


def _say(text: str) -> None:
    print(f"base image: {text}", file=sys.stderr, flush=True)
