"""What Prometheus may ask of the servers behind this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LABELS = ("model", "upstream")
_FIGURES = {
    "requests": (CounterMetricFamily, "Requests that were sent to this server."),
    "failures": (CounterMetricFamily, "Requests that this server did not answer as it should."),
    "in_flight": (GaugeMetricFamily, "Requests that this server works on."),
    "healthy": (GaugeMetricFamily, "1 while this server gets requests, or would if it had room."),
}


class UpstreamFigures(Protocol):
    """Figures of one server behind this one."""

    @property
    def address(self) -> str:
        """Where it is, with nothing secret."""

    @property
    def healthy(self) -> bool:
        """Whether it answers."""

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""

    @property
    def requests(self) -> int:
        """Requests that were sent."""

    @property
    def failures(self) -> int:
        """Requests that were not answered as they should."""


Upstreams: TypeAlias = Callable[[], Iterable[tuple[str, UpstreamFigures]]]
"""Gives the figures of now, each with the name of its model."""


class UpstreamCollector(Collector):
    """Reads the figures at the moment of the scrape."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams

    def collect(self) -> Iterable[Metric]:
        """One family for each figure, one sample for each server of a model."""
        found = list(self._upstreams())
        for field, (family, text) in _FIGURES.items():
            metric = family(f"afterword_upstream_{field}", text, labels=_LABELS)
            for name, upstream in found:
                metric.add_metric([name, upstream.address], float(getattr(upstream, field)))
            yield metric
