"""Where a magic link may lead: Supabase's allow-list of addresses with wildcards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit


def pattern(text: str) -> re.Pattern[str]:
    """``*`` is anything but . and /, ``**`` is anything, ``?`` is one sign that is neither."""
    parts = re.split(r"(\*\*|\*|\?)", text)
    wild = {"**": ".*", "*": "[^./]*", "?": "[^./]"}
    return re.compile("".join(wild.get(part, re.escape(part)) for part in parts))


def target(wanted: str, site: str, allowed: Sequence[str]) -> str:
    """The wanted address if it may be used, else the site's own."""
    try:
        parts = urlsplit(wanted)
        same_host = parts.hostname == urlsplit(site).hostname and parts.scheme in ("http", "https")
    except ValueError:
        return site
    if not parts.scheme:
        return site
    plain = parts._replace(query="", fragment="").geturl()
    if same_host or any(pattern(entry).fullmatch(plain) for entry in allowed):
        return wanted
    return site
