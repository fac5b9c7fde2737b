"""The only place where a model runs: one thread of its own, one forward at a time."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

from regions.models.base import Batch, Item, Outcome, ServedModel


@dataclass(frozen=True, slots=True)
class Step:
    """What became of the items of one batch, in their order; `seconds` is the time spent computing."""

    results: tuple[Outcome | Exception, ...]
    batches: tuple[Batch, ...]
    seconds: float


class Runner:
    """Runs forwards on a single thread, so that models need no locks and cores are not shared between forwards."""

    def __init__(self, setup: Callable[[], None] | None = None) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="runner", initializer=setup)

    async def step(self, model: ServedModel, items: Sequence[Item]) -> Step:
        """One batch of items of one group. An item that cannot be computed gives its exception, and only it does."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, _step, model, items)

    def close(self) -> None:
        """Ends the thread once the forward that runs now has ended."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def use_available_cores() -> None:
    """Set-up of the runner's thread for models of torch: no more threads than the cores that this process may use.

    Torch counts the machine's cores, which in a container or under an affinity mask are more than its own; threads
    beyond them only wait for each other. OMP_NUM_THREADS, which torch honours, lowers the number further.
    """
    import torch  # noqa: PLC0415 - torch takes seconds to import, and only the runner's thread needs it

    torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))


def _step(model: ServedModel, items: Sequence[Item]) -> Step:
    started = perf_counter()
    results, batches = _forward(model, items)
    return Step(tuple(results), tuple(batches), perf_counter() - started)


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
