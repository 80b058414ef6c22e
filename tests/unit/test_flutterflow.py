"""docs/flutterflow.openapi.json is the API's own document, and one of OpenAPI 3.0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from testbed import flutterflow


def inside(part: Any) -> Iterator[dict[str, Any]]:
    """Every object of a document."""
    if isinstance(part, dict):
        yield part
    for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from inside(one)


def test_the_file_is_what_the_api_says_of_itself() -> None:
    assert flutterflow.FILE.read_text() == flutterflow.generate(), (
        "the API has changed. Next: python -m testbed.flutterflow, and look whether docs/flutterflow.md still holds"
    )


def test_it_holds_nothing_that_only_a_later_openapi_knows() -> None:
    document = json.loads(flutterflow.FILE.read_text())
    assert document["openapi"] == "3.0.3"
    schemas = document["components"]["schemas"]
    for part in inside(document):
        assert part.get("type") != "null"
        assert not isinstance(part.get("type"), list)
        assert not {"const", "prefixItems", "$defs"} & part.keys()
        assert "$ref" not in part or set(part) == {"$ref"}
        if "$ref" in part:
            assert part["$ref"].removeprefix(flutterflow.REFERENCE) in schemas
    assert schemas["ChatRequest"]["properties"]["conversation_id"]["nullable"] is True
    assert "message" in schemas["ChatRequest"]["required"]
