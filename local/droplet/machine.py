"""The local droplet, or two of them: QEMU virtual machines, sized as the real ones, on user networking.

Two share a link of their own, as droplets of one region share a private network; nobody else is on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pycdlib

from local import clouds
from local.certificate import make_certificate
from local.droplet import image as images
from local.droplet.acceleration import CPU, choose, drive
from local.settings import (
    LocalError,
    Settings,
    check_ports,
    check_tools,
    save_ports,
    write_atomic,
)
from local.waiting import eventually

MEMORY_MB = 2048
CPUS = 2
USER = "cimt"
SSH_SECONDS = (
    600  # an emulated droplet answers in half a minute on an idle machine, in minutes on a busy one
)
CLOUD_INIT_SECONDS = 600
SPARE = "spare"  # a free slot: a card cannot be plugged into the first bus
VOLUMES = "volumes"  # id of the controller that they hang on
VOLUME, VOLUME_GB = "cimt-local", 10  # as `make droplet` gives every droplet one
# Networks that droplets and others share by a link of their own: (IPv4, IPv6), of which node 1 is the eleventh.
OF_NODES = ("10.120.0.", "fd00:120:0:1::")
OF_NEIGHBOURS = ("10.121.0.", "fd00:121:0:1::")


def start(settings: Settings) -> None:
    """Make the droplet run and wait until it can be used. One that runs is left alone."""
    check_tools("qemu-system-x86_64", "qemu-img", "ssh", "ssh-keygen")
    check_image(settings)
    with alone(settings, settings.name):
        pid = running_pid(settings)
        if pid:
            print(f"{settings.name}: runs already (pid {pid}, {state(settings).get('image')})")
        else:
            boot(settings)
        _wait(settings)


def check_image(settings: Settings) -> None:
    """Raise LocalError when there is a droplet already, of another image than the one asked for."""
    image = state(settings).get("image", settings.image)
    if image != settings.image:
        raise LocalError(
            f"the droplet that exists is {image}, not {settings.image}. Next: make down (removes it), "
            "or leave DROPLET_IMAGE out to keep it"
        )
    if settings.nodes > 1 and not (state(settings) or {"lan": True}).get("lan"):
        raise LocalError(
            "the droplet that exists has no private network. Next: make down (removes it), then NODES=2 make up"
        )


def stop(settings: Settings, seconds: float = 60) -> bool:
    """Power the droplet off: its power button first, then the plug. True when one was running."""
    pid = running_pid(settings)
    if not pid:
        return False
    with contextlib.suppress(OSError):  # a hung QEMU: fall through to the plug
        monitor(settings, "system_powerdown")
    if not _ended(pid, seconds):
        print(f"{settings.name}: did not power off in {seconds:.0f} s; pulling the plug")
        os.kill(pid, signal.SIGKILL)
        _ended(pid)
    (settings.droplet / "qemu.pid").unlink(missing_ok=True)
    return True


def _ended(pid: int, seconds: float | None = None) -> bool:
    """Wait until a process has ended; False when it has not within so many seconds.

    Its command line is gone earlier, while its ports are still taken and its disk still open.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], seconds)[0])
    finally:
        os.close(process)


def destroy(settings: Settings) -> bool:
    """Remove the droplet and its disk. True when there was one. The image cache stays."""
    was_there = settings.droplet.exists()
    for one in settings.of_each_node():
        pid = running_pid(one)
        if pid:
            os.kill(pid, signal.SIGKILL)  # its disk goes anyway
            _ended(pid)
        if one.droplet.exists():
            shutil.rmtree(one.droplet)
    shutil.rmtree(_lan(settings), ignore_errors=True)
    settings.ssh_config.unlink(missing_ok=True)
    (settings.state / "ca.crt").unlink(missing_ok=True)
    return was_there


def running_pid(settings: Settings) -> int:
    """The PID of *our* QEMU, or 0. A pid file whose number now belongs to another program counts as 0."""
    path = settings.droplet / "qemu.pid"
    try:
        pid = int(path.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return 0
    # A dead process that nobody has waited for yet has an empty command line.
    return pid if b"-pidfile" in command and os.fsencode(path) in command else 0


def state(settings: Settings) -> dict[str, Any]:
    """What `.local/droplet/state.json` says, or {}."""
    try:
        return dict(json.loads((settings.droplet / "state.json").read_text()))
    except (OSError, ValueError):
        return {}


def monitor(
    settings: Settings,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    seconds: float = 5,
) -> Any:
    """One command to QEMU over its control socket (QMP).

    Raises OSError when it does not answer, LocalError when it refuses.
    """
    # A socket's path is limited to 107 bytes: go there by a relative name.
    directory = os.open(settings.droplet, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(seconds)
            client.connect(f"/proc/self/fd/{directory}/qmp.sock")
            stream = client.makefile("rw")
            stream.readline()
            for name, given in (("qmp_capabilities", {}), (command, arguments or {})):
                stream.write(json.dumps({"execute": name, "arguments": given}) + "\n")
                stream.flush()
                answer = json.loads(stream.readline() or "{}")
                while "event" in answer:
                    answer = json.loads(stream.readline() or "{}")
            if "error" in answer:
                raise LocalError(f"droplet: {command}: {answer['error'].get('desc')}")
            return answer.get("return")
    finally:
        os.close(directory)


@contextlib.contextmanager
def alone(settings: Settings, name: str = "droplet") -> Iterator[None]:
    """Hold a lock for the block, or raise LocalError with the PID of the holder."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with open(settings.state / f"{name}.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise LocalError(
                f"another run of `{name}` is at work (pid {holder}). Next: wait for it, or: kill {holder}"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
        lock.truncate(0)


def ssh_command(settings: Settings, *remote: str) -> list[str]:
    """The ssh command line that runs `remote` on the droplet (a shell when empty)."""
    return ["ssh", "-F", str(settings.ssh_config), settings.name, *remote]


def as_root(settings: Settings, script: str, timeout: float | None = None) -> str:
    """Output of a shell script on the droplet, as root. Raises LocalError with the last words of what went wrong.

    Raises subprocess.TimeoutExpired after ``timeout`` seconds.
    """
    command = ssh_command(settings, "sudo", "bash", "-euo", "pipefail", "-s")
    # Read as a whole before it begins: no command of it can eat the rest.
    whole = f"{{\n{script}\n}} </dev/null\n"
    done = subprocess.run(command, input=whole, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        first = script.strip().partition("\n")[0]
        raise LocalError(f"{done.stderr.strip()[-800:]}\ndroplet: this failed there: {first}")
    return done.stdout


def boot(settings: Settings) -> None:
    """Create what is missing and start QEMU as a daemon, without waiting for the droplet. Raises LocalError."""
    check_tools("qemu-system-x86_64", "qemu-img")
    check_ports(settings, settings.doors)
    save_ports(settings)
    home = settings.droplet
    known = state(settings)
    if not known:
        _create(settings)
        known = state(settings)
    kernel = home / "vmlinuz"
    acceleration, why = choose(settings, kernel if kernel.exists() else None, home / "disk.qcow2")
    print(f"{settings.name}: {why}", flush=True)
    if (home / "host_ed25519.pub").exists():
        _write_ssh_config(settings)

    forwards = "".join(
        f",hostfwd=tcp:127.0.0.1:{settings.ports[name]}-:{port}"
        for name, port in settings.doors.items()
    )
    for stale in ("qemu.pid", "qmp.sock"):
        (home / stale).unlink(missing_ok=True)
    name = f"cimt-{settings.name}"
    command = ["qemu-system-x86_64", "-name", name, "-machine", "q35", "-nodefaults"]
    command += ["-m", str(MEMORY_MB), "-smp", str(CPUS), "-cpu", CPU[acceleration]]
    command += ["-accel", "kvm" if acceleration == "kvm" else "tcg,thread=multi,tb-size=512"]
    command += ["-display", "none", "-serial", f"file:{home / 'console.log'}"]
    command += [
        "-drive",
        f"if=virtio,format=qcow2,cache=unsafe,discard=unmap,{drive(home / 'disk.qcow2')}",
    ]
    command += ["-drive", f"if=virtio,format=raw,readonly=on,{drive(home / 'seed.iso')}"]
    command += [
        "-netdev",
        f"user,id=net,ipv6=off{forwards}",
        "-device",
        "virtio-net-pci,netdev=net",
    ]
    if known.get("lan"):
        command += _link_to_the_other(settings)
    command += ["-device", "virtio-rng-pci", "-qmp", "unix:qmp.sock,server=on,wait=off"]
    command += ["-device", f"pcie-root-port,id={SPARE}"]
    if "volumes" in known:
        command += ["-device", f"virtio-scsi-pci,id={VOLUMES}"]
    if kernel.exists():
        command += ["-kernel", str(kernel), "-initrd", str(home / "initrd.img")]
        # Emulated on a busy machine, a device may take longer to appear than systemd waits for it.
        patience = "systemd.default_device_timeout_sec=600 systemd.default_timeout_start_sec=300"
        append = f"root=/dev/vda rw console=tty0 console=ttyS0 quiet loglevel=4 panic=10 {patience}"
        command += ["-append", append]
    command += ["-pidfile", str(home / "qemu.pid"), "-daemonize"]
    # Run in its directory: the path of a Unix socket may have 107 bytes only.
    result = subprocess.run(
        command, cwd=home, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if result.returncode:
        raise LocalError(
            f"{settings.name}: QEMU did not start: {result.stderr.strip() or result.returncode}"
        )
    known |= {"acceleration": acceleration, "started": int(time.time()), "ready": False}
    write_atomic(home / "state.json", json.dumps(known) + "\n")
    for name, path in known.get("volumes", {}).items():
        _plug(settings, name, path)
    print(f"{settings.name}: started (pid {running_pid(settings)}, {settings.image})", flush=True)


def _create(settings: Settings) -> None:
    """A new droplet as `make up` wants it: keys of its own, and an admin who has them."""
    home = _disk(settings)
    keys = (
        ("id_ed25519", f"{USER}@local"),
        ("ci_ed25519", "pipeline"),
        ("host_ed25519", "droplet"),
    )
    for name, comment in keys:
        _output(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(home / name)],
            home,
        )
    user = user_data(home, settings.name)
    write_seed(home / "seed.iso", user, settings.name, _world(settings))
    # The inventory reads it: inventory/local/nodes.py.
    address = _addresses(OF_NODES, settings.node)[0] if settings.nodes > 1 else ""
    about: dict[str, Any] = {"image": settings.image, "lan": address}
    if settings.node == 1:
        disk = home / "volume.raw"
        with disk.open("wb") as file:
            file.truncate(VOLUME_GB << 30)  # sparse: it takes what is written to it
        about["volumes"] = {VOLUME: str(disk)}
    write_atomic(home / "state.json", json.dumps(about) + "\n")


def make_as_told(settings: Settings, number: int, name: str, user: str) -> None:
    """Boot a new droplet by somebody else's user data, as a cloud does; who logs in and how is theirs to know.

    `number` is what that cloud calls it by. Volumes can be attached to it. Does not wait.
    """
    home = _disk(settings)
    write_seed(home / "seed.iso", user, name, _world(settings))
    about = {"image": settings.image, "number": number, "volumes": {}}
    write_atomic(home / "state.json", json.dumps(about) + "\n")
    boot(settings)


def attach(settings: Settings, name: str, path: Path) -> None:
    """Plug a disk into a droplet that was made as told; there its name is DigitalOcean's. Twice is once."""
    known = state(settings)
    if name in known["volumes"]:
        return
    if running_pid(settings):
        _plug(settings, name, str(path))
    known["volumes"][name] = str(path)
    write_atomic(settings.droplet / "state.json", json.dumps(known) + "\n")


def log_in_by(settings: Settings, private_key: str, host_key: str) -> None:
    """Let `make ssh` and all of this module in by these keys: a droplet that was made as told is known by no other.

    `host_key` is `TYPE KEY`.
    """
    write_atomic(settings.droplet / "id_ed25519", private_key.strip() + "\n", 0o600)
    write_atomic(settings.droplet / "host_ed25519.pub", host_key.strip() + "\n")
    _write_ssh_config(settings)


def _plug(settings: Settings, name: str, path: str) -> None:
    disk = {"driver": "raw", "node-name": name, "file": {"driver": "file", "filename": path}}
    monitor(settings, "blockdev-add", disk)
    # So it is called /dev/disk/by-id/scsi-0DO_Volume_NAME.
    is_do = {"vendor": "DO", "product": "Volume", "serial": name}
    device = {"driver": "scsi-hd", "bus": f"{VOLUMES}.0", "drive": name, "id": f"disk-{name}"}
    monitor(settings, "device_add", device | is_do)


def _disk(settings: Settings) -> Path:
    """Where a new droplet lives, with its disk. state.json comes last: without it the rest is made anew."""
    base = images.ensure(settings)
    home = settings.droplet
    if home.exists():
        shutil.rmtree(home)  # an unfinished creation
    home.mkdir(parents=True, mode=0o700)
    # Linked, not referenced: the cache may be cleared while the droplet lives.
    for source, name in (
        (base.disk, "base"),
        (base.kernel, "vmlinuz"),
        (base.initrd, "initrd.img"),
    ):
        if source:
            _link(source, home / name)
    backing = ["-F", base.format, "-b", "base", "disk.qcow2", images.DISK]
    _output(["qemu-img", "create", "-q", "-f", "qcow2", *backing], home)
    return home


def _world(settings: Settings) -> str:
    """cloud-init's vendor data: where a droplet finds this machine's registries, and whose certificates they have."""
    make_certificate(settings.clouds / "ghcr", clouds.GHCR)
    authority = (settings.clouds / "ghcr/ca.crt").read_text()
    registries = (
        f"10.0.2.2:{settings.ports['registry']}",
        f"{clouds.GHCR}:{settings.ports['ghcr']}",
    )
    files: list[dict[str, Any]] = [
        {"path": f"/etc/docker/certs.d/{one}/ca.crt", "content": authority} for one in registries
    ]
    files += [{"path": "/etc/hosts", "content": f"10.0.2.2 {clouds.GHCR}\n", "append": True}]
    commands: list[list[str]] = []
    if settings.nodes > 1:
        network = _network(_mac(settings.node), _addresses(OF_NODES, settings.node))
        files += [{"path": "/etc/systemd/network/70-private.network", "content": network}]
        commands = [["networkctl", "reload"]]
    return _cloud_config({"write_files": files, "runcmd": commands})


def _mac(node: int) -> str:
    return f"52:54:00:c1:47:{node:02x}"


def _addresses(network: tuple[str, str], node: int) -> tuple[str, str]:
    """A node's IPv4 and IPv6 address on a link."""
    four, six = network
    return f"{four}{10 + node}", f"{six}{10 + node}"


def _network(card: str, addresses: tuple[str, str]) -> str:
    """systemd-networkd's file for a card on such a link."""
    four, six = addresses
    return f"[Match]\nMACAddress={card}\n[Network]\nAddress={four}/24\nAddress={six}/64\nIPv6AcceptRA=no\n"


def _lan(settings: Settings) -> Path:
    """Folder of the link's sockets: QEMU leaves the one it was started in, and a socket's path may have 107 bytes."""
    mark = hashlib.sha256(os.fsencode(settings.state)).hexdigest()[:8]
    return Path(tempfile.gettempdir(), f"cimt-lan-{os.geteuid()}-{mark}")


def _link_to_the_other(settings: Settings) -> list[str]:
    """A network card on the link that two nodes share: datagrams over a pair of Unix sockets, without root."""
    folder = _lan(settings)
    folder.mkdir(mode=0o700, exist_ok=True)
    own, other = (folder / f"{node}.sock" for node in (settings.node, 3 - settings.node))
    own.unlink(missing_ok=True)
    link = f"dgram,id=lan,local.type=unix,local.path={own},remote.type=unix,remote.path={other}"
    return ["-netdev", link, "-device", f"virtio-net-pci,netdev=lan,mac={_mac(settings.node)}"]


@contextlib.contextmanager
def neighbour(settings: Settings) -> Iterator[tuple[Path, str, str, str]]:
    """Another network card for the droplet, on a link where whoever has the other socket is its neighbour.

    Gives the folder of the two sockets (lan.sock is the droplet's, neighbour.sock the other), the card, and the
    droplet's IPv4 and IPv6 address there. Afterwards the card is gone. Raises LocalError, TimeoutError.
    """
    card, (four, six) = _mac(0xFE), _addresses(OF_NEIGHBOURS, 1)
    file = "/run/systemd/network/70-neighbour.network"
    text = _network(card, (four, six))
    folder = Path(tempfile.mkdtemp(prefix="cimt-link-"))
    near, far = (
        {"type": "unix", "path": str(folder / f"{name}.sock")} for name in ("lan", "neighbour")
    )
    as_root(
        settings,
        f"mkdir -p {Path(file).parent}; printf {shlex.quote(text)} >{file}; networkctl reload",
    )
    try:
        link = {"type": "dgram", "id": "neighbour", "local": near, "remote": far}
        monitor(settings, "netdev_add", link)
        device = {"driver": "virtio-net-pci", "id": "neighbour-card", "netdev": "neighbour"}
        monitor(settings, "device_add", device | {"mac": card, "bus": SPARE})
        has = f"ip -o address show scope global to {six}; ip -o address show to {four}"
        eventually(lambda: len(as_root(settings, has).splitlines()) == 2, "its address there", 120)
        yield folder, card, four, six
    finally:
        for command, given in (("device_del", "neighbour-card"), ("netdev_del", "neighbour")):
            with contextlib.suppress(LocalError, OSError):  # it never came to be
                monitor(settings, command, {"id": given})
        as_root(settings, f"rm -f {file}; networkctl reload")
        shutil.rmtree(folder)


def user_data(home: Path, name: str = "droplet") -> str:
    """cloud-init's user-data: the key-only admin, and the host key that known_hosts already expects."""
    key = (home / "id_ed25519.pub").read_text().strip()
    admin = {
        "name": USER,
        "gecos": "",
        "shell": "/bin/bash",
        "groups": "adm, sudo",
        "lock_passwd": True,
    }
    admin |= {"sudo": "ALL=(ALL) NOPASSWD:ALL", "ssh_authorized_keys": [key]}
    config = {
        "hostname": name,
        "ssh_pwauth": False,
        "disable_root": False,  # as on a new droplet: root has the key until the ssh role runs
        "users": [admin, {"name": "root", "lock_passwd": True, "ssh_authorized_keys": [key]}],
        "ssh_deletekeys": True,
        "ssh_keys": {
            "ed25519_private": (home / "host_ed25519").read_text(),
            "ed25519_public": (home / "host_ed25519.pub").read_text(),
        },
    }
    return _cloud_config(config)


def _cloud_config(config: Mapping[str, Any]) -> str:
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"  # JSON is YAML


def write_seed(path: Path, user: str, name: str, vendor: str = "") -> None:
    """The NoCloud seed of a machine of this name: an ISO image labelled cidata."""
    meta = f"instance-id: local-{int(time.time())}\nlocal-hostname: {name}\n"
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident="cidata", rock_ridge="1.09", joliet=3)
    for short, name, text in (
        ("/USERDATA.;1", "user-data", user),
        ("/METADATA.;1", "meta-data", meta),
        ("/VENDORDA.;1", "vendor-data", vendor),
    ):
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), short, rr_name=name, joliet_path=f"/{name}")
    iso.write(str(path))
    iso.close()
    path.chmod(0o600)


def _write_ssh_config(settings: Settings) -> None:
    """`.local/ssh_config` and known_hosts; written at every start, as ports may have changed."""
    lines: list[str] = []
    for one in settings.of_each_node():
        home = one.droplet
        if not (home / "host_ed25519.pub").exists():
            continue
        host_key = " ".join((home / "host_ed25519.pub").read_text().split()[:2])
        write_atomic(home / "known_hosts", f"{one.name} {host_key}\n")
        lines += [
            f"Host {one.name}",
            "  HostName 127.0.0.1",
            f"  Port {settings.ports[_ssh(one)]}",
            f"  User {USER}",
            f"  IdentityFile {_quoted(home / 'id_ed25519')}",
            "  IdentitiesOnly yes",
            f"  HostKeyAlias {one.name}",
            "  HostKeyAlgorithms ssh-ed25519",
            f"  UserKnownHostsFile {_quoted(home / 'known_hosts')}",
            "  StrictHostKeyChecking yes",
            "  PasswordAuthentication no",
            "  ConnectTimeout 30",
        ]
    write_atomic(settings.ssh_config, "\n".join(lines) + "\n")


def _quoted(path: Path) -> str:
    """For ssh: in a folder with a space; it expands % itself."""
    return '"{}"'.format(str(path).replace("%", "%%"))


def _ssh(settings: Settings) -> str:
    """Name of the port that leads to the node's sshd."""
    return next(iter(settings.doors))


def _wait(settings: Settings) -> None:
    """Until sshd greets, and cloud-init has finished without an error."""
    if state(settings).get("ready"):
        return
    started = time.monotonic()
    said = started
    while not _greets(settings.ports[_ssh(settings)]):
        now = time.monotonic()
        if not running_pid(settings):
            raise LocalError(
                f"{settings.name}: QEMU ended while booting. Next: make logs NAME=console"
            )
        if now - started > SSH_SECONDS:
            raise LocalError(
                f"{settings.name}: no SSH after {SSH_SECONDS} s. Next: make logs NAME=console"
            )
        if now - said >= 10:
            said = now
            print(
                f"{settings.name}: booting, {now - started:.0f} s: {_last_console_line(settings)}",
                flush=True,
            )
        time.sleep(0.5)
    print(f"{settings.name}: sshd answers after {time.monotonic() - started:.0f} s", flush=True)
    wait = (
        f"n=0; until [ -e /run/cloud-init/result.json ]; do n=$((n+1)); [ $n -lt {CLOUD_INIT_SECONDS} ] "
        "|| exit 75; sleep 1; done; cat /run/cloud-init/result.json"
    )
    # sshd may greet before cloud-init has put the key in place: a refused key is asked again, not failed.
    while True:
        result = subprocess.run(
            ssh_command(settings, wait), capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if result.returncode != 255:
            break
        if time.monotonic() - started > SSH_SECONDS:
            raise LocalError(
                f"{settings.name}: SSH refuses: {result.stderr.strip()}. Next: make logs NAME=console"
            )
        time.sleep(2)
    if result.returncode == 75:
        raise LocalError(
            f"{settings.name}: cloud-init did not finish. Next: make ssh, then: cloud-init status --long"
        )
    errors = json.loads(result.stdout or "{}").get("v1", {}).get("errors")
    if result.returncode or errors:
        raise LocalError(
            f"{settings.name}: cloud-init failed: {errors or result.stderr.strip()}. Next: make ssh"
        )
    ready = state(settings) | {"ready": True}
    write_atomic(settings.droplet / "state.json", json.dumps(ready) + "\n")
    print(f"{settings.name}: ready after {time.monotonic() - started:.0f} s", flush=True)


def _greets(port: int) -> bool:
    """True when an SSH server answers; QEMU itself accepts the connection long before."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            return client.recv(4) == b"SSH-"
    except OSError:
        return False


def _last_console_line(settings: Settings) -> str:
    try:
        text = (settings.droplet / "console.log").read_text(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    return "".join(char for char in (lines[-1] if lines else "") if char.isprintable())[:100]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        _output(
            ["cp", "--sparse=always", "--reflink=auto", str(source), str(target)], target.parent
        )


def _output(command: list[str], cwd: Path) -> str:
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if result.returncode:
        raise LocalError(f"{command[0]} failed: {result.stderr.strip()}")
    return result.stdout
