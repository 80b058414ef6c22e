"""The firewall policy, judged by the kernel.

One network namespace is the droplet, one a client outside, one a container behind Docker's address
translation, and they try to reach each other.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.host import ENVIRONMENT, FIREWALL_VARIANTS, render
from tools.cloudflare import kept

CLIENT, DROPLET, CONTAINER = "192.0.2.2", "192.0.2.1", "172.18.0.2"
OTHER_CLIENT = "198.51.100.2"
METADATA = "169.254.169.254"  # the cloud's, with all that a droplet was made with
CLIENT6, DROPLET6 = "2001:db8::2", "2001:db8::1"
# What Docker does for ports that containers publish, whether or not anyone wants them public.
DOCKER_NAT = """
table ip nat {
  chain prerouting {
    type nat hook prerouting priority dstnat
    fib daddr type local tcp dport { 80, 443, 2377, 3000 } dnat to 172.18.0.2
    fib daddr type local tcp dport 8080 dnat to 172.18.0.2:443
  }
  chain postrouting {
    type nat hook postrouting priority srcnat
    ip saddr 172.18.0.0/16 oifname != "docker_gwbridge" masquerade
  }
}
"""
LISTEN = """
import socket, sys, threading
def serve(server):
    while True:
        server.accept()[0].close()
for port in sys.argv[1:]:
    both = dict(family=socket.AF_INET6, dualstack_ipv6=True)
    server = socket.create_server(("::", int(port)), **both)
    threading.Thread(target=serve, args=(server,)).start()
print("listening", flush=True)
"""
CONNECT = """
import asyncio, json, sys
async def reach(host, port, source):
    local = (source, 0) if source else None
    try:
        writer = (await asyncio.wait_for(asyncio.open_connection(host, port, local_addr=local), 1))[1]
        writer.close()
        return "open"
    except TimeoutError:
        return "silent"
    except OSError:
        return "refused"
async def main():
    print(json.dumps(await asyncio.gather(*(reach(*target) for target in json.loads(sys.argv[1])))))
asyncio.run(main())
"""


class Network:
    """A network namespace: a machine with nothing but its network."""

    def __init__(self, inside: "Network | None" = None) -> None:
        prefix: list[str] = inside.prefix if inside else []
        self.process = subprocess.Popen(
            [*prefix, "unshare", "--net", "sh", "-c", "echo; exec sleep infinity"],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == b"\n"
        self.prefix: list[str] = ["nsenter", f"--target={self.process.pid}", "--net", "--"]
        self.servers: list[subprocess.Popen[str]] = []
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *argv: str, stdin: str = "") -> str:
        done = subprocess.run(
            [*self.prefix, *argv], input=stdin, env=ENVIRONMENT, text=True, capture_output=True
        )
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
        return done.stdout

    def listen(self, *ports: int) -> None:
        server = subprocess.Popen(
            [*self.prefix, sys.executable, "-c", LISTEN, *map(str, ports)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.servers.append(server)
        assert server.stdout
        assert server.stdout.readline() == "listening\n"

    def reach(self, *targets: tuple[str, int] | tuple[str, int, str]) -> list[str]:
        """For each (host, port[, own address]) whether it is open, refused or silent."""
        asked = json.dumps([[*target, None][:3] for target in targets])
        answers: list[str] = json.loads(self.run(sys.executable, "-c", CONNECT, asked))
        return answers

    def stop(self) -> None:
        processes: list[subprocess.Popen[Any]] = [*self.servers, self.process]
        for process in processes:
            process.kill()
            process.communicate()


class Site:
    """A client, the droplet and a container, cabled as in production."""

    def __init__(self) -> None:
        self.droplet = Network()
        self.client = Network(self.droplet)
        self.container = Network(self.droplet)
        for name, far in (("eth0", self.client), ("docker_gwbridge", self.container)):
            pid = str(far.process.pid)
            self.droplet.run(*f"ip link add {name} type veth peer name eth0 netns {pid}".split())
            self.droplet.run("ip", "link", "set", name, "up")
            far.run("ip", "link", "set", "eth0", "up")
        for network, commands in (
            (
                self.droplet,
                [
                    f"addr add {DROPLET}/24 dev eth0",
                    f"addr add {DROPLET6}/64 dev eth0 nodad",
                    "addr add 172.18.0.1/16 dev docker_gwbridge",
                    "route add 198.51.100.0/24 dev eth0",
                    f"route add {METADATA} dev eth0",
                ],
            ),
            (
                self.client,
                [
                    f"addr add {CLIENT}/24 dev eth0",
                    f"addr add {OTHER_CLIENT}/32 dev eth0",
                    f"addr add {METADATA}/32 dev eth0",
                    f"addr add {CLIENT6}/64 dev eth0 nodad",
                    f"route add 172.18.0.0/16 via {DROPLET}",
                ],
            ),
            (
                self.container,
                [f"addr add {CONTAINER}/16 dev eth0", "route add default via 172.18.0.1"],
            ),
        ):
            for command in commands:
                network.run("ip", *command.split())
        self.droplet.run("sysctl", "--quiet", "net.ipv4.ip_forward=1")
        self.droplet.run("nft", "--file", "-", stdin=DOCKER_NAT)
        # 3000 is also the listening socket of Docker's proxy, which takes what is not translated (IPv6).
        self.droplet.listen(22, 3000, 7946, 8080, 8443)
        self.container.listen(80, 443, 2377, 3000)
        self.client.listen(53)

    def load(self, **scenario: Any) -> None:
        policy = render("firewall", "firewall.nft.j2", **scenario)
        self.droplet.run("nft", "--check", "--file", "-", stdin=policy)
        self.droplet.run("nft", "--file", "-", stdin=policy)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    cabled = Site()
    yield cabled
    for network in (cabled.client, cabled.container, cabled.droplet):
        network.stop()


@pytest.fixture
def firewalled(site: Site) -> Site:
    site.load()
    return site


def test_without_a_policy_docker_opens_every_hole(site: Site) -> None:
    """The other tests prove something only if all of this answers when no policy is loaded."""
    targets = [(DROPLET, port) for port in (22, 80, 443, 2377, 3000, 8080, 8443)]
    targets += [(CONTAINER, 3000), (DROPLET6, 3000), (DROPLET6, 22)]
    assert site.client.reach(*targets) == ["open"] * len(targets)
    assert site.container.reach((METADATA, 53)) == ["open"]


def test_declared_ports_answer_and_no_other(firewalled: Site) -> None:
    assert firewalled.client.reach((DROPLET, 22), (DROPLET, 80), (DROPLET, 443)) == ["open"] * 3
    shut = [(DROPLET, port) for port in (2377, 3000, 8443)]
    assert firewalled.client.reach(*shut) == ["silent"] * len(shut)


def test_the_published_port_counts_not_the_containers_own(firewalled: Site) -> None:
    """8080 is translated to the container's 443, which is declared; 8080 is not."""
    assert firewalled.client.reach((DROPLET, 8080)) == ["silent"]


def test_a_containers_own_address_is_not_reached_from_outside(firewalled: Site) -> None:
    assert firewalled.client.reach((CONTAINER, 80), (CONTAINER, 3000)) == ["silent"] * 2


def test_ipv6_is_no_way_around(firewalled: Site) -> None:
    assert firewalled.client.reach((DROPLET6, 22), (DROPLET6, 3000)) == ["open", "silent"]


def test_containers_reach_the_world_and_the_host_reaches_itself(firewalled: Site) -> None:
    assert firewalled.container.reach((CLIENT, 53)) == ["open"]
    assert (
        firewalled.droplet.reach(("127.0.0.1", 3000), (CONTAINER, 3000), (CLIENT, 53))
        == ["open"] * 3
    )


def test_the_clouds_metadata_is_the_hosts_alone(firewalled: Site) -> None:
    assert firewalled.container.reach((METADATA, 53), (CLIENT, 53)) == ["silent", "open"]
    assert firewalled.droplet.reach((METADATA, 53)) == ["open"]


def test_containers_reach_only_declared_ports_of_the_host(firewalled: Site) -> None:
    assert firewalled.container.reach(("172.18.0.1", 8443)) == ["silent"]


def test_web_sources_limit_the_web_and_nothing_else(site: Site) -> None:
    site.load(firewall_web_sources=["198.51.100.0/24", "2001:db8:ffff::/48"])
    assert site.client.reach(
        (DROPLET, 443, OTHER_CLIENT), (DROPLET, 443, CLIENT), (DROPLET, 22, CLIENT)
    ) == ["open", "silent", "open"]


def test_behind_cloudflare_its_networks_alone_reach_the_web(site: Site) -> None:
    """The very list that is kept. IPv6: where nobody listens, a refusal says that the packet came through."""
    for network, own in (
        ("104.16.0.0/13", "104.16.0.9/32"),
        ("2606:4700::/32", "2606:4700::9/128"),
    ):
        site.droplet.run("ip", "route", "add", network, "dev", "eth0")
        site.client.run("ip", "address", "add", own, "dev", "eth0", "nodad")
    site.load(firewall_web_sources=[one for part in kept().values() for one in part])
    inside = [(DROPLET, 80, "104.16.0.9"), (DROPLET, 443, "104.16.0.9")]
    outside = [(DROPLET, 80, CLIENT), (DROPLET, 443, CLIENT), (DROPLET, 3000, "104.16.0.9")]
    assert site.client.reach(*inside) == ["open"] * 2
    assert site.client.reach(*outside, (DROPLET6, 443, CLIENT6)) == ["silent"] * 4
    assert site.client.reach((DROPLET6, 443, "2606:4700::9")) == ["refused"]
    assert site.client.reach((DROPLET, 22, CLIENT), (DROPLET6, 22, CLIENT6)) == ["open"] * 2


def hears(site: Site, speaker: Network, port: int) -> str:
    """What the droplet hears of a datagram that the speaker sends with OTHER_CLIENT's address; empty for nothing."""
    hear = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(2); "
        f"s.bind(('0.0.0.0', {port})); print('listening', flush=True)\n"
        "try: print(s.recv(99).decode())\nexcept TimeoutError: print()"
    )
    say = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); "
        f"s.bind(('{OTHER_CLIENT}', 0)); s.sendto(b'said', ('{DROPLET}', {port}))"
    )
    command = [*site.droplet.prefix, sys.executable, "-c", hear]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout
        assert listener.stdout.readline() == "listening\n"
        speaker.run(sys.executable, "-c", say)
        return listener.stdout.readline().strip()


def test_nodes_of_the_swarm_are_heard_over_their_own_link_alone(site: Site) -> None:
    """The containers' network believes every packet: so one with a node's address counts only where the node is."""
    site.container.run("ip", "address", "add", f"{OTHER_CLIENT}/32", "dev", "eth0")
    for link in ("all", "docker_gwbridge"):
        site.droplet.run("sysctl", "--quiet", f"net.ipv4.conf.{link}.rp_filter=0")
    site.load()
    assert hears(site, site.client, 4789) == ""
    site.load(firewall_cluster_peers=[OTHER_CLIENT])
    assert hears(site, site.client, 4789) == "said"
    assert hears(site, site.container, 4789) == ""
    assert hears(site, site.client, 4790) == ""
    asked = [(DROPLET, 7946, OTHER_CLIENT), (DROPLET, 7946, CLIENT), (DROPLET, 3000, OTHER_CLIENT)]
    assert site.client.reach(*asked) == ["open", "silent", "silent"]


def test_ssh_is_limited_per_source(site: Site) -> None:
    site.load(firewall_ssh_rate="1/minute", firewall_ssh_burst=5)
    first = site.client.reach(*[(DROPLET, 22, CLIENT)] * 12)
    assert 5 <= first.count("open") <= 7
    assert site.client.reach((DROPLET, 22, OTHER_CLIENT), (DROPLET, 80, CLIENT)) == ["open"] * 2


def test_loading_again_leaves_dockers_tables_and_no_old_rule(firewalled: Site) -> None:
    firewalled.load(firewall_public_tcp_ports=[443])
    assert "dnat to 172.18.0.2" in firewalled.droplet.run("nft", "list", "table", "ip", "nat")
    assert firewalled.client.reach((DROPLET, 80), (DROPLET, 443)) == ["silent", "open"]


def test_stopping_the_unit_removes_our_table_only(firewalled: Site) -> None:
    unit = render("firewall", "cimt-firewall.service.j2")
    stop = next(line for line in unit.splitlines() if line.startswith("ExecStop="))
    firewalled.droplet.run("nft", stop.partition("nft ")[2].strip("'"))
    assert firewalled.droplet.run("nft", "list", "tables").split("\n") == ["table ip nat", ""]


@pytest.mark.parametrize(
    "scenario",
    FIREWALL_VARIANTS,
    ids=str,
)
def test_every_variant_of_the_policy_loads(site: Site, scenario: dict[str, Any]) -> None:
    site.load(**scenario)
