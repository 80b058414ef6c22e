"""local/supabase as Supabase's own client meets it: sign-in, sessions, keys. Real Postgres, our migrations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import psycopg
import pytest
from supabase_auth import SyncGoTrueClient, SyncMemoryStorage
from supabase_auth.errors import AuthApiError

from local.clouds import CLOUDS, PUBLISHABLE_KEY, SECRET_KEY
from local.waiting import eventually, free_port
from testbed.postgres import apply, server

ROOT = Path(__file__).parents[2]
PATIENCE = 60
EMAIL = "ann@example.com"


@dataclass
class Project:
    """A running stand-in."""

    url: str
    database: str

    @property
    def issuer(self) -> str:
        return f"{self.url}/auth/v1"

    def client(self, flow: str = "implicit") -> SyncGoTrueClient:
        return SyncGoTrueClient(
            url=self.issuer,
            headers={"apikey": PUBLISHABLE_KEY},
            storage=SyncMemoryStorage(),
            auto_refresh_token=False,
            flow_type=flow,
        )

    def call(self, method: str, path: str, **options: object) -> httpx.Response:
        return httpx.request(
            method, f"{self.issuer}{path}", headers={"apikey": PUBLISHABLE_KEY}, **options
        )

    def mail(self, to: str) -> dict[str, str]:
        return httpx.get(f"{self.url}/inbox.json", params={"to": to}).json()[0]

    def sign_in(self, to: str) -> SyncGoTrueClient:
        client = self.client()
        client.sign_in_with_otp({"email": to})
        client.verify_otp({"type": "email", "email": to, "token": self.mail(to)["token"]})
        return client

    def verify(self, token: str) -> dict[str, object]:
        """As a server does it: by the published keys."""
        key = jwt.PyJWKClient(f"{self.issuer}/.well-known/jwks.json").get_signing_key_from_jwt(
            token
        )
        return jwt.decode(
            token, key, algorithms=["ES256"], audience="authenticated", issuer=self.issuer
        )

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        with psycopg.connect(self.database, autocommit=True) as connection:
            done = connection.execute(statement, values)
            return done.fetchall() if done.description else []


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with server() as made:
        name = made.database()
        apply(made.url(name))
        yield made.url(name, "supabase_admin")


def start(port: int, database: str, state: Path, *options: str) -> subprocess.Popen[bytes]:
    cloud = CLOUDS["supabase"]
    command = cloud.command({"supabase": port, "postgres": 0}, state)
    here = ["--database", database, "--state", str(state)]
    process = subprocess.Popen([*command, *here, *options], cwd=ROOT)
    eventually(lambda: cloud.answers(port), "the stand-in answers", process=process)
    return process


@pytest.fixture(scope="module")
def project(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    port = free_port()
    options = ["--otp-seconds", "0", "--allow", "https://*.example.com/**"]
    process = start(port, database, tmp_path_factory.mktemp("state"), *options)
    yield Project(f"http://127.0.0.1:{port}", database)
    process.terminate()
    process.wait(PATIENCE)


def fragment(answer: httpx.Response) -> tuple[str, dict[str, str]]:
    """Where a redirect leads, and what stands behind its #."""
    assert answer.status_code == 303
    parts = urlsplit(answer.headers["location"])
    values = {name: value[0] for name, value in parse_qs(parts.fragment).items()}
    return parts._replace(fragment="").geturl(), values


def test_a_magic_link_signs_up_and_in(project: Project) -> None:
    project.client().sign_in_with_otp({"email": EMAIL, "options": {"data": {"name": "Ann"}}})
    mail = project.mail(EMAIL)
    assert mail["link"].startswith(f"{project.issuer}/verify?token=")
    place, got = fragment(httpx.get(mail["link"]))
    assert place == f"{project.url}/signed-in"
    assert got["token_type"] == "bearer"
    claims = project.verify(got["access_token"])
    assert claims["email"] == EMAIL
    assert claims["role"] == "authenticated"
    assert claims["user_metadata"] == {"name": "Ann"}
    # The sign-up trigger of our migrations has run.
    assert project.sql("select count(*) from public.users where id = %s", claims["sub"]) == [(1,)]
    session = project.client().set_session(got["access_token"], got["refresh_token"])
    assert session.user.id == claims["sub"]
    assert session.user.email_confirmed_at is not None
    # Once only.
    _, again = fragment(httpx.get(mail["link"]))
    assert again["error_code"] == "otp_expired"
    # The second mail is to somebody who is known.
    project.client().sign_in_with_otp({"email": EMAIL})
    assert "type=magiclink" in project.mail(EMAIL)["link"]
    assert project.sql("select count(*) from auth.users where email = %s", EMAIL) == [(1,)]


def test_a_code_or_a_hash_is_as_good_as_the_link_and_only_the_newest(project: Project) -> None:
    client = project.client()
    client.sign_in_with_otp({"email": "code@example.com"})
    old = project.mail("code@example.com")
    client.sign_in_with_otp({"email": "code@example.com"})
    new = project.mail("code@example.com")
    with pytest.raises(AuthApiError, match="invalid or has expired"):
        client.verify_otp({"type": "email", "token_hash": old["token_hash"]})
    assert client.verify_otp({"type": "email", "token_hash": new["token_hash"]}).session is not None
    client.sign_in_with_otp({"email": "code@example.com"})
    code = {
        "type": "email",
        "email": "code@example.com",
        "token": project.mail("code@example.com")["token"],
    }
    project.sql("update auth.one_time_tokens set created_at = now() - interval '2 hours'")
    with pytest.raises(AuthApiError) as caught:
        client.verify_otp(code)
    assert (caught.value.status, caught.value.code) == (403, "otp_expired")


def test_an_app_with_a_verifier_gets_a_code_for_its_session(project: Project) -> None:
    client = project.client("pkce")
    there = "https://app.example.com/callback?next=1"
    client.sign_in_with_otp({"email": "pkce@example.com", "options": {"email_redirect_to": there}})
    answer = httpx.get(project.mail("pkce@example.com")["link"])
    parts = urlsplit(answer.headers["location"])
    assert answer.headers["location"].startswith(there)
    code = parse_qs(parts.query)["code"][0]
    wrong = project.call(
        "POST", "/token?grant_type=pkce", json={"auth_code": "other", "code_verifier": "x"}
    )
    assert wrong.json()["error_code"] == "flow_state_not_found"
    made = client.exchange_code_for_session({"auth_code": code})
    assert made.user.email == "pkce@example.com"


def test_a_link_leads_only_where_it_may(project: Project) -> None:
    for wanted, allowed in {
        "https://app.example.com/welcome": True,
        "https://app.example.com.evil.example/": False,
        "https://evil.example/?x=https://app.example.com/": False,
        "javascript:alert(1)": False,
        "//evil.example": False,
    }.items():
        project.client().sign_in_with_otp(
            {"email": "where@example.com", "options": {"email_redirect_to": wanted}}
        )
        place, got = fragment(httpx.get(project.mail("where@example.com")["link"]))
        assert place == (wanted if allowed else f"{project.url}/signed-in"), wanted
        assert got["access_token"]
    # Nor does a link that somebody has edited.
    project.client().sign_in_with_otp({"email": "where@example.com"})
    link = project.mail("where@example.com")["link"].split("&redirect_to=")[0]
    place, _ = fragment(httpx.get(f"{link}&redirect_to=https://evil.example/"))
    assert place == f"{project.url}/signed-in"


def test_a_refresh_token_is_good_once(project: Project) -> None:
    client = project.sign_in("rotate@example.com")
    first = client.get_session().refresh_token
    second = client.refresh_session(first).session
    assert second.refresh_token != first
    # The answer was lost: the same one again, not a third.
    assert client.refresh_session(first).session.refresh_token == second.refresh_token
    third = client.refresh_session(second.refresh_token).session
    assert (
        project.verify(third.access_token)["session_id"]
        == project.verify(second.access_token)["session_id"]
    )
    # Long after, somebody comes with the first: whoever has the newest is out too.
    project.sql("update auth.refresh_tokens set updated_at = now() - interval '1 minute'")
    for token in (first, third.refresh_token):
        with pytest.raises(AuthApiError) as caught:
            client.refresh_session(token)
        assert (caught.value.status, caught.value.code) == (400, "refresh_token_already_used")


def test_two_tabs_refresh_at_the_same_time_and_both_stay_in(project: Project) -> None:
    token = project.sign_in("tabs@example.com").get_session().refresh_token
    answers: list[httpx.Response] = []

    def refresh() -> None:
        answers.append(
            project.call("POST", "/token?grant_type=refresh_token", json={"refresh_token": token})
        )

    tabs = [threading.Thread(target=refresh) for _ in range(4)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join(PATIENCE)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1


def test_the_account_and_signing_out(project: Project) -> None:
    client, other = project.sign_in("out@example.com"), project.sign_in("out@example.com")
    assert client.update_user({"data": {"name": "Out"}}).user.user_metadata == {"name": "Out"}
    assert other.get_user().user.user_metadata == {"name": "Out"}
    access, refresh = client.get_session().access_token, client.get_session().refresh_token
    client.sign_out({"scope": "local"})
    with pytest.raises(AuthApiError) as caught:
        project.client().get_user(access)
    assert caught.value.code == "session_not_found"
    with pytest.raises(AuthApiError, match="Not Found"):
        project.client().refresh_session(refresh)
    assert other.refresh_session().session is not None  # the other session goes on


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"email": "nobody@example.com", "create_user": False}, 422, "otp_disabled"),
        ({"email": "not an address"}, 400, "validation_failed"),
        ({}, 400, "validation_failed"),
        ({"phone": "+351"}, 400, "phone_provider_disabled"),
        ({"email": EMAIL, "code_challenge": "x"}, 400, "validation_failed"),
    ],
)
def test_no_mail_for_a_wrong_request(
    project: Project, body: dict[str, object], status: int, code: str
) -> None:
    before = len(httpx.get(f"{project.url}/inbox.json").json())
    answer = project.call("POST", "/otp", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (status, code)
    assert len(httpx.get(f"{project.url}/inbox.json").json()) == before


def test_the_key_of_the_project_is_wanted(project: Project) -> None:
    for headers in ({}, {"apikey": "sb_publishable_other"}):
        answer = httpx.post(f"{project.issuer}/otp", json={"email": EMAIL}, headers=headers)
        assert answer.status_code == 401
        assert set(answer.json()) == {"message", "hint"}


def test_the_inbox_shows_what_was_sent_and_nothing_runs_in_it(project: Project) -> None:
    project.call("POST", "/otp", json={"email": "<script>x</script>@example.com"})
    page = httpx.get(f"{project.url}/inbox").text
    assert "&lt;script&gt;" in page
    assert "<script>x" not in page


def test_keys_turn_over_and_outlive_a_restart(database: str, tmp_path: Path) -> None:
    port = free_port()
    project = Project(f"http://127.0.0.1:{port}", database)
    process = start(port, database, tmp_path)
    try:
        old = httpx.post(f"{project.url}/stand-in/token", json={"email": EMAIL}).json()
        httpx.post(f"{project.url}/stand-in/rotate").raise_for_status()
        new = httpx.post(f"{project.url}/stand-in/token", json={"email": EMAIL}).json()
        process.terminate()
        process.wait(PATIENCE)
        process = start(port, database, tmp_path)
        kids = [jwt.get_unverified_header(made["access_token"])["kid"] for made in (old, new)]
        assert kids[0] != kids[1]
        assert (
            project.verify(old["access_token"])["sub"] == project.verify(new["access_token"])["sub"]
        )
        httpx.post(f"{project.url}/stand-in/rotate?revoke=1").raise_for_status()
        with pytest.raises(jwt.PyJWKClientError, match="Unable to find a signing key"):
            project.verify(new["access_token"])
        assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
        # As in production, one mail a minute for each address.
        assert project.call("POST", "/otp", json={"email": "minute@example.com"}).status_code == 200
        answer = project.call("POST", "/otp", json={"email": "minute@example.com"})
        assert (answer.status_code, answer.json()["error_code"]) == (
            429,
            "over_email_send_rate_limit",
        )
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_switches_for_servers_that_verify(project: Project) -> None:
    claims = {"aud": "other", "exp": 1, "email": None}
    made = httpx.post(
        f"{project.url}/stand-in/token", json={"email": EMAIL, "claims": claims}
    ).json()
    got = jwt.decode(made["access_token"], options={"verify_signature": False})
    assert (got["aud"], got["exp"], "email" in got) == ("other", 1, False)
    try:
        for kind, status in {"failing": 500, "empty": 200}.items():
            httpx.put(f"{project.url}/stand-in/behaviour", json={"jwks": kind}).raise_for_status()
            answer = httpx.get(f"{project.issuer}/.well-known/jwks.json")
            assert (answer.status_code, answer.json()) == (status, {"keys": []})
    finally:
        httpx.put(f"{project.url}/stand-in/behaviour", json={"jwks": "ok"})
    httpx.delete(f"{project.url}/stand-in/calls")
    assert len(httpx.get(f"{project.issuer}/.well-known/jwks.json").json()["keys"]) == 1
    counted = httpx.get(f"{project.url}/stand-in/calls").json()
    assert counted == {"total": 1, "paths": {"/.well-known/jwks.json": 1}}


def test_a_person_is_exported_and_erased(project: Project) -> None:
    def person(action: str, user: str, **environment: str) -> tuple[int, str, str]:
        values = {
            "ENV": "production",
            "SUPABASE_DB_URL": project.database,
            "USER_ID": user,
            "SUPABASE_URL": project.url,
            "SUPABASE_SECRET_KEY": SECRET_KEY,
            **environment,
        }
        result = subprocess.run(
            [sys.executable, "-m", "tools.database.person", action],
            cwd=ROOT,
            env=os.environ | values,
            capture_output=True,
            text=True,
        )
        return result.returncode, result.stdout, result.stderr

    ids = {}
    for name in ("zoe", "bob"):
        project.client().sign_in_with_otp(
            {"email": f"{name}@example.com", "options": {"data": {"name": name.title()}}}
        )
        project.sign_in(f"{name}@example.com")
        ((ids[name],),) = project.sql(
            "select id::text from auth.users where email = %s", f"{name}@example.com"
        )
        project.sql(
            "with made as (insert into public.conversations (user_id) values (%s) returning id, user_id) "
            "insert into public.chat_logs (conversation_id, user_id, question, model) "
            "select id, user_id, 'why?', 'm' from made",
            ids[name],
        )
        project.sql(
            "insert into public.api_keys (user_id, name, hash, hint) "
            "select id, 'k', encode(sha256(id::text::bytea), 'hex'), 'abcd' from auth.users where id = %s",
            ids[name],
        )
        project.sql(
            "insert into private.spending (user_id, day, model, answers, estimated, prompt_tokens, cached_tokens, "
            "completion_tokens, embedding_tokens, cost) values (%s, '2026-11-01', 'm', 2, 0, 9, 0, 9, 9, 700)",
            ids[name],
        )
    project.sql("alter table auth.users add column encrypted_password text default 'hash-of-it'")
    code, text, _ = person("export", "ZOE@example.com")
    assert code == 0
    document = json.loads(text)
    assert document["account"]["id"] == ids["zoe"]
    assert document["account"]["raw_user_meta_data"] == {"name": "Zoe"}
    assert document["account"]["last_sign_in_at"]
    kinds = ("conversations", "chat_logs", "api_keys", "spending", "documents")
    assert [len(document[kind]) for kind in kinds] == [1, 1, 1, 1, 0]
    assert not any(secret in text for secret in (ids["bob"], "hash-of-it", '"hash"'))

    code, _, error = person("erase", ids["zoe"])
    assert (code, "CONFIRM=yes" in error) == (2, True)
    code, _, error = person("erase", ids["zoe"], CONFIRM="yes", SUPABASE_SECRET_KEY=PUBLISHABLE_KEY)
    assert (code, len(error.splitlines())) == (1, 1), error
    code, text, error = person("erase", ids["zoe"], CONFIRM="yes")
    assert code == 0, error
    assert json.loads(text) == {"account": 1} | dict(zip(kinds, (1, 1, 1, 1, 0), strict=True))
    # What was spent stays spent, by nobody.
    spent = "select user_id::text, cost from private.spending order by user_id nulls first"
    assert project.sql(spent) == [(None, 700), (ids["bob"], 700)]
    assert "backups of the database: 7 days" in error
    assert person("export", ids["zoe"])[0] == 1
    assert json.loads(person("export", ids["bob"])[1])["account"]["email"] == "bob@example.com"
