"""From a pull request to a live release as GitHub runs it, and two ways to be red; on the droplet of `make up`.

Production's inventory, the workflow files, the environment as docs/setup.md makes it: see local/pipeline.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from local import pipeline
from local.github.repository import Repository
from local.github.runner import REPOSITORY, Run
from local.registry.rights import PACKAGES, change
from local.settings import Settings, load
from testbed.droplet import Client, Reader, Traffic, ledger, running_image


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(running=True)


@pytest.fixture(scope="module")
def repository(settings: Settings) -> Repository:
    return Repository(settings.state / "github", pipeline.say)


@pytest.fixture(scope="module")
def deploy(settings: Settings, repository: Repository) -> Run:
    """The Deploy of what `make test` has proposed, or of a harmless change; no user notices it, nor one who reads."""
    opened = [pull["number"] for pull in repository.known()["pulls"] if not pull["merged_at"]]
    pipeline.prepare(settings)
    pipeline.environment(settings)
    number = opened[-1] if opened else pipeline.propose(settings)
    with Traffic(Client()) as users, Reader() as reader:
        run = pipeline.live(settings, number)
    users.assert_no_gap()
    reader.assert_whole()
    return run


def test_a_merge_is_live(deploy: Run, client: Client) -> None:
    results = {name: job.result for name, job in deploy.jobs.items()}
    assert results == dict.fromkeys(results, "success")
    assert deploy.leaked == []
    assert client.revision() == deploy.sha
    assert ledger()[-1]["result"] == "live"
    receipt = (deploy.folder / "release.summary.md").read_text()
    assert running_image().partition("@")[2] in receipt


def test_a_missing_secret_is_named(
    deploy: Run, repository: Repository, settings: Settings, client: Client
) -> None:
    secret = settings.state / "github/settings/production/secrets/OPENAI_API_KEY"
    kept = secret.read_text()
    secret.unlink()
    try:
        run = repository.again(deploy.number, ["release"])
    finally:
        secret.write_text(kept)
    assert run.jobs["release"].result == "failure"
    assert "OPENAI_API_KEY" in log(run, "release")
    assert client.revision() == deploy.sha


def test_a_package_that_is_not_linked_cannot_be_pushed(
    deploy: Run, repository: Repository, settings: Settings, client: Client
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
    assert "Manage Actions access" in log(run, "build")
    assert client.revision() == deploy.sha


def log(run: Run, job: str) -> str:
    """What a job printed."""
    return Path(run.folder, f"{job}.log").read_text()
