"""Answers and limits in this process's memory, bounded in entries and bytes; gone when it ends."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from cachetools import TLRUCache

from app.config import CacheSettings, Rate
from app.policy import rate as gcra
from app.policy.quota import Claim, Limit, Place
from app.stores.base import CacheStats
from app.types import CacheEntry

ENTRY_OVERHEAD: Final = 1024
"""Bytes that an entry takes besides what it holds: key, record, links (measured about 900)."""
MAX_KEYS: Final = 100_000
"""Keys of limits whose use is remembered."""
LOOKS: Final = 8
"""Keys that are looked at when another comes. More than one, so that those that have recovered are soon gone."""


class _Entries(TLRUCache[bytes, CacheEntry]):
    """cachetools' LRU with expiry, on the caller's clock, bounded in bytes by its size and in entries by `put`."""

    def __init__(self, settings: CacheSettings) -> None:
        self.now: float = 0.0
        super().__init__(settings.max_bytes, _end, timer=lambda: self.now, getsizeof=_size)
        self.evictions = 0

    def popitem(self) -> tuple[bytes, CacheEntry]:
        item = super().popitem()
        self.evictions += 1
        return item


class MemoryCache:
    """`CacheStore` of one process: least recently used out first, each for as long as it may be given out at all."""

    def __init__(self, settings: CacheSettings) -> None:
        self._max_entries = settings.max_entries
        self._max_bytes = settings.max_bytes
        self._entries = _Entries(settings)

    def get(self, key: bytes, now: float) -> CacheEntry | None:
        self._entries.now = now
        return self._entries.get(key)

    def put(self, key: bytes, entry: CacheEntry, now: float) -> None:
        self._entries.now = now
        if _size(entry) > self._max_bytes:
            self._entries.pop(key, None)
            return
        self._entries[key] = entry
        while len(self._entries) > self._max_entries:
            self._entries.popitem()

    def stats(self, now: float) -> CacheStats:
        self._entries.now = now
        return CacheStats(len(self._entries), int(self._entries.currsize), self._entries.evictions)


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


def _end(_key: bytes, entry: CacheEntry, _now: float) -> float:
    return max(entry.renewing, entry.rescuing)


def _size(entry: CacheEntry) -> int:
    headers = sum(len(name) + len(value) for name, value in entry.headers)
    return len(entry.body) + headers + ENTRY_OVERHEAD
