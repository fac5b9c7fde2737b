"""The only place where a model runs: on threads of its own, each with its share of the cores."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

from regions.models.base import Batch, Item, Outcome, ServedModel

LANES = 8
"""Forwards that run at once, at most."""
WHOLE = 128
"""Tokens from which an item that is alone gains by all the cores; below, waking them takes what it saves."""


@dataclass(frozen=True, slots=True)
class Step:
    """What became of the items of one batch, in their order; `seconds` is the time spent computing."""

    results: tuple[Outcome | Exception, ...]
    batches: tuple[Batch, ...]
    seconds: float


class Runner:
    """Runs a forward on each of its lanes, which share the cores: no more lanes than cores, and no core in two lanes.

    A batch to each core rather than all cores to a batch: requests are read and answered on the same cores meanwhile,
    and where two compute a product, one that is held up so holds up both.
    """

    def __init__(self, cores: int = 1, use_cores: Callable[[int], None] = lambda _: None) -> None:
        """`use_cores` tells the arithmetic on the calling thread how many cores it may use; it is called on lanes."""
        self.lanes = min(cores, LANES)
        self._cores = cores
        self._use_cores = use_cores
        self._threads = ThreadPoolExecutor(max_workers=self.lanes, thread_name_prefix="runner")

    async def step(self, model: ServedModel, items: Sequence[Item], *, alone: bool = False) -> Step:
        """One batch of items of one group. An item that cannot be computed gives its exception, and only it does.

        One large item that is `alone`, with nothing else running or waiting, has all the cores.
        """
        whole = alone and len(items) == 1 and items[0].cost >= WHOLE
        cores = self._cores if whole else self._cores // self.lanes
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._step, model, items, cores)

    def close(self) -> None:
        """Ends the threads once the forwards that run now have ended."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _step(self, model: ServedModel, items: Sequence[Item], cores: int) -> Step:
        started = perf_counter()
        self._use_cores(cores)
        results, batches = _forward(model, items)
        return Step(tuple(results), tuple(batches), perf_counter() - started)


def available_cores() -> int:
    """Cores that this process may use: in a container or under an affinity mask fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def use_cores(cores: int) -> None:
    """Lets torch compute on so many cores where the calling thread asks it to; other threads keep their own number."""
    import torch  # noqa: PLC0415 - torch takes seconds to import, and only the runner's threads need it

    torch.set_num_threads(cores)


def _forward(model: ServedModel, items: Sequence[Item]) -> tuple[list[Outcome | Exception], list[Batch]]:
    """Halves a batch that fails until the items at fault stand alone."""
    try:
        batch = model.forward(items)
    except Exception as error:  # noqa: BLE001 - whatever fails is the error of its items alone
        if len(items) == 1:
            return [error], []
        middle = len(items) // 2
        first, second = _forward(model, items[:middle]), _forward(model, items[middle:])
        return first[0] + second[0], first[1] + second[1]
    return list(batch.outcomes), [batch]
