"""Supabase Auth's paths below /auth/v1, an inbox, and switches below /stand-in."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psycopg
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from local.clouds import PUBLISHABLE_KEY, SECRET_KEY

from . import accounts, mails
from .errors import AuthError, GatewayError, OAuthError
from .inbox import Inbox, inbox_page, signed_in_page
from .keys import Keys
from .redirects import target
from .requests import EMAIL, read_body
from .sessions import Sessions
from .switches import Switches

EXPIRED_LINK = "Email link is invalid or has expired"
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Options:
    """How the stand-in is set up."""

    database: str
    issuer: str  # what stands in tokens, and in front of links: https://<ref>.supabase.co/auth/v1
    state: Path
    site: str  # where links lead by default
    allowed: tuple[str, ...] = ()  # other addresses that links may lead to
    page: str = (
        ""  # the project's site URL, where the links of supabase/templates lead; "": no such link
    )
    publishable_key: str = PUBLISHABLE_KEY
    otp_seconds: float = 60.0  # between two mails to one address
    token_seconds: int = 3600  # life of an access token


class Auth:
    """One project's Auth."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.keys = Keys(options.state)
        self.sessions = Sessions(self.keys, options.issuer, options.token_seconds)
        self.inbox = Inbox(options.state)
        self.switches = Switches(options.database, self.keys, self.sessions)

    def application(self) -> Starlette:
        """The web application."""
        routes = [
            self._route("/otp", "POST", self.otp),
            self._route("/magiclink", "POST", self.otp),
            self._route(
                "/verify", "GET", self.verify_link, keyed=False
            ),  # a link in a mail has no header
            self._route("/verify", "POST", self.verify),
            self._route("/token", "POST", self.token),
            self._route("/user", "GET", self.user),
            self._route("/user", "PUT", self.change_user),
            self._route("/logout", "POST", self.logout),
            self._route("/admin/users/{user_id}", "GET", self.admin_user),
            self._route("/admin/users/{user_id}", "DELETE", self.admin_delete),
            self._route("/health", "GET", self.health),
            self._route("/settings", "GET", self.settings),
            self._route("/.well-known/jwks.json", "GET", self.jwks, keyed=False),
            Route("/", lambda _: RedirectResponse("/inbox")),
            Route("/inbox", lambda _: HTMLResponse(inbox_page(self.inbox.read()))),
            Route("/inbox.json", self.inbox_json),
            Route("/signed-in", lambda _: HTMLResponse(signed_in_page())),
            *self.switches.routes(),
        ]

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            await accounts.prepare(self.options.database)
            yield

        everybody = Middleware(
            CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
        )
        return Starlette(
            routes=routes,
            middleware=[everybody],
            lifespan=lifespan,
            exception_handlers={AuthError: _refused, psycopg.OperationalError: _no_database},
        )

    def _route(self, path: str, method: str, handler: Handler, *, keyed: bool = True) -> Route:
        async def guarded(request: Request) -> Response:
            self.switches.calls[path] += 1
            if keyed:
                key = request.headers.get("apikey") or request.query_params.get("apikey")
                if not key:
                    raise GatewayError(
                        401,
                        "No `apikey` request header or url param was found.",
                        "No API key found in request",
                    )
                if key not in (self.options.publishable_key, SECRET_KEY):
                    raise GatewayError(
                        401, "Double check your Supabase API key.", "Invalid API key"
                    )
            return await handler(request)

        return Route(f"/auth/v1{path}", guarded, methods=[method])

    # Signing in

    async def otp(self, request: Request) -> Response:
        """Send a mail with a link and a code; an account is made when there is none."""
        body = await read_body(request)
        if body.get("phone"):
            raise AuthError(400, "phone_provider_disabled", "Unsupported phone provider")
        email = str(body.get("email") or "").strip().lower()
        if not email:
            raise AuthError(400, "validation_failed", "One of email or phone must be set")
        if not EMAIL.fullmatch(email):
            raise AuthError(
                400, "validation_failed", "Unable to validate email address: invalid format"
            )
        challenge = str(body.get("code_challenge") or "")
        method = str(body.get("code_challenge_method") or "")
        if bool(challenge) != bool(method):
            raise AuthError(
                400,
                "validation_failed",
                "PKCE flow requires code_challenge_method and code_challenge",
            )
        data = body.get("data")
        async with accounts.connect(self.options.database) as connection:
            user = await accounts.user_by_email(
                connection,
                email,
                create=body.get("create_user") is not False,
                data=data if isinstance(data, dict) else {},
            )
            code, hashed, kind = await accounts.issue_one_time(
                connection, user, challenge, method, self.options.otp_seconds
            )
        wanted = request.query_params.get("redirect_to") or request.headers.get("referer") or ""
        leads_to = target(wanted, self.options.site, self.options.allowed)
        query = urlencode({"token": hashed, "type": kind, "redirect_to": leads_to})
        values = {"Token": code, "TokenHash": hashed, "SiteURL": self.options.page, "Email": email}
        subject, text, page = mails.mail(kind, values)
        self.inbox.put(
            {
                "to": email,
                "subject": subject,
                "html": text,
                "sent_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "link": f"{self.options.issuer}/verify?{query}",
                "page": page if self.options.page else "",
                "token": code,
                "token_hash": hashed,
                "type": kind,
            }
        )
        return JSONResponse({})

    async def verify_link(self, request: Request) -> Response:
        """A browser opens the link of a mail."""
        asked = request.query_params
        leads_to = target(asked.get("redirect_to", ""), self.options.site, self.options.allowed)
        hashed, kind = asked.get("token", ""), asked.get("type", "")
        try:
            async with accounts.connect(self.options.database) as connection:
                used = await accounts.redeem(connection, [hashed], [kind], EXPIRED_LINK)
                if used["code_challenge"]:
                    code = await accounts.issue_code(connection, used)
                    parts = urlsplit(leads_to)
                    query = "&".join(filter(None, [parts.query, urlencode({"code": code})]))
                    return RedirectResponse(parts._replace(query=query).geturl(), 303)
                session = await self.sessions.start(connection, str(used["user_id"]))
        except AuthError as error:
            told = {
                "error": "access_denied",
                "error_code": error.code,
                "error_description": str(error),
            }
            bare = urlsplit(leads_to)._replace(query="", fragment=urlencode(told))
            return RedirectResponse(bare.geturl(), 303)
        del session["user"]
        return RedirectResponse(f"{leads_to}#{urlencode(session | {'type': kind})}", 303)

    async def verify(self, request: Request) -> Response:
        """An app sends the code, or the hash of a link of its own."""
        body = await read_body(request)
        kind = str(body.get("type") or "")
        if not kind:
            raise AuthError(400, "validation_failed", "Verify requires a verification type")
        kinds = {"email": ["signup", "magiclink"]}.get(kind, [kind])
        token, hashed = str(body.get("token") or ""), str(body.get("token_hash") or "")
        told = EXPIRED_LINK if hashed else "Token has expired or is invalid"
        if hashed and (body.get("email") or body.get("phone")):
            raise AuthError(
                400,
                "validation_failed",
                "Only the token_hash and type should be provided",
            )
        if not hashed and not (token and body.get("email")):
            raise AuthError(
                400,
                "validation_failed",
                "Only an email address or phone number should be provided on verify",
            )
        if not hashed:
            hashed = accounts.token_hash(str(body["email"]).strip().lower(), token.replace("-", ""))
        async with accounts.connect(self.options.database) as connection:
            used = await accounts.redeem(connection, [hashed, f"pkce_{hashed}"], kinds, told)
            return JSONResponse(await self.sessions.start(connection, str(used["user_id"])))

    async def token(self, request: Request) -> Response:
        """A new pair of tokens, for a refresh token or for a code."""
        grant = request.query_params.get("grant_type")
        body = await read_body(request)
        async with accounts.connect(self.options.database) as connection:
            if grant == "pkce":
                code, verifier = (
                    str(body.get("auth_code") or ""),
                    str(body.get("code_verifier") or ""),
                )
                if not code or not verifier:
                    raise AuthError(
                        400,
                        "validation_failed",
                        "invalid request: both auth code and code verifier should be non-empty",
                    )
                user_id = await accounts.exchange_code(connection, code, verifier)
                return JSONResponse(await self.sessions.start(connection, user_id))
            if grant != "refresh_token":
                raise OAuthError("unsupported_grant_type", "")
            if not body.get("refresh_token"):
                raise OAuthError("invalid_request", "refresh_token required")
            got = await accounts.refresh(connection, str(body["refresh_token"]))
        if isinstance(got, AuthError):
            raise got
        user, session_id, refresh_token = got
        return JSONResponse(self.sessions.answer(user, session_id, refresh_token))

    # The account

    async def user(self, request: Request) -> Response:
        """Who has signed in."""
        async with accounts.connect(self.options.database) as connection:
            user, _ = await self.sessions.bearer(request, connection)
            return JSONResponse(accounts.as_json(user))

    async def change_user(self, request: Request) -> Response:
        """Change the account's own data; the stand-in changes nothing else."""
        body = await read_body(request)
        async with accounts.connect(self.options.database) as connection:
            user, _ = await self.sessions.bearer(request, connection)
            if set(body) - {"data"} or not isinstance(body.get("data", {}), dict):
                raise AuthError(400, "validation_failed", "The stand-in changes `data` only")
            changed = await accounts.change_data(connection, user["id"], body.get("data", {}))
            return JSONResponse(accounts.as_json(changed))

    async def logout(self, request: Request) -> Response:
        """End sessions."""
        scope = request.query_params.get("scope", "global")
        if scope not in ("global", "local", "others"):
            raise AuthError(400, "validation_failed", f"Unsupported logout scope {scope!r}")
        async with accounts.connect(self.options.database) as connection:
            user, session_id = await self.sessions.bearer(request, connection)
            await accounts.end_sessions(connection, str(user["id"]), session_id, scope)
        return Response(status_code=204)

    # What the secret key alone may do

    async def admin_user(self, request: Request) -> Response:
        """Any account."""
        async with accounts.connect(self.options.database) as connection:
            return JSONResponse(accounts.as_json(await self._account(request, connection)))

    async def admin_delete(self, request: Request) -> Response:
        """Delete an account with all that belongs to it."""
        async with accounts.connect(self.options.database) as connection:
            user = await self._account(request, connection)
            await accounts.delete_user(connection, str(user["id"]))
        return JSONResponse({})

    async def _account(self, request: Request, connection: accounts.Connection) -> accounts.Row:
        """The account that the path names. Raises AuthError, also when the key is not the secret one."""
        # The gateway puts a token of the service in the place of the secret key.
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if request.headers.get("apikey") != SECRET_KEY or given not in ("", SECRET_KEY):
            await self.sessions.bearer(request, connection)  # says what is wrong with a token
            raise AuthError(403, "not_admin", "User not allowed")
        try:
            user_id = str(uuid.UUID(request.path_params["user_id"]))
        except ValueError:
            raise AuthError(404, "validation_failed", "user_id must be an UUID") from None
        user = await accounts.user_by_id(connection, user_id)
        if user is None:
            raise AuthError(404, "user_not_found", "User not found")
        return user

    # About the project

    async def health(self, _: Request) -> Response:
        """Whether Auth and its database answer."""
        async with accounts.connect(self.options.database) as connection:
            await connection.execute("select 1")
        return JSONResponse(
            {"version": "stand-in", "name": "GoTrue", "description": "Stand-in for Supabase Auth"}
        )

    async def settings(self, _: Request) -> Response:
        """How one can sign in."""
        return JSONResponse(
            {
                "external": {"email": True, "phone": False, "anonymous_users": False},
                "disable_signup": False,
                "mailer_autoconfirm": False,
                "phone_autoconfirm": False,
                "sms_provider": "",
                "saml_enabled": False,
            }
        )

    async def jwks(self, request: Request) -> Response:
        """The public keys."""
        if self.switches.jwks == "hanging":
            while (await request.receive())["type"] != "http.disconnect":
                pass
        if self.switches.jwks != "ok":
            status = 200 if self.switches.jwks == "empty" else 500
            return JSONResponse({"keys": []}, status_code=status)
        return JSONResponse(self.keys.public(), headers={"cache-control": "public, max-age=600"})

    async def inbox_json(self, request: Request) -> Response:
        """The mail as JSON, newest first; ?to= for one address."""
        return JSONResponse(self.inbox.read(request.query_params.get("to", "").strip().lower()))


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, AuthError)  # noqa: S101 - registered for nothing else
    headers = {"x-sb-error-code": error.code} if type(error) is AuthError else None
    return JSONResponse(error.body, status_code=error.status, headers=headers)


async def _no_database(_: Request, error: Exception) -> Response:
    told = AuthError(
        503, "unexpected_failure", f"The database does not answer: {str(error).strip()}"
    )
    return JSONResponse(told.body, status_code=503)
