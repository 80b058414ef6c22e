"""Supabase's own advisors have nothing to say about the database that the migrations make."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import psycopg
import pytest

from testbed.postgres import ROOT, Server, apply, server
from tools.database.migrate import CLI_ENVIRONMENT


@pytest.fixture(scope="module")
def cluster() -> Iterator[Server]:
    with server() as made:
        yield made


def advice(url: str) -> tuple[int, list[str]]:
    """(exit code, what is advised), from warnings on: an index that a new database has not used is none."""
    levels = ("--type", "all", "--level", "warn", "--fail-on", "warn")
    done = subprocess.run(
        [ROOT / "node_modules/.bin/supabase", "db", "advisors", f"--remote={url}", *levels],
        cwd=ROOT,
        env=os.environ | CLI_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.stdout.lstrip().startswith("[") or not done.returncode, done.stderr
    said = json.loads(done.stdout[done.stdout.index("[") :]) if "[" in done.stdout else []
    return done.returncode, [one["cache_key"] for one in said]


def test_the_advisors_are_content(cluster: Server) -> None:
    url = cluster.url(cluster.database())
    apply(url)
    assert advice(url) == (0, [])


def test_the_advisors_are_heard(cluster: Server) -> None:
    url = cluster.url(cluster.database())
    apply(url)
    with psycopg.connect(url) as connection:
        connection.execute("create view public.people as select id, email from auth.users")
        connection.execute("grant select on public.people to anon")
    code, said = advice(url)
    assert code
    assert any("auth_users_exposed" in one for one in said)
