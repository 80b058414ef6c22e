"""Rules for one node of a workflow. Each yields messages that say what is wrong and how it is mended."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Any

from cronsim import CronSim, CronSimError

from tools.workflows.repository import Repository

Node = dict[str, Any]

# Source: n8n's page of breaking changes of version 3.0. A number: this version of the node and older ones.
REMOVED_IN_3: dict[str, tuple[float | None, str]] = {
    "n8n-nodes-base.function": (None, "use Code, once for all items"),
    "n8n-nodes-base.functionItem": (None, "use Code, once for each item"),
    "n8n-nodes-base.itemLists": (
        None,
        "use Split Out, Aggregate, Sort, Limit or Remove Duplicates",
    ),
    "n8n-nodes-base.aiTransform": (None, "use Code"),
    "@n8n/n8n-nodes-langchain.code": (None, "use Code, or a tool of its own"),
    "@n8n/n8n-nodes-langchain.agent": (1.99, "use version 2 or newer"),
}
# n8n does not load them unless it is told to, and this product does not tell it to.
SWITCHED_OFF = {"n8n-nodes-base.executeCommand", "n8n-nodes-base.localFileTrigger"}
# Reached from outside, with the parameter that says who may, and the values that let in everybody.
ENTRANCES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "n8n-nodes-base.webhook": ("authentication", (None, "none")),
    "n8n-nodes-base.formTrigger": ("authentication", (None, "none")),
    "@n8n/n8n-nodes-langchain.mcpTrigger": ("authentication", (None, "none")),
    "@n8n/n8n-nodes-langchain.chatTrigger": ("authentication", (None, "none")),
}
SECRETS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a key of OpenAI or Anthropic": r"\bsk-[A-Za-z0-9_-]{16,}",
    "a secret key of Supabase": r"\bsb_secret_[A-Za-z0-9_-]+",
    "a token of GitHub": r"\b(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
    "a token of Slack": r"\bxox[abeoprs]-[A-Za-z0-9-]{8,}",
    "a secret address of Slack": r"hooks\.slack\.com/(?:services|workflows)/\w+",
    "a secret address of Discord": r"discord(?:app)?\.com/api/webhooks/\d+/",
    "a token of a Telegram bot": r"\b(?:bot)?\d{8,10}:[A-Za-z0-9_-]{35}\b",
    "an access key of AWS": r"\bAKIA[0-9A-Z]{16}\b",
    "a signed token (JWT)": r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+",
    "a password in an address": r"://[^\s/:@{}$]+:[^\s/@{}$]+@",
    "a bearer token": r"\b[Bb]earer\s+(?!\{\{)[A-Za-z0-9._~+/-]{16,}",
}
SECRET_NAME = re.compile(
    r"(?:authorization|(?:api|access|secret|private)[-_]?key|token|password|passwd|secret)$", re.I
)
MONTH = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 - only a place to count from


def kind(node: Node, repository: Repository) -> Iterator[str]:
    """Its type and version exist in the pinned n8n, are loaded, and stay in the next."""
    name, version = node.get("type"), node.get("typeVersion")
    known = repository.nodes.get(str(name))
    if name in SWITCHED_OFF:
        yield f"{name} is switched off in n8n 2 (it runs commands, or reads files, of the container): do without it"
        return
    if known is None:
        yield (
            f"n8n {repository.n8n_version} has no node type {name!r}. Community nodes are not installed; "
            "use one of n8n's own, such as HTTP Request"
        )
        return
    if version not in known["versions"]:
        have = ", ".join(f"{one:g}" for one in known["versions"])
        yield (
            f"typeVersion {version} of {name} is not in n8n {repository.n8n_version}, which has {have}. "
            "Open and save it in that n8n, or choose one of these"
        )
    limit, instead = REMOVED_IN_3.get(str(name), (0.0, ""))
    if instead and (limit is None or (isinstance(version, int | float) and version <= limit)):
        yield f"{name} is removed in n8n 3: {instead}"
    if name == "n8n-nodes-base.executeWorkflow" and parameters_of(node).get("mode") == "each":
        yield "the mode 'Run once for each item' is removed in n8n 3: put Loop Over Items before it"


def schedule(node: Node, _: Repository) -> Iterator[str]:
    """Cron expressions can be read and come due; other intervals are left to n8n."""
    if node.get("type") != "n8n-nodes-base.scheduleTrigger":
        return
    rule = parameters_of(node).get("rule")
    intervals = rule.get("interval") if isinstance(rule, dict) else None
    for interval in intervals if isinstance(intervals, list) else []:
        if not isinstance(interval, dict) or interval.get("field") != "cronExpression":
            continue
        expression = str(interval.get("expression", ""))
        try:
            next(CronSim(expression, MONTH))
        except (CronSimError, StopIteration) as error:
            yield (
                f"cron expression {expression!r}: {str(error) or 'it never comes due'}. "
                "Five fields (minute hour day month weekday), or six with seconds first"
            )


def entrance(node: Node, _: Repository) -> Iterator[str]:
    """Who comes in from outside shows a credential."""
    if node.get("type") not in ENTRANCES:
        return
    parameter, open_values = ENTRANCES[node["type"]]
    if node["type"].endswith("chatTrigger") and not parameters_of(node).get("public"):
        return
    if parameters_of(node).get(parameter) in open_values:
        yield "anybody may call it: set Authentication (Header Auth with the credential 'CIMT webhook')"


def address(node: Node, repository: Repository) -> Iterator[str]:
    """Its part of an address outside is fixed: n8n would make up another at each import, which shows as drift."""
    if (repository.nodes.get(str(node.get("type"))) or {}).get("webhook") and not node.get(
        "webhookId"
    ):
        yield "webhookId is missing: give it a UUID, or save it in the editor and run make n8n-pull"


def credentials(node: Node, repository: Repository) -> Iterator[str]:
    """What it names is declared, under that name, of that type, and is what it needs."""
    used: dict[str, Any] = node.get("credentials") or {}
    for type_name, reference in used.items():
        declared = repository.credentials.get(str(reference.get("id")))
        if declared is None:
            yield (
                f"credential {reference.get('name')!r} (id {reference.get('id')}) is not declared. "
                f"Add it to services/n8n/credentials.yaml, or use one of: {', '.join(sorted(repository.credentials))}"
            )
            continue
        if declared["name"] != reference.get("name"):
            yield (
                f"credential {reference['id']} is called {declared['name']!r} in "
                f"services/n8n/credentials.yaml, here {reference.get('name')!r}"
            )
        if declared["type"] != type_name:
            yield f"credential {reference['id']} is of type {declared['type']}, used here as {type_name}"
    parameters = parameters_of(node)
    wanted = {
        "genericCredentialType": parameters.get("genericAuthType"),
        "predefinedCredentialType": parameters.get("nodeCredentialType"),
        "headerAuth": "httpHeaderAuth",
        "basicAuth": "httpBasicAuth",
        "jwtAuth": "jwtAuth",
    }.get(str(parameters.get("authentication")))
    needed = (
        [wanted] if wanted else (repository.nodes.get(str(node.get("type"))) or {}).get("needs", [])
    )
    for type_name in needed:
        if type_name not in used:
            yield f"it needs a credential of type {type_name} and names none: choose one in the editor"


def secrets(node: Node, _: Repository) -> Iterator[str]:
    """No secret stands in the file, neither by its look nor by the name of its field."""
    for where, value in strings(parameters_of(node)):
        for what, pattern in SECRETS.items():
            if re.search(pattern, value):
                yield f"{where} holds {what}: move it to a credential, and revoke it if it was ever pushed"
    for where, name, value in _named_values(parameters_of(node)):
        if SECRET_NAME.search(name) and value and not value.startswith("="):
            yield f"{where}: the value of {name!r} stands in the file: move it to a credential"


def expressions(node: Node, _: Repository) -> Iterator[str]:
    """Nothing is asked of n8n that this product has switched off or that n8n 3 removes."""
    for where, value in strings(parameters_of(node)):
        code = where.endswith("jsCode")
        if not code and not value.startswith("="):
            continue
        if re.search(r"\$env\b", value):
            yield f"{where} reads $env, which is blocked: use the node Settings, or a credential"
        if re.search(r"\$vars\b", value):
            yield f"{where} reads $vars, which needs a licence: use the node Settings"
        if "$getPairedItem" in value:
            yield f'{where} uses $getPairedItem, which n8n 3 removes: use $("node").item'
        if code and re.search(r"\b(?:require|import)\s*\(", value):
            yield f"{where} loads a module, which the task runner refuses: use a node of n8n instead"


RULES = (kind, schedule, entrance, address, credentials, secrets, expressions)


def ends(node: Node, repository: Repository, kind: str) -> int | None:
    """How many main ``inputs`` or ``outputs`` it has; None where nobody knows before it runs."""
    known = repository.nodes.get(str(node.get("type")))
    if known is None:
        return None
    number: int | None = known.get(kind, 0 if kind == "inputs" and known.get("trigger") else 1)
    if kind == "outputs" and number is not None and node.get("onError") == "continueErrorOutput":
        number += 1
    return number


def parameters_of(node: Node) -> dict[str, Any]:
    """Its parameters; empty when it has none."""
    found = node.get("parameters")
    return found if isinstance(found, dict) else {}


def strings(value: Any, where: str = "parameters") -> Iterator[tuple[str, str]]:
    """Every text in it, with its path."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from strings(inner, f"{where}[{position}]")


def _named_values(value: Any, where: str = "parameters") -> Iterator[tuple[str, str, str]]:
    """Pairs of a name and a text: ``{"name": …, "value": …}`` as in headers, and plain keys."""
    if isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _named_values(inner, f"{where}[{position}]")
    elif isinstance(value, dict):
        if isinstance(value.get("name"), str) and isinstance(value.get("value"), str):
            yield where, value["name"], value["value"]
        for key, inner in value.items():
            if isinstance(inner, str):
                yield where, key, inner
            else:
                yield from _named_values(inner, f"{where}.{key}")
