"""Answers and limits in this process's memory, bounded in entries and bytes; gone when it ends."""

from collections import OrderedDict
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from app.config import CacheSettings, Rate
from app.policy import rate as gcra
from app.policy.quota import Claim, Limit, Place
from app.stores.base import CacheStats
from app.stores.tinylfu import TinyLfu
from app.types import CacheEntry

ENTRY_OVERHEAD: Final = 1024
"""Bytes that an entry takes besides what it holds: key, record, links (measured about 900)."""
_SPARE: Final = 64
MAX_KEYS: Final = 100_000
"""Keys of limits whose use is remembered."""
LOOKS: Final = 8
"""Keys that are looked at when another comes. More than one, so that those that have recovered are soon gone."""


class MemoryCache:
    """`CacheStore` of one process: what is asked for least goes first, each after its time (`app.stores.tinylfu`)."""

    def __init__(self, settings: CacheSettings) -> None:
        self._max_entries = settings.max_entries
        self._max_bytes = settings.max_bytes
        # In units in which both bounds are whole: an entry costs its part of the bytes, or one of the entries.
        self._entries: TinyLfu[CacheEntry] = TinyLfu(self._max_bytes * self._max_entries, self._max_entries)
        self._ends: list[tuple[float, bytes]] = []
        """A heap of when entries end, some of which have been replaced or are gone."""
        self._bytes = 0
        self._evictions = 0

    def get(self, key: bytes, now: float) -> CacheEntry | None:
        entry = self._entries.get(key)
        if entry is not None and now >= _end(entry):
            self._expire(now)
            return None
        return entry

    def put(self, key: bytes, entry: CacheEntry, now: float) -> None:
        self._expire(now)
        self._remove(key)
        size = _size(entry)
        if size > self._max_bytes or now >= _end(entry):
            return
        gone = self._entries.put(key, entry, max(size * self._max_entries, self._max_bytes))
        self._evictions += len(gone)
        self._bytes += size - sum(map(_size, gone))
        heappush(self._ends, (_end(entry), key))
        if len(self._ends) > 2 * len(self._entries) + _SPARE:
            self._ends = [(end, each) for end, each in self._ends if self._lasts(each, end)]
            heapify(self._ends)

    def stats(self, now: float) -> CacheStats:
        self._expire(now)
        return CacheStats(len(self._entries), self._bytes, self._evictions)

    def _expire(self, now: float) -> None:
        """Forget what has outlived its time."""
        while self._ends and self._ends[0][0] <= now:
            end, key = heappop(self._ends)
            if self._lasts(key, end):
                self._remove(key)

    def _lasts(self, key: bytes, end: float) -> bool:
        """Whether the entry that ends then is still the one that is held."""
        entry = self._entries.peek(key)
        return entry is not None and _end(entry) == end

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        if entry is not None:
            self._bytes -= _size(entry)


class MemoryLimits:
    """`LimitStore` of one process.

    A key that has recovered is as one that was never seen, so forgetting it changes nothing; with each new key some of
    those that were looked at longest ago are checked for that. Where `max_keys` are in use and none of those has
    recovered, the one among them that is nearest to it is forgotten: it has its burst anew.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._arrivals: OrderedDict[str, tuple[float, Rate]] = OrderedDict()
        """Each key's state, and the rate that it counts by; those looked at longest ago come first."""
        self._running: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def charge(self, claims: Sequence[Claim], now: float) -> list[gcra.Allowance]:
        found: list[gcra.Allowance] = []
        for limit, cost in claims:
            allowance = gcra.check(self._arrival(limit, now), now, limit.rate, cost)
            if not allowance.allowed:
                return [self._stands(claim, now) for claim in claims]
            found.append(allowance)
        for (limit, _), allowance in zip(claims, found, strict=True):
            self._keep(limit, allowance.tat, now)
        return found

    def settle(self, limit: Limit, charged: gcra.Allowance, unused: int, now: float) -> gcra.Allowance:
        tat = gcra.settled(self._arrival(limit, now), now, limit.rate, charged, unused)
        if tat <= now:
            self._arrivals.pop(limit.key, None)
        else:
            self._keep(limit, tat, now)
        return gcra.Allowance(True, tat, now, limit.rate, 0.0)

    def acquire(self, places: Sequence[Place]) -> Place | None:
        running = self._running
        for place in places:
            if running.get(place.key, 0) >= place.most:
                return place
        for place in places:
            running[place.key] = running.get(place.key, 0) + 1
        return None

    def release(self, places: Sequence[Place]) -> None:
        for place in places:
            running = self._running.pop(place.key) - 1
            if running:
                self._running[place.key] = running

    def _arrival(self, limit: Limit, now: float) -> float:
        """The key's state, by the limit's rate from now on."""
        found = self._arrivals.get(limit.key)
        if found is None:
            return gcra.FULL
        tat, rate = found
        if rate is not limit.rate and rate != limit.rate:
            tat = gcra.carried(tat, now, rate, limit.rate)
            self._arrivals[limit.key] = tat, limit.rate
        return tat

    def _stands(self, claim: Claim, now: float) -> gcra.Allowance:
        """Whether a claim would fit, with none of it taken."""
        limit, cost = claim
        tat = self._arrival(limit, now)
        allowance = gcra.check(tat, now, limit.rate, cost)
        return allowance._replace(tat=tat)

    def _keep(self, limit: Limit, tat: float, now: float) -> None:
        if limit.key not in self._arrivals:
            self._make_room(now)
        self._arrivals[limit.key] = tat, limit.rate

    def _make_room(self, now: float) -> None:
        """Forget those that have recovered among some keys, and another where that is not enough."""
        arrivals = self._arrivals
        spent: list[tuple[float, str]] = []
        for _ in range(min(LOOKS, len(arrivals))):
            key, (tat, rate) = arrivals.popitem(last=False)
            if tat > now:
                arrivals[key] = tat, rate
                spent.append((tat, key))
        if len(arrivals) >= self._max_keys:
            del arrivals[min(spent)[1]]


def _end(entry: CacheEntry) -> float:
    return max(entry.renewing, entry.rescuing)


def _size(entry: CacheEntry) -> int:
    headers = sum(len(name) + len(value) for name, value in entry.headers)
    return len(entry.body) + headers + ENTRY_OVERHEAD
