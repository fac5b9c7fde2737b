"""An opened log: numbers, seals and hashes what is appended, signs checkpoints, and forgets what it must.

Used by one thread. Every method may raise `StoreError`; what failed may still have landed.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import orjson

from app.audit import checkpoint, record, seal
from app.audit.checkpoint import Checkpoint, NoteError, VerifierKey
from app.audit.keys import KeyStore
from app.audit.merkle import leaf_hash
from app.audit.place import Place
from app.audit.record import Record
from app.audit.tree import EMPTY, Edge, Gap, LogTree
from app.config import RESERVED_LOG
from app.stores.base import BUNDLE, AuditEntry, AuditStore, Change, Erase, Floor, Hold, Release, StoredRow, StoreError
from app.stores.subject_keys import DamagedKey, SubjectKeys

_EMPTY = Edge(EMPTY, EMPTY)
_NAMELESS = dict.fromkeys(seal.PERSONAL)


class Held(Exception):
    """Legal holds keep these records; `holds` are their ids."""

    def __init__(self, holds: Sequence[str]) -> None:
        super().__init__(f"kept by legal hold {', '.join(holds)}")
        self.holds = tuple(holds)


class Ledger:
    """One log, open for writing. `expected` is its tree as this process last left it, of which nothing may be gone."""

    def __init__(self, place: Place, store: AuditStore, keys: KeyStore, expected: Edge = _EMPTY) -> None:
        self._place = place
        self._store = store
        if place.verifiers() and not keys.has_signing_key(place.log):
            raise StoreError(f"audit log {place.file}: its signing key is missing; restore it from a backup")
        self._signer = keys.signing_key(place.log)
        self._name = VerifierKey(place.origin, self._signer.public_key().public_bytes_raw())
        place.publish(self._name)
        try:
            self.tree = self._checked(expected)
        except Gap as error:
            raise StoreError(f"audit log {place.file}: {error}") from error
        self._subjects = _subjects(keys, place.log)
        self._scrub_due = True  # a process that died may have left something to overwrite
        try:
            self.pending = self._open_decisions()
        except BaseException:
            self.close()
            raise

    @property
    def seq(self) -> int:
        """The number of the newest record."""
        return self.tree.size

    def know(self, records: Iterable[Record]) -> None:
        """Have a key for every subject in here: the missing ones are made in one durable commit."""
        subjects = {each["subject"] for each in records if each["subject"] is not None and not self._forgotten(each)}
        if subjects and self._subjects:
            with suppress(DamagedKey):  # its own record is refused, the others' are not
                self._subjects.obtain(subjects)

    def entry(self, plain: Record, seq: int) -> AuditEntry:
        """The record as the `seq`-th, its personal fields sealed; raises TypeError where it has no canonical form."""
        plain = stored = record.numbered(plain, self._place.log, seq)
        if plain["subject"] is not None:
            if self._forgotten(plain):
                plain.update(_NAMELESS)
            else:
                key = self._key_of(plain["subject"])
                stored = seal.sealed(plain, key, os.urandom(seal.NONCE_SIZE), self._place.log)
        canonical = record.canonical(stored)
        return AuditEntry(seq, plain, canonical, leaf_hash(canonical))

    def commit(self, entries: Sequence[AuditEntry], change: Change | None = None) -> None:
        """Make the next entries durable in one commit, with a change."""
        tree, bundles = self.tree.appended(entry.leaf for entry in entries)
        self._store.append(entries, bundles, change)
        self.tree = tree
        for entry in entries:
            _follow(self.pending, entry.record)

    def checkpoint(self) -> str:
        """The newest checkpoint, signed now where records have come since the last."""
        head = self._store.head()
        if head and self._head_size(head) == self.seq:
            return head
        note = self._sign(self._place.origin, self.seq, self.tree.root())
        self._store.set_head(note, {decision: plain["seq"] for decision, plain in self.pending.items()})
        return note

    def erase(self, event: Record, subject: str) -> int:
        """Destroy a subject's key and begin to forget their pseudonym; returns how many records there were.

        The erasure's record comes with it, once: what is left to do then, `forget` does. Done again after a crash
        before that, it finishes what was begun. Raises `Held`.
        """
        if holds := self._store.held(subject):
            raise Held(holds)
        found = self._store.count(subject)
        destroyed = self._subjects.destroy([subject]) if self._subjects else 0
        if not found and not destroyed:
            return 0
        for decision in self.pending.values():
            if decision["subject"] == subject:
                decision.update(_NAMELESS, erased=True)
        self._record({**event, "detail": {**event["detail"], "records": found}}, Erase(subject))
        self._scrub_due = True
        return found

    def forget(self) -> bool:
        """Forget the pseudonyms of the erased in some more records; False once that is done, in the side files too."""
        if self._store.forget():
            self._scrub_due = True
            return True
        self._scrub()
        return False

    def hold(self, event: Record, hold: Hold) -> None:
        """Place a legal hold."""
        self._record(event, hold)

    def release(self, event: Record, hold_id: str) -> bool:
        """End a legal hold; False where there is none of that id."""
        if hold_id not in {hold.id for hold in self._store.holds()}:
            return False
        self._record(event, Release(hold_id))
        return True

    def expire(self, event: Record, before: str, limit: int) -> int:
        """Delete up to `limit` of the oldest records, all older than `before`, under a signed floor; returns how many.

        Their hashes stay in the tree: bundles by their roots, the rest by their leaves.
        """
        self.checkpoint()  # so that a checkpoint never lies below the floor
        floor = self._store.expirable(before, limit)
        old = self._store.floor()
        gone = floor - (old.seq if old else 0)
        if gone <= 0:
            return 0
        tree = LogTree(self._store).edge(floor)
        note = self._sign(self._place.floor_origin, floor, tree.root())
        leaves = self._store.leaves(floor // BUNDLE * BUNDLE + 1, floor)
        if self._subjects:  # first, as in `erase`: a key that outlived its records would be found by nobody
            self._subjects.destroy(self._store.last_of(floor))
        detail = {**event["detail"], "records": gone, "floor": floor}
        self._record({**event, "detail": detail}, Floor(floor, note, tuple(leaves)))
        self._scrub_due = True
        return gone

    def close(self) -> None:
        """Let go of the files."""
        self._store.close()
        if self._subjects:
            self._subjects.close()

    def _scrub(self) -> None:
        """Overwrite in the side files what is erased or deleted; again later while a reader is in the way."""
        if self._scrub_due:
            keys_too = self._subjects is None or self._subjects.scrub()
            self._scrub_due = not (self._store.scrub() and keys_too)

    def _forgotten(self, plain: Record) -> bool:
        """Whether the subject of a completion has been erased since its decision."""
        decision = self.pending.get(plain.get("decision_id", ""))
        return decision is not None and "erased" in decision

    def _open_decisions(self) -> dict[str, Record]:
        """Those that were open at the newest checkpoint, and what has become of them and of others since."""
        found = {each["id"]: each for each in map(self._opened, self._store.open_decisions())}
        head = self._store.head()
        for row in self._store.rows(self._head_size(head) + 1 if head else 1, self.seq):
            _follow(found, self._opened(row))
        return found

    def _record(self, event: Record, change: Change) -> None:
        self.know([event])
        self.commit([self.entry(event, self.seq + 1)], change)

    def _sign(self, origin: str, size: int, root: bytes) -> str:
        text = Checkpoint(origin, size, root, record.timestamp(datetime.now(UTC))).text()
        return checkpoint.sign(text, self._place.origin, self._signer)

    def _key_of(self, subject: str) -> bytes:
        if self._subjects is None:
            raise StoreError(f"audit log {self._place.file}: takes no subject")
        return self._subjects.obtain([subject])[subject]

    def _opened(self, row: StoredRow) -> Record:
        stored: Record = orjson.loads(row.canonical)
        subject = row.columns["subject"]
        if stored["personal"] is None:
            return stored
        # Another key than the record's is there since an erasure that broke off destroyed that one.
        with suppress(seal.SealError, DamagedKey):
            if subject and self._subjects and (key := self._subjects.get(subject)):
                return seal.opened(stored, key, self._place.log)
        return {**stored, "erased": True}

    def _head_size(self, head: str) -> int:
        return self._signed(head, self._place.origin).size

    def _signed(self, note: str, origin: str) -> Checkpoint:
        try:
            signed = Checkpoint.parse(checkpoint.opened(note, self._place.verifiers()))
        except NoteError as error:
            raise StoreError(f"audit log {self._place.file}: its checkpoint: {error}") from error
        if signed.origin != origin:
            raise StoreError(f"audit log {self._place.file}: its checkpoint is one of {signed.origin}, not {origin}")
        return signed

    def _checked(self, expected: Edge) -> Edge:
        """The tree of the file, which must hold what its checkpoint covers and what this process wrote."""
        tree = LogTree(self._store)
        size = self._store.last_seq()
        head = self._store.head()
        signed = [(expected.size, expected.root())]
        if head:
            newest = self._signed(head, self._place.origin)
            signed.append((newest.size, newest.root))
        for covered, root in signed:
            if covered > size:
                raise StoreError(f"audit log {self._place.file}: record {covered}, which was written, is missing")
            if tree.edge(covered).root() != root:
                raise StoreError(f"audit log {self._place.file}: records up to {covered} are not what was written")
        for row in self._store.rows(signed[-1][0] // BUNDLE * BUNDLE + 1, size):
            if leaf_hash(row.canonical) != row.leaf:
                raise StoreError(f"audit log {self._place.file}: record {row.seq} is not what was written")
        return tree.edge(size)


def _follow(pending: dict[str, Record], plain: Record) -> None:
    """Bring the open decisions up to a record."""
    if plain["kind"] == "decision":
        pending[plain["id"]] = plain
    elif plain["kind"] == "completion":
        pending.pop(plain["decision_id"], None)


def _subjects(keys: KeyStore, log: str) -> SubjectKeys | None:
    if log == RESERVED_LOG:
        return None
    keys.pseudonym_key(log)  # made before the subjects' keys, so that these tell when it has been lost
    return keys.subject_keys(log)
