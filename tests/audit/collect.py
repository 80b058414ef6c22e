"""Runs on the droplet as root, with its own Python, and prints what is there as one JSON object.

Reads only. One process instead of forty commands: each costs half a second on an emulated machine.
Environments of containers hold secrets, so only the variables that are asked for by name leave the host.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import pathlib
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

wanted = json.load(sys.stdin)
os.environ.update(LC_ALL="C", PATH="/usr/sbin:/usr/bin:/sbin:/bin")


def run(*command: str) -> dict[str, Any]:
    """Exit code, stdout and stderr of a command; never raises for its failure."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"code": 127, "out": "", "err": str(error)}
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def text(path: str) -> str | None:
    """Content of a file, None when there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return None


def entry(path: str, content: bool) -> dict[str, str | None]:
    """What is at a path: kind, owner, mode and (when asked) content or target."""
    try:
        status = pathlib.Path(path).lstat()
    except OSError:
        return {"kind": "absent"}
    found = {
        "owner": f"{status.st_uid}:{status.st_gid}",
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
    }
    if stat.S_ISLNK(status.st_mode):
        return {**found, "kind": "link", "content": str(pathlib.Path(path).readlink())}
    if stat.S_ISDIR(status.st_mode):
        return {**found, "kind": "directory"}
    return {**found, "kind": "file", "content": text(path) if content else None}


def digest(path: str) -> str:
    """SHA-256 of a file, empty when there is none."""
    try:
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def hours_since(path: str) -> float | None:
    """Age of a file, None when there is none."""
    try:
        return round((time.time() - pathlib.Path(path).lstat().st_mtime) / 3600, 1)
    except OSError:
        return None


def units() -> dict[str, Any]:
    """Properties of the units asked for, and the names of all that failed."""
    properties = "Id,ActiveState,UnitFileState,TriggeredBy,DropInPaths"
    shown = run("systemctl", "show", "--property=" + properties, "--", *wanted["units"])["out"]
    blocks = [block for block in shown.split("\n\n") if block.strip()]
    found = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks
    ]
    failed = run("systemctl", "list-units", "--failed", "--plain", "--no-legend")["out"]
    return {
        "units": dict(zip(wanted["units"], found, strict=True)),
        "failed": [line.split()[0] for line in failed.splitlines() if line.strip()],
    }


def packages() -> dict[str, dict[str, str]]:
    """Every package: wanted state, present state and version."""
    listed = run("dpkg-query", "-W", "-f", "${Package}\t${db:Status-Abbrev}\t${Version}\n")["out"]
    rows = [line.split("\t") for line in listed.splitlines()]
    return {name: {"status": status, "version": version} for name, status, version in rows}


def firewall() -> dict[str, Any]:
    """The live table, and what its file makes of an empty kernel: loaded in a network namespace that dies with it."""
    table = ["list", "table", "inet", "cimt"]
    scratch = 'nft --file "$1" && nft --json list table inet cimt'
    return {
        "live": run("nft", "--json", *table),
        "file": run("unshare", "--net", "sh", "-c", scratch, "sh", wanted["firewall_file"]),
    }


class Engine(http.client.HTTPConnection):
    """Docker's API over its socket: its command line takes a second to start."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect("/run/docker.sock")


def engine(path: str) -> Any:
    """Answer of a read of Docker's API."""
    connection = Engine("docker")
    connection.request("GET", path)
    answer = connection.getresponse()
    body = json.loads(answer.read())
    return body if answer.status == 200 else {"error": body}


def environment(name: str, container: dict[str, Any]) -> dict[str, str | None]:
    """Of a container's environment, the variables that were asked for."""
    pairs = dict(item.split("=", 1) for item in container.get("Env") or [] if "=" in item)
    return {key: pairs.get(key) for key in wanted["environment"].get(name, [])}


def docker() -> dict[str, Any]:
    """Daemon, Swarm services, tasks, containers and networks, without environments."""
    try:
        info = engine("/info")
    except OSError as error:
        return {"error": str(error)}
    services, containers = [], []
    manages = info["Swarm"]["ControlAvailable"]
    listed = engine("/services") if manages else []
    for service in listed:
        spec = service["Spec"]
        container = spec["TaskTemplate"]["ContainerSpec"]
        services.append(
            {
                "id": service["ID"],
                "name": spec["Name"],
                "image": container["Image"],
                "environment": environment(spec["Name"], container),
                "replicas": spec["Mode"].get("Replicated", {}).get("Replicas"),
                "order": spec.get("UpdateConfig", {}).get("Order"),
                "resources": spec["TaskTemplate"].get("Resources") or {},
                "constraints": (spec["TaskTemplate"].get("Placement") or {}).get("Constraints")
                or [],
                "ports": [
                    [port["Protocol"], port.get("PublishedPort")]
                    for port in service.get("Endpoint", {}).get("Ports") or []
                ],
            }
        )
    tasks = [
        {
            "service": task.get("ServiceID"),
            "wanted": task["DesiredState"],
            "state": task["Status"]["State"],
            "error": task["Status"].get("Err", ""),
            "node": task.get("NodeID"),
            "image": task["Spec"]["ContainerSpec"]["Image"],
        }
        for task in (engine("/tasks") if manages else [])
    ]
    nodes = [
        {
            "id": node["ID"],
            "name": node["Description"]["Hostname"],
            "address": node["Status"].get("Addr", ""),
            "role": node["Spec"]["Role"],
            "state": node["Status"]["State"],
            "availability": node["Spec"]["Availability"],
        }
        for node in (engine("/nodes") if manages else [])
    ]
    for container in engine("/containers/json"):
        inspected = engine("/containers/" + container["Id"] + "/json")
        if "error" in inspected:
            continue  # it ended between the two questions
        containers.append(
            {
                "name": inspected["Name"].lstrip("/"),
                "log": inspected["HostConfig"]["LogConfig"],
                "ports": sorted(
                    {
                        int(binding["HostPort"])
                        for bindings in (inspected["NetworkSettings"]["Ports"] or {}).values()
                        for binding in bindings or []
                    }
                ),
                "privileged": inspected["HostConfig"]["Privileged"],
            }
        )
    networks = {
        network["Name"]: [
            pool["Subnet"] for pool in (network["IPAM"]["Config"] or []) if pool.get("Subnet")
        ]
        for network in engine("/networks")
    }
    return {
        "version": info["ServerVersion"],
        "swarm": {
            "state": info["Swarm"]["LocalNodeState"],
            "manager": info["Swarm"]["ControlAvailable"],
            "address": info["Swarm"]["NodeAddr"],
        },
        "nodes": nodes,
        "heartbeat_seconds": (info["Swarm"].get("Cluster") or {})
        .get("Spec", {})
        .get("Dispatcher", {})
        .get("HeartbeatPeriod", 0)
        / 10**9,
        "logging": info["LoggingDriver"],
        "root": info["DockerRootDir"],
        "services": services,
        "tasks": tasks,
        "containers": containers,
        "networks": networks,
    }


def shown(host: str) -> str:
    """The certificate (PEM) that this host's proxy shows for a name, believed or not; empty without an answer."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", 443), 30) as raw,
            context.wrap_socket(raw, server_hostname=host) as tls,
        ):
            return ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True) or b"")
    except OSError:
        return ""


METRICS = "import urllib.request as u; print(u.urlopen('http://{}:9090/metrics').read().decode())"


def figures(service: str, beside: str) -> dict[str, float] | None:
    """What an app's /metrics says, without labels: asked inside of its container, for no other way leads to that port.

    Where it runs on another node of the Swarm, inside of the container of ``beside``; None without any.
    """
    here, there = (
        run("docker", "ps", "--quiet", f"--filter=label=com.docker.swarm.service.name={name}")[
            "out"
        ]
        for name in (service, beside)
    )
    if not here + there:
        return None
    host = "127.0.0.1" if here else service
    container = (here or there).split()[0]
    said = run("docker", "exec", container, "python3", "-c", METRICS.format(host))["out"]
    lines = [
        line.rsplit(" ", 1)
        for line in said.splitlines()
        if not line.startswith("#") and " " in line
    ]
    return {name: float(value) for name, value in lines if "{" not in name}


def host_networks() -> dict[str, list[str]]:
    """Addresses of the host's own interfaces and of its gateways (not of Docker's)."""
    addresses = json.loads(run("ip", "-json", "address")["out"] or "[]")
    routes = json.loads(run("ip", "-json", "route")["out"] or "[]")
    own = {
        f"{address['local']}/{address['prefixlen']}"
        for interface in addresses
        if not interface["ifname"].startswith(("lo", "docker", "br-", "veth"))
        for address in interface["addr_info"]
    }
    return {
        "addresses": sorted(own),
        "gateways": sorted({route["gateway"] for route in routes if "gateway" in route}),
    }


def panel(operation: str, token: bool) -> dict[str, Any]:
    """Status and answer of a read operation of the panel, with or without this host's token."""
    request = urllib.request.Request(wanted["panel_url"] + "/api/" + operation)  # noqa: S310 - ours, loopback
    if token:
        request.add_header("Authorization", (text(wanted["token_file"]) or "").strip())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            return {"status": response.status, "body": json.load(response)}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "body": None}
    except (OSError, ValueError) as error:
        return {"status": 0, "body": str(error)}


def room(path: str) -> dict[str, int]:
    """Free space and free inodes of the file system that holds a path."""
    place = pathlib.Path(path)
    while not place.exists():
        place = place.parent
    disk = os.statvfs(place)
    inodes = 100 * disk.f_favail // disk.f_files if disk.f_files else 100
    return {"free_mb": disk.f_bavail * disk.f_frsize // 2**20, "free_inodes_percent": inodes}


def access() -> dict[str, Any]:
    """Accounts that get in and that may be root, by each way there is, and files in which sshd makes exceptions."""
    rows = [line.split(":") for line in (text("/etc/passwd") or "").splitlines() if ":" in line]
    shadow = [line.split(":") for line in (text("/etc/shadow") or "").splitlines() if ":" in line]
    groups = [line.split(":") for line in (text("/etc/group") or "").splitlines() if ":" in line]
    members = {
        group[0]: {name for name in group[3].split(",") if name}
        | {row[0] for row in rows if row[3] == group[2]}
        for group in groups
    }
    keys = {
        row[0]: "".join(text(f"{row[5]}/.ssh/authorized_keys{more}") or "" for more in ("", "2"))
        for row in rows
    }
    # An empty password is right whatever one types.
    passwords = {row[0] for row in shadow if not row[1].startswith(("!", "*"))}
    sudo = run("cvtsudoers", "--expand-aliases", "--output-format=json", "/etc/sudoers")
    by_sudo = {"cvtsudoers: " + sudo["err"]} if sudo["code"] else set()
    for one in json.loads(sudo["out"] or "{}").get("User_Specs", []):
        for kind, value in (item for who in one["User_List"] for item in who.items()):
            by_sudo |= members.get(value, set()) if kind == "usergroup" else {str(value)}
    sshd = pathlib.Path("/etc/ssh").glob("sshd_config*/*.conf")
    return {
        "root": [row[0] for row in rows if row[2] == "0"],
        "let_in": sorted(passwords | {name for name, lines in keys.items() if lines.strip()}),
        "by_sudo": sorted(by_sudo),
        "by_group": {
            name: sorted(members.get(name, ())) for name in ("docker", "lxd", "disk", "shadow")
        },
        "exceptions": sorted(
            str(path)
            for path in (pathlib.Path("/etc/ssh/sshd_config"), *sshd)
            for line in (text(str(path)) or "").splitlines()
            if line.strip().lower().startswith("match")
        ),
    }


memory = {
    line.split(":")[0]: int(line.split()[1]) // 1024
    for line in (text("/proc/meminfo") or "").splitlines()
}
state = wanted["state_directory"]
seen_docker = docker()
print(
    json.dumps(
        {
            "files": {path: entry(path, content) for path, content in wanted["files"].items()},
            "digests": {path: digest(path) for path in wanted["digests"]},
            "sysctl": {
                name: " ".join((text("/proc/sys/" + name.replace(".", "/")) or "none").split())
                for name in wanted["sysctl"]
            },
            "memory_mb": {name: memory[name] for name in ("MemTotal", "MemAvailable", "SwapTotal")},
            "trials": [str(path) for path in pathlib.Path("/var/lib/cimt/config").glob("*/trial")],
            "dpkg_audit": run("dpkg", "--audit")["out"],
            "apt": run("apt-config", "dump")["out"].splitlines(),
            "apt_sources": run("apt-get", "update", "--print-uris")["out"].splitlines(),
            "packages": packages(),
            "sshd": run("sshd", "-T"),
            "access": access(),
            "audit_rules": run("auditctl", "-l")["out"].splitlines(),
            "firewall": firewall(),
            "docker": seen_docker,
            "host_networks": host_networks(),
            "panel": {
                "setup": panel("getSetupStatus", token=False),
                "anonymous": panel("listProjectsAndServices", token=False)["status"],
                "token": panel("listProjectsAndServices", token=True)["status"],
                "version": panel("getUpdateStatus", token=True),
            }
            if wanted["panel_url"]
            else {},
            "figures": figures(*wanted["measured"]) if wanted["measured"] else {},
            "ca": text(wanted["ca_file"]) if wanted["ca_file"] else None,
            "shown": {host: shown(host) for host in wanted["origin_hosts"]},
            "ledger": (text(state + "/releases.jsonl") or "").splitlines()[-500:],
            "backup": text(wanted["hours_since"]["backup"]),
            "hours_since": {
                name: hours_since(path) for name, path in wanted["hours_since"].items()
            },
            "unfinished": sorted(path.name for path in pathlib.Path(state).glob("*.inflight.json")),
            "room": {
                path: room(path) for path in ("/", seen_docker.get("root", "/"), "/boot", state)
            },
            **units(),
        }
    )
)
