"""The Protocols of the stores: what a cache, a limiter and an audit log must do, whoever keeps their data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from app.policy.quota import Claim, Limit, Place
from app.policy.rate import Allowance
from app.types import CacheEntry


class StoreError(Exception):
    """A store could not do what it was asked; the message is one line and names the file or server."""


BUNDLE: Final = 256
"""Records whose subtree root an audit log keeps: a power of two, so that it is a node of the tree (RFC 6962)."""


class AuditEntry(NamedTuple):
    """One numbered audit record: its fields, which fill the index; its stored bytes; their RFC 6962 leaf hash."""

    seq: int
    record: dict[str, Any]
    canonical: bytes
    leaf: bytes


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A record as it lies in the log; `columns` is the index beside it, None where erased or not of this record."""

    seq: int
    columns: Mapping[str, str | None]
    canonical: bytes
    leaf: bytes


@dataclass(frozen=True, slots=True)
class Floor:
    """Retention has deleted the records with `seq` up to this one.

    `note` is signed over the tree's root at that size; `leaves` are the leaf hashes of those deleted records whose
    bundle was not complete, from seq // BUNDLE * BUNDLE + 1 on.
    """

    seq: int
    note: str
    leaves: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """A legal hold: what it matches is neither erased nor deleted. None leaves a field open; times as in `AuditQuery`.

    `subject` is a pseudonym.
    """

    id: str
    placed: str
    note: str
    tenant: str | None = None
    subject: str | None = None
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Erase:
    """Forget whose records those of this pseudonym are: of some at once, of the others by `AuditStore.forget`."""

    subject: str


@dataclass(frozen=True, slots=True)
class Release:
    """End a legal hold."""

    hold: str


Change = Erase | Hold | Release | Floor
"""What may happen to a log besides growing, in one commit with the records that tell of it."""


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """One page of one log. Times are RFC 3339 UTC with microseconds; `since` is inclusive, `until` is not.

    `equal` names columns and their values; `subjects`, where given, are pseudonyms of which one must match. Only
    records with `seq <= bound` that lie behind `after`, a pair (time, seq), and not behind `upto`, another, count.
    """

    bound: int
    limit: int
    since: str | None = None
    until: str | None = None
    equal: Mapping[str, str] = field(default_factory=dict)
    subjects: frozenset[str] | None = None
    after: tuple[str, int] | None = None
    upto: tuple[str, int] | None = None


class AuditStore(Protocol):
    """One append-only log. Blocking, and used by one thread at a time; every method may raise `StoreError`."""

    def append(
        self, entries: Sequence[AuditEntry], bundles: Sequence[tuple[int, bytes]], change: Change | None = None
    ) -> None:
        """Make all entries durable in one commit, with the roots of the bundles that they complete, and a change.

        A failure may still have landed: look before numbering anew.
        """

    def last_seq(self) -> int:
        """The highest `seq` ever given out, 0 for an empty log; deletion does not lower it."""

    def get(self, seq: int) -> bytes | None:
        """The stored bytes of a record, or None where the log holds none of that number."""

    def find(self, time: str, record_id: str) -> StoredRow | None:
        """The record of that id, made at that time (`record.time_of` reads it from the id)."""

    def rows(self, first: int, last: int) -> Iterator[StoredRow]:
        """The records numbered `first` to `last` that the log holds, in order."""

    def open_decisions(self) -> list[StoredRow]:
        """The decisions that had no completion at the newest checkpoint, oldest first."""

    def page(self, query: AuditQuery) -> list[tuple[str, int, bytes, str | None]]:
        """Matching records as (time, seq, stored bytes, pseudonym), ascending by time, then seq."""

    def stretch(self, query: AuditQuery, count: int) -> tuple[str, int] | None:
        """Up to where `page` would have looked at so many records, as (time, seq); None for fewer up to the end.

        None as well where an index leads to the matching ones alone.
        """

    def head(self) -> str | None:
        """The newest checkpoint, a signed note."""

    def set_head(self, note: str, pending: Mapping[str, int]) -> None:
        """Replace the newest checkpoint, durably, with the decisions that are open at it: their ids and numbers."""

    def floor(self) -> Floor | None:
        """Where the log begins, unless at its first record."""

    def bundle_roots(self, first: int, count: int) -> list[bytes]:
        """The subtree roots of complete bundles; bundle 0 holds the records 1 to BUNDLE."""

    def leaves(self, first: int, last: int) -> list[bytes]:
        """Leaf hashes of the records numbered `first` to `last`; fewer where the log no longer has them."""

    def holds(self) -> list[Hold]:
        """The legal holds in force."""

    def held(self, subject: str) -> list[str]:
        """Ids of the holds that keep this pseudonym from being erased."""

    def count(self, subject: str) -> int:
        """Records of this pseudonym, without those that are being forgotten."""

    def forget(self) -> bool:
        """Go on with what `Erase` has begun, for a bounded number of records; False where there is nothing to do."""

    def last_of(self, floor: int) -> list[str]:
        """The pseudonyms that only records numbered up to `floor` have."""

    def expirable(self, before: str, limit: int) -> int:
        """Up to which number the oldest records may be deleted now, at most `limit` of them; 0 for none.

        They form an unbroken run from the log's beginning, of records made before the time given, and end before the
        first that a hold matches and the first decision whose completion is missing or has to stay.
        """

    def scrub(self) -> bool:
        """Remove what has been erased or deleted from the side files as well; False where a reader is in the way."""

    def close(self) -> None:
        """Let go of the file; idempotent and silent."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Entries and bytes held now, and how many entries had to make room for others since the start."""

    entries: int
    bytes: int
    evictions: int


class CacheStore(Protocol):
    """Answers by key (`policy.cache_key`), each as long as it may be given out. `now`: monotonic seconds."""

    def get(self, key: bytes, now: float) -> CacheEntry | None:
        """The entry, unless it is missing or has outlived its time."""

    def put(self, key: bytes, entry: CacheEntry, now: float) -> None:
        """Keep an entry, in place of an older one; one that is larger than the whole store is not kept."""

    def stats(self, now: float) -> CacheStats:
        """What the cache holds."""


class LimitStore(Protocol):
    """How much of each limit is used, by the limit's key. `now`: monotonic seconds."""

    def charge(self, claims: Sequence[Claim], now: float) -> Sequence[Allowance]:
        """Take all of the claims where each of them fits, else nothing; how each limit stands then, in their order.

        Where the rate of a key is not that of the last time, what was used stays used, in units.
        """

    def settle(self, limit: Limit, charged: Allowance, unused: int, now: float) -> Allowance:
        """Give back units charged and not used (`policy.rate.settled`); negative: take what was used beyond them."""

    def acquire(self, places: Sequence[Place]) -> Place | None:
        """Take a place under each bound, or none and say which of them is reached; else `release` must follow."""

    def release(self, places: Sequence[Place]) -> None:
        """One of those that run has ended."""
