"""The models that the stand-in serves, until when, and what each of them takes."""

from __future__ import annotations

import datetime
from typing import Any

from .embeddings import NATIVE
from .errors import ApiError

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")  # of all models together
GPT_6 = ("none", "low", "medium", "high", "xhigh", "max")
CHAT = {"gpt-6-luna": GPT_6, "gpt-6.1-terra": GPT_6}  # a model: the efforts that it takes
CREATED = 1_790_000_000

# A model: its last day. What is not in it has none announced.
Shutdowns = dict[str, datetime.date]


def parse_shutdowns(given: Any) -> Shutdowns:
    """Shutdown dates in a JSON object such as ``{"gpt-6-luna": "2027-12-31"}``. Raises ApiError 400."""
    if not isinstance(given, dict) or set(given) - {*CHAT, *NATIVE}:
        raise ApiError(400, f"shutdown dates are an object of: {', '.join([*CHAT, *NATIVE])}")
    try:
        return {name: datetime.date.fromisoformat(day) for name, day in given.items()}
    except (TypeError, ValueError):
        raise ApiError(400, "a shutdown date is written YYYY-MM-DD") from None


def served(shutdowns: Shutdowns) -> list[str]:
    """The models that are not shut down yet."""
    today = datetime.datetime.now(datetime.UTC).date()
    return [name for name in (*CHAT, *NATIVE) if shutdowns.get(name, datetime.date.max) > today]


def listed(shutdowns: Shutdowns) -> dict[str, Any]:
    """The body of GET /v1/models."""
    data = [
        {
            "id": name,
            "object": "model",
            "created": CREATED,
            "owned_by": "stand-in",
            "shutdown_date": shutdowns[name].isoformat() if name in shutdowns else None,
        }
        for name in served(shutdowns)
    ]
    return {"object": "list", "data": data}


def refuse_unknown(model: str, path: str, shutdowns: Shutdowns) -> None:
    """Raise the error for a model that does not exist, exists no longer, or does something else."""
    fitting = NATIVE if path == "/v1/embeddings" else CHAT
    if model not in fitting or model not in served(shutdowns):
        raise ApiError(
            404,
            f"The model `{model}` does not exist or you do not have access to it.",
            code="model_not_found",
        )


def refuse_unsupported(body: dict[str, Any], effort: Any, param: str) -> None:
    """Reasoning models take none of these: who sends them learns it here and not in production."""
    model = str(body["model"])
    if body.get("max_tokens") is not None:
        raise ApiError(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        )
    if body.get("temperature") not in (None, 1):
        raise ApiError(
            400,
            "Unsupported value: 'temperature' does not support this value with this model.",
            param="temperature",
            code="unsupported_value",
        )
    if effort is not None and effort not in CHAT[model]:
        known = effort in EFFORTS
        taken = ", ".join(f"'{one}'" for one in (CHAT[model] if known else EFFORTS))
        raise ApiError(
            400,
            f"Unsupported value: '{effort}' is not supported with the '{model}' model. Supported values are: {taken}."
            if known
            else f"Invalid value: '{effort}'. Supported values are: {taken}.",
            param=param,
            code="unsupported_value" if known else "invalid_value",
        )
