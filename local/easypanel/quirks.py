"""How panels answer that are not the tested one, or are restarting: switches for tests, all off by default."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

HTML = "<!doctype html><title>Easypanel</title><div id=app></div>"


@dataclass
class Quirks:
    """Names are those of operations."""

    extra: bool = False
    """Every object has one more key."""
    older: bool = False
    """Up to 2.32: the flat operations are 404, what is below /api/trpc answers."""
    html: set[str] = field(default_factory=set)
    """200, and a page, as single-page applications answer for paths that they do not know."""
    unavailable: dict[str, int] = field(default_factory=dict)
    """How often 502 comes first."""
    dropped: set[str] = field(default_factory=set)
    """Writes that are answered and forgotten."""
    answers: dict[str, Any] = field(default_factory=dict)
    """What is answered in place of the truth."""

    def before(self, operation: str, request: Request) -> Response | None:
        """An answer that comes without the panel's doing; None where there is none."""
        if self.unavailable.get(operation, 0) > 0:
            self.unavailable[operation] -= 1
            return HTMLResponse(HTML, 502)
        if operation in self.html:
            return HTMLResponse(HTML)
        if self.older:
            return JSONResponse({"code": "NOT_FOUND", "message": "Not found", "data": {}}, 404)
        if operation in self.dropped and request.method == "POST":
            return Response()
        if operation in self.answers:
            return JSONResponse(self.answers[operation])
        return None

    def after(self, answer: Any) -> Any:
        """The panel's answer, changed."""
        return json.loads(json.dumps(answer), object_hook=self._one_more) if self.extra else answer

    @staticmethod
    def _one_more(thing: dict[str, Any]) -> dict[str, Any]:
        return {**thing, "newerKey": None}
