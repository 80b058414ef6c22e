"""Sign in at the stand-in for Supabase Auth as a person would: ask for the mail, read it, send its code."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import httpx

from local.clouds import PUBLISHABLE_KEY
from local.settings import LocalError

PATIENCE = 3  # mails asked for: a project sends one a minute to each address


def sign_in(supabase_url: str, email: str) -> str:
    """An access token of this person; the account is made when there is none. Raises LocalError."""
    with httpx.Client(
        base_url=supabase_url, headers={"apikey": PUBLISHABLE_KEY}, timeout=30
    ) as client:
        try:
            for _ in range(PATIENCE):
                asked = client.post("/auth/v1/otp", json={"email": email})
                wait = re.search(r"after (\d+) seconds", asked.text)
                if asked.status_code != 429 or not wait:
                    break
                print(
                    f"sign-in: one mail a minute for each address: {wait[1]} s more",
                    file=sys.stderr,
                )
                time.sleep(int(wait[1]))
            _expect(asked)
            mail = _expect(client.get("/inbox.json", params={"to": email}))[0]
            code = {"type": "email", "email": email, "token": mail["token"]}
            return str(_expect(client.post("/auth/v1/verify", json=code))["access_token"])
        except httpx.HTTPError as error:
            raise LocalError(
                f"sign-in: {supabase_url} does not answer ({error}). Next: make dev, or make up"
            ) from None


def _expect(answer: httpx.Response) -> Any:
    if answer.is_error:
        raise LocalError(
            f"sign-in: {answer.request.url.path} answers {answer.status_code}: {answer.text[:300]}"
        )
    return answer.json()
