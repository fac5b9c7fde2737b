"""Answers and limits in this process's memory, bounded in entries and bytes; gone when it ends."""

from typing import Final

from cachetools import LRUCache, TLRUCache

from app.config import CacheSettings, Rate
from app.policy import rate as gcra
from app.stores.base import CacheStats
from app.types import CacheEntry

ENTRY_OVERHEAD: Final = 1024
"""Bytes that an entry takes besides what it holds: key, record, links (measured about 900)."""
MAX_KEYS: Final = 100_000
"""Keys whose use is remembered; the one longest unused is forgotten first, as if it had recovered."""


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
    """`LimitStore` of one process."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._arrivals: LRUCache[str, tuple[float, Rate]] = LRUCache(max_keys)
        """Each key's state, and the rate that it counts by."""
        self._running: dict[str, int] = {}

    def charge(self, key: str, rate: Rate, cost: int, now: float) -> gcra.Allowance:
        tat, counted = self._arrivals.get(key, (gcra.FULL, rate))
        if counted != rate:
            tat = gcra.carried(tat, now, counted, rate)
        allowance = gcra.check(tat, now, rate, cost)
        self._arrivals[key] = allowance.tat, rate
        return allowance

    def refund(self, key: str, cost: int) -> None:
        found = self._arrivals.get(key)
        if found is not None:
            tat, rate = found
            self._arrivals[key] = gcra.refund(tat, rate, cost), rate

    def acquire(self, key: str, limit: int) -> bool:
        running = self._running.get(key, 0)
        if running >= limit:
            return False
        self._running[key] = running + 1
        return True

    def release(self, key: str) -> None:
        running = self._running.pop(key) - 1
        if running:
            self._running[key] = running


def _end(_key: bytes, entry: CacheEntry, _now: float) -> float:
    return max(entry.renewing, entry.rescuing)


def _size(entry: CacheEntry) -> int:
    headers = sum(len(name) + len(value) for name, value in entry.headers)
    return len(entry.body) + headers + ENTRY_OVERHEAD
