"""Where the local droplet and the local clouds live: ports, paths, switches."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from local.waiting import free_port

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ("debian-13", "debian-12", "ubuntu-24.04", "ubuntu-22.04")
# Host port of each door: (environment variable, default). All of them on 127.0.0.1.
PORTS: dict[str, tuple[str, int]] = {
    "ssh": ("DROPLET_SSH_PORT", 2222),
    "ssh2": ("DROPLET_2_SSH_PORT", 2223),
    "http": ("DROPLET_HTTP_PORT", 8080),
    "https": ("DROPLET_HTTPS_PORT", 8443),
    "panel": ("DROPLET_PANEL_PORT", 3000),
    "swarm": ("DROPLET_SWARM_PORT", 2377),
    "registry": ("REGISTRY_PORT", 5000),
    "postgres": ("POSTGRES_PORT", 54322),
    "s3": ("S3_PORT", 8333),
    "supabase": ("SUPABASE_PORT", 54321),
    "openai": ("OPENAI_PORT", 8010),
    "github": ("GITHUB_PORT", 8012),
    "digitalocean": ("DIGITALOCEAN_PORT", 8014),
    "ghcr": ("GHCR_PORT", 5443),
}
DROPLET_PORTS = {"ssh": 22, "http": 80, "https": 443, "panel": 3000, "swarm": 2377}  # in the guest
WORKER_PORTS = {"ssh2": 22}


class LocalError(Exception):
    """One line that says what is wrong and what to type next."""


@dataclass(frozen=True)
class Settings:
    """Everything a command needs to know; made by :func:`load`."""

    root: Path
    cache: Path
    ports: dict[str, int]
    image: str = "debian-13"
    bare: bool = False
    apps: tuple[
        str, ...
    ] = ()  # those with a switch that are wanted on the droplet as well, such as n8n
    acceleration: str = ""  # "", "kvm" or "tcg"
    extra_ca: Path | None = None
    nodes: int = 1
    node: int = 1  # which of them this is about: the first is the manager
    state: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", self.root / ".local")

    @property
    def name(self) -> str:
        """What the virtual machine is called, by ssh, by itself and by the inventory."""
        return "droplet" if self.node == 1 else f"droplet-{self.node}"

    @property
    def droplet(self) -> Path:
        """Disk, keys, PID and console of the virtual machine."""
        return self.state / self.name

    @property
    def doors(self) -> dict[str, int]:
        """Its ports that are forwarded from loopback, by the name of the port there."""
        return DROPLET_PORTS if self.node == 1 else WORKER_PORTS

    def of_each_node(self) -> list[Settings]:
        """These settings about each node, the manager first."""
        return [replace(self, node=number) for number in range(1, self.nodes + 1)]

    @property
    def clouds(self) -> Path:
        """Data, PIDs and logs of the local clouds."""
        return self.state / "clouds"

    @property
    def logs(self) -> Path:
        """One log per stage of `make up`."""
        return self.state / "logs"

    @property
    def ssh_config(self) -> Path:
        """For `ssh -F`; names the host `droplet`."""
        return self.state / "ssh_config"


def load(
    root: Path = ROOT, env: Mapping[str, str] = os.environ, *, running: bool = False
) -> Settings:
    """Read the switches from the environment and the ports from `.local/ports.json`.

    What was chosen at the first start stays; the environment may change it only while
    nothing of it runs (`running` false). Raises LocalError for a value that makes no sense.
    """
    kept: dict[str, int] = {}
    path = root / ".local" / "ports.json"
    if path.exists():
        try:
            kept = {str(name): int(port) for name, port in json.loads(path.read_text()).items()}
        except (ValueError, AttributeError) as error:
            raise LocalError(
                f"{path} is not valid ({error}). Next: rm .local/ports.json && make up"
            ) from None
    ports = {}
    for name, (variable, default) in PORTS.items():
        ports[name] = kept.get(name, default)
        if variable in env and not (running and name in kept):
            if not env[variable].isdigit() or not 0 < int(env[variable]) < 65536:
                raise LocalError(f"{variable}={env[variable]!r} is not a port number (1-65535).")
            ports[name] = int(env[variable])
    twice = [name for name in ports if list(ports.values()).count(ports[name]) > 1]
    if twice:
        variables = ", ".join(PORTS[name][0] for name in twice)
        raise LocalError(
            f"port {ports[twice[0]]} is wanted twice: give {variables} different values."
        )
    acceleration = env.get("DROPLET_ACCEL", "")
    if acceleration not in ("", "kvm", "tcg"):
        raise LocalError(
            f"DROPLET_ACCEL={acceleration!r} is unknown: choose kvm or tcg, or leave it out."
        )
    # A second node stays until `make down`, as the first one does.
    second = (root / ".local/droplet-2").exists()
    nodes = env.get("NODES", "") or ("2" if second else "1")
    if nodes not in ("1", "2") or (nodes == "1" and second):
        there = ". There are 2: make down removes them" if second else ""
        raise LocalError(f"NODES={nodes} cannot be: choose 1 or 2{there}")
    image = env.get("DROPLET_IMAGE", "") or _droplet_image(root) or IMAGES[0]
    if image not in IMAGES:
        raise LocalError(f"DROPLET_IMAGE={image!r} is unknown: choose one of {', '.join(IMAGES)}.")
    return Settings(
        root=root,
        cache=cache(env),
        ports=ports,
        image=image,
        bare=env.get("DROPLET_BARE", "") not in ("", "0"),
        apps=_switched_on(root, env),
        acceleration=acceleration,
        extra_ca=_extra_ca(env),
        nodes=int(nodes),
    )


def domain(app: str) -> str:
    """The name under which the local droplet serves an app."""
    return f"{'app' if app == 'web' else app}.cimt.localhost"


def cache(env: Mapping[str, str] = os.environ) -> Path:
    """Where what takes long to make is kept; may be deleted."""
    return Path(env.get("CIMT_CACHE") or Path(env.get("HOME", "~")).expanduser() / ".cache/cimt")


def save_ports(settings: Settings) -> None:
    """Keep the ports for every later command (and for whoever reads `.local/ports.json`)."""
    write_atomic(settings.state / "ports.json", json.dumps(settings.ports) + "\n")


def write_atomic(path: Path, text: str, mode: int = 0o644) -> None:
    """Write the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
        stream.write(text)
    part.replace(path)


def check_ports(settings: Settings, names: Iterable[str]) -> None:
    """Raise LocalError when one of these host ports is taken, naming its holder if known."""
    for name in names:
        check_port(settings.ports[name], name, PORTS[name][0], "make up")


def check_port(port: int, name: str, variable: str, command: str) -> None:
    """Raise LocalError when a host port is taken, naming its holder and how to choose another one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise LocalError(
                f"port {port} on 127.0.0.1 ({name}) is taken{_holder(port)}. "
                f"Next: stop that program, or {variable}={free_port()} {command}"
            ) from None


def check_tools(*names: str) -> None:
    """Raise LocalError for the first program that is not installed."""
    for name in names:
        if shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is None:
            raise LocalError(
                f"the program {name} is missing. Next: make up (installs what is needed)"
            )


def _holder(port: int) -> str:
    """' by NAME (pid N)' for the listener on a port, or '' when it cannot be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == "0A" and int(columns[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{columns[9]}]")
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(str(item.readlink()) in inodes for item in descriptors.iterdir()):
                name = (descriptors.parent / "comm").read_text().strip()
                return f" by {name} (pid {descriptors.parent.name})"
        except OSError:
            continue  # another user's process, or one that has just ended
    return ""


def _switched_on(root: Path, env: Mapping[str, str]) -> tuple[str, ...]:
    """Apps of services/compose.yaml whose switch is set, or has been: the inventory counts in what is built."""
    switches = {
        name: service.get("x-image", {}).get("switch")
        for name, service in yaml.safe_load((ROOT / "services/compose.yaml").read_text())[
            "services"
        ].items()
    }
    on = {
        switch
        for name, switch in switches.items()
        if switch
        and (env.get(switch, "") not in ("", "0") or (root / f".local/build/{name}.json").exists())
    }
    return tuple(name for name, switch in switches.items() if switch in on)


def _droplet_image(root: Path) -> str:
    """The image of the droplet that exists already, or ''."""
    try:
        return str(json.loads((root / ".local/droplet/state.json").read_text())["image"])
    except (OSError, ValueError, KeyError):
        return ""


def _extra_ca(env: Mapping[str, str]) -> Path | None:
    """The extra certificate authority people behind a company proxy need, in the guest too."""
    if env.get("CIMT_EXTRA_CA"):
        path = Path(env["CIMT_EXTRA_CA"])
        if not path.is_file():
            raise LocalError(
                f"CIMT_EXTRA_CA={path} is not a file: give a PEM certificate, or leave it out."
            )
        return path.resolve()
    return None
