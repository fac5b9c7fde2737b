"""What a worker counts, in Prometheus' terms: requests, batches, queue and compute time, FLOPs and experts by model."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from regions.engine.runner import Step

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (8, 32, 128, 512, 2048, 8192, 32768)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The counters of one worker, in a registry of its own; told of batches as the scheduler's observer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        model = ("model",)
        self._requests = Counter(
            "tidegate_worker_requests",
            "Inference requests by model and HTTP status (499: the client hung up).",
            ("model", "status"),
            registry=self.registry,
        )
        self._size = Histogram(
            "tidegate_worker_batch_size", "Inputs in a batch.", model, buckets=_SIZES, registry=self.registry
        )
        self._tokens = Histogram(
            "tidegate_worker_batch_tokens", "Tokens in a batch.", model, buckets=_TOKENS, registry=self.registry
        )
        self._queue = Histogram(
            "tidegate_worker_queue_seconds",
            "Time that an input waited for its batch.",
            model,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._compute = Histogram(
            "tidegate_worker_compute_seconds",
            "Time that a batch took to compute.",
            model,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._flops = Counter(
            "tidegate_worker_flops", "Feed-forward FLOPs executed, routers included.", model, registry=self.registry
        )
        self._dense_flops = Counter(
            "tidegate_worker_dense_flops",
            "Feed-forward FLOPs that dense layers would have taken.",
            model,
            registry=self.registry,
        )
        self._experts = Counter(
            "tidegate_worker_expert_tokens",
            "Tokens that an expert served.",
            ("model", "expert"),
            registry=self.registry,
        )

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
            for expert, served in enumerate(batch.utilisation):
                self._experts.labels(model, str(expert)).inc(served)
