"""The queue in front of the runner: bounded, dynamic batches across requests, and nothing computed for the departed."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from regions.engine.batching import FairQueue, Pack, patience
from regions.engine.runner import Runner, Step
from regions.models.base import Item, Outcome, ServedModel
from regions.settings import BatchSettings, QueueSettings


class Overloaded(Exception):
    """The queue is full, or the worker drains: the request was refused before any of it was queued."""


class Observer(Protocol):
    """Who is told of each batch that ran; `queued` holds the seconds that each of its inputs waited."""

    def batch_ran(self, model: str, *, tokens: int, queued: Sequence[float], step: Step) -> None: ...


@dataclass(slots=True, eq=False)
class _Request:
    """A submitted request and the answers so far."""

    done: asyncio.Future[None]
    outcomes: list[Outcome | None]
    unanswered: int


@dataclass(frozen=True, slots=True)
class _Entry:
    model: ServedModel
    item: Item
    request: _Request
    index: int


class Scheduler:
    """Owner of the queue. All methods belong to the event loop that `work` runs on."""

    def __init__(self, runner: Runner, *, batch: BatchSettings, queue: QueueSettings, observer: Observer) -> None:
        self._runner = runner
        self._batch = batch
        self._queue = queue
        self._observer = observer
        self._waiting: FairQueue[_Entry] = FairQueue()
        self._requests: set[_Request] = set()
        self._coming = 0
        self._draining = False
        self._changed = asyncio.Event()

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Around the reading of a request that will be submitted: while one is on its way, a batch may wait for it."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._changed.set()

    async def submit(self, model: ServedModel, items: Sequence[Item]) -> list[Outcome]:
        """The outcomes of `items`, in order. Cancel it (deadline, hang-up) and what still waits is never computed.

        Raises Overloaded at once, or what the model raised for the first of the items that it cannot compute.
        """
        if not items:
            return []
        self._check_room(sum(item.cost for item in items))
        loop = asyncio.get_running_loop()
        request = _Request(loop.create_future(), [None] * len(items), len(items))
        self._requests.add(request)
        inputs = [
            (_Entry(model, item, request, index), item.cost, (model.name, item.group))
            for index, item in enumerate(items)
        ]
        self._waiting.add(request, inputs, loop.time())
        self._changed.set()
        try:
            await request.done
        finally:
            self._forget(request)
        return [outcome for outcome in request.outcomes if outcome is not None]

    async def work(self) -> None:
        """Runs batches until cancelled."""
        while True:
            batch = self._waiting.next(max_size=self._batch.max_size, max_tokens=self._batch.max_tokens)
            if batch is None:
                await self._change(None)
                continue
            now = asyncio.get_running_loop().time()
            wait = patience(batch, now=now, window=self._batch.window, more_coming=self._coming > 0)
            if wait > 0:
                await self._change(wait)
            else:
                await self._run(batch)

    async def drain(self, limit: float) -> bool:
        """Refuses what comes from now on and waits up to `limit` seconds for what is here; False when some is left."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while self._requests:
                    await asyncio.wait([request.done for request in self._requests])
        left = list(self._requests)
        for request in left:
            _fail(request, Overloaded())
        return not left

    def _check_room(self, tokens: int) -> None:
        full = len(self._requests) >= self._queue.max_requests
        # A request larger than the whole bound may still pass through an empty queue.
        heavy = self._waiting.tokens > 0 and self._waiting.tokens + tokens > self._queue.max_tokens
        if self._draining or full or heavy:
            raise Overloaded

    async def _change(self, limit: float | None) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._changed.wait()

    async def _run(self, batch: Pack) -> None:
        now = asyncio.get_running_loop().time()
        taken = self._waiting.take(batch)
        entries = [entry for entry, _ in taken]
        model = entries[0].model
        try:
            step = await self._runner.step(model, [entry.item for entry in entries])
        except RuntimeError as error:  # the thread could not be started or is closed: say so rather than hang
            for entry in entries:
                _fail(entry.request, error)
            return
        for entry, result in zip(entries, step.results, strict=True):
            self._settle(entry, result)
        queued = [now - arrived for _, arrived in taken]
        self._observer.batch_ran(model.name, tokens=batch.tokens, queued=queued, step=step)

    def _settle(self, entry: _Entry, result: Outcome | Exception) -> None:
        request = entry.request
        if isinstance(result, Exception):
            _fail(request, result)
            self._forget(request)
            return
        request.outcomes[entry.index] = result
        request.unanswered -= 1
        if request.unanswered == 0 and not request.done.done():
            request.done.set_result(None)

    def _forget(self, request: _Request) -> None:
        self._waiting.drop(request)
        self._requests.discard(request)


def _fail(request: _Request, error: Exception) -> None:
    if not request.done.done():
        request.done.set_exception(error)
