"""Stand-in for the part of GitHub's REST API that tools/github_settings.py asks: what a repository is set to.

Every request is held against GitHub's published rules for it. All is kept in `settings/` of the stand-in's folder:
  repository.json                     {"private", "plan": "free" or another, "default_branch"}
  rulesets.json, environments.json    as they were sent, with ids
  ENVIRONMENT/variables|secrets/NAME  the values, which runner.py gives to a job; those of none in `repository`
  key                                 the private half of the key that secrets are sealed for
What a repository has before anything is sent: no environment, no ruleset. Not there: organisations, teams, webhooks.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, SealedBox

# What may be asked, and the permission of a token that it takes ("metadata" every one has that reads anything).
NEEDS = {
    r"GET ": "metadata:read",
    r"GET environments/[\w.-]+(?:/deployment-branch-policies)?": "actions:read",
    r"PUT environments/[\w.-]+": "administration:write",
    r"POST environments/[\w.-]+/deployment-branch-policies": "administration:write",
    r"DELETE environments/[\w.-]+/deployment-branch-policies/\d+": "administration:write",
    r"GET environments/[\w.-]+/(?:variables|secrets|secrets/public-key)": "environments:read",
    r"POST environments/[\w.-]+/variables": "environments:write",
    r"(?:PATCH|DELETE) environments/[\w.-]+/variables/\w+": "environments:write",
    r"(?:PUT|DELETE) environments/[\w.-]+/secrets/\w+": "environments:write",
    r"GET actions/variables": "variables:read",
    r"POST actions/variables": "variables:write",
    r"(?:PATCH|DELETE) actions/variables/\w+": "variables:write",
    r"GET rulesets(?:/\d+)?": "metadata:read",
    r"POST rulesets|PUT rulesets/\d+": "administration:write",
}
BOOL, TEXT, WHOLE = {"type": "boolean"}, {"type": "string"}, {"type": "integer"}
NULL = {"type": "null"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _rule(kind: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return _object({"type": {"const": kind}, **({"parameters": parameters} if parameters else {})})


RULE = {
    "anyOf": [
        *(_rule(kind) for kind in ("deletion", "non_fast_forward", "creation")),
        _rule("required_linear_history"),
        _rule(
            "pull_request",
            _object(
                {
                    "dismiss_stale_reviews_on_push": BOOL,
                    "require_code_owner_review": BOOL,
                    "require_last_push_approval": BOOL,
                    "required_approving_review_count": {**WHOLE, "minimum": 0, "maximum": 10},
                    "required_review_thread_resolution": BOOL,
                },
                {
                    "allowed_merge_methods": _list({"enum": ["merge", "squash", "rebase"]}),
                    "required_reviewers": _list({}),
                },
            ),
        ),
        _rule(
            "required_status_checks",
            _object(
                {
                    "required_status_checks": _list(
                        _object({"context": TEXT}, {"integration_id": WHOLE})
                    ),
                    "strict_required_status_checks_policy": BOOL,
                },
                {"do_not_enforce_on_create": BOOL},
            ),
        ),
    ]
}
RULESET = _object(
    {"name": TEXT, "enforcement": {"enum": ["disabled", "active", "evaluate"]}},
    {
        "target": {"enum": ["branch", "tag", "push"]},
        "bypass_actors": _list({"type": "object"}),
        "conditions": _object(
            {"ref_name": _object({"include": _list(TEXT), "exclude": _list(TEXT)})}
        ),
        "rules": _list(RULE),
    },
)
VARIABLE = {**TEXT, "maxLength": 48 * 1024}
BODIES = {
    r"PUT environments/[\w.-]+": _object(
        {},
        {
            "wait_timer": {**WHOLE, "minimum": 0, "maximum": 43200},
            "prevent_self_review": BOOL,
            "reviewers": {
                "anyOf": [
                    NULL,
                    {
                        **_list(_object({"type": {"enum": ["User", "Team"]}, "id": WHOLE})),
                        "maxItems": 6,
                    },
                ]
            },
            "deployment_branch_policy": {
                "anyOf": [
                    NULL,
                    _object({"protected_branches": BOOL, "custom_branch_policies": BOOL}),
                ]
            },
        },
    ),
    r"POST \S+/deployment-branch-policies": _object(
        {"name": TEXT}, {"type": {"enum": ["branch", "tag"]}}
    ),
    r"PUT \S+/secrets/\w+": _object(
        {
            "encrypted_value": {
                **TEXT,
                "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
            },
            "key_id": TEXT,
        }
    ),
    r"POST \S+/variables": _object({"name": TEXT, "value": VARIABLE}),
    r"PATCH \S+/variables/\w+": _object({}, {"name": TEXT, "value": VARIABLE}),
    r"POST rulesets|PUT rulesets/\d+": RULESET,
}
# Entries a page: by default, and at most.
PAGES = {
    "variables": (10, 30),
    "secrets": (30, 100),
    "deployment-branch-policies": (30, 100),
    "rulesets": (30, 100),
}


@dataclass(frozen=True)
class Done:
    """An answer whose status is not the usual one of its method."""

    status: int
    body: Any = None


def _upgrade(there: dict[str, Any]) -> None:
    if there["private"] and there["plan"] == "free":
        raise LookupError(
            403, "Upgrade to GitHub Pro or make this repository public to enable this feature."
        )


def _when(path: Path) -> dict[str, str]:
    at = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"created_at": at, "updated_at": at}


class Kept:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "settings"
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str, empty: Any) -> Any:
        """A JSON file."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else empty

    def write(self, name: str, what: Any) -> None:
        """Keep it."""
        (self.folder / f"{name}.json").write_text(json.dumps(what, indent=1))

    def key(self) -> PrivateKey:
        """Made at the first question."""
        path = self.folder / "key"
        if not path.exists():
            path.write_bytes(bytes(PrivateKey.generate()))
        return PrivateKey(path.read_bytes())


def answer(folder: Path, asked: str, query: dict[str, str], sent: Any) -> Any:
    """The answer to one request that NEEDS has. Raises LookupError: status, message."""
    for form, schema in BODIES.items():
        if re.fullmatch(form, asked):
            error = jsonschema.exceptions.best_match(
                jsonschema.Draft202012Validator(schema).iter_errors(sent)
            )
            if error:
                raise LookupError(422, f"Invalid request. {error.json_path}: {error.message[:80]}")
    kept = Kept(folder)
    there = {"private": False, "plan": "team", "default_branch": "main"} | kept.read(
        "repository", {}
    )
    method, path = asked.split(" ", 1)
    match path.split("/"):
        case [""]:
            return {name: there[name] for name in ("private", "default_branch")} | {
                "visibility": "private" if there["private"] else "public"
            }
        case ["rulesets", *which]:
            return _rulesets(kept, there, method, which, query, sent)
        case ["environments", name, *rest]:
            _upgrade(there)
            environments = kept.read("environments", {})
            if name not in environments and (method, rest) != ("PUT", []):
                raise LookupError(404, "Not Found")
            if rest[:1] in (["variables"], ["secrets"]):
                return _values(kept, name, method, rest, query, sent)
            found = _environment(environments, name, method, rest, query, sent)
            kept.write("environments", environments)
            return found
        case ["actions", *rest]:
            return _values(kept, "repository", method, rest, query, sent)
    raise LookupError(404, "Not Found")


def _page(kind: str, entries: list[Any], query: dict[str, str]) -> list[Any]:
    usual, most = PAGES[kind]
    size = min(int(query.get("per_page", usual)), most)
    return entries[size * (int(query.get("page", 1)) - 1) :][:size]


def _environment(
    environments: dict[str, Any],
    name: str,
    method: str,
    rest: list[str],
    query: dict[str, str],
    sent: Any,
) -> Any:
    if method == "PUT":  # what is not sent is gone
        policies = environments.get(name, {}).get("policies", [])
        environments[name] = {"id": 1, "name": name, "policies": policies, "sent": sent}
    one = environments[name]
    if rest[:1] == ["deployment-branch-policies"]:
        custom = (one["sent"].get("deployment_branch_policy") or {}).get("custom_branch_policies")
        if method == "POST":
            if not custom:
                raise LookupError(404, "Not Found")
            if any(known["name"] == sent["name"] for known in one["policies"]):
                raise LookupError(303, "Deployment branch policy already exists")
            number = 1 + max((known["id"] for known in one["policies"]), default=0)
            one["policies"].append({"id": number, "node_id": "", "type": "branch", **sent})
            return Done(200, one["policies"][-1])
        if method == "DELETE":
            left = [known for known in one["policies"] if str(known["id"]) != rest[1]]
            if left == one["policies"]:
                raise LookupError(404, "Not Found")
            one["policies"] = left
            return Done(204)
        found = _page("deployment-branch-policies", one["policies"], query)
        return {"total_count": len(one["policies"]), "branch_policies": found}
    told = one["sent"]
    rules = []
    if told.get("wait_timer"):
        rules.append(
            {"id": 1, "node_id": "", "type": "wait_timer", "wait_timer": told["wait_timer"]}
        )
    if told.get("reviewers"):
        reviewers = [
            {"type": each["type"], "reviewer": {"id": each["id"]}} for each in told["reviewers"]
        ]
        rules.append(
            {"id": 2, "node_id": "", "type": "required_reviewers", "reviewers": reviewers}
            | {"prevent_self_review": bool(told.get("prevent_self_review"))}
        )
    if told.get("deployment_branch_policy"):
        rules.append({"id": 3, "node_id": "", "type": "branch_policy"})
    at = "2026-11-26T12:00:00Z"
    return {
        "id": 1,
        "node_id": "",
        "name": name,
        "url": "",
        "html_url": "",
        "created_at": at,
        "updated_at": at,
        "protection_rules": rules,
        "deployment_branch_policy": told.get("deployment_branch_policy"),
    }


def _values(
    kept: Kept, where: str, method: str, rest: list[str], query: dict[str, str], sent: Any
) -> Any:
    kind, *which = rest
    folder = kept.folder / where / kind
    if which == ["public-key"]:
        return {"key_id": "1", "key": base64.b64encode(bytes(kept.key().public_key)).decode()}
    if method == "GET":
        found = [{"name": one.name, **_when(one)} for one in sorted(folder.glob("*"))]
        if kind == "variables":
            found = [{**one, "value": (folder / one["name"]).read_text()} for one in found]
        return {"total_count": len(found), kind: _page(kind, found, query)}
    name = which[0] if which else sent["name"]
    if not re.fullmatch(r"(?!GITHUB_)[A-Z_][A-Z0-9_]*", name):
        raise LookupError(422, "Name is invalid")
    path = folder / name
    if method in ("PATCH", "DELETE") and not path.exists():
        raise LookupError(404, "Not Found")
    if method == "DELETE":
        path.unlink()
        return Done(204)
    if kind == "variables":
        if method == "POST" and path.exists():
            raise LookupError(409, "Already exists - Variable already exists")
        value = sent.get("value", path.read_text() if path.exists() else "")
    else:
        try:
            box = base64.b64decode(sent["encrypted_value"])
            value = SealedBox(kept.key()).decrypt(box).decode()
        except (CryptoError, ValueError):
            raise LookupError(422, "Bad request - Improperly encrypted secret") from None
    fresh = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(value)
    return Done(201 if fresh else 204, {} if fresh else None)


def _rulesets(
    kept: Kept,
    there: dict[str, Any],
    method: str,
    which: list[str],
    query: dict[str, str],
    sent: Any,
) -> Any:
    rulesets = kept.read("rulesets", [])
    if method != "GET":
        _upgrade(there)
    elif not which:
        short = ("id", "name", "target", "enforcement", "source", "source_type")
        return [{name: one[name] for name in short} for one in _page("rulesets", rulesets, query)]
    found = [one for one in rulesets if which and str(one["id"]) == which[0]]
    if which and not found:
        raise LookupError(404, "Not Found")
    if method == "GET":
        return found[0]
    if any(one["name"] == sent["name"] and one not in found for one in rulesets):
        raise LookupError(422, "Validation Failed: Name must be unique")
    number = found[0]["id"] if found else 1 + max((one["id"] for one in rulesets), default=0)
    new = {
        "target": "branch",
        "bypass_actors": [],
        "conditions": {},
        "rules": [],
        **sent,
        "id": number,
    }
    new |= {"source": "example/cimt", "source_type": "Repository"}
    for rule in new["rules"]:  # GitHub adds what was left out
        if rule["type"] == "pull_request":
            rule["parameters"] = {
                "allowed_merge_methods": ["merge", "squash", "rebase"],
                **rule["parameters"],
            }
        if rule["type"] == "required_status_checks":
            rule["parameters"] = {"do_not_enforce_on_create": False, **rule["parameters"]}
    kept.write("rulesets", [one for one in rulesets if one["id"] != number] + [new])
    return Done(200 if found else 201, new)
