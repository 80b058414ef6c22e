"""What the environment may change, read and checked once at start."""

from __future__ import annotations

import ipaddress
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MOST_USD = Decimal(1_000_000)  # of a budget
ENCRYPTED = ("require", "verify-ca", "verify-full")  # of sslmode


class SettingsError(Exception):
    """Every wrong variable, one line each."""


def _near(host: str) -> bool:
    """Tell whether a host is this machine or on its private network, by the address alone."""
    if host in ("", "localhost") or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_private  # loopback included
    except ValueError:
        return False


def _encrypted(url: str) -> str:
    """Return the database's address, with TLS unless it is near. The ValueError quotes nothing: it holds a password."""
    try:
        parts = conninfo_to_dict(url)
    except (ProgrammingError, UnicodeError):
        parts = {}
    hosts = str(parts.get("hostaddr") or parts.get("host", "")).split(",")
    # An unquoted / or @ of the password makes what follows it a part of these.
    misread = "".join(f"{parts.get(name, '')}" for name in ("host", "port", "dbname"))
    if (
        not url.startswith(("postgresql://", "postgres://"))
        or not parts.get("user")
        or "@" in misread
    ):
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


def _address(url: str) -> str:
    """Return an address without slashes at its end. Raises ValueError where keys must not be fetched from there."""
    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname:
        raise ValueError(f"is not an address: {url!r}")
    if split.scheme == "http" and not _near(split.hostname):
        raise ValueError(f"must begin with https:// unless it is on this machine: {url!r}")
    return url.rstrip("/")


def _origin(origin: str) -> str:
    split = urlsplit(origin)
    if split.scheme not in ("http", "https") or not split.netloc or split.path or split.query:
        raise ValueError(f"names {origin!r}, which is no origin such as https://app.example.com")
    return origin


def _internal(metrics_port: int, others: ValidationInfo) -> int:
    if metrics_port == others.data.get("port"):
        raise ValueError(f"is PORT too, {metrics_port}: metrics must not be public")
    return metrics_port


def _switch(text: str) -> bool:
    if text.lower() not in ("on", "off"):
        raise ValueError(f"is neither on nor off: {text!r}")
    return text.lower() == "on"


def _dollars(text: str) -> Decimal:
    try:
        amount = Decimal(text)
        whole = amount.as_integer_ratio() and amount == round(amount, 6)
    except (InvalidOperation, ValueError, OverflowError):  # no number, NaN, infinity
        whole = False
    if not whole or not 0 < amount <= MOST_USD:
        raise ValueError(
            f"is not an amount of US dollars above 0, up to {MOST_USD} and to a millionth, such as 20 or 0.50: {text!r}"
        )
    return amount


Address = Annotated[str, AfterValidator(_address)]
Origin = Annotated[str, AfterValidator(_origin)]
Internal = Annotated[int, AfterValidator(_internal)]
Dollars = Annotated[Decimal, BeforeValidator(_dollars)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Effort = Literal["off", "none", "low", "medium", "high", "xhigh", "max"]


class Settings(BaseSettings):
    """Field names are the variables' in lower case; what is empty counts as not set.

    Defaults suit the container, which publishes no port: the proxy reaches it by its network.
    """

    model_config = SettingsConfigDict(
        alias_generator=str.upper,
        case_sensitive=True,  # in capitals alone
        env_ignore_empty=True,
        frozen=True,
        validate_default=False,  # a default has the field's type already, a variable is text
        hide_input_in_errors=True,  # it may be a secret
    )

    database_url: Annotated[SecretStr, BeforeValidator(_encrypted)]  # as the role cimt_api
    supabase_url: Address  # https://<ref>.supabase.co
    openai_api_key: SecretStr
    ingest_key: SecretStr = Field(min_length=32)  # the ETL's bearer token
    ingest_key_old: SecretStr = Field(SecretStr(""), min_length=32)  # taken too, while it changes

    # Who asks
    supabase_jwks_url: Address = ""  # default: where Supabase publishes the keys of supabase_url
    supabase_jwt_secret: SecretStr = SecretStr("")  # only then HS256 is accepted
    cors_origins: Annotated[  # with commas or spaces between them
        tuple[Origin, ...], NoDecode, BeforeValidator(lambda text: text.replace(",", " ").split())
    ] = ()
    rate_per_minute: int = Field(30, ge=1, le=1_000_000)  # questions of one user
    streams_per_user: int = Field(4, ge=1, le=1_000_000)
    streams_total: int = Field(1000, ge=1, le=1_000_000)

    # What may be spent on answers, in US dollars; days and months are those of UTC
    budget_month_usd: Dollars = Decimal(20)  # by all together
    budget_user_day_usd: Dollars = Decimal(1)  # by one user

    # The model
    openai_base_url: Annotated[str, AfterValidator(lambda url: url.rstrip("/"))] = ""  # OpenAI's
    chat_model: str = "gpt-6-luna"
    embedding_model: str = "text-embedding-3-small"
    answer_tokens: int = Field(1024, ge=1, le=128_000)  # of an answer, thinking included
    reasoning_effort: Effort = "none"  # off: is not sent, for models that do not reason
    openai_connect_seconds: float = Field(5.0, ge=0.1, le=60)
    openai_first_token_seconds: float = Field(30.0, ge=0.1, le=600)  # since the model was asked
    openai_between_tokens_seconds: float = Field(20.0, ge=0.1, le=600)
    answer_seconds: int = Field(600, ge=1, le=3600)  # of an answer, from its question to its end
    openai_retries: int = Field(2, ge=0, le=5)  # before the first token, never after it

    # What the model is given
    retrieval_count: int = Field(8, ge=0, le=50)  # passages; 0 = no retrieval
    retrieval_tokens: int = Field(3000, ge=0, le=200_000)
    memory_tokens: int = Field(2000, ge=0, le=200_000)

    # What is kept
    chat_log: Switch = True  # off: answers are kept nowhere, a stream resumes only in this process
    chat_retention_days: int = Field(90, ge=0, le=36_500)  # 0 keeps for ever
    resume_seconds: float = Field(60.0, ge=0, le=3600)  # that an answer is written for nobody
    database_pool: int = Field(10, ge=1, le=200)  # connections, at most
    log_content: Switch = False  # on: questions appear in the log. For development

    # The server
    host: str = "0.0.0.0"  # noqa: S104 - the container's own address
    port: int = Field(8000, ge=1, le=65535)  # public, behind the proxy
    # For scrapers on the internal network; the proxy does not route to it.
    metrics_port: Internal = Field(9090, ge=1, le=65535, validate_default=True)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    drain_seconds: float = Field(3.0, ge=0, le=60)  # from SIGTERM until no connection is accepted
    shutdown_seconds: int = Field(20, ge=1, le=600)  # after that, for what is still running
    # Longer than a proxy keeps an idle connection (Traefik: 90): whoever closes first must be the one who sends next.
    keep_alive_seconds: int = Field(120, ge=1, le=3600)
    # A question in Chinese, or with the whole conversation, as the AI SDK sends it.
    max_body_bytes: int = Field(1_048_576, ge=0, le=2**30)
    max_document_bytes: int = Field(2_097_152, ge=0, le=2**30)  # of a body with a document
    ping_seconds: float = Field(15.0, ge=0.1, le=600)  # a comment on an idle stream, for proxies


def load() -> Settings:
    """Read the environment; raises SettingsError naming every wrong or missing variable at once."""
    try:
        return Settings.model_validate({})
    except ValidationError as error:
        raise SettingsError("\n".join(map(_line, error.errors()))) from None


def _line(wrong: Any) -> str:
    """Say in one line what is wrong with a variable and what it may be, without the value of a secret."""
    name = wrong["loc"][0].upper()
    if wrong["type"] == "missing":
        return f"{name} is not set"
    if wrong["type"] == "value_error":  # of a function above
        return f"{name} {wrong['ctx']['error']}"
    allowed = Settings.model_json_schema()["properties"][name]
    if "minLength" in allowed:
        return f"{name} is shorter than {allowed['minLength']} characters. Make one: openssl rand -hex 32"
    if "enum" in allowed:
        return f"{name}={wrong['input']!r} is not one of {', '.join(allowed['enum'])}"
    number = "whole number" if allowed["type"] == "integer" else "number"
    bounds = f"from {allowed['minimum']} to {allowed['maximum']}"
    return f"{name}={wrong['input']!r} is not a {number} {bounds}"
