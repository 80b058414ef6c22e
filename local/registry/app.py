"""What clients meet: `/token`, and `/v2/`, which is the real registry's as far as the rights go."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .rights import PACKAGES, UNAUTHORIZED, Holder, change, holder, refusal

SERVICE = "ghcr.io"
REALM = "https://registry.invalid"  # in the real registry's challenge: replaced by where the client reached us
SECONDS = 300
PACKAGE = re.compile(r"/v2/(?P<name>.+)/(?P<part>manifests|blobs|tags)/")
SOURCE = re.compile(r"https://github\.com/(([\w-]+)/[\w.-]+)")
KINDS = ("docker.distribution.manifest.v2", "oci.image.manifest.v1")
HOP = {"connection", "transfer-encoding", "date"}  # of each connection and server


class Registry:
    """The rights of ghcr.io in front of the registry at `upstream`; what is kept is in `folder`."""

    def __init__(self, folder: Path, upstream: str) -> None:
        self._folder = folder
        self._key = (folder / "server.key").read_text()
        self._certificate = (folder / "ca.crt").read_text()
        self._client = httpx.AsyncClient(base_url=upstream, timeout=None, trust_env=False)  # noqa: S113 - a client's patience counts
        methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
        # There is no `POST /token`: clients then ask as they ask ghcr.io.
        routes = [Route("/token", self._token), Route("/v2/{_:path}", self._v2, methods=methods)]
        self.application = Starlette(routes=routes)

    def _token(self, request: Request) -> Response:
        """A token of ours. What a known holder may not do is said at /v2/; nobody is refused here."""
        who: Holder | None = Holder()
        if header := request.headers.get("authorization"):
            who = None
            with contextlib.suppress(binascii.Error, UnicodeDecodeError):
                user, _, secret = base64.b64decode(header.split()[-1]).decode().partition(":")
                who = holder(self._folder, user, secret)
        asked: dict[str, list[str]] = {}
        for scope in " ".join(request.query_params.getlist("scope")).split():
            _, name, actions = scope.split(":")
            asked.setdefault(name, []).extend(actions.split(","))
        if who is None or (not who.owner and any("push" in one for one in asked.values())):
            return _refused("denied")
        granted = {
            name: [one for one in actions if not refusal(self._folder, who, name, one)]
            for name, actions in asked.items()
        }
        if not who.owner and not any(granted.values()):
            return _refused(UNAUTHORIZED)
        token = self._signed(granted, who=asdict(who), asked=asked)
        return JSONResponse({"token": token, "access_token": token, "expires_in": SECONDS})

    async def _v2(self, request: Request) -> Response:
        claims, package = self._claims(request), PACKAGE.match(request.url.path)
        if claims and package:
            # Who asks for a blob because he would push it is told at once that he may not.
            would_push = "push" in claims["asked"].get(package["name"], ())
            pushes = {"GET": False, "HEAD": would_push}.get(request.method, True)
            who = Holder(**claims["who"])
            if why := refusal(self._folder, who, package["name"], "push" if pushes else "pull"):
                return _refused(why)
        sent = request.headers
        has_body = not {"content-length", "transfer-encoding"}.isdisjoint(sent)
        forwarded = self._client.build_request(
            request.method,
            request.url.path,
            params=str(request.query_params),
            headers=_end_to_end(sent.items()),
            content=request.stream() if has_body else None,
        )
        answer = await self._client.send(forwarded, stream=True)
        headers = dict(_end_to_end(answer.headers.items()))
        if claims and package and package["part"] == "manifests" and answer.status_code == 201:
            await self._record(package["name"], who, headers["docker-content-digest"])
        if challenge := headers.get("www-authenticate"):
            challenge = challenge.replace(REALM, f"https://{sent['host']}/token")
            if not package:  # ghcr.io then names one of nobody's
                challenge += ',scope="repository:user/image:pull"'
            headers["www-authenticate"] = challenge

        async def body() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(answer):
                async for chunk in answer.aiter_raw():
                    yield chunk

        return StreamingResponse(body(), answer.status_code, headers)

    async def _record(self, name: str, who: Holder, digest: str) -> None:
        """A push makes its package; the image's label links one that nothing has linked."""
        headers = {
            "authorization": f"Bearer {self._signed({name: ['pull']})}",
            "accept": ", ".join(f"application/vnd.{kind}+json" for kind in KINDS),
        }
        manifest = await self._client.get(f"/v2/{name}/manifests/{digest}", headers=headers)
        labels: dict[str, str] = {}
        if image := manifest.json().get("config"):  # an index has none
            config = await self._client.get(f"/v2/{name}/blobs/{image['digest']}", headers=headers)
            labels = config.json().get("config", {}).get("Labels") or {}
        source = SOURCE.fullmatch(labels.get("org.opencontainers.image.source", "").lower())
        with change(self._folder, PACKAGES) as packages:
            owner = name.partition("/")[0]
            new = {"owner": owner, "repository": who.repository or None, "public": False}
            package = packages.setdefault(name, new)
            if source and source[2] == owner:
                package["repository"] = package["repository"] or source[1]

    def _signed(self, granted: dict[str, list[str]], **ours: Any) -> str:
        now = int(time.time())
        access = [{"type": "repository", "name": k, "actions": v} for k, v in granted.items()]
        claims = {"iss": SERVICE, "aud": SERVICE, "exp": now + SECONDS, "access": access, **ours}
        chain = ["".join(self._certificate.splitlines()[1:-1])]
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"x5c": chain})

    def _claims(self, request: Request) -> dict[str, Any]:
        """Those of a token that we gave; empty without one: the real registry then refuses."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        with contextlib.suppress(jwt.PyJWTError):
            return dict(jwt.decode(token, self._key, ["ES256"], audience=SERVICE))
        return {}


def _end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [one for one in headers if one[0] not in HOP]  # a list: clients send several `Accept`


def _refused(why: str) -> Response:
    status, code = (401, "UNAUTHORIZED") if why == UNAUTHORIZED else (403, "DENIED")
    return JSONResponse({"errors": [{"code": code, "message": why}]}, status)
