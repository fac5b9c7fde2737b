"""Pure packing: which of the waiting inputs run next, and whether to gather more before they do.

The queue is fair between requests, as fair queueing is between the flows of a network (Demers, Keshav & Shenker 1989;
by start tags, Goyal, Vin & Cheng 1996). A clock counts the tokens that each waiting request is owed: with three of them
it moves by a third of the tokens that run. An input's turn is the clock when its request arrived, plus the tokens of
its request before it. So one text passes a request of two thousand, which moves on meanwhile at its share, however many
others come.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import count
from typing import Generic, NamedTuple, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Pack:
    """Inputs of one group that may share a forward, by turn: the next one of each of `requests`, named once for each.

    `oldest` is when the first of them arrived, in seconds on the caller's clock; `full` when one more input would break
    a bound.
    """

    group: Hashable
    requests: tuple[Hashable, ...]
    tokens: int
    oldest: float
    full: bool


class _Waiting(NamedTuple, Generic[Value]):
    """An input in the queue; those of equal turn run in order of arrival."""

    turn: float
    number: int
    request: Hashable
    value: Value
    cost: int
    arrived: float


class FairQueue(Generic[Value]):
    """What waits for a forward. A request is any hashable object, and is added once."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens of all that waits."""
        self._clock = 0.0
        self._numbers = count()
        # By group and request, so that what is looked at for a batch does not grow with the size of requests.
        self._lines: dict[Hashable, dict[Hashable, deque[_Waiting[Value]]]] = {}

    def add(self, request: Hashable, inputs: Sequence[tuple[Value, int, Hashable]], arrived: float) -> None:
        """Queues the inputs of a request: (value, cost in tokens, group), where a group is what may share a forward."""
        turn = self._clock
        for value, cost, group in inputs:
            line = self._lines.setdefault(group, {}).setdefault(request, deque())
            line.append(_Waiting(turn, next(self._numbers), request, value, cost, arrived))
            turn += cost
            self.tokens += cost

    def drop(self, request: Hashable) -> None:
        """Takes out what still waits of a request, if anything does."""
        for group in list(self._lines):
            self.tokens -= sum(waiting.cost for waiting in self._lines[group].pop(request, ()))
            self._tidy(group)

    def next(self, *, max_size: int, max_tokens: int) -> Pack | None:
        """The next batch, or None when nothing waits. It stays in the queue until it is taken.

        The input whose turn is first picks the group, so no group starves. Others of its group follow by turn until
        `max_size` inputs or `max_tokens` tokens are reached. An input that alone exceeds `max_tokens` runs alone.
        """
        if not self._lines:
            return None
        group = min(self._lines, key=lambda group: min(line[0][:2] for line in self._lines[group].values()))
        requests: list[Hashable] = []
        tokens, oldest, full = 0, float("inf"), False
        for waiting in self._by_turn(group):
            full = bool(requests) and tokens + waiting.cost > max_tokens
            if full:
                break
            requests.append(waiting.request)
            tokens += waiting.cost
            oldest = min(oldest, waiting.arrived)
            full = len(requests) >= max_size or tokens >= max_tokens
            if full:
                break
        return Pack(group, tuple(requests), tokens, oldest, full)

    def take(self, batch: Pack) -> list[tuple[Value, float]]:
        """The inputs of `batch`, which `next` gave and nothing has changed since, and when each arrived; by turn."""
        waiting_requests = {request for lines in self._lines.values() for request in lines}
        self._clock += batch.tokens / len(waiting_requests)
        self.tokens -= batch.tokens
        lines = self._lines[batch.group]
        taken = [lines[request].popleft() for request in batch.requests]
        for request in set(batch.requests):
            if not lines[request]:
                del lines[request]
        self._tidy(batch.group)
        return [(waiting.value, waiting.arrived) for waiting in taken]

    def _by_turn(self, group: Hashable) -> Iterator[_Waiting[Value]]:
        return merge(*self._lines[group].values())

    def _tidy(self, group: Hashable) -> None:
        if not self._lines[group]:
            del self._lines[group]


def patience(batch: Pack, *, now: float, window: float, more_coming: bool) -> float:
    """Seconds to gather more inputs before `batch` runs.

    None when it is full, when its oldest input has waited out the window, or when no request is on its way to fill it.
    """
    if batch.full or not more_coming:
        return 0.0
    return max(0.0, batch.oldest + window - now)
