"""Two nodes of the Swarm on one private link: released, emptied, each of them killed. By `make second-node`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from local.droplet import machine
from local.settings import load
from local.waiting import eventually
from testbed.droplet import (
    APP,
    DOMAIN,
    GENEROUS,
    ROOT,
    Client,
    Traffic,
    built,
    make,
    on_droplet,
    panel,
    release,
    variant,
)

COMPOSE = ROOT / "services/compose.yaml"
PLACED = "placement: {constraints: [node.role == manager]}"
GOOD = "RUN printf %s {revision} > /app/revision"
ADDRESSES = ("10.120.0.11", "fd00:120:0:1::11")
# What our own parts, Docker and Swarm listen on; every port is asked by `make scan`.
PORTS = [22, 80, 111, 443, 2375, 2377, 3000, 4789, 5355, 5678, 7946, 8000, 8080, 9090]
KNOCK = """python3 - <<'END'
import json, socket
def answers(address, port):
    try:
        socket.create_connection((address, port), 3).close()
    except ConnectionRefusedError:
        pass
    except OSError:
        return False
    return True
print(json.dumps({one: [port for port in PORTS if answers(one, port)] for one in ADDRESSES}))
END
"""


def runs(node: str, service: str = "cimt_api") -> int:
    """How many tasks of a service run on a node, as Swarm says."""
    shown = "{{.Name}} {{.CurrentState}}"
    listed = on_droplet(f"docker node ps {node} --filter desired-state=running --format '{shown}'")
    return sum(
        line.startswith(f"{service}.") and " Running" in line for line in listed.splitlines()
    )


def spread() -> bool:
    """Whether each node runs one api, and Swarm is not changing that."""
    shown = "docker service inspect cimt_api --format '{{with .UpdateStatus}}{{.State}}{{end}}'"
    settled = on_droplet(shown).strip() in ("", "completed")
    return settled and (runs("droplet"), runs("droplet-2")) == (1, 1)


@pytest.fixture(scope="module")
def two() -> Iterator[None]:
    """Two replicas of the api, and web for the manager, as a merge makes them; at the end the file as it was."""
    before = COMPOSE.read_text()
    try:
        text, api, rest = before.partition("\n  api:\n")
        assert api, "the api is not where it was"
        rest, web, more = rest.partition("\n  web:\n")
        rest = re.sub(r"(replicas: )1\b", r"\g<1>2", rest, count=1)
        more = more.replace("    deploy:\n", f"    deploy:\n      {PLACED}\n", 1)
        COMPOSE.write_text(text + api + rest + web + more)
        done = make("services", timeout=2 * GENEROUS)
        assert done.returncode == 0
        assert make("nodes", "RETURN=droplet-2").returncode == 0
        eventually(spread, "one api on each node", GENEROUS)
        yield
    finally:
        COMPOSE.write_text(before)
        make("services", timeout=2 * GENEROUS)


def test_both_are_as_declared_and_stay_so() -> None:
    """The same audit for both; a second provision finds nothing to do."""
    assert make("audit").returncode == 0
    assert make("audit", "HOST=droplet-2").returncode == 0
    done = make("provision", timeout=2 * GENEROUS)
    assert done.returncode == 0
    assert re.findall(r"changed=(\d+)", done.stdout) == ["0", "0"]


def test_a_node_reaches_what_nodes_need_and_no_more() -> None:
    """From the other machine of the network: Swarm, SSH and the web, and by IPv6 no Swarm."""
    asked = KNOCK.replace("ADDRESSES", repr(ADDRESSES)).replace("PORTS", repr(PORTS))
    four, six = ADDRESSES
    assert json.loads(on_droplet(asked, timeout=GENEROUS, node=2)) == {
        four: [22, 80, 443, 2377, 7946],
        six: [22, 80, 443],
    }


def test_a_panels_own_deploy_moves_nothing(two: None) -> None:
    """Somebody presses Deploy: the panel writes the service without its nodes, and they are back."""

    def kept() -> int:
        said = on_droplet("journalctl --no-pager --unit=cimt-placement --output=cat")
        return len(re.findall("^cimt_web: .*: kept$", said, re.MULTILINE))

    before = kept()
    assert runs("droplet", "cimt_web") == 1
    panel("deployAppService", {**APP, "serviceName": "web"})
    eventually(lambda: kept() > before, "its nodes again", 120)
    eventually(lambda: runs("droplet", "cimt_web") == 1, "web runs where it may", GENEROUS)
    assert runs("droplet-2", "cimt_web") == 0
    shown = "docker service inspect cimt_web --format '{{json .Spec.TaskTemplate.Placement}}'"
    assert "node.role==manager" in on_droplet(shown)


def test_a_release_over_two_nodes_loses_no_request(two: None) -> None:
    """Swarm replaces one task after the other, wherever it is; the worker pulls by itself."""
    image = variant(built(), 7, GOOD)
    with Traffic(Client()) as traffic:
        assert release(image).returncode == 0
    traffic.assert_no_gap()


def test_a_node_is_emptied_and_used_again(two: None) -> None:
    """Swarm may have put both replicas onto it, and would end them before others run."""
    with Traffic(Client()) as traffic:
        assert make("nodes", "DRAIN=droplet-2").returncode == 0
        assert (runs("droplet"), runs("droplet-2")) == (2, 0)
        assert make("nodes", "RETURN=droplet-2").returncode == 0
        eventually(spread, "one api on each node", GENEROUS)
    traffic.assert_no_gap()
    assert "is the manager" in make("nodes", "DRAIN=droplet").stdout


def test_a_killed_node_is_missed_for_seconds(two: None) -> None:
    """Until Swarm misses it, what it is asked is lost; then all is well, and it comes back by itself."""
    worker = load(running=True).of_each_node()[1]
    with Traffic(Client()) as traffic:
        os.kill(machine.running_pid(worker), signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: runs("droplet") == 2, "both on the manager", GENEROUS)
        away = time.monotonic() - killed
        time.sleep(5)
        lost = len(traffic.failures)
        answered = traffic.answered
        time.sleep(60)
        late = traffic.failures[lost:]
        assert late == [], "requests still go to a node that is gone"
        assert traffic.answered > answered
    print(f"the killed node's work ran elsewhere after {away:.0f} s; {lost} requests were lost")
    subprocess.run(
        [sys.executable, "-m", "local", "droplet", "--node", "2"],
        cwd=ROOT,
        check=True,
        timeout=GENEROUS,
    )
    ready = "docker node inspect droplet-2 --format '{{.Status.State}}'"
    eventually(lambda: on_droplet(ready).strip() == "ready", "the node is back", GENEROUS)
    assert make("audit", "HOST=droplet-2").returncode == 0
    assert Client(DOMAIN).request("GET", "/healthz").status_code == 200


def test_a_swarm_that_was_made_without_a_private_network(two: None) -> None:
    """As docs/scaling.md says: it is told, and what is to be typed then makes one that has its workers."""
    # As the panel's own set-up makes one; networks of Swarm's own choice would cut the droplet from its registry.
    pool = "--default-addr-pool 10.200.0.0/16 --default-addr-pool-mask-length 24"
    on_droplet(f"docker swarm leave --force && docker swarm init --advertise-addr 10.0.2.15 {pool}")
    done = make("provision", timeout=2 * GENEROUS)
    assert done.returncode != 0
    chapter = "A Swarm that was made without a private network"
    assert chapter in done.stdout
    assert f"### {chapter}" in (ROOT / "docs/scaling.md").read_text()
    assert make("backup").returncode == 0
    on_droplet("docker swarm leave --force")
    assert make("provision", timeout=2 * GENEROUS).returncode == 0
    assert make("deploy", timeout=2 * GENEROUS).returncode == 0
    assert make("nodes", "RETURN=droplet-2").returncode == 0
    eventually(spread, "one api on each node", GENEROUS)


def test_the_manager_is_lost(two: None) -> None:
    """Its disk too. Another one comes as docs/operations/recovery.md says, and the worker joins its Swarm."""
    assert make("backup").returncode == 0
    ledger = on_droplet("cat /var/lib/cimt/releases.jsonl")
    settings = load(running=True)
    answered_by = (settings.droplet / "host_ed25519.pub").read_text()
    os.kill(machine.running_pid(settings), signal.SIGKILL)
    lost = time.monotonic()
    eventually(lambda: not machine.running_pid(settings), "the manager is gone", 30)
    shutil.rmtree(settings.droplet)
    subprocess.run(
        [sys.executable, "-m", "local", "droplet"],
        cwd=ROOT,
        check=True,
        timeout=2 * GENEROUS,
    )
    assert make("provision", timeout=2 * GENEROUS).returncode == 0
    assert make("restore", "WHAT=host", "INTO=local").returncode == 0
    key = (settings.droplet / "id_ed25519").read_text()
    machine.log_in_by(settings, key, " ".join(answered_by.split()[:2]))
    assert on_droplet("cat /var/lib/cimt/releases.jsonl") == ledger
    assert make("backup").returncode == 0
    assert make("deploy", timeout=2 * GENEROUS).returncode == 0
    assert Client(DOMAIN).request("GET", "/healthz").status_code == 200
    print(f"a lost manager: {time.monotonic() - lost:.0f} s until another one served")
    assert make("nodes", "RETURN=droplet-2").returncode == 0
    eventually(spread, "one api on each node", GENEROUS)
    assert make("audit").returncode == 0
    assert make("audit", "HOST=droplet-2").returncode == 0
