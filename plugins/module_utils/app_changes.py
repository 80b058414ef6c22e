"""An app of the panel as data: what is wanted, what there is, and the typed changes from one to the other.

A state is flat, ``{path: value}``, so that it can be compared field by field, kept, and shown:
``image``, ``registry.username|password``, ``env.KEY``, ``replicas``, ``command``, ``zero_downtime``, ``cap_add``,
``cap_drop``, ``resources.memoryLimit`` (MB) and its like, ``mounts./path`` ({"type", "name"|"hostPath"|"content"}),
``ports.8080/tcp`` (the port in the container), ``domains.host/path`` ({"https", "protocol", "port"}).
What a state does not name is nobody's wish: only environment and credentials are replaced as a whole.
Standard library only: it runs on the droplet, and for the plan of a pull request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

State = dict[str, Any]
WHOLE = ("env.", "registry.")  # the panel keeps these as one: what is not named there goes
LISTS = ("mounts.", "ports.", "domains.")  # each member by itself: what is not named stays
WITHOUT_RESTART = ("domains.", "registry.")
SIGNS = {"add": "+", "change": "~", "remove": "-"}


@dataclass(frozen=True)
class Desired:
    """One app as it shall be; ``secret`` are the paths whose values are never shown."""

    name: str
    values: State
    secret: frozenset[str] = frozenset()

    def hides(self, path: str) -> bool:
        """Whether nobody may see what is at the path: a secret, or a value that somebody typed into the panel."""
        return path in self.secret or (path.startswith(WHOLE) and path not in self.values)


def desired(
    app: Mapping[str, Any],
    secret_env: Mapping[str, str],
    registry: tuple[str, str] = ("", ""),
    image: str = "",
    secret_files: Mapping[str, str] | None = None,
) -> Desired:
    """An app as the filter panel_apps describes it.

    ``registry`` is (user, password) of our images, ``secret_files`` contents of mounted files by their path.
    ``image`` is what it shall run: an app that is released by digest has none before its first release.
    """
    values: State = {"image": image or ("" if app["released"] else app["image"])}
    if values["image"] and app["ours"] and registry[0]:
        values |= {"registry.username": registry[0], "registry.password": registry[1]}
    values |= {f"env.{key}": text for key, text in {**app["env"], **secret_env}.items()}
    values |= {"replicas": app["replicas"], "command": app["command"] or None}
    values["zero_downtime"] = app["zero_downtime"]
    values |= {name: sorted(app[name]) for name in ("cap_add", "cap_drop")}
    values |= {f"resources.{name}": amount for name, amount in app["resources"].items()}
    # Of a newer filter; where it says nothing, the panel's own stays.
    values |= {name: app[name] for name in ("init", "sysctls", "groups") if name in app}
    for mount in app.get("mounts") or []:
        path = mount["mountPath"]
        rest = {name: value for name, value in mount.items() if name != "mountPath"}
        held = {"content": secret_files[path]} if secret_files and path in secret_files else {}
        values[f"mounts.{path}"] = rest | held
    for port in app.get("ports") or []:
        values[f"ports.{port['published']}/{port.get('protocol', 'tcp')}"] = port["target"]
    for domain in app.get("domains") or []:
        kept = {name: domain[name] for name in ("https", "protocol", "port")}
        values[f"domains.{domain['host']}{domain['path']}"] = kept
    return Desired(app["name"], values, secrets_in(values, secret_env))


def secrets_in(values: Mapping[str, Any], secret_env: Iterable[str]) -> frozenset[str]:
    """Paths of a state that hold a secret: those of the environment that are named, a password, contents of files."""
    files = [
        path
        for path, value in values.items()
        if path.startswith("mounts.") and value["type"] == "file"
    ]
    return frozenset([*(f"env.{key}" for key in secret_env), "registry.password", *files])


@dataclass(frozen=True)
class Change:
    """One difference: ``kind`` is add, change or remove. A secret's values are for writing, never for showing."""

    app: str
    path: str
    kind: str
    old: Any = None
    new: Any = None
    secret: bool = False
    origin: str = ""  # "by hand", or "declared": told where the last release is known

    def restarts(self) -> bool:
        """Whether a new container is needed for it."""
        return not self.path.startswith(WITHOUT_RESTART)

    def data(self) -> dict[str, Any]:
        """For JSON, without a secret's values."""
        told: dict[str, Any] = {"app": self.app, "path": self.path, "kind": self.kind}
        told |= {"secret": True} if self.secret else {"old": self.old, "new": self.new}
        return told | ({"origin": self.origin} if self.origin else {})

    def __str__(self) -> str:
        """For people, on one line, such as ``~ api.env.LOG_LEVEL: debug -> info``."""
        told = {
            "add": "(hidden)" if self.secret else words(self.new),
            "remove": "(hidden)" if self.secret else words(self.old),
            "change": "(changed)" if self.secret else f"{words(self.old)} -> {words(self.new)}",
        }[self.kind]
        return f"{SIGNS[self.kind]} {self.app}.{self.path}: {told}"


def words(value: Any) -> str:
    """A value of a state, for people."""
    if isinstance(value, Mapping):
        if "protocol" in value:
            scheme = "https" if value["https"] else "http"
            return f"{scheme} to {value['protocol']} port {value['port']}"
        if "type" in value:
            return f"{value['type']} {value.get('name') or value.get('hostPath') or ''}".strip()
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def changes(wanted: Desired, there: Mapping[str, Any], drop: Collection[str] = ()) -> list[Change]:
    """What must be done so that ``there`` becomes as wanted; a member of a list goes only when it is in ``drop``."""
    found = []
    for path, value in wanted.values.items():
        if path not in there:
            found.append(Change(wanted.name, path, "add", None, value, wanted.hides(path)))
        elif there[path] != value:
            hidden = wanted.hides(path) or path in secrets_in({path: there[path]}, ())
            found.append(Change(wanted.name, path, "change", there[path], value, hidden))
    for path, value in there.items():
        if path not in wanted.values and (path.startswith(WHOLE) or path in drop):
            hidden = wanted.hides(path) or path in secrets_in({path: value}, ())
            found.append(Change(wanted.name, path, "remove", value, None, hidden))
    return found


def unmanaged(wanted: Desired, there: Iterable[str]) -> list[str]:
    """Mounts, ports and domains that there are and nobody names."""
    return [path for path in there if path.startswith(LISTS) and path not in wanted.values]


def rendered(found: Iterable[Change]) -> str:
    """The changes for people, and how many there are; empty when there is none."""
    listed = list(found)
    if not listed:
        return ""
    number = {kind: sum(change.kind == kind for change in listed) for kind in SIGNS}
    lines = [f"  {change}{f'  [{change.origin}]' if change.origin else ''}" for change in listed]
    total = f"{number['add']} to add, {number['change']} to change, {number['remove']} to remove"
    return "\n".join([*lines, f"Plan: {total}.", ""])


def record(wanted: Desired, hashed: Callable[[Any], str]) -> dict[str, Any]:
    """What the ledger keeps of an app: ``{"plain": state, "secret": {path: hash}}``; ``hashed`` makes the latter."""
    return {
        "plain": {p: v for p, v in wanted.values.items() if p not in wanted.secret},
        "secret": {p: hashed(v) for p, v in wanted.values.items() if p in wanted.secret},
    }


def returned(entry: Mapping[str, Any], present: Desired) -> tuple[Desired, list[str]]:
    """The release of the ledger's ``entry`` as it may run again, and secrets of it that there are no more.

    Its image and its plain settings; credentials and secrets are those of ``present``, so that a revoked one never
    comes back. A release from before settings were kept gives its image only.
    """
    if "app" not in entry:
        return Desired(present.name, {**present.values, "image": entry["to"]}, present.secret), []
    kept, secret = entry["app"], present.secret | set(entry["app"]["secret"])
    values = {
        path: value
        for path, value in kept["plain"].items()
        if not path.startswith("registry.") and path not in present.secret
    }
    taken = [
        path for path in present.values if path.startswith("registry.") or path in present.secret
    ]
    names = {*kept["plain"], *kept["secret"]}
    values |= {
        path: present.values[path]
        for path in taken
        if path in names or path.startswith("registry.")
    }
    gone = [
        path for path in kept["secret"] if path not in values and not path.startswith("registry.")
    ]
    return Desired(present.name, {**values, "image": entry["to"]}, frozenset(secret)), gone


def told_apart(
    found: Iterable[Change], released: Mapping[str, Any], hashed: Callable[[Any], str]
) -> list[Change]:
    """The changes, each with where it comes from: what the last release wrote tells.

    ``released`` is the ledger's record of it (`record`). What is not as released was changed by hand; what is as
    released, and is wanted otherwise now, is what the files declare anew.
    """
    plain, secret = released["plain"], released["secret"]
    result = []
    for change in found:
        if change.path in secret:
            by_hand = change.kind == "add" or hashed(change.old) != secret[change.path]
        elif change.path in plain:
            by_hand = change.kind == "add" or change.old != plain[change.path]
        else:
            by_hand = change.kind != "add"
        result.append(replace(change, origin="by hand" if by_hand else "declared"))
    return result
