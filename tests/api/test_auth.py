"""Who is let in: tokens as attackers make them, the sign-in service failing and rotating its keys, limits per user.

And what strangers cost: nothing of their bodies is read.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi.routing import iter_route_contexts
from jwt.algorithms import ECAlgorithm
from prometheus_client import CollectorRegistry

from local.waiting import eventually
from services.api.cimt_api.app import create_app
from services.api.cimt_api.metrics import Metrics
from testbed import api as harness
from testbed.api import (
    INGEST_KEY,
    WAIT_SECONDS,
    Api,
    Clouds,
    SignIn,
    api,
)

PROTECTED = [
    ("POST", "/chat"),
    ("GET", "/chat/47ef7537-252a-4728-b1d2-6ad549fa51a3"),
    ("GET", "/chat/47ef7537-252a-4728-b1d2-6ad549fa51a3/stream"),
    ("DELETE", "/chat/47ef7537-252a-4728-b1d2-6ad549fa51a3/stream"),
    ("POST", "/chat/47ef7537-252a-4728-b1d2-6ad549fa51a3/stop"),
    ("GET", "/conversations"),
    ("DELETE", "/conversations"),
    ("GET", "/conversations/47ef7537-252a-4728-b1d2-6ad549fa51a3"),
    ("DELETE", "/conversations/47ef7537-252a-4728-b1d2-6ad549fa51a3"),
    ("PATCH", "/conversations/47ef7537-252a-4728-b1d2-6ad549fa51a3"),
    ("PUT", "/chat/47ef7537-252a-4728-b1d2-6ad549fa51a3/feedback"),
    ("GET", "/me"),
    ("GET", "/me/export"),
    ("GET", "/keys"),
    ("POST", "/keys"),
    ("DELETE", "/keys/47ef7537-252a-4728-b1d2-6ad549fa51a3"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/cimt"),
    ("PATCH", "/me"),
    ("GET", "/documents"),
    ("PUT", "/documents/a.md"),
    ("DELETE", "/documents/a.md"),
]
PUBLIC = {"/openapi.json", "/healthz", "/readyz"}
LARGE = 1_600_000  # bytes: less than a document may have
DECLARED = f"Content-Length: {LARGE}"
CHUNKED = "Transfer-Encoding: chunked"


def me(api: Api, token: str) -> int:
    """Status of GET /me with this token."""
    with api.client(token) as client:
        return client.get("/me").status_code


def encoded(value: Any) -> str:
    """A part of a JWT."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_nobody_gets_in_without_a_token(shared_api: Api, method: str, path: str) -> None:
    bodies = {"POST": {"message": "hi"}, "PATCH": {"display_name": "x"}, "PUT": {"content": "x"}}
    with shared_api.client() as client:
        for header in ({}, {"Authorization": "Bearer x.y.z"}, {"Authorization": "Basic YTpi"}):
            answer = client.request(method, path, headers=header, json=bodies.get(method))
            assert answer.status_code == 401, answer.text
            kind = "application/json" if path.startswith("/v1/") else "application/problem+json"
            assert answer.headers["content-type"] == kind
            assert answer.headers["www-authenticate"].startswith("Bearer")


def answered(api: Api, method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    """What comes back first for a request whose body ends here, whatever its headers promise."""
    address = httpx.URL(api.url)
    host = f"Host: {address.netloc.decode()}"
    head = "\r\n".join((f"{method} {path} HTTP/1.1", host, *headers, "", ""))
    with socket.create_connection((address.host, address.port or 80), WAIT_SECONDS) as stream:
        stream.sendall(head.encode() + body)
        return stream.recv(4096)


def routes(clouds: Clouds) -> Iterator[tuple[str, str]]:
    """Method and path of all there are, those that the OpenAPI document leaves out included."""
    app = create_app(harness.settings_from(clouds.environment()), Metrics(CollectorRegistry()), "")
    for route in iter_route_contexts(app.routes):
        assert route.path, route
        assert route.methods, route
        path = route.path.replace("{source:path}", "a.md")
        for method in route.methods:
            yield method, path.replace("{", "").replace("}", "")


def test_no_route_reads_what_strangers_send(
    shared_api: Api, clouds: Clouds, subtests: pytest.Subtests
) -> None:
    """The server asks for a body (100 Continue) as soon as anything wants to read it; here none ever comes."""
    user = clouds.sign_in.token("ann@example.com")
    expired = clouds.sign_in.token("ann@example.com", exp=int(time.time()) - 3600)
    refused = 0
    for method, path in routes(clouds):
        other = user if path.startswith("/documents") else INGEST_KEY
        for token in ("", "x.y.z", expired, other):
            for length in (DECLARED, CHUNKED):
                if path == "/chat" and length == CHUNKED:
                    continue  # must be begun, or nobody knows whether it is empty: below
                with subtests.test(f"{method} {path}", token=token[:8], length=length):
                    headers = [length, "Content-Type: application/json", "Expect: 100-continue"]
                    headers += [f"Authorization: Bearer {token}"] if token else []
                    status = answered(shared_api, method, path, *headers).split()[1]
                    assert status == (b"200" if path in PUBLIC else b"401")
                    refused += status == b"401"
    assert refused >= 8 * len(PROTECTED) - 4


def test_an_empty_body_is_greeted_however_it_says_so_and_no_other(shared_api: Api) -> None:
    def status(*headers: str, body: bytes = b"") -> bytes:
        return answered(shared_api, "POST", "/chat", *headers, body=body).split()[1]

    assert status() == b"200"
    assert status("Content-Length: 0") == b"200"
    assert status(CHUNKED, body=b"0\r\n\r\n") == b"200"
    # One piece is enough; there are no more.
    assert status(CHUNKED, body=b"1\r\n{\r\n") == b"401"


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_who_sends_a_large_body_regardless_gets_the_refusal(
    shared_api: Api, connection: str
) -> None:
    body = json.dumps({f"key-{number}": number for number in range(LARGE // 22)}).encode()
    headers = {"Content-Type": "application/json", "Connection": connection}
    with shared_api.client() as client:
        for content in (body, (body[at : at + 4096] for at in range(0, len(body), 4096))):
            answer = client.put("/documents/a.md", content=content, headers=headers)
            assert (answer.status_code, answer.json()["status"]) == (401, 401)
            # What was sent is not taken for the next request.
            assert client.get("/healthz").status_code == 200


def test_forged_tokens(shared_api: Api, clouds: Clouds) -> None:
    good = clouds.sign_in.token("ann@example.com")
    assert me(shared_api, good) == 200
    header, claims = (
        jwt.get_unverified_header(good),
        jwt.decode(good, options={"verify_signature": False}),
    )
    keys = httpx.get(f"{clouds.sign_in.url}/auth/v1/.well-known/jwks.json").json()["keys"]
    published = next(key for key in keys if key["kid"] == header["kid"])
    public = ECAlgorithm.from_jwk(published).public_bytes(  # type: ignore[union-attr]
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    ours = ec.generate_private_key(ec.SECP256R1())
    rsa_key = rsa.generate_private_key(65537, 2048)

    def hmac_signed(secret: bytes) -> str:
        text = f"{encoded({**header, 'alg': 'HS256'})}.{encoded(claims)}"
        return f"{text}.{encoded(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"

    body = good.split(".")
    attacks = {
        "alg none": f"{encoded({**header, 'alg': 'none'})}.{body[1]}.",
        "alg none, other letters": f"{encoded({**header, 'alg': 'nOnE'})}.{body[1]}.",
        "the public key as a shared secret": hmac_signed(public),
        "an empty secret": hmac_signed(b""),
        "the public key as JSON": hmac_signed(json.dumps(published).encode()),
        "a key of one's own under a known id": jwt.encode(
            claims, ours, "ES256", headers={"kid": header["kid"]}
        ),
        "RSA under the id of an EC key": jwt.encode(
            claims, rsa_key, "RS256", headers={"kid": header["kid"]}
        ),
        "a key of one's own in the header": jwt.encode(
            claims,
            ours,
            "ES256",
            headers={
                "kid": "mine",
                "jwk": ECAlgorithm.to_jwk(ours.public_key(), as_dict=True),
                "jku": "http://127.0.0.1:1/keys",
            },
        ),
        "no key named": jwt.encode(claims, ours, "ES256"),
        "a key id that is no text": jwt.encode(claims, ours, "ES256", headers={"x": 1}).replace(
            ".", "..", 1
        ),
        "other claims under a good signature": f"{body[0]}.{encoded({**claims, 'sub': str(uuid4())})}.{body[2]}",
        "a signature cut short": good[:-8],
        "not a token": "a" * 500,
        "far too long": good + "a" * 100_000,
    }
    got = {}
    for name, token in attacks.items():
        if name == "far too long":  # the server's own bound on headers may come first
            with shared_api.client() as client:
                try:
                    got[name] = client.get(
                        "/me", headers={"Authorization": f"Bearer {token}"}
                    ).status_code
                except httpx.RemoteProtocolError:
                    got[name] = 401
            got[name] = 401 if got[name] in (400, 431) else got[name]
        else:
            got[name] = me(shared_api, token)
    assert got == dict.fromkeys(attacks, 401)


def test_claims_that_do_not_count(shared_api: Api, clouds: Clouds) -> None:
    now = int(time.time())
    wrong: dict[str, dict[str, Any]] = {
        "expired": {"exp": now - 3600},
        "never expires": {"exp": None},
        "not yet": {"nbf": now + 3600},
        "another project": {"iss": "https://other.supabase.co/auth/v1"},
        "no issuer": {"iss": None},
        "for somebody else": {"aud": "anon"},
        "for nobody": {"aud": None},
        "a service": {"role": "service_role"},
        "a visitor": {"role": "anon"},
        "no role": {"role": None},
        "nobody": {"sub": None},
        "not an account": {"sub": "ann' or true --"},
        "anonymous": {"is_anonymous": True},
        "expires when numbers end": {"exp": 10**400},
        "expires at a list": {"exp": [now + 3600]},
        "for a number": {"aud": 1},
        "too deep": {"sub": json.loads("[" * 500 + "]" * 500)},
    }
    got = {
        name: me(shared_api, clouds.sign_in.token("ann@example.com", **claims))
        for name, claims in wrong.items()
    }
    assert got == dict.fromkeys(wrong, 401)
    # Odd, but harmless.
    assert me(shared_api, clouds.sign_in.token("ann@example.com", exp=str(now + 3600))) == 200
    assert me(shared_api, clouds.sign_in.token("ann@example.com", email="\ud800")) == 200


def test_a_shared_secret_counts_only_when_it_is_set(clouds: Clouds, folder: Path) -> None:
    secret = "a-shared-secret-of-the-old-kind-with-enough-characters"
    with api(folder, {**clouds.environment(), "SUPABASE_JWT_SECRET": secret}) as old:
        token = clouds.sign_in.token("ann@example.com")
        claims = jwt.decode(token, options={"verify_signature": False})
        assert me(old, jwt.encode(claims, secret, "HS256")) == 200
        assert me(old, jwt.encode(claims, secret + "x", "HS256")) == 401
        assert me(old, token) == 200  # keys that are published count as well


def test_the_sign_in_service_fails_and_rotates_its_keys(clouds: Clouds, tmp_path: Path) -> None:
    # A service of its own: after a rotation other tests would wait for the next fetch.
    with harness.sign_in(tmp_path, clouds.postgres) as own:
        fails_and_rotates(own, tmp_path / "api", {**clouds.environment(), "SUPABASE_URL": own.url})


def fails_and_rotates(sign_in: SignIn, folder: Path, environment: dict[str, str]) -> None:

    def fetches() -> int:
        paths = httpx.get(f"{sign_in.url}/stand-in/calls").json()["paths"]
        return int(sum(count for path, count in paths.items() if path.endswith("jwks.json")))

    sign_in.behave("failing")
    with api(folder, environment) as started:
        token = sign_in.token("ann@example.com")
        # It starts, serves what needs no sign-in, and says what is the matter.
        with started.client() as client:
            assert client.post("/chat").status_code == 200
            ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["parts"]["sign_in"]["ok"] is False
        with started.client(token) as client:
            refused = client.get("/me")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        sign_in.behave("ok")
        eventually(lambda: me(started, token) == 200, "keys are fetched when they are there")
        # Known keys serve on while the service is away, new ones wait for it.
        sign_in.behave("hanging")
        assert me(started, sign_in.token("ann@example.com")) == 200
        sign_in.behave("ok")
        httpx.post(f"{sign_in.url}/stand-in/rotate")
        rotated = sign_in.token("ann@example.com")
        eventually(lambda: me(started, rotated) == 200, "a new key is fetched")
        assert me(started, token) == 200
        # Strangers cannot make it fetch again and again.
        before = fetches()
        key = ec.generate_private_key(ec.SECP256R1())
        claims = jwt.decode(token, options={"verify_signature": False})
        for _ in range(20):
            forged = jwt.encode(claims, key, "ES256", headers={"kid": str(uuid4())})
            assert me(started, forged) == 401
        assert fetches() - before <= 1


def test_a_user_may_ask_so_often_and_no_more(clouds: Clouds, folder: Path) -> None:
    # Ready before the first question: four that wait for it would be more than a minute apart.
    environment = {**clouds.environment(), "RATE_PER_MINUTE": "3"}
    with api(folder, environment, until="/readyz") as strict:
        with strict.client(clouds.sign_in.token("ann@example.com")) as ann:
            answers = [ann.post("/chat", json={"message": "hi"}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["ratelimit"].split(";")[1] for answer in answers[:3]] == [
            "r=2",
            "r=1",
            "r=0",
        ]
        assert 1 <= int(answers[3].headers["retry-after"]) <= 60
        assert answers[3].json()["type"] == "urn:cimt:problem:too-many-requests"
        # Nor is there anything to read for who may not ask.
        bearer = f"Authorization: {ann.headers['authorization']}"
        unread = answered(strict, "POST", "/chat", bearer, DECLARED, "Expect: 100-continue")
        assert unread.split()[1] == b"429"
        with strict.client(clouds.sign_in.token("bob@example.com")) as bob:
            assert bob.post("/chat", json={"message": "hi"}).status_code == 200
