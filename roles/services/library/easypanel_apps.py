"""Ansible module: the plan of one panel project, from the apps that the Compose file declares."""

from __future__ import annotations

import contextlib
import json
import pathlib
from typing import Any

from ansible.module_utils.app_changes import (
    Change,
    Desired,
    State,
    changes,
    desired,
    rendered,
    returned,
    told_apart,
    unmanaged,
)
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.easypanel import (
    LOCK_ARGUMENTS,
    PANEL_ARGUMENTS,
    Panel,
    PanelError,
    failures,
    host_lock,
    open_panel,
    write_file,
)
from ansible.module_utils.panel_app import KeptReleases, PanelApp
from ansible.module_utils.release_ledger import Ledger, overtaken
from ansible.module_utils.swarm_service import (
    PLACEMENT,
    SOCKET,
    EngineError,
    SwarmService,
    placement,
)

DOCUMENTATION = r"""
module: easypanel_apps
short_description: Plan the apps of a panel project, and make what needs no release
description:
  - Reads what the panel has and says what differs from the declaration, as data and for people.
  - Makes the project and apps that are missing. An app that never ran gets its settings at once; every other
    change is a release, for easypanel_release, and only named here.
  - An app that is released by digest keeps the image that it has; a tag is one until it changes in the file.
  - An app that was rolled back keeps the settings of that release until it is released again.
  - What the file does not name is left alone and reported, unless it is named in C(prune).
options:
  project: {type: str, required: true, description: Name of the panel project; created when missing.}
  apps: {type: list, elements: dict, default: [], description: Apps as the filter panel_apps gives them.}
  adopt: {type: bool, default: false, description: "Only say what the panel has, secrets included."}
  secret_env: {type: dict, default: {}, description: Per app the environment values that must never be shown.}
  secret_files: {type: dict, default: {}, description: "Per app contents of mounted files, by path."}
  builds: {type: dict, default: {}, description: "Per app what was built last, as {image, revision}."}
  registry_username: {type: str, default: "", description: User that may pull the images of our registry.}
  registry_password: {type: str, default: "", description: Its password or token.}
  placement: {type: dict, default: {}, description: "Constraints by service of Swarm, for the unit of role cluster."}
  prune: {type: list, elements: str, default: [], description: "Which of C(unmanaged) to remove. Volumes stay."}
  url: {type: str, required: true, description: Where the panel answers on this host.}
  token_file: {type: path, required: true, description: File with the panel's API token.}
  state_directory: {type: path, required: true, description: Holds the lock and the ledger.}
  docker_socket: {type: path, default: /var/run/docker.sock, description: Where Docker answers.}
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
plan: {type: list, elements: dict, returned: success, description: "Changes made, or to make, typed."}
changes: {type: list, elements: str, returned: success, description: The same for people.}
releases: {type: list, elements: dict, returned: success, description: "service, image, revision, ours, drop of each."}
unmanaged: {type: list, elements: str, returned: success, description: What the panel has and the file does not name.}
states: {type: dict, returned: with adopt, description: "The state of each app, by its name. It holds secrets."}
notes: {type: list, elements: str, returned: success, description: What a person should know beside.}
"""


class Project:
    """All apps of the project: what differs, and what needs no release."""

    def __init__(self, module: AnsibleModule, panel: Panel | None) -> None:
        self.module = module
        self.params = module.params
        self.panel = panel
        self.ledger = Ledger(pathlib.Path(self.params["state_directory"], "releases.jsonl"))
        self.kept = KeptReleases(self.params["token_file"])
        self.swarm = SwarmService(module.run_command, "docker", "", self.params["docker_socket"])
        self.plan: list[Change] = []
        self.releases: list[dict[str, Any]] = []
        self.unmanaged: list[str] = []
        self.notes: list[str] = []

    def run(self) -> None:
        """Compare, and outside of check mode make what needs no release."""
        name, existing, exists = self.params["project"], set(), False
        if self.panel is not None:
            listing = self.panel.read("listProjectsAndServices")
            exists = any(one["name"] == name for one in listing["projects"])
            existing = {one["name"] for one in listing["services"] if one["projectName"] == name}
        if not exists:
            self.plan.append(Change(name, "project", "add", None, name))
            if not self.module.check_mode:
                self._panel().write("createProject", name=name)
        self._place()
        for declared in self.params["apps"]:
            self._app(declared, declared["name"] in existing)
        for spare in sorted(existing - {app["name"] for app in self.params["apps"]}):
            self.unmanaged.append(f"app {spare}")
            if f"app {spare}" in self.params["prune"]:
                there = PanelApp(self._panel(), name, spare).read()
                kept = [p for p, v in there.items() if p.startswith("mounts.") and "name" in v]
                if kept:
                    self.module.fail_json(
                        msg=f"app {spare} has volumes ({', '.join(kept)}), and the panel may delete them with it; it "
                        "stays. Next: save them, take these mounts away in the panel, then the same command again"
                    )
                self.plan.append(Change(spare, "app", "remove", spare))
                if not self.module.check_mode:
                    self._panel().write("destroyAppService", projectName=name, serviceName=spare)

    def _place(self) -> None:
        """Say where each service of Swarm may run; who makes it so reads that file (role cluster)."""
        file = pathlib.Path(self.params["state_directory"], PLACEMENT)
        wanted, there = self.params["placement"], placement(file)
        for service in sorted({*wanted, *there}):
            old, new = there.get(service), wanted.get(service)
            if old != new:
                kind = "add" if old is None else "remove" if new is None else "change"
                app = service.removeprefix(f"{self.params['project']}_")
                self.plan.append(Change(app, "placement", kind, old, new))
        if wanted != there and not self.module.check_mode:
            write_file(str(file), json.dumps(wanted) + "\n")

    def states(self) -> dict[str, State]:
        """What the panel has of every app."""
        listing, name = self._panel().read("listProjectsAndServices"), self.params["project"]
        return {
            one["name"]: PanelApp(self._panel(), name, one["name"]).read()
            for one in listing["services"]
            if one["projectName"] == name and one.get("type", "app") == "app"
        }

    def _panel(self) -> Panel:
        if self.panel is None:
            self.module.fail_json(msg="there is no panel on this host yet; next: make provision")
        return self.panel

    def _app(self, declared: dict[str, Any], exists: bool) -> None:
        name: str = declared["name"]
        app = PanelApp(self.panel or Panel(self.params["url"]), self.params["project"], name)
        there: State = app.read() if exists else {}
        live = self.ledger.live(name)
        wanted = self._wanted(declared, there, live)
        if live and there.get("image") not in (None, "", live[-1]["to"]) and declared["released"]:
            self.notes.append(
                f"{name}: the panel has {there['image']}, which no release put there; the last one was "
                f"{live[-1]['to']}. Next: make deploy SERVICE={name}, or make rollback SERVICE={name}"
            )
        spare = unmanaged(wanted, there)
        self.unmanaged += [f"{name}.{path}" for path in spare]
        drop = [path for path in spare if f"{name}.{path}" in self.params["prune"]]
        found = changes(wanted, there, drop)
        if live and "app" in live[-1]:
            found = told_apart(found, live[-1]["app"], self.kept.hashed)
            self._say_by_whom(app, live[-1], found)
        if pathlib.Path(self.params["state_directory"], f"{name}.inflight.json").exists():
            found.append(Change(name, "release", "change", "cut short", "finished"))
        built = self.params["builds"].get(name, {}).get("image", "")
        ran = ("", there.get("image"), *(entry["to"] for entry in self.ledger.entries()))
        if found and declared["released"] and there.get("image") and built not in ran:
            self.notes.append(
                f"{name}: {len(found)} settings wait for the release of their own image, {built}. Next: make deploy"
            )
            return
        if self.module.check_mode or not there.get("image"):
            self.plan += found
        if self.module.check_mode or not (found or not exists):
            return
        if not exists:
            app.panel.write("createAppService", **app.key)
        if not there.get("image"):
            # It never ran: no container is touched by its settings. Image and credentials come with the release.
            rest = {
                path: value
                for path, value in wanted.values.items()
                if not path.startswith(("image", "registry."))
            }
            app.converge(Desired(name, rest, wanted.secret), drop)
        if image := wanted.values["image"]:
            known = built and built.rpartition("@")[2] == image.rpartition("@")[2]
            self.releases.append(
                {
                    "service": name,
                    "image": "" if image == there.get("image") else image,
                    "revision": self.params["builds"][name]["revision"] if known else "",
                    "ours": declared["ours"],
                    "drop": drop,
                }
            )

    def _wanted(
        self, declared: dict[str, Any], there: State, live: list[dict[str, Any]]
    ) -> Desired:
        """The app as it shall be, with the image that it shall run."""
        params = self.params
        name, now = declared["name"], there.get("image", "")
        registry = (params["registry_username"], params["registry_password"])
        secret_env = params["secret_env"].get(name, {})
        last = live[-1] if live else {}
        rolled_back = (
            last.get("action") == "rollback"
            and last["to"] == now
            and (declared["released"] or last["from"].partition("@")[0] == declared["image"])
        )
        resolved = "@" in now and now.partition("@")[0] == declared["image"]
        if declared["released"] or rolled_back or resolved:
            image = now
        else:
            image = self._resolved(declared["image"], registry if declared["ours"] else ("", ""))
        files = params["secret_files"].get(name, {})
        wanted = desired(declared, secret_env, registry, image, files)
        if not rolled_back or "app" not in last:
            return wanted
        stays, _ = returned(last, wanted)
        if changes(wanted, there):
            self.notes.append(
                f"{name}: rolled back by {last['who']} at {last['time']}; it keeps the settings of that release "
                "until the next one. Next: mend it, then make deploy"
            )
        return stays

    def _resolved(self, image: str, registry: tuple[str, str]) -> str:
        if "@" in image or self.panel is None:
            return image
        try:
            return str(self.swarm.resolved(image, *registry))
        except EngineError as error:
            if not self.module.check_mode:
                raise
            self.notes.append(str(error))
            return image

    def _say_by_whom(self, app: PanelApp, last: dict[str, Any], found: list[Change]) -> None:
        """Tell since when the panel differs from the last release, and who was there, where its actions say so."""
        if not any(change.origin == "by hand" for change in found):
            return
        told = f"{app.name}: changed by hand since the release of {last['time']}"
        with contextlib.suppress(PanelError, LookupError, TypeError):
            actions = app.panel.read("listActions", **app.key)
            hands = [
                f"{one['type']} at {one['createdAt']} by {one.get('userEmail') or 'somebody'}"
                for one in actions
                if one["createdAt"] > last["time"] and not one.get("isApiAction")
            ]
            told += f"; the panel says: {', '.join(hands)}" if hands else ""
        self.notes.append(told)


def _check_names(module: AnsibleModule, project: Project) -> None:
    """Fail for what is to be removed and is not there, or is declared."""
    if unknown := sorted(set(module.params["prune"]) - set(project.unmanaged)):
        module.fail_json(
            msg=f"nothing was removed: the panel has nothing undeclared that is called {', '.join(unknown)}. "
            f"Next: choose of: {', '.join(project.unmanaged) or 'nothing'}"
        )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "apps": {"type": "list", "elements": "dict", "default": []},
            "adopt": {"type": "bool", "default": False},
            "secret_env": {"type": "dict", "default": {}, "no_log": True},
            "secret_files": {"type": "dict", "default": {}, "no_log": True},
            "builds": {"type": "dict", "default": {}},
            "placement": {"type": "dict", "default": {}},
            "registry_username": {"type": "str", "default": ""},
            "registry_password": {"type": "str", "default": "", "no_log": True},
            "prune": {"type": "list", "elements": "str", "default": []},
            "docker_socket": {"type": "path", "default": SOCKET},
            **PANEL_ARGUMENTS,
            **LOCK_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    with failures(module, "wait for it, then make provision again", EngineError):
        # Check mode runs to its end on a host that has no panel yet.
        absent = module.check_mode and not pathlib.Path(params["token_file"]).exists()
        panel = None if absent else open_panel(params["url"], params["token_file"])
        project = Project(module, panel)
        if params["adopt"]:
            module.exit_json(changed=False, states=project.states())
        if module.check_mode:
            project.run()
        else:
            with host_lock(
                params["state_directory"], params["who"], "provision", params["lock_wait"]
            ):
                for app in params["apps"]:
                    if reason := overtaken(project.ledger.live(app["name"]), params["newer"]):
                        module.fail_json(msg=reason)
                if params["prune"]:
                    module.check_mode = True  # a look before anything is done
                    look = Project(module, panel)
                    look.run()
                    module.check_mode = False
                    _check_names(module, look)
                project.run()
    if params["prune"]:
        _check_names(module, project)
    module.exit_json(
        changed=bool(project.plan),
        plan=[change.data() for change in project.plan],
        changes=[str(change) for change in project.plan],
        releases=project.releases,
        unmanaged=project.unmanaged,
        notes=project.notes,
        diff={"prepared": rendered(project.plan)},
    )


if __name__ == "__main__":
    main()
