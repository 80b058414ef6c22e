"""The files that the host roles write, judged by the programs that read them: nft, and sshd's own words.

The policy is also tried: three network namespaces stand for a client, the droplet and a container, and the kernel decides.
Needs root, nft, ip and iptables-free kernels: the same as the local droplet.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

ROLES = Path(__file__).parents[2] / "roles"
PLUGINS: list[None] = []


def defaults(role: str) -> dict[str, Any]:
    return yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text(encoding="utf-8"))


def render(role: str, template: str, **overrides: Any) -> str:
    """The template of a role, rendered by Ansible's own engine over the role's defaults."""
    if not PLUGINS:
        init_plugin_loader()
        PLUGINS.append(None)
    values = {**defaults(role), **overrides}
    assert set(overrides) <= set(defaults(role)), "a scenario sets only what the role takes"
    text = (ROLES / role / "templates" / template).read_text(encoding="utf-8")
    templar = Templar(loader=DataLoader(), variables=values)
    return str(templar.template(trust_as_template(text)))


