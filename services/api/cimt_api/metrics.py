"""What the chat counts, in the edge's registry; served on the metrics port alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Each field is one family; labels have few values, known in advance."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.first_token = Histogram(
            "cimt_first_token_seconds",
            "From the question to the first token of its answer.",
            buckets=SECONDS,
            registry=registry,
        )
        self.retrieval = Histogram(
            "cimt_retrieval_seconds",
            "Embedding a question and searching for its passages.",
            buckets=SECONDS,
            registry=registry,
        )
        self.answers = Counter(
            "cimt_answers",
            "Answers by how they ended: complete, cancelled, failed.",
            ["status"],
            registry=registry,
        )
        self.tokens = Counter(
            "cimt_tokens",
            "Tokens as billed: prompt, cached (of the prompt), completion, embedding.",
            ["kind"],
            registry=registry,
        )
        self.cost = Counter(
            "cimt_cost_usd", "What answers cost, in US dollars.", ["model"], registry=registry
        )
        self.budget_refusals = Counter(
            "cimt_budget_refusals",
            "Questions that were refused because of money, by cap: month, user-day.",
            ["cap"],
            registry=registry,
        )
        self.upstream_errors = Counter(
            "cimt_upstream_errors",
            "Failed attempts to reach the model, by kind.",
            ["kind"],
            registry=registry,
        )
        self.save_errors = Counter(
            "cimt_save_errors",
            "Attempts to store an answer that failed and are tried again.",
            registry=registry,
        )
        self.retention_run = Gauge(
            "cimt_retention_run_timestamp_seconds",
            "When old answers were deleted last; 0: never, or not known yet.",
            registry=registry,
        )
        self.retention_deleted = Gauge(
            "cimt_retention_deleted", "Answers that went then.", registry=registry
        )


@dataclass(eq=False)
class Watched(Collector):
    """What is asked for at each scrape instead of being counted."""

    generating: Callable[[], int]
    unsaved: Callable[[], int]
    breaker: Callable[[], bool]
    pool: Callable[[], dict[str, int]]

    def describe(self) -> Iterator[Metric]:
        """Describe nothing: registering must not ask."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of this moment."""
        for name, text, value in (
            ("cimt_answers_generating", "Answers being written.", self.generating),
            ("cimt_save_queue", "Answers with text that is not stored yet.", self.unsaved),
            ("cimt_upstream_breaker_open", "1 while the model is not asked.", self.breaker),
        ):
            yield GaugeMetricFamily(name, text, value=float(value()))
        stats = self.pool()
        family = GaugeMetricFamily(
            "cimt_database_connections", "Of the pool, by state.", labels=["state"]
        )
        for state, key in (
            ("open", "pool_size"),
            ("idle", "pool_available"),
            ("waited_for", "requests_waiting"),
        ):
            family.add_metric([state], float(stats.get(key, 0)))
        yield family
