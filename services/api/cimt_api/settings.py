"""What the environment may change, read and checked once at start."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

EFFORTS = ("off", "none", "low", "medium", "high", "xhigh", "max")
LOG_LEVELS = ("debug", "info", "warning", "error")
REQUIRED = ("DATABASE_URL", "SUPABASE_URL", "OPENAI_API_KEY", "INGEST_KEY")
INGEST_KEY_LENGTH = 32  # characters, at least
ENCRYPTED = ("require", "verify-ca", "verify-full")  # of sslmode


class SettingsError(Exception):
    """Every wrong variable, one line each."""


@dataclass(frozen=True)
class Settings:
    """Field names are the variables' in lower case; what is empty counts as not set.

    Defaults suit the container, which publishes no port: the proxy reaches it by its network.
    """

    database_url: str = field(repr=False)  # as the role cimt_api; holds its password
    supabase_url: str  # https://<ref>.supabase.co, without a slash at the end
    openai_api_key: str = field(repr=False)
    ingest_key: str = field(repr=False)  # what the ETL sends as its bearer token

    # Who asks
    supabase_jwks_url: str = ""  # default: where Supabase publishes the keys of supabase_url
    supabase_jwt_secret: str = field(default="", repr=False)  # only then HS256 is accepted
    cors_origins: tuple[str, ...] = ()
    rate_per_minute: int = 30  # questions of one user
    streams_per_user: int = 4
    streams_total: int = 1000

    # The model
    openai_base_url: str = ""  # default: the SDK's own
    chat_model: str = "gpt-6-luna"
    embedding_model: str = "text-embedding-3-small"
    answer_tokens: int = 1024  # at most, per answer, what the model thinks included
    reasoning_effort: str = "none"  # off: is not sent, for models that do not reason
    openai_connect_seconds: float = 5.0
    openai_first_token_seconds: float = 30.0  # from the question to the model until its first token
    openai_between_tokens_seconds: float = 20.0
    openai_retries: int = 2  # more attempts before the first token, never after it

    # What the model is given
    retrieval_count: int = 8  # passages; 0 = no retrieval
    retrieval_tokens: int = 3000
    memory_tokens: int = 2000

    # What is kept
    chat_log: bool = True  # off: answers are kept nowhere and a stream resumes only in this process
    chat_retention_days: int = 90  # 0 keeps for ever
    resume_seconds: float = 60.0  # how long an answer is generated with nobody listening
    database_pool: int = 10  # connections, at most
    log_content: bool = False  # on: questions appear in the log. For development

    # The server
    host: str = "0.0.0.0"  # noqa: S104 - the container's own address
    port: int = 8000  # public, behind the proxy
    metrics_port: int = 9090  # for scrapers on the internal network; the proxy does not route to it
    log_level: str = "info"
    drain_seconds: float = 3.0  # from SIGTERM until no new connection is accepted
    shutdown_seconds: int = 20  # after that, for requests that are still running
    max_body_bytes: int = 65536
    max_document_bytes: int = 2_097_152  # of a body that brings a document
    ping_seconds: float = 15.0  # a comment on an idle stream, so that no proxy gives it up


def load(env: Mapping[str, str] = os.environ) -> Settings:
    """Read the variables; raises SettingsError naming every wrong or missing one at once."""
    wrong = [f"{name} is not set" for name in REQUIRED if not env.get(name)]

    def number(name: str, low: float, high: float) -> float:
        default = float(getattr(Settings, name.lower()))
        text = env.get(name, "")
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            wrong.append(f"{name}={text!r} is not a number from {low:g} to {high:g}")
            return default
        return value

    def whole(name: str, low: int, high: int) -> int:
        return int(number(name, low, high))

    def switch(name: str) -> bool:
        text = env.get(name, "").lower()
        if text not in ("", "on", "off"):
            wrong.append(f"{name}={env[name]!r} is neither on nor off")
        return text == "on" if text else bool(getattr(Settings, name.lower()))

    def text(name: str) -> str:
        return env.get(name, "") or str(getattr(Settings, name.lower(), ""))

    def choice(name: str, known: tuple[str, ...]) -> str:
        value = text(name)
        if value not in known:
            wrong.append(f"{name}={value!r} is unknown: choose one of {', '.join(known)}")
        return value

    def address(name: str, default: str = "") -> str:
        url = (env.get(name, "") or default).rstrip("/")
        if url and (why := _refusal(url)):
            wrong.append(f"{name} {why}")
        return url

    if 0 < len(env.get("INGEST_KEY", "")) < INGEST_KEY_LENGTH:
        wrong.append(
            f"INGEST_KEY is shorter than {INGEST_KEY_LENGTH} characters. Make one: openssl rand -hex 32"
        )
    database_url = env.get("DATABASE_URL", "")
    if database_url:
        try:
            database_url = _encrypted(database_url)
        except ValueError as error:
            wrong.append(f"DATABASE_URL {error}")
    supabase_url = address("SUPABASE_URL")
    origins = tuple(part for part in env.get("CORS_ORIGINS", "").replace(",", " ").split() if part)
    for origin in origins:
        split = urlsplit(origin)
        if split.scheme not in ("http", "https") or not split.netloc or split.path or split.query:
            wrong.append(
                f"CORS_ORIGINS: {origin!r} is not an origin such as https://app.example.com"
            )

    settings = Settings(
        database_url=database_url,
        supabase_url=supabase_url,
        openai_api_key=env.get("OPENAI_API_KEY", ""),
        ingest_key=env.get("INGEST_KEY", ""),
        supabase_jwks_url=address(
            "SUPABASE_JWKS_URL",
            f"{supabase_url}/auth/v1/.well-known/jwks.json" if supabase_url else "",
        ),
        supabase_jwt_secret=env.get("SUPABASE_JWT_SECRET", ""),
        cors_origins=origins,
        rate_per_minute=whole("RATE_PER_MINUTE", 1, 1_000_000),
        streams_per_user=whole("STREAMS_PER_USER", 1, 1_000_000),
        streams_total=whole("STREAMS_TOTAL", 1, 1_000_000),
        openai_base_url=env.get("OPENAI_BASE_URL", "").rstrip("/"),
        chat_model=text("CHAT_MODEL"),
        embedding_model=text("EMBEDDING_MODEL"),
        answer_tokens=whole("ANSWER_TOKENS", 1, 128_000),
        reasoning_effort=choice("REASONING_EFFORT", EFFORTS),
        openai_connect_seconds=number("OPENAI_CONNECT_SECONDS", 0.1, 60),
        openai_first_token_seconds=number("OPENAI_FIRST_TOKEN_SECONDS", 0.1, 600),
        openai_between_tokens_seconds=number("OPENAI_BETWEEN_TOKENS_SECONDS", 0.1, 600),
        openai_retries=whole("OPENAI_RETRIES", 0, 5),
        retrieval_count=whole("RETRIEVAL_COUNT", 0, 50),
        retrieval_tokens=whole("RETRIEVAL_TOKENS", 0, 200_000),
        memory_tokens=whole("MEMORY_TOKENS", 0, 200_000),
        chat_log=switch("CHAT_LOG"),
        chat_retention_days=whole("CHAT_RETENTION_DAYS", 0, 36_500),
        resume_seconds=number("RESUME_SECONDS", 0, 3600),
        database_pool=whole("DATABASE_POOL", 1, 200),
        log_content=switch("LOG_CONTENT"),
        host=text("HOST"),
        port=whole("PORT", 1, 65535),
        metrics_port=whole("METRICS_PORT", 1, 65535),
        log_level=choice("LOG_LEVEL", LOG_LEVELS),
        drain_seconds=number("DRAIN_SECONDS", 0, 60),
        shutdown_seconds=whole("SHUTDOWN_SECONDS", 1, 600),
        max_body_bytes=whole("MAX_BODY_BYTES", 0, 2**30),
        max_document_bytes=whole("MAX_DOCUMENT_BYTES", 0, 2**30),
        ping_seconds=number("PING_SECONDS", 0.1, 600),
    )
    if settings.port == settings.metrics_port:
        wrong.append(f"PORT and METRICS_PORT are both {settings.port}: metrics must not be public")
    if wrong:
        raise SettingsError("\n".join(wrong))
    return settings


def _encrypted(url: str) -> str:
    """The database's address, with TLS unless it is near. ValueError says why not, and quotes nothing: a password."""
    try:
        parts = conninfo_to_dict(url)
    except (ProgrammingError, UnicodeError):
        parts = {}
    hosts = str(parts.get("hostaddr") or parts.get("host", "")).split(",")
    # An unquoted / or @ of the password makes what follows it a part of these.
    odd = "".join(f"{parts.get(name, '')}" for name in ("host", "port", "dbname"))
    if not url.startswith(("postgresql://", "postgres://")) or not parts.get("user") or "@" in odd:
        raise ValueError(
            "is not postgresql://user:password@host:port/database; "
            "in the password, write % / # ? @ and a space as %25 %2F %23 %3F %40 %20"
        )
    if all(_near(host) for host in hosts) or parts.get("sslmode") in ENCRYPTED:
        return url
    if "sslmode" in parts:
        raise ValueError(
            f"must not go to another machine in plain text: leave sslmode out, or make it one of {', '.join(ENCRYPTED)}"
        )
    return make_conninfo(url, sslmode="require")


def _near(host: str) -> bool:
    """Whether it is this machine or on its private network, by the address alone."""
    if host in ("", "localhost") or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_private  # loopback included
    except ValueError:
        return False


def _refusal(url: str) -> str:
    """Why keys must not be fetched from there; empty when they may."""
    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname:
        return f"is not an address: {url!r}"
    if split.scheme == "https" or _near(split.hostname):
        return ""
    return f"must begin with https:// unless it is on this machine: {url!r}"
