"""Client of DigitalOcean's API, version 2, for modules that run on the controller.

Bounded everywhere: one answer by time and size, a list by pages, a call by tries. A call that may be made twice
without harm (GET, PUT, DELETE) is made again after a lost connection or a 5xx; one that makes something is not. 429
came before anything happened, so every call waits for what it says and is made again.
Source: github.com/digitalocean/openapi, 7 August 2026.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
from collections.abc import Callable
from typing import Any

from ansible.module_utils.urls import open_url

SECONDS = 30.0
"""For one answer."""
TRIES = 4
PATIENCE = 120.0
"""Seconds that one call waits for its rate limit, at most."""
BYTES = 8_000_000
PAGE, PAGES = 100, 50
WAIT = 900.0
"""Seconds until something that was begun must have ended."""
POLL = 2.0
# What a token of one's own making needs for a path; reading is `read`, POST `create`, PUT and PATCH `update`.
SCOPES = {
    r"/v2/droplets/\d+/actions": ("droplet", {"POST": "update"}),
    r"/v2/droplets": ("droplet", {}),
    r"/v2/volumes/[\w-]+/actions": ("block_storage_action", {}),
    r"/v2/volumes": ("block_storage", {}),
    r"/v2/reserved_ips/[\d.]+/actions": ("reserved_ip", {"POST": "update"}),
    r"/v2/reserved_ips": ("reserved_ip", {}),
    r"/v2/firewalls": ("firewall", {}),
    r"/v2/account/keys": ("ssh_key", {}),
    r"/v2/projects/[\w-]+/resources": ("project", {"POST": "assign_resource"}),
    r"/v2/projects": ("project", {}),
    r"/v2/monitoring": ("monitoring", {}),
    r"/v2/tags": ("tag", {}),
    r"/v2/images": ("image", {}),
    r"/v2/sizes": ("sizes", {}),
    r"/v2/actions": ("actions", {}),
}
VERBS = {"GET": "read", "POST": "create", "PUT": "update", "PATCH": "update", "DELETE": "delete"}


class Declined(Exception):
    """DigitalOcean did not do it; ``status`` is HTTP's, 0 without an answer. The text ends with what to do next."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def scope(method: str, path: str) -> str:
    """The scope of a token that a call needs, such as `block_storage:create`."""
    for form, (name, verbs) in SCOPES.items():
        if re.match(form, path):
            return f"{name}:{verbs.get(method, VERBS[method])}"
    return "of this call"


class Client:
    """DigitalOcean at ``url`` by a token, which goes nowhere else and into no message."""

    def __init__(
        self,
        url: str,
        token: str,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "https" and parts.hostname != "127.0.0.1":
            raise Declined(
                0, f"{url} would get the token in the clear. Next: an address of https://"
            )
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._clock = clock
        self.sleep = sleep

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, /, **query: Any
    ) -> dict[str, Any]:
        """The answer, empty where there is none. Raises Declined."""
        place = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        patience, tries = PATIENCE, TRIES
        while True:
            status, headers, text = self._once(method, place, body)
            if status == 429:
                seconds = self._until(headers)
                if seconds > patience:
                    minutes = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} s"
                    raise Declined(
                        429, f"{method} {path}: too many calls. Next: the same again in {minutes}"
                    )
                patience -= seconds
                self.sleep(seconds)
                continue
            tries -= 1
            if (status == 0 or status >= 500) and method != "POST" and tries:
                self.sleep(2.0 ** (TRIES - tries - 1))
                continue
            if status == 404 and method == "DELETE" and tries < TRIES - 1:
                return {}  # the call before, whose answer was lost
            return self._answer(method, path, status, text)

    def all(self, path: str, name: str, /, **query: Any) -> list[dict[str, Any]]:
        """Every entry of a list, over its pages. Raises Declined."""
        found: list[dict[str, Any]] = []
        for page in range(1, PAGES + 1):
            answer = self.ask("GET", path, per_page=PAGE, page=page, **query)
            found += answer.get(name) or []
            if not ((answer.get("links") or {}).get("pages") or {}).get("next"):
                return found
        raise Declined(0, f"GET {path}: more than {PAGES} pages. Next: tidy up the account")

    def finish(self, path: str, action: dict[str, Any]) -> None:
        """Wait for the end of an action that was begun below ``path``. Raises Declined."""
        known = action
        for _ in self.patiently(f"{path}: {action.get('type', 'action')}"):
            if known.get("status") == "completed":
                return
            if known.get("status") == "errored":
                raise Declined(
                    0, f"{path}: {known.get('type')} failed at DigitalOcean. Next: the same again"
                )
            known = self.ask("GET", f"{path}/{action['id']}")["action"]

    def patiently(self, what: str) -> Any:
        """Yields until the caller has seen the end of what it waits for. Raises Declined after WAIT seconds."""
        end = self._clock() + WAIT
        while self._clock() < end:
            yield
            self.sleep(POLL)
        raise Declined(0, f"{what}: not done in {WAIT:.0f} s. Next: the same again, it waits on")

    def _once(self, method: str, place: str, body: dict[str, Any] | None) -> tuple[int, Any, bytes]:
        data = None if body is None else json.dumps(body)
        headers = self._headers | ({"Content-Type": "application/json"} if data else {})
        try:
            with open_url(
                place, data, headers, method, timeout=SECONDS, follow_redirects="none"
            ) as answer:
                return answer.status, answer.headers, answer.read(BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read(BYTES)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            return 0, {}, f"no answer ({type(reason).__name__})".encode()

    def _until(self, headers: Any) -> float:
        """Seconds until the rate limit lets the next call pass: `retry-after`, else `ratelimit-reset`."""
        for name, since in (("retry-after", 0.0), ("ratelimit-reset", self._clock())):
            value = str(headers.get(name) or "")
            if value.isdecimal():
                return max(1.0, int(value) - since)
        return 10.0

    def _answer(self, method: str, path: str, status: int, text: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(text) if text else {}
        except ValueError:
            answer = None
        call = f"{method} {path}"
        if 200 <= status < 300 and len(text) <= BYTES and isinstance(answer, dict):
            return answer
        if 200 <= status < 400:
            raise Declined(
                status, f"{call}: {status}, no answer of DigitalOcean's. Next: is api_url right?"
            )
        said = answer.get("message") if isinstance(answer, dict) else None
        told = " ".join(
            str(said or (text[:100].decode(errors="replace") if not status else "")).split()
        )
        token = self._headers["Authorization"].partition(" ")[2]
        told = (
            f"{call}: {status or ''} {told[:200]}".replace(token, "***")
            .replace("  ", " ")
            .rstrip(" .")
        )
        following = {
            0: "the same again: it goes on where it stopped",
            401: "DIGITALOCEAN_TOKEN=…, one that has not ended: DigitalOcean → API → Tokens",
            403: f"a token with the scope {scope(method, path)} too: DigitalOcean → API → Tokens",
            404: "the same again: it was there a moment ago",
        }.get(status if status < 500 else 0, "mend what it names")
        raise Declined(status, f"{told}. Next: {following}")
