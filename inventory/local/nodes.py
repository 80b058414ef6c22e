#!/usr/bin/env python3
"""The nodes of `make up NODES=2`, where there are two: an inventory, as Ansible asks programs for it."""

import json
from pathlib import Path

LOCAL = Path(__file__).parents[2] / ".local"
found: dict[str, object] = {"_meta": {"hostvars": {}}}
if (LOCAL / "droplet-2/state.json").exists():
    names = ("droplet", "droplet-2")
    lan = {name: json.loads((LOCAL / name / "state.json").read_text())["lan"] for name in names}
    said = {name: {"ansible_host": name, "cluster_address": lan[name]} for name in names}
    # What is said of a host counts where the same answer lists it, so the droplet is named here too.
    groups = {"droplets": {"hosts": names[:1]}, "workers": {"hosts": names[1:]}}
    found = {**groups, "_meta": {"hostvars": said}}
print(json.dumps(found))
