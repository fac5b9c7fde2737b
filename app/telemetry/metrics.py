"""Metrics for Prometheus: what is counted while requests pass, and what is read from the gateway when it is scraped.

Each `Metrics` has a registry of its own, and every label takes its values from a set that is fixed at construction:
anything else counts as `other`, so that no caller can make series.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Generic, TypeVar

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from app.config import RESERVED_LOG
from app.policy.quota import SCOPES
from app.telemetry.observed import CacheStats, Observed, WithoutCreated
from app.types import Reason

OTHER: Final = "other"
NONE: Final = "none"
"""The region of a request that none served."""
ENDPOINTS: Final = (
    "embeddings",
    "chat/completions",
    "completions",
    "models",
    "infer",
    "regions",
    "route/explain",
    "audit/logs",
    "audit/export",
    "audit/records",
    "audit/checkpoint",
    "audit/verify",
    "audit/erasures",
    "audit/access",
    "audit/holds",
)
STATUSES: Final = (*(str(status.value) for status in HTTPStatus), "499")
"""499 is a client that left before its answer began."""
OUTCOMES: Final = (
    "answered",
    "cancelled",
    "refused",
    "connect_timeout",
    "timeout",
    "reset",
    "status",
    "redirect",
    "content",
)
CACHE_STATUSES: Final = ("HIT", "MISS", "BYPASS", "REFRESH", "COALESCED")
LIMITS: Final = tuple(f"{scope}{kind}" for scope in SCOPES for kind in ("requests", "tokens", "concurrency"))
RELOADS: Final = ("applied", "refused", "unchanged")

_REQUEST_BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
_COMMIT_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_Family = TypeVar("_Family", Counter, Gauge, Histogram)


class Metrics:
    """All metrics of one gateway.

    `regions` gives each region as `{"id", "health": "up" | "down", "breaker": "closed" | "half_open" | "open",
    "in_flight"}`, `cache` what the cache holds; both are asked anew at every scrape.
    """

    def __init__(self, regions: Callable[[], Iterable[Mapping[str, Any]]], cache: Callable[[], CacheStats]) -> None:
        self._registry = CollectorRegistry()
        ids = [str(region["id"]) for region in regions()]
        self._count_requests(ids)
        self._count_inside([*ids, RESERVED_LOG])
        self._count_witnessed(ids)
        self._count_reloads()
        self._registry.register(Observed(regions, cache))
        ProcessCollector(registry=self._registry)

    def _count_requests(self, regions: Sequence[str]) -> None:
        self._requests = _Children(
            Counter(
                "tidegate_requests_total",
                "Answers to clients.",
                ("endpoint", "status", "region"),
                registry=self._registry,
            ),
            (ENDPOINTS, STATUSES, (*regions, NONE)),
        )
        self._request_seconds = _Children(
            Histogram(
                "tidegate_request_duration_seconds",
                "Time from the head of a request to the end of its answer.",
                ("endpoint",),
                buckets=_REQUEST_BUCKETS,
                registry=self._registry,
            ),
            (ENDPOINTS,),
        )
        self._attempts = _Children(
            Counter(
                "tidegate_upstream_attempts_total",
                "Attempts to have a backend of a region answer.",
                ("region", "outcome"),
                registry=self._registry,
            ),
            (regions, OUTCOMES),
        )
        self._attempt_seconds = _Children(
            Histogram(
                "tidegate_upstream_duration_seconds",
                "Time that an attempt took, answered or not.",
                ("region",),
                buckets=_REQUEST_BUCKETS,
                registry=self._registry,
            ),
            (regions,),
        )

    def _count_inside(self, logs: Sequence[str]) -> None:
        def counter(name: str, text: str, label: str, values: Sequence[str]) -> "_Children[Counter]":
            return _Children(Counter(name, text, (label,), registry=self._registry), (values,))

        self._lookups = counter("tidegate_cache_lookups_total", "Look-ups in the cache.", "status", CACHE_STATUSES)
        self._refusals = counter(
            "tidegate_residency_refusals_total", "Requests that law or tenant rule refused.", "reason", tuple(Reason)
        )
        self._limited = counter("tidegate_rate_limited_total", "Requests that a limit refused.", "limit", LIMITS)
        self._records = counter("tidegate_audit_records_total", "Audit records made durable.", "log", logs)
        self._commit_seconds = _Children(
            Histogram(
                "tidegate_audit_commit_duration_seconds",
                "Time that a commit of audit records took.",
                ("log",),
                buckets=_COMMIT_BUCKETS,
                registry=self._registry,
            ),
            (logs,),
        )

    def _count_witnessed(self, regions: Sequence[str]) -> None:
        known, labels = (regions, (*regions, RESERVED_LOG)), ("peer", "log")
        self._witnessed = _Children(
            Gauge(
                "tidegate_audit_witnessed_timestamp_seconds",
                "When a peer's audit log was last found to extend what was witnessed of it, as Unix time.",
                labels,
                registry=self._registry,
            ),
            known,
        )
        self._conflicts = _Children(
            Counter(
                "tidegate_audit_witness_conflicts_total",
                "Looks at a peer's audit log that contradicted what was witnessed of it.",
                labels,
                registry=self._registry,
            ),
            known,
        )

    def _count_reloads(self) -> None:
        self._reloads = _Children(
            Counter(
                "tidegate_config_reloads_total",
                "Reloads of the configuration since the start.",
                ("outcome",),
                registry=self._registry,
            ),
            (RELOADS,),
        )
        self._sound = Gauge(
            "tidegate_config_last_reload_successful",
            "Whether the files hold what is in force, as far as they have been read: 0 after a refused reload.",
            registry=self._registry,
        )
        self._sound.set(1)
        self._applied = Gauge(
            "tidegate_config_applied_timestamp_seconds",
            "When the configuration in force was applied (Unix time).",
            registry=self._registry,
        )
        self._applied.set_to_current_time()

    def reloaded(self, outcome: str) -> None:
        """A reload has ended: one of `RELOADS`."""
        self._reloads(outcome).inc()
        self._sound.set(outcome != "refused")
        if outcome == "applied":
            self._applied.set_to_current_time()

    def request(self, endpoint: str, status: int, region: str | None, seconds: float) -> None:
        """An answer has left, served by `region` (None: by none), `seconds` after the request came."""
        self._requests(endpoint, str(status), region or NONE).inc()
        self._request_seconds(endpoint).observe(seconds)

    def attempt(self, region: str, outcome: str, seconds: float) -> None:
        """An attempt in `region` is over: one of `OUTCOMES`."""
        self._attempts(region, outcome).inc()
        self._attempt_seconds(region).observe(seconds)

    def cache(self, status: str) -> None:
        """A look-up ended: one of `CACHE_STATUSES`."""
        self._lookups(status).inc()

    def refused(self, reason: str) -> None:
        """Law or tenant rule refused a request: a `Reason`."""
        self._refusals(reason).inc()

    def limited(self, limit: str) -> None:
        """A limit refused a request: one of `LIMITS`."""
        self._limited(limit).inc()

    def committed(self, log: str, records: int, seconds: float) -> None:
        """So many records of an audit log became durable in one commit."""
        self._records(log).inc(records)
        self._commit_seconds(log).observe(seconds)

    def witnessed(self, peer: str, log: str, moment: float) -> None:
        """A peer's audit log was last found good at that Unix time; 0 where it never was."""
        self._witnessed(peer, log).set(moment)
        self._conflicts(peer, log)  # so that there is a zero before the first

    def conflicted(self, peer: str, log: str) -> None:
        """A peer's audit log contradicts what was witnessed of it."""
        self._conflicts(peer, log).inc()

    def render(self) -> tuple[bytes, str]:
        """The state of everything in Prometheus' text format 0.0.4, and its media type."""
        return generate_latest(WithoutCreated(self._registry)), CONTENT_TYPE_PLAIN_0_0_4


class _Children(Generic[_Family]):
    """The series of a metric by its labels' values, each looked up in prometheus_client once."""

    def __init__(self, family: _Family, known: Sequence[Sequence[str]]) -> None:
        self._family: _Family = family
        self._known = [frozenset(values) for values in known]
        self._made: dict[tuple[str, ...], _Family] = {}
        if len(known) == 1:  # so that a rate is zero before the first event, not unknown
            for value in known[0]:
                self(value)

    def __call__(self, *values: str) -> _Family:
        child = self._made.get(values)
        if child is None:
            bounded = tuple(
                value if value in known else OTHER for value, known in zip(values, self._known, strict=True)
            )
            child = self._made[bounded] = self._family.labels(*bounded)
        return child
