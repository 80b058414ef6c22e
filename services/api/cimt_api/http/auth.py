"""Who asks: Supabase's tokens, verified here against the keys that it publishes.

Supabase lets its key set be cached for ten minutes and waits twenty between announcing a key and using it. So keys are
fetched again every five minutes in the background; when that fails the old ones serve on; and a token of a key that is
not known brings one fetch forward, at most every half minute, whatever strangers send.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp
import jwt

from ..settings import Settings
from .bodies import read_whole
from .problems import Problem

AUDIENCE = "authenticated"
ALGORITHMS = {("EC", "P-256"): "ES256", ("RSA", None): "RS256"}  # by the key, never by the token
TOKEN_LENGTH = 8192  # characters, at most
LEEWAY_SECONDS = 10  # clocks differ
REFRESH_SECONDS = 300.0
RETRY_SECONDS = (5.0, 60.0)  # after a failed fetch: at first, and doubled up to
COOLDOWN_SECONDS = 30.0  # between fetches that unknown keys bring forward
FIRST_COOLDOWN_SECONDS = 1.0  # the same while no key is known
FETCH_SECONDS = 5.0
FETCH_BYTES = 65536
REMEMBER_SECONDS = 60.0  # a verified token: a signature costs 0.1 ms
REMEMBERED = 10_000
# What a token may do to who reads it: claims of odd types, numbers without end, nests without bottom.
ODD = (
    jwt.InvalidTokenError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    OverflowError,
    RecursionError,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class User:
    """A signed-in person."""

    id: str  # UUID of auth.users, lower case
    email: str | None
    claims: str  # JSON for request.jwt.claims: what the policies read, nothing more


def person(account: str, email: str | None = None) -> User:
    """Return the user of an account, whose id is a UUID."""
    claims = json.dumps({"sub": account, "role": "authenticated"}, separators=(",", ":"))
    return User(id=account, email=email, claims=claims)


def refusal(detail: str) -> Problem:
    """Make the Problem 401 of a token that is missing or does not count, with the header of RFC 6750."""
    return Problem(
        401,
        "Sign in first",
        detail,
        kind="unauthorized",
        headers={"WWW-Authenticate": 'Bearer realm="cimt", error="invalid_token"'},
    )


def bearer(authorization: str | None) -> str:
    """Return the token of the header `Authorization`. Raises Problem 401 without one."""
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > TOKEN_LENGTH:
        raise refusal("Send the header Authorization: Bearer <access token>.")
    return token


class Authenticator:
    """Verifies tokens by keys that it fetches in the background; once there are some, `user` waits for nobody."""

    def __init__(self, settings: Settings) -> None:
        self._issuer = f"{settings.supabase_url}/auth/v1"
        self._url = settings.supabase_jwks_url or f"{self._issuer}/.well-known/jwks.json"
        self._secret = settings.supabase_jwt_secret.get_secret_value()
        self._client: aiohttp.ClientSession | None = None
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetch: asyncio.Task[bool] | None = None  # the one under way
        self._brought_forward = -COOLDOWN_SECONDS  # when an unknown key last did (monotonic)
        self._loop: asyncio.Task[None] | None = None
        self._seen: dict[bytes, tuple[float, User]] = {}  # by hash: until when (Unix time), who

    async def start(self) -> None:
        """Begin to fetch keys, without waiting for them."""
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        self._client = aiohttp.ClientSession(timeout=timeout)
        self._loop = asyncio.create_task(self._keep_fresh())

    async def close(self) -> None:
        """Stop fetching."""
        tasks = [task for task in (self._loop, self._fetch) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    @property
    def ready(self) -> bool:
        """Tell whether a token can be verified."""
        return bool(self._keys or self._secret)

    async def user(self, authorization: str | None) -> User:
        """Return the user of the header `Authorization`. Raises Problem 401, or 503 while no key was ever had."""
        token = bearer(authorization)
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        now = time.time()
        known = self._seen.get(digest)
        if known is not None and known[0] > now:
            return known[1]
        claims = await self._verified(token)
        user = _user(claims)
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        self._seen[digest] = (min(claims["exp"], now + REMEMBER_SECONDS), user)
        return user

    async def _verified(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
        except ODD:
            raise refusal("The token is not a JWT.") from None
        key: Any
        if header.get("alg") == "HS256" and self._secret:
            key, algorithm = self._secret, "HS256"
        else:
            found = await self._key(header.get("kid"))
            key, algorithm = found.key, found.algorithm_name
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=AUDIENCE,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            claims["exp"] = float(claims["exp"])  # which may be text
        except jwt.ExpiredSignatureError:
            raise refusal("The token has expired: refresh the session.") from None
        except ODD:
            raise refusal("The token is not valid here.") from None
        return claims

    async def _key(self, kid: object) -> jwt.PyJWK:
        if not isinstance(kid, str):
            raise refusal("The token names no key.")
        cooldown = COOLDOWN_SECONDS if self._keys else FIRST_COOLDOWN_SECONDS
        if kid not in self._keys and time.monotonic() - self._brought_forward > cooldown:
            self._brought_forward = time.monotonic()
            await self._refresh()
        elif kid not in self._keys and self._fetch is not None:
            await asyncio.shield(self._fetch)
        if kid in self._keys:
            return self._keys[kid]
        if not self._keys:
            raise Problem(
                503,
                "Sign-in cannot be checked",
                "The keys of the sign-in service are not there yet.",
                kind="keys-unavailable",
                headers={"Retry-After": "5"},
            )
        raise refusal("The token's key is not one of the sign-in service.")

    async def _keep_fresh(self) -> None:
        retry, longest = RETRY_SECONDS
        while True:
            if await self._refresh():
                retry = RETRY_SECONDS[0]
                await asyncio.sleep(REFRESH_SECONDS)
            else:
                await asyncio.sleep(retry)
                retry = min(retry * 2, longest)

    async def _refresh(self) -> bool:
        """Fetch the keys; callers that come meanwhile wait for the same fetch. Returns False when it failed."""
        if self._fetch is None or self._fetch.done():
            self._fetch = asyncio.create_task(self._fetch_keys())
        return await asyncio.shield(self._fetch)

    async def _fetch_keys(self) -> bool:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                keys = _keys(await self._download())
        except (OSError, TimeoutError, ValueError) as error:
            log.warning(
                "no keys from %s (%s: %s); %d known ones stay",
                self._url,
                type(error).__name__,
                str(error)[:200],
                len(self._keys),
            )
            return False
        if not keys and not self._secret:
            log.warning(
                "%s holds no key, so nobody can sign in. Next: give the project an asymmetric signing key "
                "(Supabase: JWT signing keys), or set SUPABASE_JWT_SECRET",
                self._url,
            )
        if keys.keys() != self._keys.keys():
            self._seen.clear()  # a token of a withdrawn key is worth nothing from now on
        self._keys = keys
        return True

    async def _download(self) -> bytes:
        """Return the bytes of the key set. Raises OSError or ValueError when it cannot be had."""
        assert self._client is not None, "start() comes first"  # noqa: S101
        try:
            async with self._client.get(self._url, allow_redirects=False) as response:
                if response.status != 200:
                    raise ValueError(f"status {response.status}")
                return await read_whole(response, FETCH_BYTES)
        except aiohttp.ClientError as error:
            raise OSError(f"{type(error).__name__}: {error}") from None


def _keys(body: bytes) -> dict[str, jwt.PyJWK]:
    """Return the signing keys that can be used here, by their ids. Raises ValueError when it is no key set."""
    document = json.loads(body)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a key set")
    keys = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        kid, kind = entry.get("kid"), entry.get("kty")
        algorithm = ALGORITHMS.get((str(kind), entry.get("crv")))
        if not isinstance(kid, str) or algorithm is None:
            continue
        with contextlib.suppress(
            jwt.PyJWTError, ValueError, TypeError
        ):  # one bad key spoils no other
            keys[kid] = jwt.PyJWK(entry, algorithm)
    if entries and not keys:
        raise ValueError("no usable key")
    return keys


def _user(claims: dict[str, Any]) -> User:
    """Return the person of verified claims. Raises Problem 401 when they are not a person's."""
    if claims.get("role") != "authenticated":
        raise refusal("The token is not a user's.")
    if claims.get("is_anonymous"):
        # Whoever can make accounts without an address has as many budgets of questions as they like.
        raise refusal("Anonymous accounts may not ask: sign in with an e-mail address.")
    try:
        account = str(UUID(claims["sub"]))
    except (ValueError, AttributeError, TypeError):
        raise refusal("The token names no account.") from None
    email = claims.get("email")
    readable = isinstance(email, str) and email.isprintable()
    return person(account, email or None if readable else None)
