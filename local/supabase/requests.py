"""What both Auth's paths and the stand-in's switches read from a request."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request

from .errors import AuthError

EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s.]+(\.[^@\s.]+)+")


async def read_body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises AuthError."""
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise AuthError(400, "bad_json", "Could not parse request body as JSON")
    return body
