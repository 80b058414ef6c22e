"""Disk images for the local droplet: built from Debian packages, or Ubuntu's own cloud image.

An image is a directory in the cache, named by the hash of all that went into it; it appears there
by one rename, so a half-built one is never seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local.cache import building
from local.settings import LocalError, Settings, check_tools

DISK = "25G"
SETUP = Path(__file__).with_name("image_setup.sh")
SUITES = {"debian-13": "trixie", "debian-12": "bookworm"}
# The machine itself, then what a fresh droplet has.
PACKAGES = """
linux-image-cloud-amd64 initramfs-tools lz4 systemd systemd-sysv systemd-resolved systemd-timesyncd
libpam-systemd udev dbus kmod e2fsprogs netbase iproute2 iputils-ping procps
openssh-server sudo cloud-init python3 python3-apt apparmor nftables ca-certificates curl gpg less vim-tiny
tzdata unattended-upgrades
""".split()  # noqa: SIM905 - a list of names reads best as words
DOCKER = {"debian-13": "docker.io docker-cli iptables", "debian-12": "docker.io iptables"}


@dataclass(frozen=True)
class Image:
    """A disk to start a droplet from. `kernel` and `initrd` are None for a disk with a boot loader."""

    name: str
    disk: Path
    format: str
    kernel: Path | None = None
    initrd: Path | None = None


def ensure(settings: Settings) -> Image:
    """The image the settings ask for, from the cache or made now. Prints what it does."""
    if settings.image.startswith("ubuntu"):
        from local.droplet.cloud_image import ensure_ubuntu

        return ensure_ubuntu(settings)
    return _ensure_debian(settings)


def _ensure_debian(settings: Settings) -> Image:
    suite = SUITES[settings.image]
    packages = PACKAGES + ([] if settings.bare else DOCKER[settings.image].split())
    inputs = {
        "suite": suite,
        "packages": sorted(packages),
        "setup": SETUP.read_text(),
        "disk": DISK,
        "extra_ca": settings.extra_ca.read_text() if settings.extra_ca else "",
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    target = settings.cache / "images" / f"{settings.image}-{key}"
    image = Image(
        settings.image, target / "disk.raw", "raw", target / "vmlinuz", target / "initrd.img"
    )
    if target.is_dir():
        print(f"image: {settings.image} from the cache ({target})")
        return image
    check_tools("mmdebstrap", "mkfs.ext4")
    with building(target) as part:
        if part is None:
            print(f"image: {settings.image} was built meanwhile by another run")
            return image
        started = time.monotonic()
        print(
            f"image: building {settings.image} from {len(packages)} packages and what they need",
            flush=True,
        )
        _build(suite, packages, settings.extra_ca, part)
        (part / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n")
    print(f"image: {settings.image} built in {time.monotonic() - started:.0f} s ({target})")
    return image


def _build(suite: str, packages: list[str], extra_ca: Path | None, part: Path) -> None:
    """Root file system by mmdebstrap, then an ext4 disk of it, without mounting anything."""
    root = part / "root"
    # No mirror is named: mmdebstrap then takes the suite's security and update archives too.
    command = [
        "mmdebstrap",
        "--variant=minbase",
        "--components=main",
        f"--include={','.join(packages)}",
    ]
    command += ['--aptopt=Acquire::Retries "3"', "--dpkgopt=path-exclude=/usr/share/man/*"]
    if extra_ca:
        command += [
            f"--customize-hook=upload {shlex.quote(str(extra_ca))} /usr/local/share/ca-certificates/extra.crt"
        ]
        command += ['--customize-hook=chroot "$1" update-ca-certificates']
    command += [f"--customize-hook={SETUP}"]
    disk = [
        f"truncate -s {DISK} disk.raw",
        "mkfs.ext4 -q -F -L cloudimg-rootfs -d root disk.raw",
        "cp --dereference root/vmlinuz vmlinuz",
        "cp --dereference root/initrd.img initrd.img",
        "rm -rf root",
    ]
    if os.geteuid() == 0:
        # What it mounts (/proc, /sys, /dev/shm) ends with it, also when it is killed: else the next build, which
        # deletes what this one left, would delete in them.
        alone = ("unshare", "--mount", "--propagation", "private")
        _run([*command, "--mode=root", "--format=directory", suite, str(root)], part, alone)
        _run(["sh", "-euc", "\n".join(disk)], part)
    else:
        # Without root: a tar made in a user namespace, unpacked and turned into a disk in another one.
        _run([*command, "--mode=unshare", suite, str(part / "root.tar")], part)
        part.chmod(0o777)  # the namespace's root is not us
        unpack = [
            "umask 022",
            "mkdir root",
            "tar -C root --numeric-owner --xattrs -xf root.tar",
            *disk,
        ]
        unpack += ["chmod 0666 disk.raw vmlinuz initrd.img"]
        _run(["mmdebstrap", "--unshare-helper", "sh", "-euc", "\n".join(unpack)], part)
        (part / "root.tar").unlink()
        part.chmod(0o755)


def _run(command: list[str], cwd: Path, within: Sequence[str] = ()) -> None:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    env = {**os.environ, "PATH": path, "TMPDIR": str(cwd)}
    result = subprocess.run([*within, *command], cwd=cwd, env=env)
    if result.returncode:
        raise LocalError(
            f"image: {command[0]} failed with exit code {result.returncode} (its output is above)."
        )
