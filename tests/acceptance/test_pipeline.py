"""From a pull request to a live release as GitHub runs it, and two ways to be red; on the droplet of `make up`.

Production's inventory, the workflow files, the commands of docs/setup.md: see local/pipeline.py.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

import httpx
import pytest

from local import pipeline, rehearsal
from local.github.repository import Repository
from local.github.runner import REPOSITORY, Run
from local.registry.rights import PACKAGES, change
from local.settings import Settings, load


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(running=True)


@pytest.fixture(scope="module")
def repository(settings: Settings) -> Repository:
    return Repository(settings.state / "github", pipeline.say)


@pytest.fixture(scope="module")
def deploy(settings: Settings) -> Run:
    """The Deploy of a harmless change; everything before it is done, too."""
    assert pipeline.main() == 0
    newest = max(int(one.name) for one in (settings.state / "github/runs").glob("[0-9]*"))
    return Run.read(settings.state, newest)


@pytest.fixture
def serving(settings: Settings) -> Callable[[], str]:
    """The revision that the product reports through TLS, under its name."""
    trusted = ssl.create_default_context(cafile=settings.state / "github/home/ca.pem")
    domain = rehearsal.values(settings)["API_DOMAIN"]

    def ask() -> str:
        with httpx.Client(verify=trusted, timeout=60) as client:
            answer = client.get(
                f"https://127.0.0.1:{settings.ports['https']}/healthz",
                headers={"Host": domain},
                extensions={"sni_hostname": domain},
            )
        return str(answer.json()["revision"])

    return ask


def test_a_merge_is_live(deploy: Run, serving: Callable[[], str]) -> None:
    assert {name: job.result for name, job in deploy.jobs.items()} == dict.fromkeys(
        deploy.jobs, "success"
    )
    assert serving() == deploy.sha
    assert deploy.leaked == []


def test_a_missing_secret_is_named(
    deploy: Run, repository: Repository, settings: Settings, serving: Callable[[], str]
) -> None:
    secret = settings.state / "github/settings/production/secrets/OPENAI_API_KEY"
    kept = secret.read_text()
    secret.unlink()
    try:
        run = repository.again(deploy.number, ["release"])
    finally:
        secret.write_text(kept)
    assert run.jobs["release"].result == "failure"
    assert "OPENAI_API_KEY" in (run.folder / "release.log").read_text()
    assert serving() == deploy.sha


def test_a_package_that_is_not_linked_cannot_be_pushed(
    deploy: Run, repository: Repository, settings: Settings, serving: Callable[[], str]
) -> None:
    package = f"{REPOSITORY}/api"
    with change(settings.clouds / "ghcr", PACKAGES) as packages:
        kept, packages[package]["repository"] = packages[package]["repository"], None
    try:
        run = repository.again(deploy.number, ["build", "release"])
    finally:
        with change(settings.clouds / "ghcr", PACKAGES) as packages:
            packages[package]["repository"] = kept
    assert (run.jobs["build"].result, run.jobs["release"].result) == ("failure", "skipped")
    assert "Manage Actions access" in (run.folder / "build.log").read_text()
    assert serving() == deploy.sha
