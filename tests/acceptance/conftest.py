"""The acceptance run: what hurts at 3 a.m., done to the local droplet on purpose."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from testbed.droplet import GENEROUS, LOCAL, Client, Image, Traffic


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
        "RUN printf %s {revision} > /app/revision && sed -i 's/Hello, CIMT!/Hello?/' /app/cimt_api/chat.py "
        "&& rm /app/cimt_api/__pycache__/chat.*"
    ),
    "not pulled before": "RUN printf %s {revision} > /app/revision && echo new > /app/new",
}


@pytest.fixture(scope="session")
def live_build() -> Image:
    """What `make up` built and released."""
    build = json.loads((LOCAL / "build/api.json").read_text())
    return Image(build["image"], build["revision"])


@pytest.fixture(scope="session")
def images(live_build: Image, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Image]:
    """Variants of the released image, built on it and pushed to the local registry."""
    registry = json.loads((LOCAL / "ports.json").read_text())["registry"]
    base = live_build.reference.replace("10.0.2.2", "127.0.0.1")
    variants = {}
    for number, (name, lines) in enumerate(FAULTS.items(), start=1):
        folder = tmp_path_factory.mktemp("image")
        revision = f"{number}" * 40
        (folder / "Dockerfile").write_text(
            f"FROM {base}\nUSER root\n{lines.format(revision=revision)}\nUSER 10001\n"
        )
        digest_file = folder / "digest"
        target = f"127.0.0.1:{registry}/cimt/api:variant-{number}"
        for command in (
            ["bud", "--isolation=chroot", "--format=docker", "--tls-verify=false", "-t", target],
            ["push", "--tls-verify=false", "--digestfile", str(digest_file), target],
        ):
            subprocess.run(
                ["buildah", *command, *([str(folder)] if command[0] == "bud" else [])],
                check=True,
                capture_output=True,
                text=True,
                timeout=GENEROUS,
            )
        variants[name] = Image(f"10.0.2.2:{registry}/cimt/api@{digest_file.read_text()}", revision)
    return variants
