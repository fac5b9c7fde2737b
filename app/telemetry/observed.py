"""Metrics that are asked for when a scrape comes: of regions and cache; and what a scrape leaves out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_BREAKER: Final = {"closed": 0, "half_open": 1, "open": 2}


class CacheStats(Protocol):
    """What the cache holds; `evictions` since the start."""

    @property
    def entries(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def evictions(self) -> int: ...


class Observed(Collector):
    """What is asked for when a scrape comes."""

    def __init__(self, regions: Callable[[], Iterable[Mapping[str, Any]]], cache: Callable[[], CacheStats]) -> None:
        self._regions = regions
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("tidegate_backend_up", "Whether a backend of the region is up.", labels=["region"])
        breaker = GaugeMetricFamily(
            "tidegate_breaker_state",
            "The region's most permissive circuit breaker: 0 closed, 1 half open, 2 open.",
            labels=["region"],
        )
        flying = GaugeMetricFamily(
            "tidegate_requests_in_flight", "Attempts that wait for a backend of the region.", labels=["region"]
        )
        for region in self._regions():
            up.add_metric([region["id"]], float(region["health"] == "up"))
            breaker.add_metric([region["id"]], _BREAKER[region["breaker"]])
            flying.add_metric([region["id"]], region["in_flight"])
        yield from (up, breaker, flying)
        stats = self._cache()
        yield GaugeMetricFamily("tidegate_cache_entries", "Answers in the cache.", value=stats.entries)
        yield GaugeMetricFamily("tidegate_cache_bytes", "Size of what is in the cache.", value=stats.bytes)
        yield CounterMetricFamily(
            "tidegate_cache_evictions_total", "Answers that made room for others.", value=stats.evictions
        )


class WithoutCreated(Collector):
    """A registry less the `_created` series, which double its size and which this text format has no place for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
