#!/usr/bin/env python3
"""The second node of `make up NODES=2`, where there is one: an inventory, as Ansible asks programs for it."""

import json
from pathlib import Path

LAN = "10.120.0"  # local/droplet/machine.py
found: dict[str, object] = {"_meta": {"hostvars": {}}}
if (Path(__file__).parents[2] / ".local/droplet-2/state.json").exists():
    addresses = {"droplet": f"{LAN}.11", "droplet-2": f"{LAN}.12"}
    found = {
        "droplets": {
            "hosts": ["droplet"]
        },  # what is said of hosts counts for those that are listed here
        "workers": {"hosts": ["droplet-2"]},
        "_meta": {
            "hostvars": {
                name: {"ansible_host": name, "cluster_address": address}
                for name, address in addresses.items()
            }
        },
    }
print(json.dumps(found))
