"""A read-only audit of one droplet: what the repository declares against what is there.

``ENV`` chooses the inventory; production is audited by the same tests. One SSH connection, one read of everything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.audit.way import Closed, Way, way_to
from tools.declared import Declared, NotDeclared

ENV = os.environ.get("ENV", "local")
# A worker of the inventory, for what counts there: everything but panel, apps and what stands beside them.
HOST = os.environ.get("HOST", "")
# Beside those that configuration sets name.
UNITS = [
    "ssh.service",
    "unattended-upgrades.service",
    "apt-daily-upgrade.timer",
    "containerd.service",
]
ORIGIN_KEY = "/etc/easypanel/traefik/cimt-origin.key"
# Exit code of a run with a finding about one of --released: playbooks/deploy.yml takes that release back.
ABOUT_RELEASED = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--released", default="", help="apps, with commas; a finding about one exits 10"
    )


def stop(message: str) -> NoReturn:
    """End the whole run with one line: nothing can be audited."""
    pytest.exit(f"audit: {message}", returncode=1)


_declared: list[Declared] = []


def read_declared() -> Declared:
    """The declaration, read once a session. Raises NotDeclared; names every missing setting at once."""
    if not _declared:
        declaration = Declared(ENV, host=HOST)
        if missing := declaration.missing("audit"):
            raise NotDeclared(
                f"not set: {'; '.join(missing)}. Next: docs/setup.md says where each value comes from"
            )
        if ENV == "local" and not Path(declaration["local_directory"], "ssh_config").exists():
            raise NotDeclared("no local droplet. Next: make up")
        _declared.append(declaration)
    return _declared[0]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop with one line before anything is collected or touched."""
    try:
        read_declared()
    except NotDeclared as error:
        raise pytest.UsageError(f"audit: {error}") from None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "logs(*names): units, or services of Swarm, to show when it fails"
    )
    config.addinivalue_line("markers", "droplet: about panel and apps, which a worker has not")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a worker, leave out what it has not."""
    if HOST:
        left = [item for item in items if item.get_closest_marker("droplet")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each configuration set and for each app, by name."""
    if "set_name" in metafunc.fixturenames:
        metafunc.parametrize("set_name", read_declared().set_names())
    if "app" in metafunc.fixturenames:
        apps = [] if HOST else read_declared().apps()
        metafunc.parametrize("app", apps, ids=lambda app: app["name"])


@pytest.fixture(scope="session")
def declared() -> Declared:
    """What inventory and roles declare."""
    return read_declared()


@dataclass(frozen=True)
class Reached:
    """The droplet, and how far its clock is from ours (seconds, give or take ``uncertainty``)."""

    way: Way
    skew: float
    uncertainty: float


@pytest.fixture(scope="session")
def reached(declared: Declared) -> Reached:
    """The first contact: opens the shared connection and learns which system this is."""
    try:
        way, release, skew, uncertainty = way_to(declared)
    except Closed as reason:
        by_hand = "ssh -p {port} {user}@{host}".format(
            port=declared.get("ansible_port", 22),
            user=declared["ansible_user"],
            host=declared["ansible_host"],
        )
        next_step = "make up" if ENV == "local" else f"{by_hand} (it says more)"
        stop(f"no {ENV} droplet answers ({reason}). Next: {next_step}")
    system = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    version = system["VERSION_ID"].strip('"')
    declared.set_system(
        {
            "distribution": system["ID"].strip('"').capitalize(),
            "distribution_version": version,
            "distribution_major_version": version.split(".")[0],
            "distribution_release": system["VERSION_CODENAME"].strip('"'),
        }
    )
    return Reached(way, skew, uncertainty)


@pytest.fixture(scope="session")
def collected(reached: Reached, declared: Declared) -> dict[str, Any]:
    """What is there now, read once."""
    sets = declared.sets()
    files = {item["path"]: True for declaration in sets.values() for item in declaration["files"]}
    files |= {path: False for item in sets.values() for path in item.get("secret_files", {})}
    if not HOST:
        token = declared["easypanel_token_file"]
        kept = str(Path(token).with_name("releases.json"))
        files |= dict.fromkeys(
            (token, ORIGIN_KEY, kept, declared["release_state_directory"]), False
        )
    for kind in declared["ssh_host_key_types"]:
        files[f"/etc/ssh/ssh_host_{kind}_key"] = False
    question = {
        "files": files,
        "sysctl": list(declared["baseline_sysctl"]),
        "units": list(
            dict.fromkeys(
                [*UNITS, *(unit for item in sets.values() for unit in item.get("units", []))]
            )
        ),
        "firewall_file": "/etc/cimt/firewall.nft",
        **(of_a_worker() if HOST else of_the_droplet(declared)),
    }
    try:
        return reached.way.collect(question)
    except Closed as reason:
        stop(f"the droplet's state cannot be read: {reason}")


def of_a_worker() -> dict[str, Any]:
    """The same question where there are none of them."""
    nothing = dict.fromkeys(("panel_url", "token_file", "ca_file"), "")
    place = {"state_directory": "/var/lib/cimt", "hours_since": {"backup": ""}}
    lists: dict[str, Any] = {"digests": [], "measured": [], "origin_hosts": []}
    return {"environment": {}, **lists, **nothing, **place}


def of_the_droplet(declared: Declared) -> dict[str, Any]:
    """What is asked of panel and apps."""
    project = declared["services_project"]
    return {
        "digests": [declared["door_program"]],
        "environment": {f"{project}_{app['name']}": list(app["env"]) for app in declared.apps()},
        "measured": [f"{project}_api", f"{project}_etl"],
        "panel_url": declared["easypanel_url"],
        "token_file": declared["easypanel_token_file"],
        "hours_since": {
            "backup": declared["backup_stamp"],
            "drill": declared["host_report_drill_stamp"],
            "timer": "/etc/systemd/system/cimt-backup.timer",
        },
        "state_directory": declared["release_state_directory"],
        "ca_file": declared["release_ca_file"],
        "origin_hosts": declared["easypanel_origin_hosts"],
    }


@pytest.fixture
def ledger(collected: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the ledger, oldest first; one cut short by a full disk is passed over."""
    return [json.loads(line) for line in collected["ledger"] if line.endswith("}")]


_about_released: list[str] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell findings about what was just released from all others by the exit code."""
    if _about_released:
        session.exitstatus = ABOUT_RELEASED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Below a failure, the last lines of what the test is about: nobody has to log in to read them."""
    report = yield
    if report.failed and hasattr(item, "callspec") and (about := item.callspec.params.get("app")):
        released = item.config.getoption("released").split(",")
        _about_released.extend(name for name in released if name == about["name"])
    marker = item.get_closest_marker("logs")
    funcargs: dict[str, Any] = getattr(item, "funcargs", {})
    if report.when == "call" and report.failed and "reached" in funcargs:
        names = list(marker.args) if marker else []
        if app := funcargs.get("app"):
            names.append(f"{read_declared()['services_project']}_{app['name']}")
        for name in names:
            said = funcargs["reached"].way.last_lines(name)
            report.sections.append((f"last lines of {name}", said))
    return report
