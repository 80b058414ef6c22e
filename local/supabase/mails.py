"""The mail that signs somebody in, as Auth makes it of the templates that supabase/config.toml names."""

from __future__ import annotations

import html
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")
KINDS = {"signup": "confirmation", "magiclink": "magic_link"}  # ours: Supabase's


def mail(kind: str, values: Mapping[str, str]) -> tuple[str, str, str]:
    """Subject, HTML, and where its first link leads. Raises KeyError for a variable that Auth does not have."""
    config = tomllib.loads((ROOT / "supabase/config.toml").read_text())
    template = config["auth"]["email"]["template"][KINDS[kind]]
    text = (ROOT / template["content_path"]).read_text()
    # In HTML, Go's templates escape what they put in; in a subject they do not.
    body = VARIABLE.sub(lambda found: html.escape(values[found[1]]), text)
    subject = VARIABLE.sub(lambda found: values[found[1]], template["subject"])
    (link, *_) = re.findall(r'href="([^"]*)"', body)
    return subject, body, html.unescape(link)
