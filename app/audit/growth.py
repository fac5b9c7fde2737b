"""The newest checkpoints of the logs, and proofs that a log has only grown since an older one."""

import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cachetools import LRUCache

from app.audit.checkpoint import NoteError, VerifierKey, claimed
from app.audit.merkle import consistency_proof, node_hash
from app.audit.place import Place, log_file
from app.audit.tree import LogTree
from app.stores.base import BUNDLE, Floor, StoreError
from app.stores.sqlite import SqliteAuditStore

_KEPT_LEVEL = BUNDLE.bit_length() + 3
"""From this level on subtrees are kept: they never change, and computing one takes the longer the higher it is."""
_KEPT = 65_536


class OutOfReach(Exception):
    """No proof leads from a tree of the size asked for to the newest, of `size` leaves.

    Every tree of `first` or more leaves can be proven, and below that those of multiples of BUNDLE. None where the log
    has never been as large as asked for.
    """

    def __init__(self, size: int, first: int | None = None) -> None:
        super().__init__(f"the log has {size} records")
        self.size = size
        self.first = first


@dataclass(frozen=True, slots=True)
class Growth:
    """The tree that `note` signs begins with the one of `old` leaves (RFC 6962, section 2.1.2)."""

    old: int
    path: Sequence[bytes]
    note: str


class Heads:
    """What the logs of a directory have signed. Blocking, for any thread; may raise `StoreError`."""

    def __init__(self, directory: Path, patience: float) -> None:
        self._directory = directory
        self._patience = patience
        self._kept: LRUCache[tuple[str, int, int], bytes] = LRUCache(_KEPT)
        self._lock = threading.Lock()

    def newest(self, log: str) -> str:
        """The newest checkpoint of a log."""
        with closing(self._opened(log)) as store:
            return _head(log, store)

    def verifiers(self, log: str) -> Sequence[VerifierKey]:
        """The keys that a log's checkpoints are verified with, the newest last."""
        return Place(self._directory, log, "").verifiers()

    def growth(self, log: str, old: int) -> Growth:
        """The newest checkpoint, and the proof from the tree of `old` leaves to it; raises `OutOfReach`."""
        with closing(self._opened(log)) as store, store.snapshot():
            note = _head(log, store)
            size = _size(log, note)
            if old > size:
                raise OutOfReach(size)
            first = _whole_from(store.floor())
            if old < first and old % BUNDLE:
                raise OutOfReach(size, first)
            subtrees = _Subtrees(log, LogTree(store), self._kept, self._lock)
            return Growth(old, consistency_proof(old, size, subtrees), note)

    def _opened(self, log: str) -> SqliteAuditStore:
        return SqliteAuditStore(log_file(self._directory, log), readonly=True, patience=self._patience)


@dataclass(frozen=True, slots=True)
class _Subtrees:
    """Hashes of a log's perfect subtrees, the large ones computed once."""

    log: str
    tree: LogTree
    kept: LRUCache[tuple[str, int, int], bytes]
    lock: threading.Lock

    def __call__(self, level: int, index: int) -> bytes:
        if level < _KEPT_LEVEL:
            return self.tree.subtree(level, index)
        place = (self.log, level, index)
        with self.lock:
            found: bytes | None = self.kept.get(place)
        if found is None:
            found = node_hash(self(level - 1, index * 2), self(level - 1, index * 2 + 1))
            with self.lock:
                self.kept[place] = found
        return found


def _whole_from(floor: Floor | None) -> int:
    """The size from which on every hash is there: where the bundle begins in which retention has stopped."""
    return floor.seq // BUNDLE * BUNDLE if floor else 0


def _head(log: str, store: SqliteAuditStore) -> str:
    note = store.head()
    if note is None:
        raise StoreError(f"audit log {log}: no checkpoint yet")
    return note


def _size(log: str, note: str) -> int:
    try:
        return claimed(note).size
    except NoteError as error:
        raise StoreError(f"audit log {log}: its checkpoint: {error}") from error
