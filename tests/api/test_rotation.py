"""Secrets change hands while people ask: `make rotate`, `make migrate` and a real Postgres that asks for passwords."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from local.waiting import eventually
from plugins.filter.settings import with_password
from testbed import api as harness
from testbed.postgres import Server, server
from tests.integration.test_init import Clone, Done

FIRST = "the first password / of the api"
OLD_KEY, NEW_KEY = "the-old-key-of-the-ingest-0123456789", "the-new-key-of-the-ingest-0123456789"


class Traffic:
    """Somebody who lists their conversations many times a second, at the API that serves now."""

    def __init__(self, api: harness.Api, token: str) -> None:
        self.api, self.token = api, token
        self.answered, self.failed = 0, list[str]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._ended.wait(0.05):
            try:
                with self.api.client(self.token) as client:
                    client.get("/conversations").raise_for_status()
            except httpx.HTTPError as error:
                self.failed.append(repr(error))
            self.answered += 1

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._thread.join()

    def go_on(self) -> None:
        """Return when more requests were answered."""
        before = self.answered
        eventually(lambda: self.answered > before + 5, "requests go on")


@pytest.fixture
def cluster() -> Iterator[Server]:
    """A new project, whose Postgres asks the API's logins for their passwords."""
    with server() as made:
        hba = made.folder / "data/pg_hba.conf"
        rule = "host all cimt_api,cimt_api_b 127.0.0.1/32 scram-sha-256\n"
        hba.write_text(rule + hba.read_text())
        with psycopg.connect(made.url(user="supabase_admin"), autocommit=True) as admin:
            admin.execute("select pg_reload_conf()")
        yield made


def done(call: Done, *words: str, code: int = 0) -> None:
    assert call.returncode == code, call.stdout + call.stderr
    for word in words:
        assert word in call.stdout + call.stderr
    assert "password / of" not in call.stdout + call.stderr


def test_the_database_s_password_changes_and_no_request_fails(
    cluster: Server, tmp_path: Path
) -> None:
    clone = Clone(tmp_path, op=False)
    (clone.root / "supabase/migrations").symlink_to("../migrations")
    url = re.sub(r"//[^@]*@", "//cimt_api@", cluster.url())
    references = [
        f"{one}=op://cimt/production/{one}" for one in ("SUPABASE_DB_URL", "API_DATABASE_PASSWORD")
    ]
    clone.env.write_text("\n".join([f"API_DATABASE_URL={url}", *references, ""]))
    clone.kept.parent.mkdir(parents=True)
    clone.kept.touch(0o600)
    clone.kept.write_text(f'SUPABASE_DB_URL={cluster.url()}\nAPI_DATABASE_PASSWORD="{FIRST}"\n')

    def serving() -> str:
        """Where the API logs in, by what is written down now."""
        kept = dict(re.findall(r'^(\w+)="?(.*?)"?$', clone.kept.read_text(), re.MULTILINE))
        return with_password(clone.values()["API_DATABASE_URL"], kept["API_DATABASE_PASSWORD"])

    def lets_in(address: str) -> str:
        try:
            with psycopg.connect(address) as connection:
                return str(connection.execute("select session_user, current_user").fetchone())
        except psycopg.OperationalError as error:
            return str(error)

    def rotate(confirm: str = "") -> Done:
        return clone.make("rotate", SECRET="API_DATABASE_PASSWORD", CONFIRM=confirm)

    done(clone.make("migrate"), "cimt_api has the password of API_DATABASE_PASSWORD now")
    database, first = harness.Postgres(cluster), serving()
    assert "'cimt_api', 'cimt_api'" in lets_in(first)
    with (
        harness.stand_in(tmp_path, "openai") as model,
        harness.sign_in(tmp_path, database) as signed,
    ):
        env = harness.Clouds(database, harness.Model(model), signed).environment()
        token = signed.token("ann@rotation.example")
        old = env | {"DATABASE_URL": first}
        with (
            harness.api(tmp_path / "b", old, until="/readyz") as before,
            Traffic(before, token) as people,
        ):
            done(rotate("revoke"), "is not changing hands", code=2)
            done(rotate(), "make migrate services ENV=production")
            assert "//cimt_api_b:" in serving()
            written = clone.env.read_text(), clone.kept.read_text()
            done(rotate(), "CONFIRM=revoke")
            assert written == (clone.env.read_text(), clone.kept.read_text()), "once is enough"
            done(rotate("revoke"), "does not work yet", code=2)
            done(clone.make("migrate"), "cimt_api_b has the password")
            assert "'cimt_api_b', 'cimt_api'" in lets_in(serving())
            done(rotate("revoke"), "cimt_api is still in use", code=2)
            people.go_on()
            new = env | {
                "DATABASE_URL": serving(),
                "INGEST_KEY": NEW_KEY,
                "INGEST_KEY_OLD": OLD_KEY,
            }
            with harness.api(tmp_path / "a", new, until="/readyz") as after:
                people.api = after
                people.go_on()
                before.process.terminate()
                before.process.wait()
                done(rotate("revoke"), "cimt_api has no password any more")
                assert "password authentication failed" in lets_in(first)
                people.go_on()
                assert people.failed == []
                who = "select distinct usename::text from pg_stat_activity where application_name = 'cimt-api'"
                assert database.rows(who) == [("cimt_api_b",)]
                taken = {}
                for key in (OLD_KEY, NEW_KEY, NEW_KEY[::-1]):
                    with after.client(key) as etl:
                        taken[key] = etl.get("/documents").status_code
                assert list(taken.values()) == [200, 200, 401]
                people.end()
    assert "_OLD" not in clone.kept.read_text()
    done(rotate())
    assert "//cimt_api:" in serving(), "the next time it is the first one's turn"
