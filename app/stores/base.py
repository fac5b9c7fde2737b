"""The Protocols of the stores: what a cache, a limiter and an audit log must do, whoever keeps their data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.config import Rate
from app.policy.rate import Allowance
from app.types import CacheEntry


class StoreError(Exception):
    """A store could not do what it was asked; the message is one line and names the file or server."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One numbered audit record and its canonical bytes."""

    seq: int
    record: Mapping[str, Any]
    canonical: bytes


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """One page of one log. Times are RFC 3339 UTC with microseconds; `since` is inclusive, `until` is not.

    `equal` names columns and their values; `subjects`, where given, are pseudonyms of which one must match. Only
    records with `seq <= bound` that lie behind `after`, a pair (time, seq), count.
    """

    bound: int
    limit: int
    since: str | None = None
    until: str | None = None
    equal: Mapping[str, str] = field(default_factory=dict)
    subjects: frozenset[str] | None = None
    after: tuple[str, int] | None = None


class AuditStore(Protocol):
    """One append-only log. Blocking, and used by one thread at a time; every method may raise `StoreError`."""

    def append(self, entries: Sequence[AuditEntry]) -> None:
        """Make all entries durable in one commit. A failure may still have landed: look before numbering anew."""

    def last_seq(self) -> int:
        """The highest `seq` ever given out, 0 for an empty log; deletion does not lower it."""

    def get(self, seq: int) -> bytes | None:
        """The canonical bytes of a record, or None where the log holds none of that number."""

    def open_decisions(self) -> list[dict[str, Any]]:
        """The decisions without a completion, oldest first."""

    def page(self, query: AuditQuery) -> list[tuple[str, int, bytes]]:
        """Matching records as (time, seq, canonical bytes), ascending by time, then seq."""

    def expire(self, before: str, limit: int) -> int:
        """Delete up to `limit` of the oldest records, and return how many went.

        Only an unbroken run from the log's beginning goes, of records made before the time given; it ends at the first
        decision whose completion is missing or has to stay.
        """

    def close(self) -> None:
        """Let go of the file; idempotent and silent."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Entries and bytes held now, and how many entries had to make room for others since the start."""

    entries: int
    bytes: int
    evictions: int


class CacheStore(Protocol):
    """Answers by key (`policy.cache_key`), each for the time the store was built with. `now`: monotonic seconds."""

    def get(self, key: bytes, now: float) -> CacheEntry | None:
        """The entry, unless it is missing or has outlived its time."""

    def put(self, key: bytes, entry: CacheEntry, now: float) -> None:
        """Keep an entry, in place of an older one; one that is larger than the whole store is not kept."""

    def stats(self, now: float) -> CacheStats:
        """What the cache holds."""


class LimitStore(Protocol):
    """How much each key has used. A key names what is counted and for whom, such as `requests:demo`."""

    def charge(self, key: str, rate: Rate, cost: int, now: float) -> Allowance:
        """Take `cost` units where they fit, else none. `now`: monotonic seconds.

        Where the rate is not that of the last time, what was used stays used, in units.
        """

    def refund(self, key: str, cost: int) -> None:
        """Give back units that were taken and not used; a negative cost takes what was used beyond them."""

    def acquire(self, key: str, limit: int) -> bool:
        """Whether one more of at most `limit` at the same time may run; where it may, `release` must follow."""

    def release(self, key: str) -> None:
        """One of those that run has ended."""
