"""Ansible filters: what services/settings.yaml declares, and what its settings are worth here.

``declared`` is that file, read: ``{"verbs": {verb: [verbs it includes]}, "settings": {NAME: fields}}``; its head
says what the fields mean. Everything runs on the controller; nothing here reads or prints a value but `values`.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

Declared = Mapping[str, Any]
VARIABLE = re.compile(r"\$\{(\w+)")


def included(declared: Declared, verb: str) -> set[str]:
    """The verb and all that it includes, by name. Raises KeyError for one that is not declared."""
    result = {verb}
    for other in declared["verbs"][verb]:
        result |= included(declared, other)
    return result


def of_verb(declared: Declared, verb: str, *fields: str) -> list[str]:
    """Names of the settings that a verb needs or uses, in the file's order; ``fields`` are the default's part."""
    verbs = included(declared, verb)
    return [
        name
        for name, setting in declared["settings"].items()
        if any(verbs & set(setting.get(field, ())) for field in fields or ("needed_by", "used_by"))
    ]


def audited(setting: Mapping[str, Any]) -> bool:
    """Whether the audit compares it: what an app is told and everybody may see."""
    return bool(setting.get("audit", not setting.get("secret") and "app" in setting))


def needed(declared: Declared) -> dict[str, dict[str, str]]:
    """By verb, what cannot be left out: ``{verb: {NAME: what it is, with an example}}``."""

    def told(setting: Mapping[str, Any]) -> str:
        example = f", such as {setting['example']}" if "example" in setting else ""
        return f"{setting['what']}{example}"

    return {
        verb: {
            name: told(declared["settings"][name]) for name in of_verb(declared, verb, "needed_by")
        }
        for verb in declared["verbs"]
    }


def values(declared: Declared, given: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Every setting with its value: of ``given``, else its default; without ``given`` the environment comes first.

    What has neither is an empty text, as in the environment.
    """
    source = os.environ if given is None else given
    return {
        name: str(source.get(name) or setting.get("default", ""))
        for name, setting in declared["settings"].items()
    }


def of_apps(declared: Declared, known: Mapping[str, str], secret: bool = False) -> dict[str, str]:
    """Variables of compose.yaml with their values: those that may be shown, or the secret ones."""
    return {
        name: known[name]
        for name, setting in declared["settings"].items()
        if "app" in setting and audited(setting) is not secret
    }


def named_in(known: Mapping[str, str], text: str) -> dict[str, str]:
    """Those of the settings that a text names as ``${NAME}``, with their values."""
    return {name: known[name] for name in sorted(set(VARIABLE.findall(text))) if name in known}


def with_password(url: str, password: str) -> str:
    """A database's address with the password in it, encoded; unchanged where one of both is missing."""
    scheme, separator, rest = url.partition("://")
    user, at, place = rest.partition("@")
    if not password or not separator or not at or ":" in user:
        return url
    return f"{scheme}://{user}:{urllib.parse.quote(password, safe='')}@{place}"


def doors(connect_to: str) -> dict[int, tuple[str, int]]:
    """What the setting CONNECT_TO says, by public port. Raises ValueError for a text that is not of its form."""
    found = {}
    for pair in filter(None, (part.strip() for part in connect_to.split(","))):
        match = re.fullmatch(r"(\d+)=\[?([^\s\[\]]+?)\]?:(\d+)", pair)
        if not match:
            raise ValueError(f"CONNECT_TO: {pair!r} is not PORT=ADDRESS:PORT")
        found[int(match[1])] = (match[2], int(match[3]))
    return found


class FilterModule:
    """Filters of the inventory and of preflight."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name in a template to function."""
        return {
            "settings_needed": needed,
            "settings_values": values,
            "settings_of_apps": of_apps,
            "settings_named_in": named_in,
            "settings_with_password": with_password,
        }
