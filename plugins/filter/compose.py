"""Ansible filter: services/compose.yaml (Compose specification) to the apps of a panel project.

Runs on the controller. An app is a dict:
``{name, image, released, ours, env: {KEY: text}, replicas, command, zero_downtime, cap_add, cap_drop,
resources: {memoryReservation, memoryLimit (MB), cpuReservation, cpuLimit (cores)},
mounts: [{type, name|hostPath, mountPath}], domains: [{host, path, port, https, protocol}]}``.
Environment values that hold a secret travel apart from it, so that they can be kept out of logs and diffs.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
import yaml
from ansible.errors import AnsibleFilterError

SERVICE_KEYS = {
    *("image", "build", "environment", "command", "volumes", "deploy"),
    *("cap_add", "cap_drop", "x-easypanel", "x-image", "x-release"),
}
DEPLOY_KEYS = {"replicas", "resources", "update_config"}
PANEL_KEYS = {"domains"}
IMAGE_KEYS = {"tag", "switch"}
RELEASE_KEYS = {"health"}
DOMAIN_KEYS = {"host", "path", "port", "https", "protocol"}
NAME = re.compile(r"[a-z0-9-_]+")
VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|\{(?P<braced>\w+)(?:(?P<operator>:?[-?])(?P<argument>[^}]*))?\}|(?P<plain>\w+))"
)
UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


class _Interpolation:
    """Compose's ``${NAME}``, ``${NAME:-default}``, ``${NAME:?message}`` and ``$$``.

    Collects every missing variable instead of stopping at the first.
    """

    def __init__(self, environment: dict[str, str], secrets: dict[str, str]) -> None:
        self.values = {name: str(value) for name, value in {**environment, **secrets}.items()}
        self.secret_names = set(secrets)
        self.missing: dict[str, str] = {}

    def text(self, template: str) -> tuple[str, bool]:
        """The text with its variables put in, and whether one of them is a secret."""
        secret = False

        def replace(match: re.Match[str]) -> str:
            nonlocal secret
            if match["escaped"]:
                return "$"
            name = match["braced"] or match["plain"]
            operator, argument = match["operator"] or "", match["argument"] or ""
            value = self.values.get(name)
            if value is None or (value == "" and operator.startswith(":")):
                if operator.endswith("-"):
                    return argument
                self.missing[name] = argument
                return ""
            secret = secret or name in self.secret_names
            return value

        return VARIABLE.sub(replace, template), secret


def _problem(where: str, message: str) -> AnsibleFilterError:
    return AnsibleFilterError(f"services/compose.yaml: {where}: {message}")


def _check_keys(where: str, mapping: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(mapping) - known):
        hint = (
            " (the panel cannot set one: put a HEALTHCHECK into the image)"
            if "healthcheck" in unknown
            else ""
        )
        raise _problem(
            where,
            f"the panel has nothing for {', '.join(unknown)}{hint}; known: {', '.join(sorted(known))}",
        )


def _validate_schema(document: Any) -> None:
    schema_file = importlib.resources.files("check_jsonschema").joinpath(
        "builtin_schemas/vendor/compose-spec.json"
    )
    validator = jsonschema.validators.validator_for(schema := json.loads(schema_file.read_text()))
    error = jsonschema.exceptions.best_match(validator(schema).iter_errors(document))
    if error is not None:
        raise _problem(".".join(map(str, error.absolute_path)) or "file", error.message)


def _memory(where: str, text: str) -> int:
    match = re.fullmatch(r"(\d+)([bkmg]?)b?", str(text).strip().lower())
    if not match:
        raise _problem(where, f"memory '{text}' is not a size such as 384M or 1G")
    return int(match[1]) * UNITS[match[2]] // 2**20


def _resources(where: str, resources: dict[str, Any]) -> dict[str, float]:
    _check_keys(where, resources, {"limits", "reservations"})
    result: dict[str, float] = {}
    for kind, suffix in (("reservations", "Reservation"), ("limits", "Limit")):
        block = resources.get(kind) or {}
        _check_keys(f"{where}.{kind}", block, {"cpus", "memory"})
        result[f"memory{suffix}"] = _memory(f"{where}.{kind}", block.get("memory", "0"))
        result[f"cpu{suffix}"] = float(block.get("cpus", 0))
    return result


def _mounts(where: str, volumes: list[Any]) -> list[dict[str, str]]:
    mounts = []
    for volume in volumes:
        if isinstance(volume, dict):
            source, target = volume.get("source", ""), volume.get("target", "")
        else:
            source, _, target = str(volume).partition(":")
        if not target.startswith("/"):
            raise _problem(where, f"volume '{volume}' must be NAME:/path or /host/path:/path")
        if source.startswith("/"):
            mounts.append({"type": "bind", "hostPath": source, "mountPath": target})
        elif NAME.fullmatch(source):
            mounts.append({"type": "volume", "name": source, "mountPath": target})
        else:
            raise _problem(where, f"volume source '{source}' must be a name or an absolute path")
    return mounts


def _domains(where: str, domains: list[Any], put_in: Callable[[str], str]) -> list[dict[str, Any]]:
    result = []
    for domain in domains:
        _check_keys(where, domain, DOMAIN_KEYS)
        if "host" not in domain or "port" not in domain:
            raise _problem(where, "a domain needs a host and a port")
        result.append(
            {
                "host": put_in(domain["host"]),
                "path": domain.get("path", "/"),
                "port": int(domain["port"]),
                "https": bool(domain.get("https", True)),
                "protocol": domain.get("protocol", "http"),
            }
        )
    return result


def panel_apps(
    text: str,
    environment: dict[str, str],
    secrets: dict[str, str] | None = None,
    leave_out: Sequence[str] = (),
) -> dict[str, Any]:
    """What the Compose file declares: ``{"apps": [app], "secret_env": {app name: {KEY: text}}}``.

    ``environment`` and ``secrets`` fill its variables; a value that holds a secret goes to ``secret_env``.
    Apps in ``leave_out`` are passed over, and their variables are not asked for.
    Raises AnsibleFilterError with one line: unknown key, missing variables (all at once), bad value.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _problem("file", f"not YAML: {' '.join(str(error).split())}") from None
    _validate_schema(document)
    interpolation = _Interpolation(environment, secrets or {})
    apps = [
        _app(name, service or {}, interpolation)
        for name, service in (document.get("services") or {}).items()
        if name not in leave_out
    ]
    if interpolation.missing:
        names = ", ".join(
            name + (f" ({message})" if message else "")
            for name, message in sorted(interpolation.missing.items())
        )
        raise _problem(
            "variables", f"no value for {names}; see docs/setup.md for where each comes from"
        )
    return {
        "apps": [app for app, _ in apps],
        "secret_env": {app["name"]: secret for app, secret in apps if secret},
    }


def _app(
    name: str, service: dict[str, Any], interpolation: _Interpolation
) -> tuple[dict[str, Any], dict[str, str]]:
    """One app, and those of its environment values that hold a secret."""
    where = f"services.{name}"
    if not NAME.fullmatch(name):
        raise _problem(where, "a name is made of a-z, 0-9, - and _")
    _check_keys(where, service, SERVICE_KEYS)
    if not service.get("image"):
        raise _problem(where, "image is missing: the droplet pulls, it does not build")
    deploy = service.get("deploy") or {}
    _check_keys(f"{where}.deploy", deploy, DEPLOY_KEYS)
    panel = service.get("x-easypanel") or {}
    _check_keys(f"{where}.x-easypanel", panel, PANEL_KEYS)
    _check_keys(f"{where}.x-image", service.get("x-image") or {}, IMAGE_KEYS)
    _check_keys(f"{where}.x-release", service.get("x-release") or {}, RELEASE_KEYS)

    environment = service.get("environment") or {}
    if isinstance(environment, list):
        environment = dict(item.partition("=")[::2] for item in environment)
    env: dict[str, str] = {}
    secret_env: dict[str, str] = {}
    for key, template in environment.items():
        text = (
            str(template).lower()
            if isinstance(template, bool)
            else ("" if template is None else str(template))
        )
        value, secret = interpolation.text(text)
        if "\n" in value:
            raise _problem(
                f"{where}.environment.{key}", "the panel keeps one line a value; encode it"
            )
        (secret_env if secret else env)[key] = value

    command = service.get("command")
    order = (deploy.get("update_config") or {}).get("order", "stop-first")
    app = {
        "name": name,
        "image": interpolation.text(service["image"])[0],
        "released": "build" in service,
        # Pulled with our credentials; nobody else's registry may see them.
        "ours": str(service["image"]).startswith("${IMAGE_REPOSITORY}/"),
        "env": env,
        "replicas": int(deploy.get("replicas", 1)),
        "command": " ".join(command) if isinstance(command, list) else command,
        "zero_downtime": order == "start-first",
        "cap_add": service.get("cap_add") or [],
        "cap_drop": service.get("cap_drop") or [],
        "resources": _resources(f"{where}.deploy.resources", deploy.get("resources") or {}),
        "mounts": _mounts(where, service.get("volumes") or []),
        "domains": _domains(
            f"{where}.x-easypanel",
            panel.get("domains") or [],
            lambda template: interpolation.text(template)[0],
        ),
    }
    return app, secret_env


def declared_services(text: str) -> dict[str, dict[str, Any]]:
    """What the verbs of this repository must know of each app, in the file's order, without any value of a setting.

    ``{app: {"released": bool, "tag": program or "", "switch": variable or "", "health": path,
    "domain": template or ""}}``. An image of ours is made of the folder that has the app's name: where it is released
    by digest, or has a program that prints its tag. Paths are relative to the file's own folder.
    """
    result = {}
    for name, service in yaml.safe_load(text)["services"].items():
        image = service.get("x-image") or {}
        domains = (service.get("x-easypanel") or {}).get("domains") or [{}]
        result[name] = {
            "released": "build" in service,
            "tag": image.get("tag", ""),
            "switch": image.get("switch", ""),
            "health": (service.get("x-release") or {}).get("health", "/healthz"),
            "domain": str(domains[0].get("host", "")),
        }
    return result


def panel_domains(text: str, environment: dict[str, str]) -> dict[str, str]:
    """The first domain of every app that has one: ``{app: host}``; empty where its variable is."""
    interpolation = _Interpolation(environment, {})
    return {
        name: interpolation.text(service["domain"])[0]
        for name, service in declared_services(text).items()
        if service["domain"]
    }


class FilterModule:
    """Filters of the services role and of the inventory."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name in a template to function."""
        return {
            "panel_apps": panel_apps,
            "panel_domains": panel_domains,
            "declared_services": declared_services,
        }
