"""Pure packing: which of the waiting inputs run next, and whether to gather more before they do."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """An input in the queue: `cost` in tokens, `arrived` in seconds on the caller's clock."""

    key: int
    cost: int
    group: Hashable
    arrived: float


@dataclass(frozen=True, slots=True)
class Pack:
    """Inputs of one group that may share a forward, oldest first; `full` when one more would break a bound."""

    keys: tuple[int, ...]
    tokens: int
    oldest: float
    full: bool


def pack(waiting: Iterable[Waiting], *, max_size: int, max_tokens: int) -> Pack | None:
    """The next batch out of `waiting` (oldest first), or None when nothing waits.

    The oldest input picks the group, so no group starves; its group then follows in order of arrival until `max_size`
    inputs or `max_tokens` tokens are reached. An input that alone exceeds `max_tokens` runs alone.
    """
    leader: Waiting | None = None
    keys: list[int] = []
    tokens = 0
    full = False
    for item in waiting:
        leader = leader or item
        if item.group != leader.group:
            continue
        if keys and tokens + item.cost > max_tokens:
            full = True
            break
        keys.append(item.key)
        tokens += item.cost
        if len(keys) >= max_size or tokens >= max_tokens:
            full = True
            break
    return Pack(tuple(keys), tokens, leader.arrived, full) if leader else None


def patience(batch: Pack, *, now: float, window: float, more_coming: bool) -> float:
    """Seconds to gather more inputs before `batch` runs.

    None when it is full, when its oldest input has waited out the window, or when no request is on its way to fill it.
    """
    if batch.full or not more_coming:
        return 0.0
    return max(0.0, batch.oldest + window - now)
