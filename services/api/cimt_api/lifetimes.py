"""How long the configured models are still served: asked once a day beside the running server, told in the figures.

A model ends on a day that its service announces. n8n's workflow Alerts reads the figures and says so in time.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
import time
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .model import Upstream, UpstreamError
from .settings import Settings

DAY_SECONDS = 86_400.0
AGAIN_SECONDS = 3_600.0  # after a look that failed

log = logging.getLogger(__name__)


class Lifetimes(Collector):
    """Figures of every model that a setting `…_MODEL` names; a failed look changes nothing but their age."""

    def __init__(self, settings: Settings, upstream: Upstream) -> None:
        self._upstream = upstream
        self._configured = {
            name.upper(): str(getattr(settings, name))
            for name in Settings.model_fields
            if name.endswith("_model")
        }
        self._served: dict[str, datetime.date | None] | None = None  # None: not known yet
        self._known = time.monotonic()  # when the list was read, or the start

    async def watch(self) -> None:
        """Look now, and then once a day, until cancelled."""
        while True:
            try:
                self._served = await self._upstream.shutdown_dates()
                self._known = time.monotonic()
                wait = DAY_SECONDS
            except UpstreamError as error:
                log.warning("models: their list cannot be read (%s), again in an hour", error.kind)
                wait = AGAIN_SECONDS
            await asyncio.sleep(wait)

    def describe(self) -> Iterator[Metric]:
        """Describe nothing: registering must not ask."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of this moment; those of the models only once their list was read."""
        age = time.monotonic() - self._known
        yield GaugeMetricFamily(
            "cimt_model_list_age_seconds",
            "Since the list of models was read, or since the start.",
            value=age,
        )
        served = self._served
        if served is None:
            return
        listed = GaugeMetricFamily(
            "cimt_model_listed",
            "1 while the model's service lists the configured model.",
            labels=["setting", "model"],
        )
        left = GaugeMetricFamily(
            "cimt_model_days_left",
            "Until the configured model is shut down; +Inf: no date is announced.",
            labels=["setting", "model", "date"],
        )
        today = datetime.datetime.now(datetime.UTC).date()
        for setting, model in self._configured.items():
            listed.add_metric([setting, model], float(model in served))
            if model in served:
                date = served[model]
                days = math.inf if date is None else float((date - today).days)
                left.add_metric([setting, model, str(date or "")], days)
        yield listed
        yield left
