"""Ansible module: the apps of one panel project are what the Compose file declares."""

from __future__ import annotations

import pathlib
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.easypanel import (
    LOCK_ARGUMENTS,
    PANEL_ARGUMENTS,
    Panel,
    failures,
    host_lock,
    open_panel,
    write_file,
)
from ansible.module_utils.release_ledger import Ledger, overtaken

DOCUMENTATION = r"""
module: easypanel_apps
short_description: Converge the apps of a panel project
description:
  - Reads what the panel has, writes only what differs, reads again to verify.
  - The panel drops unknown keys silently and wipes fields that a write leaves out.
  - An app whose image is released by digest keeps the image it has.
  - An app, a domain or a mount that the file does not name is left alone and reported.
options:
  project: {type: str, required: true, description: Name of the panel project; created when missing.}
  apps: {type: list, elements: dict, required: true, description: Apps as the filter panel_apps gives them.}
  secret_env: {type: dict, default: {}, description: Per app the environment values that must never be shown.}
  registry_username: {type: str, default: "", description: User that may pull the images of our registry.}
  registry_password: {type: str, default: "", description: Its password or token.}
  url: {type: str, required: true, description: Where the panel answers on this host.}
  token_file: {type: path, required: true, description: File with the panel's API token.}
  state_directory: {type: path, required: true, description: Holds the lock and the note of an unfinished change.}
  who: {type: str, required: true, description: Who is shown as the holder of the lock.}
  lock_wait: {type: int, default: 0, description: Seconds to wait for a release that is under way.}
  newer: {type: list, elements: str, default: [], description: While one of these revisions serves nothing is changed.}
author: ["CIMT contributors"]
"""

EXAMPLES = r"""
- name: Apps as declared
  easypanel_apps:
    project: cimt
    apps: "{{ (compose_text | panel_apps(values, secrets)).apps }}"
    secret_env: "{{ (compose_text | panel_apps(values, secrets)).secret_env }}"
    url: http://127.0.0.1:3000
    token_file: /etc/cimt/easypanel.token
    state_directory: /var/lib/cimt
    who: ops
"""

RETURN = r"""
locked: {type: bool, returned: when another run holds the lock, description: Always true.}
changes: {type: list, elements: str, returned: success, description: "What differs, as app.field."}
unmanaged: {type: list, elements: str, returned: success, description: What the panel has and the file does not name.}
"""

# Seconds; the panel answers a deploy only when it has finished. An emulated droplet pulls n8n for ten minutes.
DEPLOY_TIMEOUT = 1800


class App:
    """One declared app, and what the panel has of it."""

    def __init__(
        self, panel: Panel, project: str, declared: dict[str, Any], secret: dict[str, str]
    ) -> None:
        self.panel = panel
        self.name: str = declared["name"]
        self.key = {"projectName": project, "serviceName": self.name}
        self.declared = declared
        self.secret = secret
        self.exists = False
        self.observed: dict[str, Any] = {}

    def read(self) -> None:
        """Fill ``observed`` with the panel's state, in the shape of ``wanted``."""
        panel_app = self.panel.read("inspectAppService", **self.key)
        self.exists = True
        source = panel_app.get("source") or {}
        deploy = panel_app.get("deploy") or {}
        self.observed = {
            "image": source.get("image", ""),
            "registry": (source.get("username") or "", source.get("password") or ""),
            "env": parse_env(panel_app.get("env") or ""),
            "deploy": {
                "replicas": deploy.get("replicas", 1),
                "command": deploy.get("command"),
                "zeroDowntime": deploy.get("zeroDowntime", True),
                "capAdd": deploy.get("capAdd") or [],
                "capDrop": deploy.get("capDrop") or [],
            },
            "resources": {
                name: float(value or 0)
                for name, value in (panel_app.get("resources") or {}).items()
            },
            "mounts": panel_app.get("mounts") or [],
            "domains": [
                domain
                for domain in self.panel.read("listDomains", **self.key)
                if (domain.get("serviceDestination") or {}).get("serviceName") == self.name
                and domain["serviceDestination"].get("projectName") == self.key["projectName"]
            ],
        }

    def wanted(self, credentials: tuple[str, str]) -> dict[str, Any]:
        """The declared state; mounts and domains that the file does not name stay as they are."""
        declared = self.declared
        mounts = [dict(mount) for mount in self.observed.get("mounts", [])]
        targets = {mount["mountPath"]: index for index, mount in enumerate(mounts)}
        for mount in declared["mounts"]:
            if mount["mountPath"] in targets:
                mounts[targets[mount["mountPath"]]] = mount
            else:
                mounts.append(mount)
        domains = [dict(domain) for domain in self.observed.get("domains", [])]
        for domain in declared["domains"]:
            same = next(
                (d for d in domains if (d["host"], d["path"]) == (domain["host"], domain["path"])),
                None,
            )
            if same is None:
                same = {
                    "id": "new",
                    "host": domain["host"],
                    "path": domain["path"],
                    "middlewares": [],
                    "certificateResolver": "",
                    "wildcard": False,
                }
                domains.append(same)
            same["https"] = domain["https"]
            same["destinationType"] = "service"
            same["serviceDestination"] = {
                **self.key,
                "protocol": domain["protocol"],
                "port": domain["port"],
                "path": "/",
            }
        return {
            "image": self.observed.get("image", "") if declared["released"] else declared["image"],
            "registry": credentials if declared["ours"] else ("", ""),
            "env": {**declared["env"], **self.secret},
            "deploy": {
                "replicas": declared["replicas"],
                "command": declared["command"],
                "zeroDowntime": declared["zero_downtime"],
                "capAdd": declared["cap_add"],
                "capDrop": declared["cap_drop"],
            },
            "resources": {name: float(value) for name, value in declared["resources"].items()},
            "mounts": mounts,
            "domains": domains,
        }

    def unmanaged(self) -> list[str]:
        """Mounts and domains that the file does not name."""
        mounts = {mount["mountPath"] for mount in self.declared["mounts"]}
        hosts = {(domain["host"], domain["path"]) for domain in self.declared["domains"]}
        return [
            *(
                f"{self.name}: mount {mount['mountPath']}"
                for mount in self.observed.get("mounts", [])
                if mount["mountPath"] not in mounts
            ),
            *(
                f"{self.name}: domain {domain['host']}{domain['path']}"
                for domain in self.observed.get("domains", [])
                if (domain["host"], domain["path"]) not in hosts
            ),
        ]

    def write(self, field: str, wanted: dict[str, Any]) -> None:
        """Write one field whole, as the panel wants it."""
        value = wanted[field]
        if field in ("image", "registry"):
            if not wanted["image"]:
                return  # nothing released yet: the release writes image and credentials together
            body = {"image": wanted["image"]}
            if wanted["registry"][0]:
                body |= {"username": wanted["registry"][0], "password": wanted["registry"][1]}
            self.panel.write("updateAppSourceImage", **self.key, **body)
        elif field == "env":
            text = "\n".join(f"{key}={text}" for key, text in value.items())
            self.panel.write("updateAppEnv", **self.key, env=text)
        elif field == "deploy":
            self.panel.write("updateAppDeploy", **self.key, deploy=value)
        elif field == "resources":
            self.panel.write("updateAppResources", **self.key, resources=value)
        elif field == "mounts":
            for index, mount in enumerate(value):
                if index >= len(self.observed["mounts"]):
                    self.panel.write("createMount", **self.key, values=mount)
                elif mount != self.observed["mounts"][index]:
                    self.panel.write("updateMount", **self.key, index=index, values=mount)
        elif field == "domains":
            known = {domain["id"]: domain for domain in self.observed["domains"]}
            for domain in value:
                if domain["id"] not in known:
                    self.panel.write("createDomain", **domain)
                elif domain != known[domain["id"]]:
                    self.panel.write("updateDomain", **domain)


def parse_env(text: str) -> dict[str, str]:
    """``KEY=value`` lines as the panel echoes them (it may answer with CRLF)."""
    lines = (line.strip("\r") for line in text.split("\n"))
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value for key, _, value in pairs}


def same(field: str, left: Any, right: Any) -> bool:
    """Whether two states of a field mean the same; the panel renames new domains and adds keys."""
    if field == "domains":

        def essence(domains: list[dict[str, Any]]) -> list[Any]:
            return sorted(
                (
                    d["host"],
                    d["path"],
                    d["https"],
                    d["serviceDestination"]["protocol"],
                    d["serviceDestination"]["port"],
                )
                for d in domains
            )

        return essence(left) == essence(right)
    return bool(left == right)


def shown(app: App, state: dict[str, Any], counterpart: dict[str, Any]) -> dict[str, Any]:
    """A state for the eye: secrets and values that the file does not know are masked."""
    if not state:
        return {}
    env = {}
    for key, value in sorted(state["env"].items()):
        if key in app.secret or key not in app.declared["env"]:
            differs = counterpart and counterpart["env"].get(key) != value
            env[key] = "(hidden, differs)" if differs else "(hidden)"
        else:
            env[key] = value
    return {
        "image": state["image"] or "(none released yet)",
        "registry user": state["registry"][0] or "(none)",
        "registry password": "(none)"
        if not state["registry"][1]
        else "(hidden)"
        if not counterpart or state["registry"][1] == counterpart["registry"][1]
        else "(hidden, differs)",
        "env": env,
        "deploy": state["deploy"],
        "resources": state["resources"],
        "mounts": [
            f"{mount.get('name') or mount.get('hostPath') or mount['type']} -> {mount['mountPath']}"
            for mount in state["mounts"]
        ],
        "domains": sorted(
            f"{'https' if d['https'] else 'http'}://{d['host']}{d['path']} -> "
            f"{d['serviceDestination']['protocol']}:{d['serviceDestination']['port']}"
            for d in state["domains"]
        ),
    }


def as_lines(name: str, state: dict[str, Any]) -> str:
    """A state as ``app.field: value`` lines, which diff well."""
    lines = []
    for field, value in state.items():
        if isinstance(value, dict):
            lines += [f"{name}.{field}.{key}: {item}" for key, item in value.items()]
        elif isinstance(value, list):
            lines += [f"{name}.{field}: {item}" for item in value]
        else:
            lines.append(f"{name}.{field}: {value}")
    return "".join(f"{line}\n" for line in lines)


class Convergence:
    """All apps of the project: compare, write what differs, verify, deploy."""

    def __init__(self, module: AnsibleModule, panel: Panel | None) -> None:
        self.module = module
        self.panel = panel
        self.changes: list[str] = []
        self.unmanaged: list[str] = []
        self.before = ""
        self.after = ""

    def run(self) -> None:
        """Converge; in check mode only compare."""
        params = self.module.params
        existing: set[str] = set()
        project_exists = False
        if self.panel is not None:
            listing = self.panel.read("listProjectsAndServices")
            project_exists = any(p["name"] == params["project"] for p in listing["projects"])
            existing = {
                s["name"] for s in listing["services"] if s["projectName"] == params["project"]
            }
        if not project_exists:
            self.changes.append(f"project {params['project']}")
            if not self.module.check_mode:
                self._panel().write("createProject", name=params["project"])
        declared_names = {app["name"] for app in params["apps"]}
        self.unmanaged += [f"app {name}" for name in sorted(existing - declared_names)]
        for declared in params["apps"]:
            self._app(declared, declared["name"] in existing)

    def _panel(self) -> Panel:
        if self.panel is None:
            self.module.fail_json(msg="there is no panel on this host yet; next: make provision")
        return self.panel

    def _app(self, declared: dict[str, Any], exists: bool) -> None:
        params = self.module.params
        secret = params["secret_env"].get(declared["name"], {})
        app = App(self.panel or Panel(params["url"]), params["project"], declared, secret)
        if exists:
            app.read()
        elif not self.module.check_mode:
            app.panel.write("createAppService", **app.key)
            app.read()
        credentials = (params["registry_username"], params["registry_password"])
        wanted = app.wanted(credentials)
        before = app.observed if exists else {}
        fields = [
            field for field in wanted if not before or not same(field, before[field], wanted[field])
        ]
        if not wanted["image"]:  # credentials are written with the first release
            fields = [field for field in fields if field != "registry"]
            wanted["registry"] = before["registry"] if before else ("", "")
        self.changes += [f"{app.name}.{field}" for field in fields] if exists else [app.name]
        self.before += as_lines(app.name, shown(app, before, wanted))
        self.after += as_lines(app.name, shown(app, wanted, before))
        self.unmanaged += app.unmanaged()

        # Survives a run that was killed between the write and the deploy.
        pending = pathlib.Path(params["state_directory"], f"{app.name}.pending")
        if pending.exists() and not fields:
            self.changes.append(f"{app.name}: deploy left undone by an earlier run")
        if self.module.check_mode or not (fields or pending.exists()):
            return
        restarts = [field for field in fields if field != "domains"]
        if restarts and wanted["image"]:
            write_file(str(pending), " ".join(restarts) + "\n")
        for field in fields:
            if not same(field, app.observed[field], wanted[field]):
                app.write(field, wanted)
        app.read()
        for field in fields:
            if not same(field, app.observed[field], wanted[field]):
                self.module.fail_json(
                    msg=f"the panel did not keep {app.name}.{field}. Next: make plan, and compare with the panel"
                )
        if wanted["image"] and pending.exists():
            app.panel.write(
                "deployAppService", timeout=DEPLOY_TIMEOUT, **app.key, forceRebuild=False
            )
            pending.unlink()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "apps": {"type": "list", "elements": "dict", "required": True},
            "secret_env": {"type": "dict", "default": {}, "no_log": True},
            "registry_username": {"type": "str", "default": ""},
            "registry_password": {"type": "str", "default": "", "no_log": True},
            **PANEL_ARGUMENTS,
            **LOCK_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    with failures(module, "wait for it, then make provision again"):
        # Check mode runs to its end on a host that has no panel yet.
        absent = module.check_mode and not pathlib.Path(params["token_file"]).exists()
        panel = None if absent else open_panel(params["url"], params["token_file"])
        convergence = Convergence(module, panel)
        if module.check_mode:
            convergence.run()
        else:
            with host_lock(
                params["state_directory"], params["who"], "provision", params["lock_wait"]
            ):
                ledger = Ledger(pathlib.Path(params["state_directory"], "releases.jsonl"))
                for app in params["apps"]:
                    if reason := overtaken(ledger.live(app["name"]), params["newer"]):
                        module.fail_json(msg=reason)
                convergence.run()
    module.exit_json(
        changed=bool(convergence.changes),
        changes=convergence.changes,
        unmanaged=convergence.unmanaged,
        diff={"before": convergence.before, "after": convergence.after},
    )


if __name__ == "__main__":
    main()
