"""The models end on announced days: what the figures say of it, and that a failed look harms nobody."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import get_args

import httpx
import pytest

from local.openai import embeddings, models
from local.waiting import eventually
from services.api.cimt_api.settings import Effort, Settings
from testbed.api import CHAT_MODEL, EMBEDDING_MODEL, Api, Clouds, Model, api, read

ROOT = Path(__file__).parents[3]
MODELS = "/v1/models"
CHAT = f'model="{CHAT_MODEL}",setting="CHAT_MODEL"'
EMBEDDING = f'model="{EMBEDDING_MODEL}",setting="EMBEDDING_MODEL"'


def in_days(days: int) -> str:
    return (datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=days)).isoformat()


def figures(api: Api) -> dict[str, float]:
    """What is told of models, once it is known."""

    def told() -> list[str]:
        lines = [line for line in api.metrics().splitlines() if line.startswith("cimt_model_")]
        return lines if any("cimt_model_listed{" in line for line in lines) else []

    lines = eventually(told, "the list of models is known")
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_the_days_of_every_configured_model_are_told(
    clouds: Clouds, model: Model, folder: Path
) -> None:
    chat, embedding = in_days(59), in_days(61)
    model.shut_down({CHAT_MODEL: chat, EMBEDDING_MODEL: embedding})
    with api(folder, clouds.environment(), until="/readyz") as own:
        told = figures(own)
        assert model.calls(MODELS) == 1, "not at every scrape"
    assert told.pop("cimt_model_list_age_seconds") < 60
    assert told == {
        f"cimt_model_listed{{{CHAT}}}": 1,
        f"cimt_model_listed{{{EMBEDDING}}}": 1,
        f'cimt_model_days_left{{date="{chat}",{CHAT}}}': 59,
        f'cimt_model_days_left{{date="{embedding}",{EMBEDDING}}}': 61,
    }


def test_a_model_without_a_date_and_one_that_is_gone(
    clouds: Clouds, model: Model, folder: Path
) -> None:
    model.shut_down({CHAT_MODEL: in_days(0)})
    with api(folder, clouds.environment(), until="/readyz") as own:
        told = figures(own)
        assert httpx.get(f"{own.url}/healthz").status_code == 200
    del told["cimt_model_list_age_seconds"]
    assert told == {
        f"cimt_model_listed{{{CHAT}}}": 0,
        f"cimt_model_listed{{{EMBEDDING}}}": 1,
        f'cimt_model_days_left{{date="",{EMBEDDING}}}': float("inf"),
    }


@pytest.mark.parametrize(
    "trouble",
    [{"kind": "failing"}, {"kind": "malformed"}, {"kind": "broken"}, {"kind": "rate_limited"}],
    ids=lambda trouble: trouble["kind"],
)
def test_a_list_that_cannot_be_read_harms_nobody(
    clouds: Clouds, model: Model, folder: Path, trouble: dict[str, str]
) -> None:
    model.behave(**trouble, paths=[MODELS])
    with api(folder, clouds.environment(), until="/readyz") as own:
        eventually(
            lambda: [line for line in own.lines() if "models: their list" in str(line)],
            "the log says so",
        )
        assert own.metric("cimt_upstream_breaker_open") == 0
        assert "cimt_model_listed{" not in own.metrics()
        assert own.metric("cimt_model_list_age_seconds") > 0
        assert httpx.get(f"{own.url}/readyz").status_code == 200
        with own.client(clouds.sign_in.token("ann@example.com")) as client:
            assert read(client, "POST", "/chat", json={"message": "How long?"}).done


def test_every_effort_that_may_be_set_is_taken_by_the_models_and_off_is_not_sent(
    clouds: Clouds, model: Model, folder: Path
) -> None:
    """The models of the stand-in refuse what the real ones refuse."""
    assert set(get_args(Effort)) == {"off", *models.CHAT[CHAT_MODEL]}
    assert CHAT_MODEL in models.CHAT
    assert EMBEDDING_MODEL in embeddings.NATIVE
    sent = []
    for effort in ("", "off", "max"):
        environment = clouds.environment() | {"REASONING_EFFORT": effort, "RETRIEVAL_COUNT": "0"}
        with (
            api(folder / (effort or "default"), environment, until="/readyz") as own,
            own.client(clouds.sign_in.token("ann@example.com")) as client,
        ):
            assert read(client, "POST", "/chat", json={"message": "How long?"}).finish == "stop"
        sent.append(model.prompts()[-1]["body"].get("reasoning_effort"))
    assert sent == [Settings.model_fields["reasoning_effort"].default, None, "max"]
