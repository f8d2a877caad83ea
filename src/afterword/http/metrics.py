"""The metrics for Prometheus: requests, times, tokens, limits, engines, the ledger."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from afterword.completion.catalog import ServedModel
from afterword.core.ledger import Ledger
from afterword.core.limits import MOST_TOKENS
from afterword.core.protocols import EngineStats
from afterword.http.exchange import Exchange
from afterword.http.upstreams import UpstreamCollector, Upstreams

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_LEDGER_GAUGES = {
    "reachable": "1 while the ledger's database answers.",
    "unsettled": "Admitted requests that have not ended.",
    "pending_writes": "Ended requests that are not in the database yet.",
    "journal_bytes": "Size of the journal.",
}
_LEDGER_COUNTERS = {
    "written": "Ended requests that were written to the database.",
    "refused_keys": "Requests with a wrong key.",
}
_ENGINE_GAUGES = {
    "running_sequences": "Sequences that generate.",
    "waiting_sequences": "Sequences that wait for a slot.",
    "slots": "Slots of the engine.",
    "active_slots": "Slots with a sequence at work.",
    "resident_slots": "Idle slots whose KV is kept for the prefix cache.",
    "cells_used": "KV positions in use.",
    "cells_total": "KV positions in total.",
    "score_bytes": "Memory of log-probabilities kept for prompts that share a prefix.",
    "checkpoint_bytes": "Memory of states kept for prompts that share a prefix.",
    "longest_wait_s": "How long the oldest request without a slot has waited, in seconds.",
}
_ENGINE_COUNTERS = {
    "steps": "Steps of the engine.",
    "decoded_tokens": "Generated tokens that went through the model to get the next one.",
    "prefilled_tokens": "Prompt tokens that went through the model, and those of preemptions.",
    "cached_tokens": "Prompt tokens taken from the prefix cache.",
    "generated_tokens": "Tokens sampled.",
    "drafted_tokens": "Tokens that prompt lookup drafted and the model verified.",
    "accepted_tokens": "Drafted tokens that the model accepted.",
    "started_requests": "Requests that got their first slot, or an answer without one.",
    "waited_s": "Seconds that started requests waited for their first slot, in total.",
    "preemptions": "Sequences that gave their memory to others and went on later.",
}


def _name(field: str) -> str:
    """Returns the name of an engine's figure in Prometheus, with units in full."""
    return "afterword_engine_" + re.sub(r"_s$", "_seconds", field)


class EngineCollector(Collector):
    """Reads each engine's figures at each scrape, and keeps nothing."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """One family for each figure, one sample for each model."""
        stats = [(model.name, model.engine.stats()) for model in self._models]
        families: list[Metric] = []
        for field, text in _ENGINE_GAUGES.items():
            gauge = GaugeMetricFamily(_name(field), text, labels=["model"])
            for name, figures in stats:
                gauge.add_metric([name], getattr(figures, field))
            families.append(gauge)
        for field, text in _ENGINE_COUNTERS.items():
            counter = CounterMetricFamily(_name(field), text, labels=["model"])
            for name, figures in stats:
                counter.add_metric([name], getattr(figures, field))
            families.append(counter)
        batches = HistogramMetricFamily(
            "afterword_engine_batch_sequences",
            "Sequences computed together in one step.",
            labels=["model"],
        )
        for name, figures in stats:
            if figures.batch_sizes:
                batches.add_metric([name], _batches(figures), figures.batched_sequences)
        cpu = CounterMetricFamily(
            "afterword_engine_cpu_seconds", "CPU time of the engine's thread.", labels=["model"]
        )
        healthy = GaugeMetricFamily(
            "afterword_engine_healthy", "1 while the engine can compute.", labels=["model"]
        )
        for model, (name, figures) in zip(self._models, stats, strict=True):
            cpu.add_metric([name], figures.engine_cpu_s)
            healthy.add_metric([name], float(model.engine.healthy()))
        return [*families, batches, cpu, healthy]


def _batches(figures: EngineStats) -> list[tuple[str, float]]:
    """Returns the upper bounds of batch sizes, and how many steps were at or below each."""
    bounds = [f"{1 << i}.0" for i in range(len(figures.batch_sizes) - 1)]
    return list(zip([*bounds, "+Inf"], accumulate(figures.batch_sizes), strict=True))


class LedgerCollector(Collector):
    """Reads the ledger's figures at each scrape."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterable[Metric]:
        """One family for each figure."""
        figures = self._ledger.figures()
        for field, text in _LEDGER_GAUGES.items():
            value = float(getattr(figures, field))
            yield GaugeMetricFamily(f"afterword_ledger_{field}", text, value=value)
        for field, text in _LEDGER_COUNTERS.items():
            value = float(getattr(figures, field))
            yield CounterMetricFamily(f"afterword_ledger_{field}", text, value=value)


def _believed(tokens: int) -> int:
    """Returns a count that a counter takes, whatever another server says."""
    return min(max(tokens, 0), MOST_TOKENS)


class Metrics:
    """The server's counters, in their own registry, so that a process can have several apps."""

    def __init__(self, models: Sequence[ServedModel], ledger: Ledger, upstreams: Upstreams) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "afterword_requests",
            "Requests by route and status; 499 if the client left before the status line.",
            ["route", "status", "outcome"],
            registry=self._registry,
        )
        self._first_token = Histogram(
            "afterword_time_to_first_token_seconds",
            "Time from a streamed request's arrival to its first chunk.",
            ["model"],
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=self._registry,
        )
        self._prompt = Counter(
            "afterword_prompt_tokens",
            "Prompt tokens of admitted requests.",
            ["model"],
            registry=self._registry,
        )
        self._completion = Counter(
            "afterword_completion_tokens",
            "Tokens generated for requests, discarded candidates included.",
            ["model"],
            registry=self._registry,
        )
        self._token = Histogram(
            "afterword_time_per_token_seconds",
            "Time from a stream's first chunk to its end, divided by its tokens after the first.",
            ["model"],
            buckets=_TOKEN_BUCKETS_S,
            registry=self._registry,
        )
        self._limited = Counter(
            "afterword_limited",
            "Requests refused by a limit of their key: rpm, tpm, concurrent, budget.",
            ["limit"],
            registry=self._registry,
        )
        self._registry.register(EngineCollector(models))
        self._registry.register(LedgerCollector(ledger))
        self._registry.register(UpstreamCollector(upstreams))

    def record(self, exchange: Exchange, *, route: str, status: int, ended_s: float) -> None:
        """Count a finished exchange. ``route`` is a template, to keep the labels few."""
        self._requests.labels(route, str(status), exchange.outcome).inc()
        if exchange.limited_by is not None:
            self._limited.labels(exchange.limited_by).inc()
        model = exchange.model
        if model is None:
            return
        first_s = exchange.first_token_s
        if first_s is not None and exchange.stream:
            self._first_token.labels(model).observe(first_s - exchange.started_s)
            tokens = 0 if exchange.usage is None else exchange.usage.completion_tokens
            if tokens > 1:
                self._token.labels(model).observe((ended_s - first_s) / (tokens - 1))
        if exchange.usage is not None:
            self._prompt.labels(model).inc(_believed(exchange.usage.prompt_tokens))
            self._completion.labels(model).inc(_believed(exchange.usage.completion_tokens))

    def exposition(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
