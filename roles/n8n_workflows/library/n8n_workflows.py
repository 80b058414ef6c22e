"""Ansible module: the workflows and credentials of a running n8n are those of the repository."""

from __future__ import annotations

import difflib
import hashlib
import json
import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.easypanel import failures, host_lock, write_file
from ansible.module_utils.n8n_api import Api, N8nError, container_pid, volume_key
from ansible.module_utils.n8n_files import (
    FilesError,
    credentials,
    normal,
    publish_order,
    render,
    settings_for_update,
    text,
)

DOCUMENTATION = r"""
module: n8n_workflows
short_description: Converge workflows and credentials of n8n
description:
  - Reads what n8n has by its public API, writes only what differs, publishes, and waits until it is in force.
  - Credentials travel from memory to n8n; no file is made. n8n gives their values to nobody, so a salted hash of
    what was written last is kept on the host.
  - What was made in the editor and stands in no file is left alone and reported.
  - C(state=key) only compares the encryption key with the one on the volume, before n8n is started with it.
options:
  state: {type: str, default: present, choices: [present, key], description: What to do.}
  workflows: {type: list, elements: dict, default: [], description: Workflows as the files hold them.}
  settings: {type: dict, default: {}, description: "Per workflow id what replaces values of its node Settings."}
  credentials: {type: list, elements: dict, default: [], description: As services/n8n/credentials.yaml holds them.}
  secrets: {type: dict, default: {}, description: Values for the variables in the credentials.}
  service: {type: str, default: "", description: Swarm service of n8n; empty for an n8n on this host itself.}
  port: {type: int, default: 5678, description: Port on which n8n listens.}
  volume: {type: path, default: "", description: "Where n8n's volume is on this host (C(state=key))."}
  encryption_key: {type: str, default: "", description: "Key that n8n shall start with (C(state=key))."}
  owner_email: {type: str, default: "", description: E-mail address of the owner.}
  owner_password: {type: str, default: "", description: Password of the owner; used when there is no working API key.}
  state_directory: {type: path, default: "", description: "Holds the lock, the API key and the hashes; root only."}
  who: {type: str, default: "", description: Who is shown as the holder of the lock.}
  timeout: {type: int, default: 600, description: Seconds to wait for n8n to be ready.}
author: ["CIMT contributors"]
"""

EXAMPLES = r"""
- name: Workflows as the files say
  n8n_workflows:
    workflows: "{{ workflows }}"
    credentials: "{{ credentials }}"
    secrets: "{{ secrets }}"
    service: cimt_n8n
    owner_email: ops@example.com
    owner_password: "{{ password }}"
    state_directory: /var/lib/cimt
    who: ops
"""

RETURN = r"""
changes: {type: list, elements: str, returned: always, description: What differs or was done.}
unmanaged: {type: list, elements: str, returned: always, description: What n8n has and no file names.}
"""

IN_FORCE_SECONDS = 120  # n8n registers a published workflow shortly after it said yes


class Convergence:
    """n8n as it is, n8n as it shall be, and the way from one to the other."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.state = pathlib.Path(self.params["state_directory"])
        self.changes: list[str] = []
        self.unmanaged: list[str] = []
        self.diff: list[dict[str, str]] = []
        self.docker = module.get_bin_path("docker")  # not there yet in a plan of a bare droplet
        self.api = Api(self.params["port"], self._container if self.params["service"] else None)
        settings: dict[str, Any] = self.params["settings"]
        ids = {workflow["id"] for workflow in self.params["workflows"]}
        if unknown := sorted(set(settings) - ids):
            raise FilesError(f"settings for workflows that are in no file: {', '.join(unknown)}")
        self.workflows = publish_order(
            normal(render(workflow, settings.get(workflow["id"], {})))
            for workflow in self.params["workflows"]
        )
        self.credentials = credentials(self.params["credentials"], self.params["secrets"])

    def run(self) -> None:
        """Converge; in check mode only compare."""
        if self.module.check_mode and not self._there():
            self.changes.append("n8n does not run yet: everything would be made")
            self.diff += [shown("credential", one["name"], "", "new\n") for one in self.credentials]
            self.diff += [shown("workflow", one["name"], "", text(one)) for one in self.workflows]
            return
        self.api.wait(self.params["timeout"])
        if not self._sign_in():
            return
        self._converge_credentials()
        self._converge_workflows()

    def _container(self) -> int:
        if self.docker is None:
            raise N8nError("container", 0, "Docker is not installed. Next: make provision")
        return container_pid(self.module.run_command, self.docker, self.params["service"])

    def _there(self) -> bool:
        try:
            self.api.wait(5)
        except N8nError:
            return False
        return True

    # -- the key ----------------------------------------------------------------------

    def _sign_in(self) -> bool:
        """Have a working API key; False when check mode may not make one."""
        path = self.state / "n8n.api-key"
        if path.exists():
            self.api.key = path.read_text().strip()
            if self.api.key_works():
                return True
        self.changes.append("an API key for this role")
        if self.module.check_mode:
            self.changes.append("without a key nothing could be compared")
            return False
        try:
            self.api.key = self.api.new_key(
                self.params["owner_email"], self.params["owner_password"]
            )
        except N8nError as error:
            if error.status != 401:
                raise
            raise N8nError(
                "sign in",
                401,
                f"{self.params['owner_email']} or its password is not accepted. Next: make services "
                "(n8n takes the owner from its environment when it starts); then compare "
                "N8N_INSTANCE_OWNER_PASSWORD_HASH in the panel, dollar signs included",
            ) from None
        write_file(str(path), self.api.key + "\n")
        return True

    # -- credentials ------------------------------------------------------------------

    def _converge_credentials(self) -> None:
        path = self.state / "n8n.credentials.json"
        try:
            known: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        salt = known.get("salt") or secrets.token_hex(16)
        running = {one["id"]: one for one in self.api.all("/credentials")}
        for one in self.credentials:
            wanted = json.dumps([salt, one["name"], one["type"], one["data"]], sort_keys=True)
            digest = hashlib.sha256(wanted.encode()).hexdigest()
            now = running.pop(one["id"], None)
            before = known.get(one["id"]) or {}
            if now and before.get("digest") == digest and before.get("updated") == now["updatedAt"]:
                continue
            reason = "new" if now is None else "secret or name changed"
            if now and before.get("digest") == digest:
                reason = "was edited in n8n"
            self.changes.append(f"credential {one['name']}: {reason}")
            self.diff.append(
                shown("credential", one["name"], "(hidden)\n" if now else "", f"({reason})\n")
            )
            if self.module.check_mode:
                continue
            if now:
                body = {key: one[key] for key in ("name", "type", "data")}
                now = self.api.call("PATCH", f"/credentials/{one['id']}", body)
            else:
                now = self.api.call("POST", "/credentials", one)
            known = {**known, "salt": salt}
            known[one["id"]] = {"digest": digest, "updated": now["updatedAt"]}
            write_file(str(path), json.dumps(known) + "\n")
        self.unmanaged += sorted(f"credential {one['name']}" for one in running.values())

    # -- workflows --------------------------------------------------------------------

    def _converge_workflows(self) -> None:
        running = {one["id"]: one for one in self.api.all("/workflows?excludePinnedData=true")}
        new = [one for one in self.workflows if one["id"] not in running]
        todo = []
        for one in self.workflows:
            now = running.pop(one["id"], None)
            if differences := self._compare(one, now):
                todo.append(one["id"])
                self.changes += [f"workflow {one['name']}: {what}" for what in differences]
                before = text(now) if now else ""
                if before != text(one):
                    self.diff.append(shown("workflow", one["name"], before, text(one)))
        self.unmanaged += sorted(
            f"workflow {one['name']} ({one['id']})"
            for one in running.values()
            if not one.get("isArchived")
        )
        if self.module.check_mode or not todo:
            return
        if new:
            self.api.create(new)
        for one in self.workflows:
            if one["id"] in todo:
                self._write(one)

    @staticmethod
    def _compare(wanted: Mapping[str, Any], now: Mapping[str, Any] | None) -> list[str]:
        """What is not as it should be, in words."""
        if now is None:
            return ["new"]
        differences = []
        if now.get("isArchived"):
            differences.append("was archived in n8n")
        if text(wanted) != text(now):
            differences.append("differs from its file")
        if not now.get("active"):
            differences.append("is not published")
        elif now.get("activeVersionId") != now.get("versionId"):
            differences.append("an older version is published")
        return differences

    def _write(self, wanted: dict[str, Any]) -> None:
        """Make one existing workflow what its file says, published, and see that it is."""
        path = f"/workflows/{wanted['id']}"
        now = self.api.call("GET", path)
        if now.get("isArchived"):
            self.api.call("POST", f"{path}/unarchive")
        if text({**wanted, "tags": []}) != text({**now, "tags": []}):
            body = {key: wanted[key] for key in ("name", "nodes", "connections")}
            self.api.call("PUT", path, {**body, "settings": settings_for_update(wanted, now)})
        if wanted["tags"] != normal(now)["tags"]:
            self.api.call(
                "PUT", f"{path}/tags", [{"id": self._tag(name)} for name in wanted["tags"]]
            )
        now = self.api.call("GET", path)
        if text(wanted) != text(now):
            lines = difflib.unified_diff(text(wanted).split("\n"), text(now).split("\n"), n=0)
            said = " ".join(line.strip() for line in list(lines)[2:6])
            raise N8nError(
                f"workflow {wanted['name']}",
                0,
                f"n8n did not keep what was written: {said[:300]}. "
                "Next: make n8n-pull, and commit what n8n made of it",
            )
        if not now["active"] or now.get("activeVersionId") != now["versionId"]:
            self.api.call("POST", f"{path}/publish", {})
        deadline = time.monotonic() + IN_FORCE_SECONDS
        while True:
            now = self.api.call("GET", path)
            left = self._compare(wanted, now) or self._deaf(wanted)
            if not left:
                return
            if time.monotonic() > deadline:
                raise N8nError(
                    f"workflow {wanted['name']}",
                    0,
                    f"published, but {'; '.join(left)}. Next: publish it in the editor, which says why",
                )
            time.sleep(0.5)

    def _tag(self, name: str) -> str:
        """Id of a tag; made when there is none."""
        for tag in self.api.all("/tags"):
            if tag["name"] == name:
                return str(tag["id"])
        return str(self.api.call("POST", "/tags", {"name": name})["id"])

    def _deaf(self, wanted: Mapping[str, Any]) -> list[str]:
        """Webhooks of a published workflow that are not registered yet."""
        return [
            f"webhook {node['parameters']['path']} does not answer yet"
            for node in wanted["nodes"]
            if node["type"] == "n8n-nodes-base.webhook"
            and not node.get("disabled")
            and not self.api.listens(
                node["parameters"]["path"], node["parameters"].get("httpMethod", "GET")
            )
        ]


def shown(kind: str, name: str, before: str, after: str) -> dict[str, str]:
    """One entry of the diff."""
    header = f"n8n {kind} {name}"
    return {"before_header": header, "after_header": header, "before": before, "after": after}


def check_key(module: AnsibleModule) -> None:
    """Fail when n8n would refuse to start on its volume, or when its key would be one that it made up itself."""
    volume, wanted = module.params["volume"], module.params["encryption_key"]
    if not wanted:
        module.fail_json(msg="N8N_ENCRYPTION_KEY is empty. Next: openssl rand -hex 32, and keep it")
    found = volume_key(volume)
    if found and found != wanted:
        module.fail_json(
            msg=f"N8N_ENCRYPTION_KEY is not the key that n8n's credentials in {volume} are encrypted with; "
            "nothing was changed, n8n runs on. Next: give the key of that volume (on the droplet: "
            f"sudo cat {volume}/config)"
        )
    module.exit_json(changed=False, changes=[], unmanaged=[])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "default": "present", "choices": ["present", "key"]},
            "workflows": {"type": "list", "elements": "dict", "default": []},
            "settings": {"type": "dict", "default": {}},
            "credentials": {"type": "list", "elements": "dict", "default": [], "no_log": False},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "service": {"type": "str", "default": ""},
            "port": {"type": "int", "default": 5678},
            "volume": {"type": "path", "default": ""},
            "encryption_key": {"type": "str", "default": "", "no_log": True},
            "owner_email": {"type": "str", "default": ""},
            "owner_password": {"type": "str", "default": "", "no_log": True},
            "state_directory": {"type": "path", "default": ""},
            "who": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    params = module.params
    with failures(module, "wait for it, then make n8n-workflows again", N8nError, FilesError):
        if params["state"] == "key":
            check_key(module)
        convergence = Convergence(module)
        if module.check_mode:
            convergence.run()
        else:
            # The same lock as releases: none of them shall restart n8n meanwhile.
            with host_lock(params["state_directory"], params["who"], "n8n workflows", wait=60):
                convergence.run()
    module.exit_json(
        changed=bool(convergence.changes),
        changes=convergence.changes,
        unmanaged=convergence.unmanaged,
        diff=convergence.diff,
    )


if __name__ == "__main__":
    main()
