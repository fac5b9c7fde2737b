"""Reads a log's records in order and holds each against its place, its index, its hash and the tree that is signed.

It streams: nothing grows with the log but the decisions that have no completion yet, and the legal holds.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import orjson

from app.audit.check.findings import Result
from app.audit.merkle import HASH_SIZE, leaf_hash
from app.audit.record import canonical
from app.audit.seal import PERSONAL
from app.audit.tree import EMPTY, Edge
from app.stores.base import BUNDLE, AuditStore, StoredRow, StoreError
from app.stores.paging import COLUMNS

Found = Callable[[Result, str, int | None, str | None], None]
"""Told of everything that is wrong: what it makes of the log, in words, with which record it begins, that one's id."""
Progress = Callable[[int, int], None]
"""Told, bundle by bundle, up to which record the log has been read, and with which it ends."""

_ID_LENGTH: Final = 64
_LASTING: Final = tuple(name for name in COLUMNS if name not in PERSONAL)
_all_of = itemgetter(*COLUMNS)
_lasting_of = itemgetter(*_LASTING)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a checkpoint says of the log: the root of its first `size` records. `source` names the checkpoint."""

    size: int
    root: bytes
    source: str


Reach = tuple[str | None, ...]
"""What a legal hold keeps: tenant, pseudonym, since and until."""


@dataclass(frozen=True, slots=True)
class HoldEvent:
    """The newest record of one legal hold, its number and id; `reach` is None where that has released it."""

    seq: int
    id: str
    reach: Reach | None


class Scan:
    """Reads one log once, from the record numbered `begin` on.

    `tree` is that of the records before it, which retention has deleted; None where it cannot be told.
    """

    def __init__(
        self,
        log: str,
        store: AuditStore,
        tree: Edge | None,
        *,
        begin: int,
        expected: Iterable[Expected],
        found: Found,
    ) -> None:
        self.records = 0
        self.next = begin
        """The number that the next record should have; where reading breaks off, the first that cannot be read."""
        self.open_decisions: dict[str, int] = {}
        """The decisions without a completion, by id, each with its number."""
        self.open_at: dict[int, dict[str, int]] = {}
        """Those that were open at the sizes that checkpoints cover."""
        self.holds: dict[str, HoldEvent] = {}
        """The legal holds that the records tell of, by id."""
        self._log = log
        self._store = store
        self._tree = tree
        self._found = found
        self._expected: dict[int, list[Expected]] = {}
        for each in expected:
            self._expected.setdefault(each.size, []).append(each)
        self._stops = sorted(size for size in self._expected if size >= begin)
        self._leaves: list[bytes] = []
        self._sound = True
        self._agreed = begin - 1

    def run(self, last: int, progress: Progress) -> None:
        """Read the records up to the number `last`; raises `StoreError` where they cannot be read."""
        end = self._end()
        for row in self._store.rows(self.next, last):
            if row.seq != self.next:
                self._skip_to(row.seq)
                end = self._end()
            self._take(row)
            if row.seq == end:
                self._close(end)
                progress(end, last)
                end = self._end()
        if self.next <= last:  # as where pages have changed places: each is sound, and the way to them is not
            self._found(Result.TAMPERED, missing(self.next, last), self.next, None)
        progress(last, last)

    def _end(self) -> int:
        """Where to look at the tree next: the end of a bundle, or the size of a checkpoint."""
        while self._stops and self._stops[0] < self.next:
            self._stops.pop(0)
        return min([_bundle_end(self.next), *self._stops[:1]])

    def _take(self, row: StoredRow) -> None:
        fields = _fields(row.canonical)
        if not _is_sound(row, self._log, fields) and (what := _fault(row, self._log, fields)):
            self._found(Result.TAMPERED, what, row.seq, _cut(fields.get("id")) or None)
            self._sound = False
        self._leaves.append(row.leaf)
        self.records += 1
        self.next = row.seq + 1
        match fields.get("kind"):
            case "decision":
                self.open_decisions[str(fields.get("id"))] = row.seq
            case "completion":
                self.open_decisions.pop(str(fields.get("decision_id")), None)
            case "hold":
                self._follow(row, fields)

    def _follow(self, row: StoredRow, fields: Mapping[str, Any]) -> None:
        """Note what the record of a legal hold says; the pseudonym, which it seals, stands beside it."""
        identity = _cut(fields.get("id"))
        match fields.get("detail"):
            case {"action": "placed", "hold": str(hold), "tenant": tenant, "from": since, "to": until}:
                self.holds[hold] = HoldEvent(row.seq, identity, (tenant, row.columns["subject"], since, until))
            case {"action": "released", "hold": str(hold)}:
                self.holds[hold] = HoldEvent(row.seq, identity, None)

    def _skip_to(self, seq: int) -> None:
        """Go on behind a gap; the kept roots stand in for the bundles that it has broken."""
        if seq < self.next:
            raise StoreError(f"record {seq} comes after record {self.next - 1}")
        self._found(Result.TAMPERED, missing(self.next, seq - 1), self.next, None)
        self._sound = False
        while self._tree and (end := _bundle_end(self.next)) < seq:
            self._close(end)
            self.next, self._sound = end + 1, False
        self.next = seq
        self._sound = (seq - 1) % BUNDLE == 0

    def _close(self, end: int) -> None:
        """Take the leaves up to `end` into the tree, and compare it with what is kept and signed of it."""
        kept = self._store.bundle_roots(end // BUNDLE - 1, 1) if end % BUNDLE == 0 else None
        if self._tree and self._sound:
            self._tree, bundles = self._tree.appended(self._leaves)
            if kept is not None and kept != [root for _, root in bundles]:
                what = other_than(end, "in its bundle") if kept else "the root of the bundle that it begins is missing"
                self._found(Result.TAMPERED, what, end - BUNDLE + 1, None)
            self._compare(end, self._tree.root())
        elif self._tree and kept is not None:
            self._tree = Edge(self._tree.bundles.appended(kept), EMPTY) if are_hashes(kept, 1) else None
        if end in self._expected:
            self.open_at[end] = dict(self.open_decisions)
        self._leaves = []
        self._sound = self._sound or end % BUNDLE == 0

    def _compare(self, size: int, root: bytes) -> None:
        for each in self._expected.get(size, ()):
            if each.root != root:
                self._found(Result.TAMPERED, other_than(size, f"that {each.source} covers"), self._agreed + 1, None)
                self._tree = None  # what is built on it would differ as well
                return
            self._agreed = size


def are_hashes(values: Any, count: int) -> bool:
    """Whether that is a list or tuple of so many hashes, as far as a file that anyone may have written holds such."""
    return len(values) == count and all(type(each) is bytes and len(each) == HASH_SIZE for each in values)


def _fields(stored: bytes) -> Mapping[str, Any]:
    """The record's fields, none where it is no JSON object."""
    try:
        found = orjson.loads(stored)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_sound(row: StoredRow, log: str, fields: Mapping[str, Any]) -> bool:
    """Whether a record is where and what it should be, found out fast; `_fault` looks closer where it is not."""
    try:
        columns = _all_of if fields["personal"] is None else _lasting_of
        return (
            leaf_hash(row.canonical) == row.leaf
            and fields["seq"] == row.seq
            and fields["log"] == log
            and columns(fields) == columns(row.columns)
            and canonical(fields) == row.canonical
        )
    except (KeyError, TypeError):
        return False


def _fault(row: StoredRow, log: str, fields: Mapping[str, Any]) -> str | None:
    """What is wrong with a record, the gravest first; None where nothing is."""
    try:
        if leaf_hash(row.canonical) != row.leaf:
            return "is not what its leaf hash was made of"
        if not fields or canonical(fields) != row.canonical:
            return "is not canonical JSON"
    except TypeError:
        return "is not canonical JSON"
    if (fields.get("log"), fields.get("seq")) != (log, row.seq):
        return f"says that it is record {_cut(fields.get('seq'))} of {_cut(fields.get('log'))}"
    names = COLUMNS if fields.get("personal") is None else _LASTING
    if other := [name for name in names if row.columns[name] != fields.get(name)]:
        return f"is found by another {', '.join(other)} than it has"
    return None


def record_id(stored: bytes) -> str:
    """The id that a record has."""
    return _cut(_fields(stored).get("id"))


def missing(first: int, last: int) -> str:
    return "is missing" if first == last else f"is missing, with all up to {last}"


def other_than(last: int, which: str) -> str:
    return f"it, or one up to {last}, is not the one {which}"


def _bundle_end(seq: int) -> int:
    """The last record of the bundle that holds this one."""
    return (seq + BUNDLE - 1) // BUNDLE * BUNDLE


def _cut(value: object) -> str:
    """What an altered record says, no longer than what a sound one would."""
    return "" if value is None else str(value)[:_ID_LENGTH]
