"""The module that puts the panel's proxy behind Cloudflare's, on a folder that stands for the droplet's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.cloudflare.app import ALL_RIGHTS, Cloud
from local.cloudflare.origin import OriginCa
from testbed import modules
from testbed.served import served
from testbed.served_panel import ServedPanel

ROOT = Path(__file__).parents[2]
HOSTS = ["api.example.com", "app.example.com"]
NETWORKS = ["173.245.48.0/20", "2400:cb00::/32"]
BELIEVES = "TRAEFIK_ENTRYPOINTS_{}_FORWARDEDHEADERS_TRUSTEDIPS=173.245.48.0/20,2400:cb00::/32"
THEIRS = "http:\n  middlewares: {}\n"


class Droplet:
    """A panel, the folder of its proxy, and Cloudflare's authority."""

    def __init__(self, home: Path) -> None:
        self.panel = ServedPanel(home / "panel").start()
        self.folder = home / "traefik"
        self.folder.mkdir()
        self.ca = OriginCa()
        admin = {"email": "admin@example.com", "password": "long enough"}
        write = self.panel.panel.operations()
        write["setup"].run(write["setup"].body(**admin, subscribe=False, source="test", terms=True))
        token = write["login"].run(write["login"].body(**admin))["token"]
        (home / "token").write_text(token)
        self.token_file = home / "token"

    def edge(self, check: bool = False, **params: Any) -> dict[str, Any]:
        given = {"hosts": HOSTS, "trusted": NETWORKS, **params}
        return modules.run(
            "roles.easypanel.library.easypanel_edge",
            {
                "url": self.panel.url,
                "token_file": str(self.token_file),
                "folder": str(self.folder),
                "_ansible_check_mode": check,
                **given,
            },
        )

    def behind(self) -> dict[str, Any]:
        """Both calls of the role; what the second answers."""
        asked = self.edge()
        return self.edge(certificate=self.sign(asked["csr"]))

    def sign(self, csr: str, days: int = 5475, hosts: list[str] = HOSTS) -> str:
        return self.ca.sign(csr, hosts, "origin-ecc", days)[0]

    @property
    def proxy(self) -> dict[str, Any]:
        return dict(self.panel.panel.store.read()["proxy"])

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def droplet(tmp_path: Path) -> Iterator[Droplet]:
    made = Droplet(tmp_path)
    yield made
    made.panel.stop()
    assert made.panel.breaches == []


def test_a_droplet_that_was_never_behind_it_is_not_asked_anything(droplet: Droplet) -> None:
    done = droplet.edge(hosts=[], trusted=[])
    assert (done["changed"], droplet.panel.asked, droplet.files()) == (False, [], set())


def test_check_mode_says_what_it_would_do_and_makes_no_key(droplet: Droplet) -> None:
    done = droplet.edge(check=True)
    assert (done["changed"], done["csr"]) == (True, "")
    assert "a certificate of Cloudflare's Origin CA (0 days left)" in done["steps"]
    assert droplet.files() == set()
    assert droplet.proxy == {"config": "", "env": "", "restarts": 0}


def test_the_key_is_made_here_and_the_certificate_shown(droplet: Droplet) -> None:
    panel = droplet.panel.panel
    panel.set_proxy(config=THEIRS, env="TZ=UTC\r\nTRAEFIK_LOG_LEVEL=INFO")
    asked = droplet.edge()
    assert asked["csr"].startswith("-----BEGIN CERTIFICATE REQUEST-----")
    assert "cimt-origin" not in droplet.proxy["config"], (
        "nothing is shown before there is a certificate"
    )
    assert droplet.edge()["csr"], "killed in between, the waiting key is asked for again"
    done = droplet.edge(certificate=droplet.sign(asked["csr"]))
    assert done["days"] > 5400
    assert droplet.files() == {"cimt-origin.key", "cimt-origin.crt"}
    assert (droplet.folder / "cimt-origin.key").stat().st_mode & 0o777 == 0o600
    key = (droplet.folder / "cimt-origin.key").read_text()
    assert "PRIVATE KEY" in key
    assert key.splitlines()[1] not in asked["output"] + done["output"]
    assert droplet.proxy["config"].startswith(THEIRS)
    assert "certFile: /data/cimt-origin.crt" in droplet.proxy["config"]
    assert droplet.proxy["env"].splitlines() == [
        "TZ=UTC",
        "TRAEFIK_LOG_LEVEL=INFO",
        BELIEVES.format("HTTP"),
        BELIEVES.format("HTTPS"),
    ]
    again = droplet.edge()
    assert (again["changed"], again["csr"], droplet.proxy["restarts"]) == (False, "", 1)


def test_one_that_ends_soon_or_lacks_a_name_is_asked_for_again(droplet: Droplet) -> None:
    """Until the new one is there, the old one is shown: GitHub's runner cannot ask for it."""
    asked = droplet.edge()
    droplet.edge(certificate=droplet.sign(asked["csr"], days=30))
    soon = droplet.edge()
    assert (bool(soon["csr"]), soon["days"]) == (True, 29)
    assert "cimt-origin.crt" in droplet.proxy["config"]
    before = droplet.proxy["config"]
    droplet.edge(certificate=droplet.sign(soon["csr"]))
    assert droplet.proxy["config"] != before, (
        "the proxy reads its files again when its configuration changes"
    )
    more = droplet.edge(hosts=[*HOSTS, "n8n.example.com"])
    assert (bool(more["csr"]), more["days"]) == (True, 0)


def test_a_certificate_for_another_key_is_refused(droplet: Droplet, tmp_path: Path) -> None:
    asked = droplet.edge()
    other = droplet.sign(asked["csr"], hosts=["other.example.com"])
    done = droplet.edge(certificate=other)
    assert "not one for this droplet's key and names" in done["msg"]
    assert droplet.files() == {"cimt-origin.new.key"}


def test_doors_have_the_names_that_the_panel_gives_them(droplet: Droplet) -> None:
    (droplet.folder / "config").mkdir()
    routes = '{"http": {"routers": {"a": {"entryPoints": ["websecure"]}, "b": {"entryPoints": ["web"]}}}}'
    (droplet.folder / "config/main.yaml").write_text(routes)
    droplet.edge()
    assert droplet.proxy["env"].splitlines() == [
        BELIEVES.format("WEB"),
        BELIEVES.format("WEBSECURE"),
    ]


def test_the_way_back_leaves_what_is_somebody_elses(droplet: Droplet) -> None:
    droplet.panel.panel.set_proxy(config=THEIRS, env="TZ=UTC")
    droplet.behind()
    assert droplet.edge(check=True, hosts=[], trusted=[])["changed"] is True
    done = droplet.edge(hosts=[], trusted=[])
    assert done["changed"] is True
    assert (droplet.proxy["config"], droplet.proxy["env"], droplet.files()) == (
        THEIRS,
        "TZ=UTC",
        set(),
    )
    assert droplet.edge(hosts=[], trusted=[])["changed"] is False


PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: easypanel, tasks_from: edge}
"""


def test_the_role_takes_the_request_to_cloudflare_and_the_certificate_back(
    droplet: Droplet, tmp_path: Path
) -> None:
    """As `make provision` does it: the token stays where Ansible runs, the key on the droplet."""
    cloud, token = Cloud(), "t" * 40
    cloud.tokens[token] = ALL_RIGHTS
    cloud.add_zone("example.com")
    (tmp_path / "play.yml").write_text(PLAY)
    variables = {
        "easypanel_url": droplet.panel.url,
        "easypanel_token_file": str(droplet.token_file),
        "easypanel_proxy_folder": str(droplet.folder),
        "easypanel_origin_hosts": HOSTS,
        "easypanel_trusted_networks": NETWORKS,
        "ansible_python_interpreter": sys.executable,
    }
    command = ["ansible-playbook", "-i", "localhost,", "-e", json.dumps(variables), "play.yml"]
    said = []
    with served(cloud.application()) as port:
        for given in ("", token, ""):
            environment = {"CLOUDFLARE_API_URL": f"http://127.0.0.1:{port}/client/v4"}
            environment |= {
                "CLOUDFLARE_API_TOKEN": given,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            }
            done = subprocess.run(
                command,
                cwd=tmp_path,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
            )
            said.append(done.stdout + done.stderr)
            assert token not in said[-1]
    without, made, again = said
    assert "not set: CLOUDFLARE_API_TOKEN. Next: " in without
    assert "failed=0" in made, made
    assert droplet.files() == {"cimt-origin.key", "cimt-origin.crt"}
    assert "certFile: /data/cimt-origin.crt" in droplet.proxy["config"]
    assert "changed=0" in again, again
    assert "failed=0" in again


def test_a_section_of_somebody_else_is_never_written_over(droplet: Droplet) -> None:
    droplet.panel.panel.set_proxy(config="tls:\n  options: {}\n")
    done = droplet.behind()
    assert "a section tls of somebody else. Next: " in done["msg"]
    assert droplet.proxy["config"] == "tls:\n  options: {}\n"
