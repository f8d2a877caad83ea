"""What Prometheus may ask of the servers behind this one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from afterword.completion.catalog import ServedModel

_LABELS = ("model", "upstream")
_FIGURES = {
    "requests": (CounterMetricFamily, "Requests that were sent to this server."),
    "failures": (CounterMetricFamily, "Requests that this server did not answer as it should."),
    "in_flight": (GaugeMetricFamily, "Requests that this server works on."),
    "healthy": (GaugeMetricFamily, "1 while this server gets requests, or would if it had room."),
}


class UpstreamCollector(Collector):
    """Reads the figures at the moment of the scrape."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """One family for each figure, one sample for each server of a model."""
        stats = [
            (model.name, upstream)
            for model in self._models
            for upstream in model.engine.stats().upstreams
        ]
        for field, (family, text) in _FIGURES.items():
            metric = family(f"afterword_upstream_{field}", text, labels=_LABELS)
            for name, upstream in stats:
                metric.add_metric([name, upstream.address], float(getattr(upstream, field)))
            yield metric
