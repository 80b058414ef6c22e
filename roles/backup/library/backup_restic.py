"""Ansible module: restic's own release, of one version, where the distribution's is too old."""

from __future__ import annotations

import bz2
import hashlib
import os
import pathlib

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

DOCUMENTATION = r"""
module: backup_restic
short_description: Install a release of restic, by its checksum
description:
  - Downloads the archive when what is installed was not made from it, and compares its SHA-256 before it is unpacked.
options:
  url: {type: str, required: true, description: Where the archive (bzip2) is.}
  sha256: {type: str, required: true, description: Its SHA-256 in hexadecimal digits.}
  path: {type: path, required: true, description: Where the program goes; beside it, what it was made from.}
author: ["CIMT contributors"]
"""

EXAMPLES = r"""
- name: Release of restic
  backup_restic:
    url: "https://example.com/restic_{{ version }}_linux_amd64.bz2"
    sha256: "{{ sha256 }}"
    path: /usr/local/bin/restic
"""

RETURN = r""" # """


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "sha256": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    url, wanted = module.params["url"], module.params["sha256"]
    path = pathlib.Path(module.params["path"])
    made_from = path.with_name(f".{path.name}.sha256")
    there = made_from.read_text().strip() if path.exists() and made_from.exists() else ""
    changed = there != wanted
    if changed and not module.check_mode:
        try:
            archive = open_url(url, timeout=60).read()
        except OSError as error:
            module.fail_json(
                msg=f"{url}: {error}. Next: is it within the droplet's reach? Else set backup_restic_uri"
            )
        found = hashlib.sha256(archive).hexdigest()
        if found != wanted:
            module.fail_json(
                msg=f"{url} has SHA-256 {found}, not {wanted}. Nothing was installed. "
                "Next: set backup_restic_sha256 to what restic's signed SHA256SUMS says of backup_restic_version"
            )
        beside = path.with_name(f".{path.name}.cimt")
        beside.write_bytes(bz2.decompress(archive))
        beside.chmod(0o755)
        os.replace(beside, path)
        made_from.write_text(f"{wanted}\n")
    module.exit_json(
        changed=changed, diff={"before": f"{there or 'none'}\n", "after": f"{wanted}\n"}
    )


if __name__ == "__main__":
    main()
