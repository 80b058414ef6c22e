"""Disk images for the local droplet: built from Debian packages, or Ubuntu's own cloud image.

An image is a directory in the cache, named by the hash of all that went into it; it appears there
by one rename, so a half-built one is never seen.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from local.cache import key, made, run
from local.debian import mmdebstrap
from local.droplet.cloud_image import ensure_ubuntu
from local.droplet.disk import Image
from local.settings import Settings, check_tools

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
# What the roles install: to unpack it takes an emulated CPU minutes. `DROPLET_BARE=1` leaves it to them.
OF_ROLES = {
    "debian-13": "docker.io docker-cli iptables pigz restic postgresql-client-17 aide auditd libpam-pwquality",
    "debian-12": "docker.io iptables pigz aide auditd libpam-pwquality",
}


def ensure(settings: Settings) -> Image:
    """The image the settings ask for, from the cache or made now. Prints what it does."""
    if settings.image.startswith("ubuntu"):
        return ensure_ubuntu(settings)
    return _ensure_debian(settings)


def _ensure_debian(settings: Settings) -> Image:
    suite = SUITES[settings.image]
    packages = PACKAGES + ([] if settings.bare else OF_ROLES[settings.image].split())
    inputs = {
        "suite": suite,
        "packages": sorted(packages),
        "setup": SETUP.read_text(),
        "disk": DISK,
        "extra_ca": settings.extra_ca.read_text() if settings.extra_ca else "",
    }

    def make(part: Path) -> None:
        check_tools("mmdebstrap", "mkfs.ext4")
        _build(suite, packages, settings.extra_ca, part)

    target = settings.cache / "images" / f"{settings.image}-{key(inputs)}"
    image = made(f"image {settings.image}", target, inputs, make)
    return Image(settings.image, image / "disk.raw", "raw", image / "vmlinuz", image / "initrd.img")


def _build(suite: str, packages: list[str], extra_ca: Path | None, part: Path) -> None:
    """Root file system by mmdebstrap, then an ext4 disk of it, without mounting anything."""
    root, env = part / "root", {**os.environ, "TMPDIR": str(part)}
    hooks = [str(SETUP)]
    if extra_ca:
        certificate = "/usr/local/share/ca-certificates/extra.crt"
        upload = f"upload {shlex.quote(str(extra_ca))} {certificate}"
        hooks = [upload, 'chroot "$1" update-ca-certificates', *hooks]
    command = mmdebstrap(packages, ["/usr/share/man/*"], keep=(), hooks=hooks)
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
        bootstrap = [*command, "--mode=root", "--format=directory", suite, str(root)]
        run("image", bootstrap, part, env, within=alone)
        run("image", ["sh", "-euc", "\n".join(disk)], part, env)
    else:
        # Without root: a tar made in a user namespace, unpacked and turned into a disk in another one.
        run("image", [*command, "--mode=unshare", suite, str(part / "root.tar")], part, env)
        part.chmod(0o777)  # the namespace's root is not us
        unpack = [
            "umask 022",
            "mkdir root",
            # No device files: only the machine's root may make them, and the guest's kernel brings its own.
            "tar -C root --numeric-owner --xattrs --exclude='./dev/*' -xf root.tar",
            *disk,
        ]
        unpack += ["chmod 0666 disk.raw vmlinuz initrd.img"]
        run("image", ["mmdebstrap", "--unshare-helper", "sh", "-euc", "\n".join(unpack)], part, env)
        (part / "root.tar").unlink()
        part.chmod(0o755)
