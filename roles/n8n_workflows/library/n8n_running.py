"""Ansible module: the workflows that n8n has, as its public API returns them. Read-only."""

from __future__ import annotations

import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.n8n_api import Api, N8nError, container_pid

DOCUMENTATION = r"""
module: n8n_running
short_description: Read the workflows of a running n8n
description:
  - Uses the API key that the module C(n8n_workflows) keeps on the host. Changes nothing, and runs in check mode too.
options:
  service: {type: str, default: "", description: Swarm service of n8n; empty for an n8n on this host itself.}
  port: {type: int, default: 5678, description: Port on which n8n listens.}
  state_directory: {type: path, required: true, description: Holds the API key.}
author: ["CIMT contributors"]
"""

EXAMPLES = r"""
- name: Workflows of n8n
  n8n_running:
    service: cimt_n8n
    state_directory: /var/lib/cimt
"""

RETURN = r"""
workflows: {type: list, elements: dict, returned: success, description: Workflows, without pinned data.}
"""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "service": {"type": "str", "default": ""},
            "port": {"type": "int", "default": 5678},
            "state_directory": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    service = module.params["service"]
    docker = module.get_bin_path("docker", required=True) if service else ""
    api = Api(
        module.params["port"],
        (lambda: container_pid(module.run_command, docker, service)) if service else None,
    )
    key = pathlib.Path(module.params["state_directory"], "n8n.api-key")
    try:
        api.key = key.read_text(encoding="utf-8").strip()
        workflows = api.all("/workflows?excludePinnedData=true")
    except FileNotFoundError:
        module.fail_json(msg=f"there is no API key in {key}. Next: make n8n-workflows")
    except (N8nError, OSError) as error:
        module.fail_json(msg=f"{error}. Next: make n8n-workflows, then this again")
    module.exit_json(changed=False, workflows=workflows)


if __name__ == "__main__":
    main()
