"""Metrics, read back as Prometheus would read them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from app.gate import endpoint_of
from app.policy.retry import Outcome
from app.stores.base import CacheStats
from app.telemetry.metrics import CACHE_STATUSES, ENDPOINTS, LIMITS, OUTCOMES, RELOADS, Metrics
from app.types import Reason

REGIONS = ("us-east", "eu-west", "ap-southeast")
DOCUMENTATION = Path(__file__).parent.parent.parent / "docs" / "metrics.md"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _region(name: str, **state: Any) -> dict[str, Any]:
    return {"id": name, "health": "up", "breaker": "closed", "in_flight": 0, **state}


def _make() -> Metrics:
    return Metrics(lambda: [_region(name) for name in REGIONS], lambda: CacheStats(0, 0, 0))


@pytest.fixture
def metrics() -> Metrics:
    return _make()


def _families(metrics: Metrics) -> list[Any]:
    return list(text_string_to_metric_families(metrics.render()[0].decode()))


def _samples(metrics: Metrics) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in _families(metrics)
        for sample in family.samples
    }


def _value(metrics: Metrics, name: str, **labels: str) -> float:
    return _samples(metrics)[name, tuple(sorted(labels.items()))]


def _of(samples: Iterable[tuple[str, Any]], name: str) -> list[Any]:
    return [labels for sample, labels in samples if sample == name]


def test_media_type_is_that_of_the_text_format(metrics: Metrics) -> None:
    assert metrics.render()[1].startswith("text/plain; version=0.0.4")


def test_requests(metrics: Metrics) -> None:
    metrics.request("embeddings", 200, "eu-west", 0.03)
    metrics.request("embeddings", 200, "eu-west", 0.3)
    metrics.request("embeddings", 451, None, 0.001)
    metrics.request("infer", 499, None, 0.001)
    count = "tidegate_requests_total"
    assert _value(metrics, count, endpoint="embeddings", status="200", region="eu-west") == 2
    assert _value(metrics, count, endpoint="embeddings", status="451", region="none") == 1
    assert _value(metrics, count, endpoint="infer", status="499", region="none") == 1
    seconds = "tidegate_request_duration_seconds"
    assert _value(metrics, f"{seconds}_sum", endpoint="embeddings") == pytest.approx(0.331)
    assert _value(metrics, f"{seconds}_bucket", endpoint="embeddings", le="0.05") == 2
    assert _value(metrics, f"{seconds}_bucket", endpoint="embeddings", le="+Inf") == 3


def test_attempts(metrics: Metrics) -> None:
    metrics.attempt("eu-west", "refused", 0.002)
    metrics.attempt("eu-west", "answered", 0.02)
    assert _value(metrics, "tidegate_upstream_attempts_total", region="eu-west", outcome="refused") == 1
    assert _value(metrics, "tidegate_upstream_attempts_total", region="eu-west", outcome="answered") == 1
    assert _value(metrics, "tidegate_upstream_duration_seconds_count", region="eu-west") == 2
    assert _value(metrics, "tidegate_upstream_duration_seconds_count", region="us-east") == 0


def test_cache_limits_and_refusals(metrics: Metrics) -> None:
    metrics.cache("HIT")
    metrics.limited("tokens")
    metrics.limited("tokens")
    metrics.refused(Reason.DENY_GPC)
    metrics.refused("DENY_GPC")
    assert _value(metrics, "tidegate_cache_lookups_total", status="HIT") == 1
    assert _value(metrics, "tidegate_rate_limited_total", limit="tokens") == 2
    assert _value(metrics, "tidegate_residency_refusals_total", reason="DENY_GPC") == 2


def test_audit(metrics: Metrics) -> None:
    metrics.committed("eu-west", 17, 0.004)
    metrics.committed("gateway", 1, 0.002)
    assert _value(metrics, "tidegate_audit_records_total", log="eu-west") == 17
    assert _value(metrics, "tidegate_audit_records_total", log="gateway") == 1
    assert _value(metrics, "tidegate_audit_commit_duration_seconds_bucket", log="eu-west", le="0.005") == 1
    assert _value(metrics, "tidegate_audit_commit_duration_seconds_bucket", log="eu-west", le="0.0025") == 0


def test_gauges_are_read_at_each_scrape() -> None:
    regions = [_region("us-east"), _region("eu-west", health="down", breaker="half_open", in_flight=7)]
    cache = [CacheStats(3, 4096, 1)]
    metrics = Metrics(lambda: regions, lambda: cache[-1])
    for name, values in {
        "tidegate_backend_up": (1, 0),
        "tidegate_breaker_state": (0, 1),
        "tidegate_requests_in_flight": (0, 7),
    }.items():
        assert (_value(metrics, name, region="us-east"), _value(metrics, name, region="eu-west")) == values
    assert _value(metrics, "tidegate_cache_entries") == 3
    assert _value(metrics, "tidegate_cache_bytes") == 4096
    assert _value(metrics, "tidegate_cache_evictions_total") == 1
    regions[0] = _region("us-east", health="down", breaker="open", in_flight=1)
    cache.append(CacheStats(0, 0, 4))
    assert _value(metrics, "tidegate_backend_up", region="us-east") == 0
    assert _value(metrics, "tidegate_breaker_state", region="us-east") == 2
    assert _value(metrics, "tidegate_requests_in_flight", region="us-east") == 1
    assert _value(metrics, "tidegate_cache_entries") == 0
    assert _value(metrics, "tidegate_cache_evictions_total") == 4


def test_conflicts_are_zero_once_a_peer_is_watched(metrics: Metrics) -> None:
    peer = {"peer": "eu-west", "log": "gateway"}
    metrics.witnessed(**peer, moment=12.5)
    assert _value(metrics, "tidegate_audit_witnessed_timestamp_seconds", **peer) == 12.5
    assert _value(metrics, "tidegate_audit_witness_conflicts_total", **peer) == 0
    metrics.conflicted(**peer)
    assert _value(metrics, "tidegate_audit_witness_conflicts_total", **peer) == 1


def test_each_gateway_counts_for_itself(metrics: Metrics) -> None:
    other = _make()
    metrics.cache("MISS")
    assert _value(other, "tidegate_cache_lookups_total", status="MISS") == 0


def test_what_may_come_is_zero_before_it_comes(metrics: Metrics) -> None:
    samples = _samples(metrics)
    for name, count in {
        "tidegate_cache_lookups_total": len(CACHE_STATUSES),
        "tidegate_rate_limited_total": len(LIMITS),
        "tidegate_residency_refusals_total": len(Reason),
        "tidegate_audit_records_total": len(REGIONS) + 1,
        "tidegate_request_duration_seconds_count": len(ENDPOINTS),
        "tidegate_upstream_duration_seconds_count": len(REGIONS),
    }.items():
        assert len(_of(samples, name)) == count
        assert {value for (sample, _), value in samples.items() if sample == name} == {0}


_NAMES = st.text(max_size=20) | st.sampled_from([*ENDPOINTS, *OUTCOMES, *REGIONS, *LIMITS, "none", "other"])


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(_NAMES, st.integers(0, 10**6), _NAMES, _NAMES), max_size=60))
def test_no_caller_makes_series(events: list[tuple[str, int, str, str]]) -> None:
    metrics = _make()
    for one, number, two, three in events:
        metrics.request(one, number, two, 0.1)
        metrics.attempt(two, three, 0.1)
        metrics.cache(one)
        metrics.limited(one)
        metrics.reloaded(one)
        metrics.refused(one)
        metrics.committed(two, 1, 0.1)
        metrics.witnessed(one, two, number)
        metrics.conflicted(two, one)
    samples = _samples(metrics)
    labels = [dict(pairs) for name, pairs in samples if name.startswith("tidegate_")]
    assert {each["region"] for each in labels if "region" in each} <= {*REGIONS, "none", "other"}
    assert {each["endpoint"] for each in labels if "endpoint" in each} <= {*ENDPOINTS, "other"}
    assert {each["outcome"] for each in labels if "outcome" in each} <= {*OUTCOMES, *RELOADS, "other"}
    assert {each["log"] for each in labels if "log" in each} <= {*REGIONS, "gateway", "other"}
    assert {each["peer"] for each in labels if "peer" in each} <= {*REGIONS, "other"}
    assert {each["limit"] for each in labels if "limit" in each} <= {*LIMITS, "other"}
    assert {each["reason"] for each in labels if "reason" in each} <= {*Reason, "other"}
    total = sum(value for (name, _), value in samples.items() if name == "tidegate_requests_total")
    assert total == len(events)


def test_sets_hold_what_the_gateway_sends() -> None:
    assert set(get_args(Outcome)) <= set(OUTCOMES)
    paths = {
        "/v1/embeddings",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models/minilm",
        "/v1/regions",
        "/v1/route/explain",
        "/v1/audit/logs",
        "/v1/audit/export",
        "/v1/audit/records/0/proof",
        "/v1/audit/checkpoint",
        "/v1/audit/verify",
        "/v1/audit/erasures",
        "/v1/audit/access",
        "/v1/audit/holds/0123",
        "/v2/models/dynamic-moe/versions/1/infer",
    }
    assert {endpoint_of(path) for path in paths} == set(ENDPOINTS)
    assert {endpoint_of(path) for path in ("/v2/health/live", "/wp-login.php")} == {"other"}


def test_a_series_is_looked_up_once(metrics: Metrics) -> None:
    assert metrics._requests("infer", "200", "eu-west") is metrics._requests("infer", "200", "eu-west")
    known = len(metrics._requests._made)
    for number in range(100):
        metrics.request(f"/{number}", 200, "eu-west", 0.1)
    assert len(metrics._requests._made) == known + 1


def test_names_follow_the_conventions(metrics: Metrics) -> None:
    families = [family for family in _families(metrics) if not family.name.startswith("process_")]
    assert len(families) == 20
    for family in families:
        assert re.fullmatch(r"tidegate_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert family.type in {"counter", "gauge", "histogram"}
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        assert not any(sample.name.endswith("_created") for sample in family.samples)


def test_process_metrics_are_there(metrics: Metrics) -> None:
    assert _value(metrics, "process_resident_memory_bytes") > 0


def test_every_metric_is_documented(metrics: Metrics) -> None:
    rows = re.findall(r"^\| `(tidegate_\w+)` \| (\w+) \|(.*?)\| (.*?) \|$", DOCUMENTATION.read_text(), re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    metrics.request("infer", 200, "eu-west", 0.1)
    metrics.attempt("eu-west", "answered", 0.1)
    metrics.witnessed("eu-west", "gateway", 0)
    actual = {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            set().union(*(sample.labels for sample in family.samples)) - {"le"},
        )
        for family in _families(metrics)
        if family.name.startswith("tidegate_")
    }
    assert documented == actual
