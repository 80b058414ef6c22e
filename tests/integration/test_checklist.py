"""The queries of `make checklist` on a real database: before our migrations, after them, and after an answer."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
import yaml

from testbed.postgres import MAJORS, apply, server
from tools import checklist

ROOT = Path(__file__).parents[2]
ROWS = yaml.safe_load((ROOT / "tools/checklist.yaml").read_text())
TABLES, PEOPLE, ANSWERS, SOURCES = [
    proof["database"] for row in ROWS for proof in row["proofs"] if "database" in proof
]
ANSWER = """
with person as (insert into auth.users (id, email) values (gen_random_uuid(), 'ann@example.com') returning id),
talk as (insert into public.conversations (user_id) select id from person returning id, user_id)
insert into public.chat_logs (conversation_id, user_id, question, model, status, sources)
select id, user_id, 'why?', 'm', 'complete', '[{"id": 1, "source": "garantia.md", "chunk": 0, "score": 1}]' from talk
"""


@pytest.mark.parametrize("major", MAJORS)
def test_what_is_asked_of_the_database(major: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(major) as cluster:
        name = cluster.database()
        url = cluster.url(name)
        monkeypatch.setenv("SUPABASE_DB_URL", url)
        held, seen = checklist.database(TABLES)
        assert not held
        assert seen.startswith("nenhuma tabela, pgvector 0.")
        assert checklist.database(SOURCES)[0] is False, "there is no table yet"
        apply(url)
        held, seen = checklist.database(TABLES)
        assert held, seen
        assert seen.count("com RLS") == 3
        assert checklist.database(SOURCES) == (False, "0 respostas com fontes, 0 trechos")
        assert checklist.database(ANSWERS) == (False, "0 respostas completas")
        with psycopg.connect(cluster.url(name, "supabase_admin")) as connection:
            connection.execute(ANSWER)
            connection.execute("alter table public.vectors disable row level security")
            # As Supabase has it; here it comes with the stand-in for sign-in.
            connection.execute(
                "alter table auth.users add column if not exists last_sign_in_at timestamptz"
            )
            connection.commit()
            assert checklist.database(PEOPLE) == (False, "0 pessoas entraram")
            connection.execute("update auth.users set last_sign_in_at = '2026-11-27'")
        assert checklist.database(SOURCES) == (True, "1 respostas com fontes, 0 trechos")
        assert checklist.database(ANSWERS) == (True, "1 respostas completas")
        assert checklist.database(PEOPLE) == (True, "1 pessoas entraram, a última em 2026-11-27")
        held, seen = checklist.database(TABLES)
        assert not held
        assert "vectors SEM RLS" in seen
        assert "read-only" in checklist.database("create table public.x ()")[1]
