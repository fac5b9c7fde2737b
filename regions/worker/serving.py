"""What one worker serves: its models, from loading to readiness, and the engine that runs them."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import structlog

from regions.engine.runner import Runner, Step
from regions.engine.scheduler import Scheduler
from regions.models.base import Item, ServedModel
from regions.settings import WorkerSettings
from regions.worker.budgets import Budgets
from regions.worker.metrics import Metrics
from regions.worker.refusals import Loading, ModelNotFound

T = TypeVar("T")
Loader = Callable[[str], ServedModel]
"""Makes the model of a name ready to run; it is called on a thread and may take seconds."""


class Serving:
    """The models of a worker behind one queue and one runner.

    `loader` is called on a thread once the app has started: making it may import torch, which takes seconds.
    """

    def __init__(
        self,
        names: Sequence[str],
        settings: WorkerSettings,
        *,
        loader: Callable[[], Loader],
        log: structlog.stdlib.BoundLogger,
        cores: int = 1,
        use_cores: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.names = tuple(names)
        self.log = log
        self.metrics = Metrics()
        self.threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="requests")
        self.loaded: dict[str, ServedModel] = {}
        self.since = int(time.time())
        self._loader = loader
        self._runner = Runner(cores, use_cores)
        self.budgets = Budgets(settings)
        self.scheduler = Scheduler(self._runner, batch=settings.batch, queue=settings.queue, observer=self)

    def batch_ran(self, model: str, *, tokens: int, queued: Sequence[float], step: Step) -> None:
        """Hears from the scheduler of every batch that ran."""
        self.metrics.batch_ran(model, tokens=tokens, queued=queued, step=step)
        self.budgets.waited(max(queued))

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and has computed once."""
        return len(self.loaded) == len(self.names)

    def model(self, name: str, version: str | None = None) -> ServedModel:
        """The model of this name. Raises ModelNotFound, or Loading while it is on its way."""
        model = self.loaded.get(name)
        if model is None:
            raise Loading if name in self.names else ModelNotFound(name)
        if version is not None and version not in model.metadata()["versions"]:
            raise ModelNotFound(f"{name}/versions/{version}")
        return model

    async def load_all(self) -> None:
        """Loads the models in turn and computes one input with each, so that no request pays for first use."""
        started = time.perf_counter()
        load = await self.in_thread(self._loader)
        for name in self.names:
            self.log.info("loading", model=name)
            begun = time.perf_counter()
            model = await self.in_thread(load, name)
            await self.scheduler.submit(model, [_first_input(model)])
            self.loaded[name] = model
            self.log.info("loaded", model=name, seconds=round(time.perf_counter() - begun, 3))
        self.log.info("ready", models=list(self.names), seconds=round(time.perf_counter() - started, 3))

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    async def close(self, limit: float) -> None:
        """Lets what is queued finish for up to `limit` seconds, then ends the threads."""
        if not await self.scheduler.drain(limit):
            self.log.warning("requests were dropped at shutdown", limit_seconds=limit)
        await asyncio.to_thread(self._runner.close)
        self.threads.shutdown(wait=False, cancel_futures=True)


def _first_input(model: ServedModel) -> Item:
    if model.takes == "text":
        return model.prepare_text("The tide turns.", param="text", truncate=True, budget=None)
    declared: Mapping[str, Any] = model.metadata()["inputs"][0]
    values = np.zeros([max(1, size) for size in declared["shape"]], dtype=np.float32)
    return model.prepare_tensor(values, name=declared["name"], budget=None)
