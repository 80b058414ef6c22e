"""One Postgres, one pair of stand-ins and one API for all tests that leave them as they found them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import api as harness


@pytest.fixture(scope="session")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Clouds]:
    """Postgres with our schema, the model, the sign-in."""
    with harness.clouds(tmp_path_factory.mktemp("clouds")) as made:
        yield made


@pytest.fixture(scope="session")
def shared_api(
    clouds: harness.Clouds, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[harness.Api]:
    """An API with default settings, but no limits on how often one user asks."""
    with harness.api(
        tmp_path_factory.mktemp("api") / "api", clouds.environment(), until="/readyz"
    ) as made:
        yield made


@pytest.fixture
def model(clouds: harness.Clouds) -> Iterator[harness.Model]:
    """The model, well-behaved before and after."""
    clouds.model.reset()
    yield clouds.model
    clouds.model.reset()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For the copy of the package that an API of the test's own runs from."""
    return tmp_path / "api"
