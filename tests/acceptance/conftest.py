"""The acceptance run: what hurts at 3 a.m., done to the local droplet on purpose."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.droplet import Client, Image, Traffic, built, variant


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def traffic(client: Client) -> Iterator[Traffic]:
    with Traffic(client) as asking:
        yield asking


FAULTS = {
    # what the api's image becomes, as lines of a Dockerfile on top of it
    "good": "RUN printf %s {revision} > /app/revision",
    "crashes at once": 'ENTRYPOINT ["/bin/false"]\nCMD []',
    "never healthy": "HEALTHCHECK --interval=2s --timeout=10s --start-period=1s --retries=2 CMD false",
    "wrong revision": "RUN printf %s 0000000000000000000000000000000000000000 > /app/revision",
    # Its bytecode is never checked against the source.
    "answers wrongly": (
        "RUN printf %s {revision} > /app/revision && sed -i 's/Hello, CIMT!/Hello?/' /app/cimt_api/routes/chat.py "
        "&& rm /app/cimt_api/routes/__pycache__/chat.*"
    ),
    "not pulled before": "RUN printf %s {revision} > /app/revision && echo new > /app/new",
}


@pytest.fixture(scope="session")
def live_build() -> Image:
    """What `make up` built and released."""
    return built()


@pytest.fixture(scope="session")
def images(live_build: Image) -> dict[str, Image]:
    """Variants of the released image, built on it and pushed to the local registry."""
    return {
        name: variant(live_build, number, lines)
        for number, (name, lines) in enumerate(FAULTS.items(), start=1)
    }
