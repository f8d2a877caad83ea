"""The metrics of upstreams, the servers behind this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LABELS = ("model", "upstream")
_FIGURES = {
    "requests": (CounterMetricFamily, "Requests that were sent to this server."),
    "failures": (CounterMetricFamily, "Requests that this server did not answer as it should."),
    "in_flight": (GaugeMetricFamily, "Requests that this server is working on."),
    "healthy": (GaugeMetricFamily, "1 while this server gets requests, or would if it had room."),
}


class UpstreamFigures(Protocol):
    """The figures of one upstream."""

    @property
    def address(self) -> str:
        """Its address, without secrets."""

    @property
    def healthy(self) -> bool:
        """Whether it answers."""

    @property
    def in_flight(self) -> int:
        """Sent requests that are not answered yet."""

    @property
    def requests(self) -> int:
        """Requests that were sent to it."""

    @property
    def failures(self) -> int:
        """Requests that it did not answer as it should."""


Upstreams: TypeAlias = Callable[[], Iterable[tuple[str, UpstreamFigures]]]
"""Returns the current figures of each upstream, with the name of its model."""


class UpstreamCollector(Collector):
    """Reads the figures at each scrape."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams

    def collect(self) -> Iterable[Metric]:
        """One family for each figure, one sample for each upstream of a model."""
        found = list(self._upstreams())
        for field, (family, text) in _FIGURES.items():
            metric = family(f"afterword_upstream_{field}", text, labels=_LABELS)
            for name, upstream in found:
                metric.add_metric([name, upstream.address], float(getattr(upstream, field)))
            yield metric
