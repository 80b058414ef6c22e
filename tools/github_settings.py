"""`make github`: environments, their variables and secrets, and the rule for `main`, as services/settings.yaml says.

There are two: ENV for what every merge does, and ENV-host for what rules the droplet, which waits for a reviewer. Each
gets what the jobs of the workflows take that run in it.

Without CONFIRM=yes it only shows what it would change: `+` new, `~` other, `-` gone, `?` not ours, which stays.
A secret's value cannot be read back from GitHub: one is written when it is missing there, or named in ROTATE=NAME,NAME;
one that GitHub has only by your choice, when it is named; NAME_OLD goes, when it is named and has no value any more.
Asked is GITHUB_API_URL (api.github.com) about the repository of this clone's origin, or GITHUB_REPOSITORY, with
GITHUB_TOKEN, GH_TOKEN, or what `gh auth token` has: a person's, with Administration, Environments and Variables for
writing and Actions for reading. Exit codes: 0 done, or shown; 1 GitHub did not; 2 refused before it was asked.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from nacl.public import PublicKey, SealedBox

from tools import github
from tools.github import NotDone
from tools.init import first_day, suggested
from tools.settings.__main__ import HOST_JOBS, MERGE_JOBS, read, taken
from tools.settings.__main__ import github as kept_as
from tools.settings.values import OLD

ROOT = Path(__file__).parents[1]
RULESET = "cimt"
HOST = "-host"  # what the second environment is called after the first
ACTIONS = 15368  # the app whose check Gate is: GitHub Actions
SECRET = ("secret", "secret by choice")
RULES: dict[str, dict[str, Any]] = {
    "deletion": {},
    "non_fast_forward": {},
    "pull_request": {
        "dismiss_stale_reviews_on_push": False,
        "require_code_owner_review": False,
        "require_last_push_approval": False,
        "required_approving_review_count": 0,
        "required_review_thread_resolution": False,
    },
    "required_status_checks": {
        "strict_required_status_checks_policy": False,
        "required_status_checks": [{"context": "Gate", "integration_id": ACTIONS}],
    },
}
UPGRADE = (
    "Next: make the repository public, or pay for GitHub Team: "
    "on Free a private one has neither environments nor rulesets"
)
RIGHTS = (
    "Next: a token of yours for this repository, "
    "with Administration, Environments, Variables (write) and Actions (read)"
)


@dataclass(frozen=True)
class Change:
    """One line of the plan, and what makes it so (nothing for what is only told)."""

    sign: str
    what: str
    do: Callable[[], Any] | None = None

    def __str__(self) -> str:
        return f"{self.sign} {self.what}"


@dataclass(frozen=True)
class Wanted:
    """What GitHub shall have of an environment: values of variables and secrets, names that are ours by their kind."""

    reviewed: bool
    variables: dict[str, str]
    of_repository: dict[str, str]
    secrets: dict[str, str]
    names: dict[str, set[str]]
    rotate: set[str]


def wanted(declared: Mapping[str, Any], env: Mapping[str, str], host: bool) -> Wanted:
    """By services/settings.yaml, and the workflows that take them; the values are the environment's."""
    used = taken(HOST_JOBS if host else MERGE_JOBS)
    names: dict[str, set[str]] = {
        "variable": set(),
        "secret": set(),
        "secret by choice": set(),
        "variable of the repository": set(),
    }
    for name, setting in declared["settings"].items():
        if name in used:
            names[kept_as(setting)].add(name)

    def values(kind: str) -> dict[str, str]:
        return {
            name: env[name]
            for name in declared["settings"]
            if name in names[kind] and env.get(name)
        }

    rotate = {name for name in re.split(r"[,\s]+", env.get("ROTATE", "")) if name}
    return Wanted(
        reviewed=host,
        variables=values("variable"),
        of_repository=values("variable of the repository"),
        secrets=values("secret")
        | {name: value for name, value in values("secret by choice").items() if name in rotate},
        names=names,
        rotate=rotate,
    )


def by_environment(
    declared: Mapping[str, Any], env: Mapping[str, str], name: str
) -> dict[str, Wanted]:
    """Of both environments what they shall have, by their names at GitHub."""
    return {name + (HOST if host else ""): wanted(declared, env, host) for host in (False, True)}


def refused(declared: Mapping[str, Any], wants: Collection[Wanted]) -> str:
    """Why GitHub is not asked at all; empty when it can be."""
    known = {name for want in wants for name in want.variables | want.secrets}
    secret = {name for want in wants for kind in SECRET for name in want.names[kind]}
    ours = {name for want in wants for kind in ("variable", "secret") for name in want.names[kind]}
    (rotate,) = {frozenset(want.rotate) for want in wants}
    given = {name for want in wants for name in want.secrets}
    if lacking := [name for name in first_day(declared) if name in ours and name not in known]:
        return f"not set: {', '.join(lacking)}. Next: make init says where each comes from"
    if strange := rotate - secret:
        return f"ROTATE={','.join(sorted(strange))} is no secret of a workflow. Next: docs/setup.md has their names"
    # An old value whose time is over has none here: then it goes from GitHub too.
    if absent := {name for name in rotate - given if not name.endswith(OLD)}:
        return f"ROTATE={','.join(sorted(absent))} has no new value here. Next: put it into 1Password, or the shell"
    return ""


class Settings(github.Repository):
    """What one repository and one of its environments are set to. Every method raises NotDone."""

    def __init__(self, client: httpx.Client, name: str, environment: str) -> None:
        super().__init__(client, name)
        self._environment = environment
        self._at = f"/environments/{environment}"

    def _entries(self, path: str, kind: str) -> list[dict[str, Any]]:
        """Every entry of a list that says how many there are."""
        found: list[dict[str, Any]] = []
        while True:
            page = {"per_page": 30, "page": len(found) // 30 + 1}
            answer = self._ask("GET", path, params=page)
            found += answer[kind]
            if len(found) >= answer["total_count"] or not answer[kind]:
                return found

    def _there(self, path: str) -> Any:
        """The answer, or None where it is not there."""
        try:
            return self._ask("GET", path)
        except NotDone as error:
            if ": 404 " in str(error):
                return None
            raise

    def plan(self, want: Wanted) -> list[Change]:
        """Every difference, in the order in which it is made: no secret goes into an environment that is still open."""
        rule = () if want.reviewed else self._rule()
        return [*self._protect(want), *self._variables(want), *self._secrets(want), *rule]

    def _protect(self, want: Wanted) -> Iterator[Change]:
        policy = {"protected_branches": False, "custom_branch_policies": True}
        there = self._there(self._at)
        body: dict[str, Any] = {"wait_timer": 0, "prevent_self_review": False, "reviewers": []}
        for rule in (there or {}).get(
            "protection_rules", ()
        ):  # a PUT takes away what it does not say
            body["wait_timer"] = rule.get("wait_timer", body["wait_timer"])
            body["prevent_self_review"] = rule.get(
                "prevent_self_review", body["prevent_self_review"]
            )
            body["reviewers"] += [
                {"type": one["type"], "id": one["reviewer"]["id"]}
                for one in rule.get("reviewers", ())
            ]
        told = f"environment {self._environment}: only named branches deploy into it"
        changed = there is None or there["deployment_branch_policy"] != policy
        if want.reviewed and not body["reviewers"]:
            if self._ask("GET", "").get("visibility") == "public":
                body["reviewers"] = [{"type": "User", "id": self._person()}]
                told, changed = f"{told}, once you have approved it", True
            else:
                open_to = (
                    f"environment {self._environment}: whoever may start Operate deploys into it"
                )
                yield Change(
                    "?",
                    f"{open_to}; for a private repository GitHub asks reviewers on Enterprise Cloud only",
                )
        # What is not used is not said: a plan without reviewers or timers would refuse it.
        body = {name: value for name, value in body.items() if value}
        body["deployment_branch_policy"] = policy
        if changed:
            sign = "+" if there is None else "~"
            yield Change(sign, told, lambda: self._ask("PUT", self._at, json=body))
        place = f"{self._at}/deployment-branch-policies"
        known = self._entries(place, "branch_policies") if there else []
        branches = [(one["name"], one.get("type", "branch")) for one in known]
        if ("main", "branch") not in branches:
            main = {"name": "main", "type": "branch"}
            told = f"environment {self._environment}: the branch main deploys into it"
            yield Change("+", told, lambda: self._ask("POST", place, json=main))
        for one in known:
            if (one["name"], one.get("type", "branch")) != ("main", "branch"):
                told = f"environment {self._environment}: {one['name']} deploys into it no more"
                yield Change("-", told, self._delete(f"{place}/{one['id']}"))
        self._new = there is None

    def _person(self) -> int:
        """Number of whose token this is."""
        answer = self._client.get("user")
        if not answer.is_success:
            raise NotDone(f"GET user: {answer.status_code} {answer.text[:150]}")
        return int(answer.json()["id"])

    def _delete(self, path: str) -> Callable[[], Any]:
        return lambda: self._ask("DELETE", path)

    def _variables(self, want: Wanted) -> Iterator[Change]:
        places = {
            "variable": (self._at, want.variables),
            "variable of the repository": ("/actions", want.of_repository),
        }
        if (
            self._environment != MERGE_JOBS
        ):  # what belongs to the whole repository is as that has it
            del places["variable of the repository"]
        for kind, (at, values) in places.items():
            place = f"{at}/variables"
            new = self._new and at == self._at
            there = (
                {}
                if new
                else {one["name"]: one["value"] for one in self._entries(place, "variables")}
            )
            for name, value in values.items():
                yield from self._variable(kind, place, name, value, there.get(name))
            for name in sorted(there.keys() - values.keys()):
                if name in want.names[kind]:
                    yield Change(
                        "-", f"{kind} {name} (was {there[name]})", self._delete(f"{place}/{name}")
                    )
                else:
                    yield Change("?", f"{kind} {name}: no workflow takes it from here; it stays")

    def _variable(
        self, kind: str, place: str, name: str, value: str, was: str | None
    ) -> Iterator[Change]:
        if was is None:
            body = {"name": name, "value": value}
            yield Change(
                "+", f"{kind} {name} = {value}", lambda: self._ask("POST", place, json=body)
            )
        elif was != value:
            told = f"{kind} {name}: {was} → {value}"
            change = {"value": value}
            yield Change("~", told, lambda: self._ask("PATCH", f"{place}/{name}", json=change))

    def _secrets(self, want: Wanted) -> Iterator[Change]:
        place = f"{self._at}/secrets"
        there = (
            {}
            if self._new
            else {one["name"]: one["updated_at"][:10] for one in self._entries(place, "secrets")}
        )

        def seal(name: str) -> Callable[[], Any]:
            def do() -> Any:
                key = self._ask("GET", f"{place}/public-key")
                box = SealedBox(PublicKey(base64.b64decode(key["key"])))
                sealed = base64.b64encode(box.encrypt(want.secrets[name].encode())).decode()
                body = {"encrypted_value": sealed, "key_id": key["key_id"]}
                return self._ask("PUT", f"{place}/{name}", json=body)

            return do

        for name in want.secrets:
            if name not in there:
                yield Change("+", f"secret {name}", seal(name))
            elif name in want.rotate:
                yield Change("~", f"secret {name}, there since {there[name]}", seal(name))
        for name in sorted(there.keys() - want.secrets.keys()):
            if name in want.rotate and name.endswith(OLD):
                yield Change("-", f"secret {name}", self._delete(f"{place}/{name}"))
                continue
            told = "no workflow takes it from here"
            if any(name in want.names[kind] for kind in SECRET):
                told = "its value is not here, or was not named"
            yield Change("?", f"secret {name}: {told}; it stays")

    def _rule(self) -> Iterator[Change]:
        own = self._all("/rulesets", includes_parents="false")  # not an organisation's of that name
        found = [one for one in own if one["name"] == RULESET]
        there = self._ask("GET", f"/rulesets/{found[0]['id']}") if found else {}
        before = {one["type"]: one.get("parameters") or {} for one in there.get("rules", ())}
        rules = dict(before)
        for kind, parameters in RULES.items():
            rules[kind] = dict(before.get(kind, {}))
            for name, value in parameters.items():
                was = rules[kind].get(name)
                if isinstance(value, list):
                    others = [one for one in was or () if one["context"] != value[0]["context"]]
                    rules[kind][name] = was if was and value[0] in was else [*others, *value]
                else:  # a stricter rule of yours stays
                    rules[kind][name] = value if was is None else max(value, was)
        conditions = {"ref_name": {"include": ["~DEFAULT_BRANCH"], "exclude": []}}
        head = {
            "name": RULESET,
            "target": "branch",
            "enforcement": "active",
            "conditions": conditions,
        }
        same = rules == before and all(there.get(name) == value for name, value in head.items())
        if found and same:
            return
        body = {**head, "bypass_actors": there.get("bypass_actors") or []}
        body["rules"] = [
            {"type": kind, **({"parameters": parameters} if parameters else {})}
            for kind, parameters in rules.items()
        ]
        told = f"ruleset {RULESET}: main takes pull requests whose check Gate passed; no force-push, no deletion"
        if found:
            yield Change(
                "~", told, lambda: self._ask("PUT", f"/rulesets/{found[0]['id']}", json=body)
            )
        else:
            yield Change("+", told, lambda: self._ask("POST", "/rulesets", json=body))


def access() -> tuple[str, str, str]:
    """Address of GitHub's API, repository and token; empty what is not known."""
    url = os.environ.get("GITHUB_API_URL") or "https://api.github.com"
    name = (
        os.environ.get("REPOSITORY")
        or os.environ.get("GITHUB_REPOSITORY")
        or suggested("repository")
    )
    token = os.environ.get("GITHUB_TOKEN") or os.environ.get("GH_TOKEN", "")
    if not token:
        done = subprocess.run(["gh", "auth", "token"], capture_output=True, text=True)
        token = done.stdout.strip() if done.returncode == 0 else ""
    return url, name, token


def told(reason: str, token: str) -> str:
    """Why GitHub did not, in one line, with what to do about it."""
    line = " ".join(reason.replace(token, "***").split())[:300]
    if "Upgrade to GitHub" in line:
        return f"{line}. {UPGRADE}"
    if re.search(r": 40[13] ", line):
        return f"{line}. {RIGHTS}"
    if re.match(r"GET /rulesets: 404|GET : 404", line):
        return f"{line}. Next: is it the repository's name, and may the token see it? {RIGHTS}"
    following = (
        "mend what it names" if ": 422 " in line else "the same again: it goes on where it stopped"
    )
    return f"{line}. Next: {following}"


def main() -> int:
    """Command line; returns the exit code."""
    environment = os.environ.get("ENV", "local")
    declared = read()
    wants = by_environment(declared, os.environ, environment)
    if reason := refused(declared, wants.values()):
        print(f"github: {reason}", file=sys.stderr)
        return 2
    url, name, token = access()
    if not name or not token or not url.startswith(("https://", "http://127.0.0.1:")):
        lacking = (
            "which repository" if not name else "whose token" if not token else "GITHUB_API_URL"
        )
        following = (
            "GITHUB_REPOSITORY=owner/name"
            if not name
            else "gh auth login"
            if not token
            else "https://…"
        )
        print(f"github: {lacking}? Next: {following}", file=sys.stderr)
        return 2
    confirmed = os.environ.get("CONFIRM") == "yes"
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"}
    headers["X-GitHub-Api-Version"] = "2022-11-28"
    shown: list[str] = []

    def do() -> None:
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            for at, want in wants.items():
                settings = Settings(client, name, at)
                for change in settings.plan(want):
                    line = f"{change}" if at == environment else f"{change} ({at})"
                    if line not in shown:  # a second try tells only what is new
                        shown.append(line)
                        print(line, flush=True)
                    if confirmed and change.do:
                        change.do()
                after = settings.plan(replace(want, rotate=set())) if confirmed else []
                if left := [one for one in after if one.do]:
                    raise NotDone(f"still so after it was changed: {left[0]}")

    print(f"github: {name}, environments {' and '.join(wants)}")
    if reason := github.patiently(do):
        print(f"github: {told(reason, token)}", file=sys.stderr)
        return 1
    count = sum(not line.startswith("?") for line in shown)
    if not count:
        print("github: all is as it should be")
    elif confirmed:
        print(f"github: {count} changed")
    else:
        print(
            f"github: {count} to change; nothing was. Next: make github ENV={environment} CONFIRM=yes"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
