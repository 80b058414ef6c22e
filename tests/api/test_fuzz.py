"""Whatever the OpenAPI document allows, and what it forbids, gets an answer that it documents, and never a 500."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from testbed.api import INGEST_KEY, Api, Clouds

EXAMPLES = 8  # of each operation, allowed ones and forbidden ones
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
BOUNDED = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_documented(
    shared_api: Api, clouds: Clouds, subtests: pytest.Subtests, mode: GenerationMode
) -> None:
    user = clouds.sign_in.token("fuzz@example.com")
    document = schemathesis.openapi.from_url(f"{shared_api.url}/openapi.json")
    asked = []

    def ask(case: Any) -> None:
        asked.append(case)
        token = INGEST_KEY if case.operation.path.startswith("/documents") else user
        headers = {"Authorization": f"Bearer {token}"}
        case.call_and_validate(headers=headers, checks=CHECKS, timeout=60)

    operations: Any = document.get_all_operations()
    for found in operations:
        operation = found.ok()
        # A request without parameters has nothing that could be wrong.
        if mode is GenerationMode.POSITIVE or operation.body or operation.path_parameters:
            with subtests.test(operation.label):
                decorate: Any = given(operation.as_strategy(generation_mode=mode))
                bounded: Any = BOUNDED
                bounded(decorate(ask))()
    assert len(asked) > 50
