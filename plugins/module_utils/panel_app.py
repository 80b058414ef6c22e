"""One app of the panel: read as a state of app_changes, changed field by field, and read back."""

from __future__ import annotations

import hashlib
import hmac
import json
import pathlib
import secrets
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ansible.module_utils.app_changes import Change, Desired, State, changes, secrets_in
from ansible.module_utils.easypanel import Panel, PanelError, write_file

TRIES = 3
PAUSE = 2  # seconds before the next
# Ours, as the panel calls them.
DEPLOY = {
    "replicas": "replicas",
    "command": "command",
    "zero_downtime": "zeroDowntime",
    "cap_add": "capAdd",
    "cap_drop": "capDrop",
    "init": "tiniInit",
    "sysctls": "sysctls",
    "groups": "groups",
}
RESOURCES = ("memoryReservation", "memoryLimit", "cpuReservation", "cpuLimit")
KEPT_RELEASES = 5


def passes(error: Exception) -> bool:
    """Whether a panel that answers so may answer well in a moment: it restarts, or a proxy speaks in its place."""
    status = getattr(error, "status", 200)  # without one: something that was no answer
    return status in (0, 200) or status >= 500


def parse_env(text: str) -> dict[str, str]:
    """``KEY=value`` lines as the panel echoes them (it may answer with CRLF)."""
    lines = (line.strip("\r") for line in text.split("\n"))
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value for key, _, value in pairs}


class PanelApp:
    """The app ``name`` of a project. Every method raises PanelError when the panel refuses or answers strangely."""

    def __init__(self, panel: Panel, project: str, name: str) -> None:
        self.panel = panel
        self.name = name
        self.key = {"projectName": project, "serviceName": name}
        self._app: dict[str, Any] = {}
        self._domains: dict[str, dict[str, Any]] = {}

    def read(self) -> State:
        """What the panel has, in whole; keys that nobody of us sets are passed over."""
        self._app = self._inspect()
        app = self._app
        source, deploy = app.get("source") or {}, app.get("deploy") or {}
        resources = app.get("resources") or {}
        state: State = {"image": source.get("image") or ""}
        if source.get("username"):
            state["registry.username"] = source["username"]
            state["registry.password"] = source.get("password") or ""
        state |= {f"env.{key}": text for key, text in parse_env(app.get("env") or "").items()}
        state["replicas"] = deploy.get("replicas", 1)
        state["command"] = deploy.get("command") or None
        state["zero_downtime"] = deploy.get("zeroDowntime", True)
        state |= {name: sorted(deploy.get(DEPLOY[name]) or []) for name in ("cap_add", "cap_drop")}
        state |= {"init": bool(deploy.get("tiniInit")), "sysctls": deploy.get("sysctls") or {}}
        state["groups"] = deploy.get("groups") or []
        state |= {f"resources.{name}": resources.get(name) or 0 for name in RESOURCES}
        for mount in app.get("mounts") or []:
            known = ("type", "name", "hostPath", "content")
            kept = {name: mount[name] for name in known if name in mount}
            state[self._free(state, f"mounts.{mount['mountPath']}")] = kept
        for port in app.get("ports") or []:
            path = f"ports.{port['published']}/{port.get('protocol') or 'tcp'}"
            state[self._free(state, path)] = port["target"]
        self._domains = {}
        for domain in self._listed():
            path = self._free(state, f"domains.{domain['host']}{domain.get('path') or '/'}")
            self._domains[path] = domain
            place = domain["serviceDestination"]
            state[path] = {
                "https": domain.get("https", True),
                "protocol": place.get("protocol", "http"),
                "port": place.get("port", 80),
            }
        return state

    @staticmethod
    def _free(state: Mapping[str, Any], path: str) -> str:
        """The path, with a number when the panel has the same twice: the second is a member of its own."""
        number = 2
        while (found := path if number == 2 else f"{path}#{number - 1}") in state:
            number += 1
        return found

    def _inspect(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.panel.read("inspectAppService", **self.key)
        except PanelError as error:
            if error.status not in (400, 404):
                raise
            raise PanelError(
                "inspectAppService",
                error.status,
                f"the panel has no app '{self.name}' in project '{self.key['projectName']}'; next: make provision",
            ) from None
        if "source" not in found:
            raise PanelError("inspectAppService", 200, "what it answers is no app")
        return found

    def _listed(self) -> list[dict[str, Any]]:
        """Domains that lead to this app; a panel may answer with those of the whole host."""
        return [
            domain
            for domain in self.panel.read("listDomains", **self.key)
            if all(
                (domain.get("serviceDestination") or {}).get(name) == text
                for name, text in self.key.items()
            )
        ]

    def hook(self) -> str:
        """Token of its deploy hook."""
        return str(self._inspect()["token"])

    def converge(self, wanted: Desired, drop: Collection[str] = ()) -> list[Change]:
        """Write what differs, read back, and say what differed. Nothing of the app is started anew by it.

        What goes wrong in passing is tried again, from what the panel has by then.
        """
        made: list[Change] | None = None
        for left in reversed(range(TRIES)):
            try:
                there = self.read()
                todo = changes(wanted, there, drop)
                made = todo if made is None else made
                if todo:
                    self._write(todo, there)
                    if lost := changes(wanted, self.read(), drop):
                        names = ", ".join(f"{self.name}.{change.path}" for change in lost)
                        raise PanelError(
                            "update",
                            200,
                            f"the panel did not keep {names}. Next: make plan, and compare with the panel",
                        )
                return made
            except (PanelError, ValueError) as error:
                if not left or not passes(error):
                    raise
            time.sleep(PAUSE)
        raise AssertionError("unreachable")

    def _write(self, todo: Iterable[Change], there: State) -> None:
        """Make the changes, each field whole, as the panel wants it: what a write leaves out is wiped."""
        target = dict(there)
        touched: dict[str, list[Change]] = {}
        for change in todo:
            touched.setdefault(self._field(change.path), []).append(change)
            if change.kind == "remove":
                del target[change.path]
            else:
                target[change.path] = change.new
        order = ("mounts", "ports", "env", "deploy", "resources", "source", "domains")
        for field in order:
            if field in touched:
                getattr(self, f"_write_{field}")(touched[field], target, there)

    @staticmethod
    def _field(path: str) -> str:
        head = path.partition(".")[0]
        if head in ("image", "registry"):
            return "source"
        return "deploy" if head in DEPLOY else head

    def _write_source(self, _: list[Change], target: State, __: State) -> None:
        if not target["image"]:
            return  # nothing released yet: the release writes image and credentials together
        body = {"image": target["image"]}
        if target.get("registry.username"):
            body |= {
                "username": target["registry.username"],
                "password": target.get("registry.password", ""),
            }
        self.panel.write("updateAppSourceImage", **self.key, **body)

    def _write_env(self, _: list[Change], target: State, __: State) -> None:
        lines = [f"{path[4:]}={value}" for path, value in target.items() if path.startswith("env.")]
        self.panel.write("updateAppEnv", **self.key, env="\n".join(lines))

    def _write_deploy(self, todo: list[Change], _: State, __: State) -> None:
        ours = {DEPLOY[change.path]: change.new for change in todo}
        kept = self._app.get("deploy") or {}
        self.panel.write("updateAppDeploy", **self.key, deploy={**kept, **ours})

    def _write_resources(self, _: list[Change], target: State, __: State) -> None:
        kept = self._app.get("resources") or {}
        ours = {name: target[f"resources.{name}"] for name in RESOURCES}
        self.panel.write("updateAppResources", **self.key, resources={**kept, **ours})

    def _write_mounts(self, todo: list[Change], _: State, there: State) -> None:
        self._members("Mount", "mounts.", todo, there)

    def _write_ports(self, todo: list[Change], _: State, there: State) -> None:
        self._members("Port", "ports.", todo, there)

    def _members(self, kind: str, prefix: str, todo: list[Change], there: State) -> None:
        """Mounts or ports: known by their place, and those behind one that is deleted move up."""
        place = {path: index for index, path in enumerate(p for p in there if p.startswith(prefix))}

        def values(change: Change) -> dict[str, Any]:
            name = change.path[len(prefix) :].partition("#")[0]
            if kind == "Mount":
                return {**change.new, "mountPath": name}
            published, _, protocol = name.partition("/")
            return {"published": int(published), "target": change.new, "protocol": protocol}

        for change in todo:
            if change.kind == "change":
                index = place[change.path]
                self.panel.write(f"update{kind}", **self.key, index=index, values=values(change))
        gone = [place[change.path] for change in todo if change.kind == "remove"]
        for index in sorted(gone, reverse=True):
            self.panel.write(f"delete{kind}", **self.key, index=index)
        for change in todo:
            if change.kind == "add":
                self.panel.write(f"create{kind}", **self.key, values=values(change))

    def _write_domains(self, todo: list[Change], _: State, __: State) -> None:
        for change in todo:
            known = self._domains.get(change.path)
            if change.kind == "remove":
                self.panel.write("deleteDomain", id=self._domains[change.path]["id"])
                continue
            host, slash, path = change.path.removeprefix("domains.").partition("/")
            body = known or {
                "id": "new",
                "host": host,
                "path": slash + path.partition("#")[0],
                "middlewares": [],
                "certificateResolver": "",
                "wildcard": False,
            }
            destination = {"protocol": change.new["protocol"], "port": change.new["port"]}
            place = {"path": "/", **(body.get("serviceDestination") or {}), **self.key}
            self.panel.write(
                "updateDomain" if known else "createDomain",
                **{
                    **body,
                    "https": change.new["https"],
                    "destinationType": "service",
                    "serviceDestination": {**place, **destination},
                },
            )


class KeptReleases:
    """The last releases whole, with their secrets: one file for root alone, beside the panel's token."""

    def __init__(self, token_file: str) -> None:
        self.path = pathlib.Path(token_file).with_name("releases.json")
        self._salt = secrets.token_hex(32)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            found = {}  # none yet, or lost: the next release begins a new one
        return {"salt": self._salt, "before": {}, "releases": {}, **found}

    def hashed(self, value: Any) -> str:
        """A secret as the ledger keeps it: it tells whether two are the same, and nothing without this file."""
        kept = self._read()
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        return hmac.new(bytes.fromhex(kept["salt"]), text.encode(), hashlib.sha256).hexdigest()

    def begin(self, name: str, before: State) -> None:
        """Keep what the panel had before a release of the app."""
        kept = self._read()
        kept["before"][name] = before
        write_file(str(self.path), json.dumps(kept))

    def before(self, name: str) -> Desired | None:
        """What the panel had before the latest release of the app; None when it is not known."""
        found = self._read()["before"].get(name)
        return found and as_it_was(name, found)

    def add(self, name: str, when: str, values: State) -> None:
        """Keep a release that came up."""
        kept = self._read()
        releases = [*kept["releases"].get(name, []), {"time": when, "app": values}]
        kept["releases"][name] = releases[-KEPT_RELEASES:]
        write_file(str(self.path), json.dumps(kept))


def as_it_was(name: str, state: State) -> Desired:
    """A state that was read, as what shall be again; every value of its environment is hidden."""
    keys = (path[4:] for path in state if path.startswith("env."))
    return Desired(name, state, secrets_in(state, keys))
