"""Bodies that the API takes. Stricter than Cloudflare: a field that it does not know is refused, not passed over."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

OnOff = Literal["on", "off"]
# By setting: what it may be, and what it is in a new zone.
SETTINGS: dict[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(
        ("always_use_https", "0rtt", "rocket_loader"),
        (("on", "off"), "off"),
    ),
    **dict.fromkeys(
        (
            *("automatic_https_rewrites", "http3", "websockets"),
            "browser_check",
            "email_obfuscation",
        ),
        (("on", "off"), "on"),
    ),
    "ssl": (("off", "flexible", "full", "strict"), "full"),
    "min_tls_version": (("1.0", "1.1", "1.2", "1.3"), "1.0"),
    "tls_1_3": (("on", "off", "zrt"), "on"),
    "security_level": (
        ("off", "essentially_off", "low", "medium", "high", "under_attack"),
        "medium",
    ),
}


class Body(BaseModel):
    """A body: strict in its types, without unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


Ttl = Annotated[int, Field(ge=1, le=86400)]


class Record(Body):
    """A new record."""

    type: Literal["A", "AAAA", "CNAME", "TXT", "MX"]
    name: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    content: Annotated[str, StringConstraints(min_length=1)]
    ttl: Ttl = 1
    proxied: bool = False
    comment: Annotated[str, StringConstraints(max_length=100)] | None = None  # of a free zone

    @model_validator(mode="after")
    def _sound(self) -> Record:
        if self.ttl != 1 and self.ttl < 60:
            raise ValueError("TTL must be between 60 and 86400 seconds, or 1 for Automatic.")
        for kind, version in (("A", 4), ("AAAA", 6)):
            if self.type == kind and ipaddress.ip_address(self.content).version != version:
                raise ValueError(f"Content for {kind} record must be a valid IPv{version} address.")
        if self.proxied and self.type not in ("A", "AAAA", "CNAME"):
            raise ValueError("This record type cannot be proxied.")
        return self


class Hsts(Body):
    """What browsers are told, for `max_age` seconds."""

    enabled: bool
    max_age: Annotated[int, Field(ge=0, le=31536000)] = 0
    include_subdomains: bool = False
    preload: bool = False
    nosniff: bool = False


class SecurityHeader(Body):
    """The value of the setting `security_header`."""

    strict_transport_security: Hsts


class Setting(Body):
    """A new value of a setting."""

    value: Any


class Bots(Body):
    """Bot Fight Mode of a free zone."""

    fight_mode: bool | None = None
    enable_js: bool | None = None


class Request(Body):
    """A certificate that is asked of Origin CA."""

    csr: str
    hostnames: Annotated[list[str], Field(min_length=1, max_length=200)]
    request_type: Literal["origin-rsa", "origin-ecc"]
    requested_validity: Literal[7, 30, 90, 365, 730, 1095, 5475] = 5475
