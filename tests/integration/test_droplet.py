"""`make droplet` and its sisters against the stand-in for DigitalOcean: the real verbs, and the module by itself."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.digitalocean.app import Api
from local.digitalocean.requests import SCOPES
from testbed import modules
from testbed.served import served
from testbed.tree import ROOT, copy_tree

TOKEN = "dop_v1_" + "a1" * 32
NAME = "cimt-production"
KINDS = ("droplets", "volumes", "reserved_ips", "firewalls", "ssh_keys", "projects")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("key") / "deploy"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.read_text()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone, set up."""
    folder = tmp_path_factory.mktemp("a folder with a space") / "clone"
    copy_tree(folder)
    (folder / "node_modules").mkdir()
    (folder / ".venv").symlink_to(Path(sys.prefix))
    return folder


class Account:
    """An account at DigitalOcean, and who works with it."""

    def __init__(self, api: Api, url: str, key: str) -> None:
        self.api, self.url, self.key = api, url, key

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def arguments(self, **given: Any) -> dict[str, Any]:
        return {
            "api_url": self.url,
            "token": TOKEN,
            "name": NAME,
            "environment": "production",
            "region": "fra1",
            "size": "s-2vcpu-2gb",
            "image": "ubuntu-22-04-x64",
            "admin": "cimt",
            "ssh_private_key": self.key,
            "volume_gb": 10,
            "alerts_to": "ann@example.com",
            **given,
        }

    def module(self, check: bool = False, **given: Any) -> dict[str, Any]:
        """What the module answers, without its patience."""
        arguments = {**self.arguments(**given), "_ansible_check_mode": check}
        done = modules.run(
            "plugins.modules.digitalocean",
            arguments,
            self.environment,
            **{"digitalocean_api.POLL": 0.01},
        )
        assert TOKEN not in done["output"]
        assert "PRIVATE KEY" not in done["output"]
        return done

    def refused(self, *words: str, **given: Any) -> None:
        """The module refuses, in one line with the next step, and has changed nothing."""
        before = len(self.api.seen)
        done = self.module(**given)
        assert done.get("failed"), done
        assert "Next: " in done["msg"]
        assert "\n" not in done["msg"]
        assert all(word in done["msg"] for word in words), done["msg"]
        assert len(self.api.seen) == before

    def count(self) -> dict[str, int]:
        return {kind: len(self.api.kept[kind]) for kind in KINDS}

    def droplet(self) -> dict[str, Any]:
        (one,) = self.api.kept["droplets"]
        return dict(one)

    def whole(self, **given: Any) -> None:
        """It is together, and nothing is left to do."""
        self.together()
        writes = len(self.api.seen)
        assert self.module(**given)["lines"] == []
        assert len(self.api.seen) == writes

    def together(self) -> None:
        """One of each, and each where it belongs."""
        assert self.count() == dict.fromkeys(KINDS, 1)
        droplet, (volume,) = self.droplet(), self.api.kept["volumes"]
        (address,), (project,) = self.api.kept["reserved_ips"], self.api.kept["projects"]
        assert (droplet["status"], droplet["locked"]) == ("active", False)
        assert volume["droplet_ids"] == [droplet["id"]]
        assert (address["droplet_id"], address["project_id"]) == (droplet["id"], project["id"])
        assert len(self.api.kept["policies"]) == 3


@pytest.fixture
def account(key: str) -> Iterator[Account]:
    api = Api()
    with served(api.application()) as port:
        yield Account(api, f"http://127.0.0.1:{port}", key)


def verb(
    account: Account, tree: Path, *words: str, **given: str
) -> subprocess.CompletedProcess[str]:
    """`make …` for production, in the clone; nobody answers at the made-up address, so it does not log in."""
    make = shutil.which("make")
    assert make
    known = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [
            *(make, "-s", "-o", ".venv/.installed", "-o", "node_modules/.installed"),
            *(*words, "ENV=production", "ARGS=-e '{\"droplet_connect\": false}'"),
        ],
        cwd=tree,
        env={
            **known,
            "NO_PROXY": "127.0.0.1",
            "CIMT_SECRETS": str(tree.parent / "secrets"),
            "DIGITALOCEAN_API_URL": account.url,
            "DIGITALOCEAN_TOKEN": TOKEN,
            "DROPLET_REGION": "fra1",
            "DROPLET_SSH_KEY": account.key,
            **given,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_verbs_from_nothing_to_nothing(account: Account, tree: Path) -> None:
    """Plan, make, again, resize, destroy: each shows first, and the file of the environment has what came of it."""
    values = tree / "production.env"
    values.unlink(missing_ok=True)
    plan = verb(account, tree, "droplet")
    assert plan.returncode == 0, plan.stdout + plan.stderr
    assert "18.00 USD a month" in plan.stdout
    assert "nothing was. Next: make droplet ENV=production CONFIRM=yes" in plan.stdout
    assert account.api.seen == []
    assert not values.exists()

    made = verb(account, tree, "droplet", "CONFIRM=yes")
    assert made.returncode == 0, made.stdout + made.stderr
    assert account.count() == dict.fromkeys(KINDS, 1)
    (address,) = account.api.kept["reserved_ips"]
    (six,) = account.droplet()["networks"]["v6"]
    kept = (
        f"DROPLET_HOST={address['ip']}\nDROPLET_IPV6={six['ip_address']}\nDROPLET_VOLUME={NAME}\n"
    )
    assert values.read_text() == kept

    writes = len(account.api.seen)
    again = verb(account, tree, "droplet", "CONFIRM=yes")
    assert "droplet: all is as it should be" in again.stdout, again.stdout + again.stderr
    assert re.search(r"localhost +: ok=\d+ +changed=0 ", again.stdout)
    assert len(account.api.seen) == writes

    resize = verb(account, tree, "droplet-resize", "SIZE=s-2vcpu-4gb")
    assert "18.00 USD a month" in resize.stdout, resize.stdout + resize.stderr
    assert "24.00 USD a month" in resize.stdout
    assert "disk stays 60 GB, so the way back is open" in resize.stdout
    assert len(account.api.seen) == writes

    other = verb(account, tree, "droplet-destroy", "NAME=cimt-prod")
    assert other.returncode != 0
    assert f"Next: NAME={NAME}" in other.stdout
    assert len(account.api.seen) == writes
    gone = verb(account, tree, "droplet-destroy", f"NAME={NAME}")
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert account.count() == {**dict.fromkeys(KINDS, 1), "droplets": 0}
    assert values.read_text() == kept
    said = "".join(done.stdout + done.stderr for done in (plan, made, again, resize, other, gone))
    assert TOKEN not in said
    assert "PRIVATE KEY" not in said


def test_what_is_made_is_what_is_declared(account: Account) -> None:
    account.module(backups="weekly")
    account.whole(backups="weekly")
    droplet = account.droplet()
    assert {"ipv6", "monitoring", "backups"} == set(droplet["features"])
    assert droplet["policy"]["plan"] == "weekly"
    config = yaml.safe_load(droplet["user_data"])
    (admin,) = config["users"]
    public = account.api.kept["ssh_keys"][0]["public_key"].split()[:2]
    assert admin["name"] == "cimt"
    assert [one.split()[:2] for one in admin["ssh_authorized_keys"]] == [public]
    assert config["disable_root"] is True
    # The first connection knows the host key of the user data, here and on any other machine with that secret.
    assert config["ssh_keys"]["ed25519_public"] == account.module()["first_host_key"]
    (firewall,) = account.api.kept["firewalls"]
    assert firewall["tags"] == [NAME]
    assert firewall["droplet_ids"] == []
    inward = {(rule["protocol"], rule["ports"]) for rule in firewall["inbound_rules"]}
    assert inward == {("tcp", "22"), ("tcp", "80"), ("tcp", "443"), ("icmp", "0")}
    outward = {(rule["protocol"], rule["ports"]) for rule in firewall["outbound_rules"]}
    assert outward == {("tcp", "0"), ("udp", "0"), ("icmp", "0")}
    # It is there before what it protects.
    paths = [path for _, path, _ in account.api.seen]
    assert paths.index("/v2/firewalls") < paths.index("/v2/droplets")


def test_killed_at_any_point_and_run_again_it_is_one_and_whole(key: str) -> None:
    number = 0
    while True:
        number += 1
        api = Api()
        with served(api.application()) as port:
            account = Account(api, f"http://127.0.0.1:{port}", key)
            program = [sys.executable, "-m", "testbed.modules", "plugins.modules.digitalocean"]
            process = subprocess.Popen(
                program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                env=account.environment,
            )

            def kill(*_: str, api: Api = api, process: Any = process, after: int = number) -> None:
                if len(api.seen) == after:
                    process.send_signal(signal.SIGKILL)
                    process.wait(30)

            api.after = kill
            given = modules.json.dumps([account.arguments(), {"digitalocean_api.POLL": 0.01}])
            process.communicate(given.encode(), timeout=120)
            killed = process.returncode == -signal.SIGKILL
            api.after = lambda *_: None
            assert killed or process.returncode == 0
            done = account.module()
            assert not done.get("failed"), f"after {number} calls: {done}"
            account.together()  # the module itself has looked again
        if not killed:
            break
    assert number > 10


def test_two_at_once_make_one(account: Account) -> None:
    """Both are held at the droplet until both are there: neither has seen the other's."""
    both = threading.Barrier(2)

    def together(method: str, path: str) -> None:
        if (method, path) == ("POST", "/v2/droplets"):
            both.wait(60)

    account.api.before = together
    done: list[dict[str, Any]] = []
    runs = [threading.Thread(target=lambda: done.append(account.module())) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert ("DELETE", "/v2/droplets") in {
        (method, path.rpartition("/")[0]) for method, path, _ in account.api.seen
    }
    assert [one for one in done if one.get("failed")] == []
    assert len({one["droplet_id"] for one in done}) == 1
    assert len({one["address"] for one in done}) == 1
    account.api.before = lambda *_: None
    assert len(account.api.kept["droplets"]) == 1
    assert len(account.api.kept["reserved_ips"]) == 1


@pytest.mark.parametrize("lacking", ["sizes:read", "droplet:create", "block_storage_action:create"])
def test_a_token_without_a_scope_is_told_which(account: Account, lacking: str) -> None:
    account.api.tokens = {TOKEN: SCOPES - {lacking}}
    done = account.module()
    assert f"a token with the scope {lacking} too" in done["msg"]
    account.api.tokens = {}
    account.module()
    account.whole()


def test_a_token_that_has_ended_is_named(account: Account) -> None:
    account.api.tokens = {"dop_v1_another": None}
    account.refused("401", "DIGITALOCEAN_TOKEN=")


def test_it_waits_as_long_as_it_is_told_and_no_longer(account: Account) -> None:
    account.api.busy = 2
    assert not account.module(check=True).get("failed")
    account.api.busy, account.api.retry_after = 1, "3000"
    account.refused("too many calls", "50 minutes")


def test_a_server_that_fails_is_asked_again_but_makes_nothing_twice(account: Account) -> None:
    account.api.broken = {"GET /v2/tags": 2, "POST /v2/droplets": 1}
    done = account.module()
    assert "POST /v2/droplets: 503" in done["msg"]
    assert "it goes on where it stopped" in done["msg"]
    assert account.count()["droplets"] == 1  # it was made, and the answer was lost
    account.module()
    account.whole()


def test_names_that_match_twice_stop(account: Account) -> None:
    account.module()
    (droplet,) = account.api.kept["droplets"]
    old = "2026-01-01T00:00:00Z"
    account.api.kept["droplets"].append({**droplet, "id": 77, "created_at": old})
    droplet["created_at"] = old
    account.refused("there are 2 droplets called", "77", "delete all but the right one")


def test_what_is_somebody_elses_stays(account: Account) -> None:
    account.module()
    (droplet,), (volume,) = account.api.kept["droplets"], account.api.kept["volumes"]
    droplet["tags"] = ["theirs"]
    account.refused("is not ours", "give it that tag")
    droplet["tags"] = [NAME]
    other = {**droplet, "id": 77, "name": "theirs", "tags": []}
    account.api.kept["droplets"].append(other)
    volume["droplet_ids"] = [77]
    account.refused(f"volume {NAME} is on the droplet 77", "detach it there")
    volume["droplet_ids"] = [droplet["id"]]
    account.api.kept["reserved_ips"][0]["droplet_id"] = 77
    account.refused("leads to the droplet theirs", "unassign it")


def test_what_cannot_change_in_place_is_told_and_never_done(account: Account) -> None:
    account.module()
    writes = len(account.api.seen)
    done = account.module(
        region="nyc3",
        image="ubuntu-24-04-x64",
        size="s-2vcpu-4gb",
        volume_gb=5,
        monitoring=False,
    )
    assert done["changed"] is False
    assert len(account.api.seen) == writes
    told = "\n".join(done["lines"])
    assert "! region: fra1, not nyc3: needs a new droplet" in told
    assert "! image: ubuntu-22-04-x64, not ubuntu-24-04-x64: needs a new droplet" in told
    assert "! size: s-2vcpu-2gb, not s-2vcpu-4gb. Next: make droplet-resize" in told
    assert "! monitoring: on, not off: needs a new droplet" in told
    assert "! volume: 10 GB, not 5: it only grows" in told


def test_what_can_change_in_place_is_changed(account: Account) -> None:
    account.module(ipv6=False)
    (firewall,) = account.api.kept["firewalls"]
    firewall["inbound_rules"][0]["ports"] = "1-65535"
    account.api.kept["policies"][0]["enabled"] = False
    account.droplet()["features"].clear()
    done = account.module(volume_gb=20, backups="daily", udp_ports=[443])
    assert not done.get("failed"), done
    told = "\n".join(done["lines"])
    assert "~ firewall" in told
    assert "~ alert" in told
    assert "~ IPv6: off → on" in told
    assert account.api.kept["volumes"][0]["size_gigabytes"] == 20
    assert account.droplet()["policy"]["plan"] == "daily"
    assert {rule["ports"] for rule in firewall["inbound_rules"]} == {"22", "80", "443", "0"}
    assert account.module(volume_gb=20, backups="weekly", udp_ports=[443])["count"] == 2
    # Other nodes of its Swarm, by the tag that they share, and by that alone.
    assert account.module(volume_gb=20, backups="weekly", udp_ports=[443], nodes=True)["count"] == 1
    (firewall,) = account.api.kept["firewalls"]
    by_tag = {
        (one["protocol"], one["ports"])
        for one in firewall["inbound_rules"]
        if one["sources"].get("tags") == [NAME]
    }
    assert by_tag == {("tcp", "2377"), ("tcp", "7946"), ("udp", "7946"), ("udp", "4789")}
    assert account.droplet()["policy"]["plan"] == "weekly"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": "s-9vcpu-9gb"}, ["no size of DigitalOcean's", "s-1vcpu-2gb 12.00 USD"]),
        ({"size": "s-4vcpu-8gb", "region": "lon1"}, ["not sold in lon1"]),
        ({"image": "ubuntu-20-04-x64"}, ["is retired", "ubuntu-24-04-x64"]),
        ({"ssh_private_key": "none"}, ["DROPLET_SSH_KEY", "ssh-keygen"]),
        ({"api_url": "http://192.0.2.1"}, ["in the clear"]),
    ],
)
def test_what_would_be_refused_in_the_middle_is_refused_before(
    account: Account, given: dict[str, str], words: list[str]
) -> None:
    account.refused(*words, **given)


def test_resize_goes_there_and_back_and_on_from_where_it_was_killed(account: Account) -> None:
    account.module()
    done = account.module(state="resized", size="s-2vcpu-4gb")
    assert not done.get("failed"), done
    droplet = account.droplet()
    assert (droplet["size_slug"], droplet["disk"], droplet["status"]) == (
        "s-2vcpu-4gb",
        60,
        "active",
    )
    assert account.module(state="resized", size="s-2vcpu-4gb")["lines"] == []
    account.module(state="resized", size="s-2vcpu-2gb")
    assert account.droplet()["size_slug"] == "s-2vcpu-2gb"
    account.api.kept["droplets"][0]["status"] = "off"  # killed after it was shut down
    grown = account.module(state="resized", size="s-2vcpu-4gb", disk=True)
    assert "for ever" in "\n".join(grown["lines"])
    droplet = account.droplet()
    assert (droplet["disk"], droplet["status"]) == (80, "active")
    account.refused("a disk never shrinks", state="resized", size="s-2vcpu-2gb")
    account.refused("no size of DigitalOcean's", state="resized", size="big")


def test_destroy_keeps_volume_and_address_for_the_next_droplet(account: Account) -> None:
    first = account.module()
    (volume,) = account.api.kept["volumes"]
    done = account.module(state="absent")
    assert not done.get("failed"), done
    assert account.count() == {**dict.fromkeys(KINDS, 1), "droplets": 0}
    assert f"= volume {NAME} stays" in "\n".join(done["lines"])
    second = account.module()
    account.whole()
    assert second["droplet_id"] != first["droplet_id"]
    assert second["first_host_key"] != first["first_host_key"]
    assert second["address"] == first["address"]
    assert account.api.kept["volumes"] == [volume]
    account.refused("neither volume nor address", state="absent", also=["all"])
    assert not account.module(state="absent", also=[NAME, first["address"]]).get("failed")
    assert account.count() == {
        **dict.fromkeys(KINDS, 1),
        **dict.fromkeys(("droplets", "volumes", "reserved_ips"), 0),
    }
    assert account.module(state="absent")["lines"] == []


def test_the_list_goes_on_over_its_pages(account: Account) -> None:
    filler = [{"name": f"other-{number}", "resources": {}} for number in range(45)]
    account.api.kept["tags"] = [*filler]
    account.module()
    account.whole()
