"""Whether hardware virtualization really works here: found out by booting, not by looking for /dev/kvm."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
import time
from pathlib import Path

from local.settings import LocalError, Settings, write_atomic

PROBE_SECONDS = 8.0
DISK_PROBE_SECONDS = 25.0  # with a boot loader before the kernel
CPU = {"kvm": "host", "tcg": "qemu64"}
# The kernel has brought itself up: it looks for an init, or complains that there is none.
ALIVE = (
    b"Run /init as init process",
    b"Unable to mount root fs",
    b"No working init found",
    b"systemd[1]",
)


def drive(disk: Path) -> str:
    """The file of a drive, as QEMU's options name it: there a comma is written twice."""
    return "file=" + str(disk).replace(",", ",,")


def choose(settings: Settings, kernel: Path | None, disk: Path) -> tuple[str, str]:
    """('kvm' | 'tcg', one sentence for the user). Forced by DROPLET_ACCEL, else probed and remembered.

    The answer holds for one boot of this machine, one kernel image and one QEMU.
    """
    if settings.acceleration:
        return settings.acceleration, f"acceleration: {settings.acceleration} (DROPLET_ACCEL)"
    device = Path("/dev/kvm")
    try:
        with device.open("r+b"):
            pass
    except OSError as error:
        return "tcg", f"acceleration: none ({device}: {error.strerror}), emulating; slower"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    version = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True
    ).stdout
    what = hashlib.sha256(kernel.read_bytes()).hexdigest() if kernel else settings.image
    key = hashlib.sha256(f"{boot} {version} {what}".encode()).hexdigest()
    memory = settings.cache / "acceleration.json"
    try:
        known = json.loads(memory.read_text())
        if known["key"] == key and known["choice"] in CPU:
            return known["choice"], known["why"]
    except (OSError, ValueError, KeyError):
        pass  # never probed
    works, found = probe(kernel, disk)
    choice = "kvm" if works else "tcg"
    why = f"acceleration: kvm ({found})"
    if not works:
        why = f"acceleration: none that boots ({found}), emulating; slower"
    write_atomic(memory, json.dumps({"key": key, "choice": choice, "why": why}) + "\n")
    return choice, why


def probe(kernel: Path | None, disk: Path, seconds: float | None = None) -> tuple[bool, str]:
    """Boot the very kernel (or disk, thrown away after) under KVM. Returns (it runs, what was seen)."""
    seconds = seconds or (PROBE_SECONDS if kernel else DISK_PROBE_SECONDS)
    command = [
        "qemu-system-x86_64",
        "-machine",
        "q35",
        "-accel",
        "kvm",
        "-cpu",
        CPU["kvm"],
        "-m",
        "512",
    ]
    command += ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
    if kernel:
        command += ["-kernel", str(kernel), "-append", "console=ttyS0 panic=-1"]
    else:
        command += ["-snapshot", "-drive", f"if=virtio,{drive(disk)}"]
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise LocalError(f"acceleration: {error}") from None
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    watchdog = threading.Timer(seconds, give_up)
    watchdog.start()
    last = b""
    try:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        for line in process.stdout:
            last = line.strip() or last
            if any(mark in line for mark in ALIVE):
                return True, f"the probe booted in {time.monotonic() - started:.1f} s"
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
    if late.is_set():
        return False, f"kvm probe gave up after {seconds:.0f} s"
    return False, f"kvm probe ended at once: {last.decode(errors='replace')[:120]}"
