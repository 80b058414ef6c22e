"""The local Postgres: it has what Supabase's has, and reads no data of another version."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from local.postgres import server as postgres
from local.settings import LocalError
from testbed.postgres import server


def test_it_is_supabases_version_with_supabases_extensions() -> None:
    with server(17) as cluster, psycopg.connect(cluster.url()) as connection:
        assert connection.info.server_version // 10_000 == 17
        for name in ("unaccent", "pg_trgm", "fuzzystrmatch", "pgcrypto"):  # as postgres may there
            connection.execute(f"create extension {name} with schema extensions".encode())
        rows = connection.execute(
            "select extensions.unaccent('São João'), lower('ÇÃO'), "
            "array(select name from pg_available_extensions where name in ('vector', 'pg_cron') order by name)"
        )
        assert rows.fetchone() == ("Sao Joao", "ção", ["pg_cron", "vector"])


def test_data_of_another_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("16\n")
    with pytest.raises(LocalError, match=f"is of Postgres 16, .* Next: rm -r {tmp_path}"):
        postgres.command(postgres.programs(), tmp_path, 1)
