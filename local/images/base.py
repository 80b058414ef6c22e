"""The container base of local builds: Debian 13 with Python, made from packages because no registry is needed then.

The image is called `localhost/cimt/base:<hash of all that goes into it>`. The root file system is
kept in the cache; the image itself lives in buildah's own storage.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from local.cache import key, made, run, say
from local.debian import KEEP, LEAVE_OUT, SUITE, mmdebstrap
from local.settings import Settings, check_tools

WHAT = "base image"
NAME = "localhost/cimt/base"
# nginx is services/web's; one base for all, because every other one would have to be carried to the droplet as well.
PACKAGES = ("python3", "python3-venv", "ca-certificates", "nginx")
NO_SHELL_AIDS = (*LEAVE_OUT, "/usr/share/bash-completion/*", "/usr/share/lintian/*")
# Package lists and logs go; so does the machine's id, which every container would share. Never /tmp: apt's settings
# for this root are there, and without them mmdebstrap would clean the machine's own lists.
CLEAN = """
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/cache/debconf/*-old "$1"/var/log/*
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
    parts = {"suite": SUITE, "packages": PACKAGES, "leave_out": NO_SHELL_AIDS, "keep": KEEP}
    return {**parts, "clean": CLEAN, "containerfile": CONTAINERFILE}


def name() -> str:
    """`localhost/cimt/base:<16 hex>`."""
    return f"{NAME}:{key(inputs())}"


def ensure(settings: Settings) -> str:
    """The name of the base image; makes root file system and image when they are missing.

    Says on stderr what it does. Raises LocalError when a tool is missing or fails.
    """
    image = name()
    check_tools("buildah")
    if not exists(image):
        root = made(WHAT, settings.cache / "base" / key(inputs()), inputs(), _bootstrap)
        # Two at once make the same image twice, harmlessly: the tag moves in one step.
        build(WHAT, image, root)
    return image


def build(subject: str, image: str, folder: Path, *options: str) -> None:
    """Make an image of a folder with a Containerfile, in buildah's own storage. Raises LocalError."""
    started = time.monotonic()
    command = ["buildah", "build", "--quiet", "--format", "docker", "--tag", image, *options]
    run(subject, [*command, str(folder)])
    say(subject, f"image {image} made in {time.monotonic() - started:.0f} s")


def exists(image: str) -> bool:
    """Whether buildah's own storage has the image."""
    return (
        subprocess.run(
            ["buildah", "inspect", "--type", "image", image], capture_output=True
        ).returncode
        == 0
    )


def _bootstrap(part: Path) -> None:
    check_tools("mmdebstrap")
    command = mmdebstrap(PACKAGES, NO_SHELL_AIDS, hooks=[CLEAN.strip()])
    run(WHAT, [*command, SUITE, str(part / "root.tar")])
    (part / "Containerfile").write_text(CONTAINERFILE)
