"""`make reembed`: another model for the passages, while they are found by the old one; killed, repeated, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from local.waiting import eventually
from testbed import api as harness
from testbed.api import INGEST_KEY, ROOT, Api, Clouds
from tools.database import reembed as command

OLD, NEW = "text-embedding-3-small", "text-embedding-3-large"
MANY = 300  # passages of one document: five requests, two transactions
KINDS = "select embedding_model, count(*) from public.vectors group by 1 order by 1"
BESIDE = "select model, count(*) from private.embeddings group by 1"


class Reembed:
    """The command, against one database and one stand-in."""

    def __init__(
        self, clouds: Clouds, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.clouds = clouds
        self._patch = patch
        self._capsys = capsys

    def environment(self, confirm: str) -> dict[str, str]:
        """What the operator's shell has."""
        return self.clouds.environment() | {
            "ENV": "production",
            "SUPABASE_DB_URL": self.clouds.postgres.cluster.url(),
            "EMBEDDING_MODEL": NEW,
            "CONFIRM": confirm,
        }

    def __call__(self, confirm: str = "") -> tuple[int, str]:
        """(exit code, all output), in this process."""
        with self._patch.context() as patch:
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, getattr(sys, name))
            patch.setattr(sys, "argv", ["reembed"])
            for name, value in self.environment(confirm).items():
                patch.setenv(name, value)
            code = command.main()
        output = self._capsys.readouterr()
        return code, output.out + output.err

    def killed(self, confirm: str, word: str) -> None:
        """In a process that is killed as soon as it says this word."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.database.reembed"],
            cwd=ROOT,
            env=os.environ | self.environment(confirm),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert any(word in line for line in process.stdout or ())
        process.kill()
        process.communicate()
        # The server ends the statement that it has begun.
        left = "select 1 from pg_stat_activity where application_name = 'cimt reembed'"
        eventually(lambda: self.clouds.postgres.rows(left) == [], "its last statement ends")

    def asked(self) -> list[str]:
        """The models that embedded, the last one last."""
        sent = self.clouds.model.prompts()
        return [one["body"]["model"] for one in sent if one["path"] == "/v1/embeddings"]

    def found(self, model: str) -> set[int]:
        """All that is found by embeddings of a model alone."""
        vector = "('[1' || repeat(',0.1', 1535) || ']')::extensions.halfvec"
        rows = self.clouds.postgres.rows(
            "with claims as materialized (select set_config('request.jwt.claims', %s, true)) "  # noqa: S608
            f"select s.chunk from claims, private.search_passages({vector}, %s, '', 200, array['long.md']) s",
            json.dumps({"role": "service_role"}),
            model,
        )
        return {chunk for (chunk,) in rows}


@pytest.fixture
def reembed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Reembed]:
    with harness.clouds(tmp_path) as clouds:
        yield Reembed(clouds, monkeypatch, capsys)


def answers(api: Api, clouds: Clouds) -> list[str]:
    """Sources that are cited for a question."""
    with api.client(clouds.sign_in.token("ann@example.com")) as client:
        answer = client.post("/chat", json={"message": "How long is the zephyr warranty?"})
    assert answer.status_code == 200, answer.text
    return [source["source"] for source in answer.json()["cimt"]["sources"]]


def put(etl: httpx.Client, source: str, content: str) -> None:
    assert etl.put(f"/documents/{source}", json={"content": content}).is_success


def test_a_new_model_comes_without_anybody_noticing(reembed: Reembed, tmp_path: Path) -> None:
    clouds = reembed.clouds
    postgres = clouds.postgres
    with (
        harness.api(
            tmp_path / "api", clouds.environment() | {"EMBEDDING_MODEL": NEW}, until="/readyz"
        ) as api,
        api.client(INGEST_KEY) as etl,
    ):
        # As it was before: one document, and a long one, by the old model. The API is set to the new one already.
        postgres.rows(
            "insert into public.vectors (source, chunk, content, content_hash, embedding_model, embedding) "
            "select 'long.md', n, 'plain passage ' || n, encode(sha256(n::text::bytea), 'hex'), %s, "
            "(select array_agg(random()) from generate_series(1, 1536) where n is not null)::extensions.halfvec(1536) "
            "from generate_series(1, %s) n",
            OLD,
            MANY,
        )
        put(etl, "warranty.md", "The zephyr warranty lasts seven years.")
        assert postgres.rows(KINDS) == [(OLD, MANY + 1)]
        assert answers(api, clouds) == ["warranty.md"]
        assert set(reembed.asked()) == {OLD}
        assert reembed.found(NEW) == set()  # another model's are not compared

        with psycopg.connect(postgres.cluster.url()) as another:
            another.execute("select pg_advisory_lock(%s)", (command.LOCK,))
            code, output = reembed("yes")
            assert (code, "another run is at work. Next: " in output) == (2, True), output
        code, output = reembed()
        assert code == 2
        assert "301 passages" in output
        assert " USD (prices of 20" in output
        assert "CONFIRM=yes" in output
        assert NEW not in reembed.asked()

        clouds.model.behave("slow", first=0.5, paths=["/v1/embeddings"])
        reembed.killed("yes", "64 of 301")
        clouds.model.behave("normal")
        ((model, done),) = postgres.rows(BESIDE)
        assert (model, 64 <= done < 301) == (NEW, True)
        assert answers(api, clouds) == ["warranty.md"]
        put(
            etl, "warranty.md", "The zephyr warranty lasts eight years."
        )  # the old model's once more
        put(etl, "late.md", "Something else.")
        before = clouds.model.state()["embedded_texts"]
        code, output = reembed("yes")
        assert code == 0, output
        assert clouds.model.state()["embedded_texts"] - before == 302 - done
        assert reembed("yes")[0] == 0
        assert (
            clouds.model.state()["embedded_texts"] - before == 302 - done
        )  # nothing is paid for twice
        assert postgres.rows(KINDS) == [(OLD, 302)]

        def by_the_new_one() -> bool:
            return answers(api, clouds) == ["warranty.md"] and reembed.asked()[-1] == NEW

        eventually(by_the_new_one, "the API asks by the new model")
        put(etl, "new.md", "It comes by the new model.")
        assert postgres.rows(KINDS) == [(NEW, 1), (OLD, 302)]
        assert len(reembed.found(OLD)) == len(reembed.found(NEW)) == 200

        reembed.killed("drop", "200 old")
        assert len(reembed.found(NEW)) == 200  # some here, some there
        code, output = reembed("drop")
        assert code == 0, output
        assert postgres.rows(KINDS) == [(NEW, 303)]
        assert postgres.rows(BESIDE) == []
        assert answers(api, clouds) == ["warranty.md"]
        code, output = reembed("drop")
        assert (code, len(output.splitlines())) == (0, 1), output
