"""Bring what was edited in n8n's editor back into the files, in their normal form."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from plugins.module_utils import n8n_files
from tools.workflows import nodes
from tools.workflows.lint import IDENTIFIER
from tools.workflows.repository import Repository, load, shown

SECONDS = 60.0  # for one answer of n8n


class PullError(Exception):
    """One line that says what is missing and what to type next."""


def running(source: str) -> list[dict[str, Any]]:
    """All workflows: of a file (`n8n export:workflow`, or answers of the public API), else of N8N_URL.

    Raises PullError.
    """
    try:
        if source:
            found = json.loads(Path(source).read_text(encoding="utf-8"))
            return list(found["data"] if isinstance(found, dict) else found)
        url, key = os.environ.get("N8N_URL"), os.environ.get("N8N_API_KEY")
        if not url or not key:
            raise PullError(
                "set N8N_URL (https://n8n.example.com) and N8N_API_KEY (made in n8n: Settings, n8n API)"
            )
        return list(_pages(url.rstrip("/"), key))
    except (OSError, ValueError, KeyError, httpx.HTTPError) as error:
        raise PullError(f"workflows of {source or os.environ['N8N_URL']}: {error}") from None


def _pages(url: str, key: str) -> Iterator[dict[str, Any]]:
    with httpx.Client(timeout=SECONDS, headers={"X-N8N-API-KEY": key}) as client:
        cursor = ""
        while True:
            query = {"limit": "100", **({"cursor": cursor} if cursor else {})}
            answer = client.get(f"{url}/api/v1/workflows", params=query)
            answer.raise_for_status()
            page = answer.json()
            yield from page["data"]
            cursor = page.get("nextCursor") or ""
            if not cursor:
                return


def unrender(found: dict[str, Any], committed: dict[str, Any]) -> dict[str, Any]:
    """The workflow with the file's values in its node "Settings": those of one environment stay there.

    Keys that were added in the editor come along, keys that were removed go.
    """
    now, file = n8n_files.settings_of(found), n8n_files.settings_of(committed)
    if now is None or file is None:
        return found
    return n8n_files.workflow_with(
        found,
        {**{k: file[k] for k in file if k in now}, **{k: now[k] for k in now if k not in file}},
    )


def pull(
    workflows: list[dict[str, Any]],
    adopt: list[str],
    directory: Path,
    repository: Repository,
    *,
    check: bool,
) -> tuple[list[str], list[str]]:
    """Write the files that differ (with ``check``: none); (what differs, what is wrong), in lines.

    ``adopt`` names workflows without a file, by id, that get one. A workflow that holds a secret is not written.
    """
    differs: list[str] = []
    wrong: list[str] = []
    files = {path.stem: path for path in sorted(directory.glob("*.json"))}
    found = {str(one["id"]): one for one in workflows if not one.get("isArchived")}
    for identifier in sorted({*files, *adopt} & set(found)):
        path = files.get(identifier, directory / f"{identifier}.json")
        committed: dict[str, Any] = load(path)[0] if identifier in files else {}
        try:
            new = n8n_files.text(
                unrender(found[identifier], committed) if committed else found[identifier]
            )
        except n8n_files.FilesError as error:
            wrong.append(f"{shown(path)}: not written: {error}")
            continue
        old = n8n_files.text(committed) if committed else ""
        if new == old:
            continue
        secrets = [
            f'{shown(path)}: not written: node "{node["name"]}": {message}'
            for node in found[identifier]["nodes"]
            for message in nodes.secrets(node, repository)
        ]
        if secrets or not IDENTIFIER.fullmatch(identifier):
            wrong += secrets or [f"{identifier!r} cannot be the name of a file"]
            continue
        differs.append(f"{shown(path)}: {'edited in n8n' if old else 'new'}")
        if check:
            differs += difflib.unified_diff(
                old.splitlines(), new.splitlines(), shown(path), "n8n", lineterm="", n=2
            )
        else:
            path.write_text(new, encoding="utf-8")
    wrong += [
        f"{identifier}: n8n has no such workflow" for identifier in adopt if identifier not in found
    ]
    for identifier in sorted(set(files) - set(found)):
        differs.append(f"{shown(files[identifier])}: not in n8n")
    for identifier in sorted(set(found) - set(files) - set(adopt)):
        differs.append(
            f"{found[identifier]['name']} ({identifier}): only in n8n. To give it a file: "
            f"make n8n-pull ARGS={identifier}"
        )
    return differs, wrong
