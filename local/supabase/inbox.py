"""Where the mail lands: a file with one message a line, and a page to read it."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

SHOWN = 100
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.3rem } .label { background: #fde68a; padding: .1rem .5rem; border-radius: .3rem; font-size: .8rem }
li { list-style: none; border: 1px solid #ddd; border-radius: .5rem; padding: .8rem 1rem; margin: .8rem 0 }
ul { padding: 0 } .when { color: #777; font-size: .85rem } a { color: #15803d; font-weight: 600 }
code, textarea { font: 14px monospace } textarea { width: 100%; height: 9rem }
"""
# The tokens stand behind the #, which a browser shows to no server: this page reads them itself.
SIGNED_IN = """
<p id="said">Open this page by a magic link from the <a href="/inbox">inbox</a>.</p>
<textarea id="token" readonly hidden></textarea>
<script>
const got = new URLSearchParams(location.hash.slice(1));
const said = document.getElementById('said'), token = document.getElementById('token');
if (got.get('access_token')) {
  said.textContent = 'Signed in. The access token, for Authorization: Bearer …';
  token.hidden = false; token.value = got.get('access_token'); token.select();
} else if (got.get('error')) said.textContent = got.get('error_description');
</script>
"""


class Inbox:
    """All mail that was sent."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "inbox.jsonl"

    def put(self, mail: dict[str, Any]) -> None:
        """Deliver a message."""
        with self._path.open("a") as stream:
            stream.write(json.dumps(mail) + "\n")

    def read(self, to: str = "") -> list[dict[str, Any]]:
        """The newest messages first; with `to`, only those to that address."""
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            return []
        mails = [json.loads(line) for line in reversed(lines)]
        return [mail for mail in mails if to in ("", mail["to"])][:SHOWN]


def page(title: str, body: str) -> str:
    """A whole HTML page."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f'<h1>{escape(title)} <span class="label">stand-in for development</span></h1>{body}</html>'
    )


def inbox_page(mails: list[dict[str, Any]]) -> str:
    """The inbox, as HTML."""
    items = "".join(
        f'<li><div class="when">{escape(mail["sent_at"])} to {escape(mail["to"])}</div>'
        f"<div>{escape(mail['subject'])}</div>"
        f'<div><a href="{escape(mail.get("page") or mail["link"])}">Sign in</a> or enter the code '
        f"<code>{escape(mail['token'])}</code></div></li>"
        for mail in mails
    )
    empty = "<p>No mail yet. Ask for a magic link, then load this page again.</p>"
    return page("Inbox", f"<ul>{items}</ul>" if items else empty)


def signed_in_page() -> str:
    """Where a magic link leads when the app names no other place."""
    return page("Magic link", SIGNED_IN)
