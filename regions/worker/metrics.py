"""What a worker counts: requests, batches, queue and compute time, budgets, FLOPs and experts, by model."""

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from regions.engine.runner import Step

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (8, 32, 128, 512, 2048, 8192, 32768)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SHARES = tuple(step / 10 for step in range(1, 11))


class Metrics:
    """The counters of one worker, in a registry of its own; told of batches as the scheduler's observer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "requests", "Inference requests by model and HTTP status (499: the client hung up).", "status"
        )
        self._size = self._histogram("batch_size", "Inputs in a batch.", _SIZES)
        self._tokens = self._histogram("batch_tokens", "Tokens in a batch.", _TOKENS)
        self._queue = self._histogram("queue_seconds", "Time that an input waited for its batch.", _SECONDS)
        self._compute = self._histogram("compute_seconds", "Time that a batch took to compute.", _SECONDS)
        self._budget = self._histogram("compute_budget", "Compute budget of an input.", _SHARES)
        self._share = self._histogram("flops_share", "Share of feed-forward FLOPs that an input executed.", _SHARES)
        self._flops = self._counter("flops", "Feed-forward FLOPs executed, routers included.")
        self._dense_flops = self._counter("dense_flops", "Feed-forward FLOPs that dense layers would have taken.")
        self._experts = self._counter("expert_tokens", "Tokens that an expert served.", "expert")
        self._unrouted = self._counter(
            "unrouted_tokens", "Tokens whose router failed or was not asked, over the layers; the fallback served them."
        )

        self._buffers = self._counter("buffers", "Scratch buffers of forwards: reused, or allocated.", "outcome")

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"tidegate_worker_{name}", told, ("model", *labels), registry=self.registry)

    def _histogram(self, name: str, told: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"tidegate_worker_{name}", told, ("model",), buckets=buckets, registry=self.registry)

    def answered(self, model: str, status: int) -> None:
        """Counts a request; `model` is a name that this worker serves, or `unknown`."""
        self._requests.labels(model, str(status)).inc()

    def batch_ran(self, model: str, *, tokens: int, queued: Sequence[float], step: Step) -> None:
        """Counts a batch whose inputs waited `queued` seconds each."""
        self._size.labels(model).observe(len(queued))
        self._tokens.labels(model).observe(tokens)
        self._compute.labels(model).observe(step.seconds)
        queue = self._queue.labels(model)
        for seconds in queued:
            queue.observe(seconds)
        for batch in step.batches:
            self._flops.labels(model).inc(batch.flops)
            self._dense_flops.labels(model).inc(batch.dense_flops)
            self._unrouted.labels(model).inc(batch.unrouted)
            for outcome, buffers in zip(("reused", "allocated"), batch.buffers, strict=True):
                self._buffers.labels(model, outcome).inc(buffers)
            for expert, served in enumerate(batch.utilisation):
                self._experts.labels(model, str(expert)).inc(served)
            for item in batch.outcomes:
                for figure, shown in (("compute_budget", self._budget), ("flops_share", self._share)):
                    if figure in item.details:
                        shown.labels(model).observe(item.details[figure])

    def as_json(self) -> dict[str, list[dict[str, Any]]]:
        """The samples by name, each with its labels: what `/metrics` says as text."""
        found: dict[str, list[dict[str, Any]]] = {}
        for family in self.registry.collect():
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    found.setdefault(sample.name, []).append({"labels": sample.labels, "value": sample.value})
        return found
