"""docs/flutterflow.openapi.json: the part of the API that an app needs, in OpenAPI 3.0.3, which FlutterFlow imports.

Ours is 3.1, of which importers for 3.0 lose what may be null. `python -m testbed.flutterflow` writes the file anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from services.api.cimt_api.app import create_app
from services.api.cimt_api.metrics import Metrics
from testbed.api import settings_from

FILE = Path(__file__).parents[1] / "docs/flutterflow.openapi.json"
OPERATIONS = {
    "/chat": ["post"],
    "/chat/{answer_id}/stop": ["post"],
    "/chat/{answer_id}/feedback": ["put"],
    "/conversations": ["get"],
    "/conversations/{conversation_id}": ["get", "patch", "delete"],
    "/me": ["get", "patch"],
}
REFERENCE = "#/components/schemas/"
SETTINGS = {
    "DATABASE_URL": "postgresql://cimt_api@127.0.0.1/postgres",
    "SUPABASE_URL": "http://127.0.0.1",
    "OPENAI_API_KEY": "none",
    "INGEST_KEY": "x" * 32,
}
# What is always null, as 3.0 says it.
NULL = {"type": "string", "nullable": True, "enum": [None]}


def generate() -> str:
    """The document, as the file holds it."""
    app = create_app(settings_from(SETTINGS), Metrics(CollectorRegistry()), "")
    ours = app.openapi()
    paths: dict[str, Any] = {}
    for path, methods in OPERATIONS.items():
        for method in methods:
            operation = _older(ours["paths"][path][method])
            operation["security"] = [{"bearer": []}]
            # What an importer makes of them are calls that nobody makes: the errors are all of one shape.
            operation["responses"] = {
                status: answer
                for status, answer in operation["responses"].items()
                if status.startswith("2")
            }
            paths.setdefault(path, {})[method] = operation
    question = {"$ref": f"{REFERENCE}ChatRequest"}
    paths["/chat"]["post"]["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": question}},
    }
    document = {
        "openapi": "3.0.3",
        "info": {"title": "CIMT", "version": ours["info"]["version"]},
        "servers": [
            {"url": "https://api.example.com", "description": "Put the domain of your api."}
        ],
        "paths": paths,
        "components": {
            "schemas": _named(paths, ours["components"]["schemas"]),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _named(part: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The schemas that a part of the document names, and those that these name."""
    found: dict[str, Any] = {}
    names = _references(part)
    while names:
        name = names.pop()
        if name not in found:
            found[name] = _older(schemas[name])
            names |= _references(found[name])
    return dict(sorted(found.items()))


def _references(part: Any) -> set[str]:
    if isinstance(part, list):
        return set().union(*map(_references, part)) if part else set()
    if not isinstance(part, dict):
        return set()
    inner = set().union(*map(_references, part.values())) if part else set()
    reference = part.get("$ref")
    return inner | ({reference.removeprefix(REFERENCE)} if isinstance(reference, str) else set())


def _older(part: Any) -> Any:
    """A part of a document of OpenAPI 3.1 as 3.0 says it."""
    if isinstance(part, list):
        return [_older(one) for one in part]
    if not isinstance(part, dict):
        return part
    made = {key: _older(value) for key, value in part.items()}
    if isinstance(made.get("examples"), list):
        made["example"] = made.pop("examples")[0]
    if "const" in made:
        made["enum"] = [made.pop("const")]
    if made.get("type") == "null":
        made |= NULL
    choices = made.get("anyOf")
    if isinstance(choices, list) and NULL in choices:
        rest = [one for one in choices if one != NULL]
        del made["anyOf"]
        # Beside a reference 3.0 reads nothing.
        same = rest[0] if len(rest) == 1 and "$ref" not in rest[0] else {"anyOf": rest}
        made = {**same, **made, "nullable": True}
    if made.get("default", "") is None:
        del made["default"]
    return made


if __name__ == "__main__":
    FILE.write_text(generate())
