"""`make scale`: one number of services/compose.yaml changes, and what it takes is said before anything runs."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter.compose import database_pool
from testbed.tree import ROOT
from tools import scale

COMPOSE = (ROOT / "services/compose.yaml").read_text()
TABLE = yaml.safe_load((ROOT / "services/memory.yaml").read_text())


@pytest.mark.parametrize("app", ["api", "web"])
def test_only_the_number_changes(app: str) -> None:
    after = scale.scaled(COMPOSE, app, "12")
    lines = difflib.ndiff(COMPOSE.splitlines(), after.splitlines())
    assert [line for line in lines if line[0] in "+-"] == [
        "-       replicas: 1",
        "+       replicas: 12",
    ]
    assert yaml.safe_load(after)["services"][app]["deploy"]["replicas"] == 12
    assert scale.scaled(after, app, "1") == COMPOSE


@pytest.mark.parametrize(
    ("app", "replicas", "why"),
    [
        ("n8n", "2", "one SQLite file.*these may have more: api, web"),
        ("etl", "3", "one SQLite file"),
        ("api", "0", "from 1 to 20"),
        ("api", "21", "from 1 to 20"),
        ("api", "two", "from 1 to 20"),
        ("api", "", "from 1 to 20"),
        ("apo", "2", "no app 'apo'.*api, web, n8n, etl.*make scale SERVICE=api"),
    ],
)
def test_what_it_refuses(app: str, replicas: str, why: str) -> None:
    with pytest.raises(scale.Refused, match=why):
        scale.scaled(COMPOSE, app, replicas)


def test_one_stays_possible_for_all() -> None:
    assert scale.scaled(COMPOSE, "n8n", "1") == COMPOSE


def test_it_writes_and_says_what_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "services").mkdir()
    for name in (scale.COMPOSE, scale.MEMORY, scale.SETTINGS):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(scale, "ROOT", tmp_path)
    monkeypatch.setenv("SERVICE", "api")
    monkeypatch.setenv("REPLICAS", "3")
    monkeypatch.delenv("DATABASE_CONNECTIONS", raising=False)
    assert scale.main() == 0
    assert (tmp_path / scale.COMPOSE).read_text() == scale.scaled(COMPOSE, "api", "3")
    said = capsys.readouterr().out
    limit = TABLE["apps"]["api"]["limit"]
    assert f"3 × {limit} = {3 * limit} MB" in said
    assert "IT DOES NOT FIT" in said, "three of them are too much for 2 GB beside n8n"
    assert "2 for each process, of 15" in said
    assert "pull request" in said
    monkeypatch.setenv("DATABASE_CONNECTIONS", "11")
    assert scale.main() == 0
    again = capsys.readouterr().out
    assert "as before" in again
    assert "at most 2 replicas" in again


@pytest.mark.parametrize(
    ("replicas", "connections", "pool"),
    [(1, 15, 7), (2, 15, 3), (3, 15, 2), (3, 48, 8), (5, 20, 2)],
)
def test_the_pool_is_shared_by_all_processes_of_a_release(
    replicas: int, connections: int, pool: int
) -> None:
    text = scale.scaled(COMPOSE, "api", str(replicas))
    assert database_pool(text, str(connections)) == pool
    stop_first = re.sub("start-first", "stop-first", text)
    assert database_pool(stop_first, connections) == connections // replicas


def test_a_pool_that_is_too_small_is_refused_with_the_arithmetic() -> None:
    text = scale.scaled(COMPOSE, "api", "4")
    with pytest.raises(
        AnsibleFilterError, match=r"4 replicas.* 8 processes.*: 16, and .* is 15\. Next: at most 3 "
    ):
        database_pool(text, "15")
    with pytest.raises(AnsibleFilterError, match="not a whole number: 'many'"):
        database_pool(text, "many")
    assert database_pool("services: {web: {image: x}}", "15") == 0
