"""Verifies one audit log from its file, its public keys and the checkpoints of it that others have kept."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.audit import checkpoint
from app.audit.check.findings import MAX_FINDINGS, Finding, LogReport, Result
from app.audit.check.saved import Saved
from app.audit.check.scan import Expected, Progress, Reach, Scan, are_hashes, missing, other_than, record_id
from app.audit.checkpoint import Checkpoint, NoteError, VerifierKey
from app.audit.place import Place
from app.audit.tree import EMPTY, Edge, Gap, LogTree
from app.stores.base import BUNDLE, Floor, Hold, StoreError
from app.stores.sqlite import SqliteAuditStore

_LOWEST: Final = -(1 << 63)
_OWN: Final = "the log's newest checkpoint"


@dataclass(frozen=True, slots=True)
class LogFiles:
    """One log as it lies in a directory; `label` is its file below the directory verified, without the ending."""

    place: Place
    label: str
    keys: tuple[VerifierKey, ...]
    fault: Finding | None
    """What is wrong with its keys; there are none then."""

    @classmethod
    def found(cls, directory: Path, log: str, label: str) -> "LogFiles":
        """The log in a directory, whose public keys say in which place it stands."""
        unknown = Place(directory, log, "")
        try:
            keys = unknown.verifiers()
        except StoreError as error:
            return cls(unknown, label, (), Finding(Result.INCOMPLETE, str(error)))
        if not keys:
            missing = f"{unknown.public.name} is missing: nothing that is signed can be verified"
            return cls(unknown, label, (), Finding(Result.INCOMPLETE, missing))
        place = Place(directory, log, keys[-1].name.removeprefix("tidegate/").removesuffix(f"/{log}"))
        if others := {key.name for key in keys} - {place.origin}:
            foreign = f"{place.public.name} holds a key of {min(others)}"
            return cls(unknown, label, (), Finding(Result.TAMPERED, foreign))
        return cls(place, label, tuple(keys), None)

    def opened(self, note: object, origin: str) -> Checkpoint:
        """The checkpoint in a note that one of the log's keys has signed; raises NoteError for any other.

        Without keys it is taken unsigned: what contradicts it is wrong all the same, and the lack of keys is told.
        """
        if not isinstance(note, str):
            raise NoteError("it is no text")
        if not self.keys:
            return checkpoint.claimed(note)
        found = Checkpoint.parse(checkpoint.opened(note, self.keys))
        if found.origin != origin:
            raise NoteError(f"it is one of {found.origin}")
        return found


def verify_log(files: LogFiles, saved: Sequence[Saved], progress: Progress, *, live: bool) -> LogReport:
    """Verify one log in one read snapshot, and against saved checkpoints of it; `live` while its writer is at work."""
    return _Check(files, saved, live=live).report(progress)


class _Check:
    def __init__(self, files: LogFiles, saved: Sequence[Saved], *, live: bool) -> None:
        self._files = files
        self._live = live
        self._findings: list[Finding] = [files.fault] if files.fault else []
        self._untold = 0
        self._remarks: list[str] = []
        self._saved = list(self._admitted(saved))
        self._head: Checkpoint | None = None
        self._floor = 0
        self._last = 0
        self._scan: Scan | None = None

    def report(self, progress: Progress) -> LogReport:
        file = self._files.place.file
        try:
            with closing(SqliteAuditStore(file, readonly=True)) as store, store.snapshot():
                self._verify(store, progress)
        except StoreError as error:
            self._unreadable(error)
        scan = self._scan
        return LogReport(
            log=self._files.label,
            records=scan.records if scan else 0,
            first=self._floor + 1,
            last=self._last,
            checkpoint=self._head.size if self._head else None,
            open_decisions=len(scan.open_decisions) if scan else 0,
            findings=tuple(self._findings),
            untold=self._untold,
            remarks=tuple(self._remarks),
        )

    def _verify(self, store: SqliteAuditStore, progress: Progress) -> None:
        for each in store.foreign():  # it could change what is written, or what is read here
            self._found(Result.TAMPERED, f"{each} in {self._files.place.file.name} is not as a gateway lays it")
        end: StoreError | None = None
        try:
            floor = store.floor()
            head = store.head()
            try:
                self._last = store.last_seq()
            except StoreError as error:  # the page of the newest record is damaged: read up to there all the same
                end = error
        except (TypeError, ValueError) as error:
            raise StoreError(f"its tables hold other values than they should: {error}") from error
        tree = self._retained(store, floor)
        expected = [Expected(each.checkpoint.size, each.checkpoint.root, each.source) for each in self._saved]
        if head is not None and (signed := self._newest(head)):
            self._head = signed
            expected.append(Expected(signed.size, signed.root, _OWN))
        if end:
            self._last = max((each.size for each in expected), default=0)
        if tree is not None:
            self._compare_deleted(store, [each for each in expected if each.size <= self._floor])
        log, begin = self._files.place.log, self._floor + 1
        scan = self._scan = Scan(log, store, tree, begin=begin, expected=expected, found=self._found)
        scan.run(self._last, progress)
        if end:
            raise end
        self._compare_ends(store, expected)
        if not any(each.result is Result.TAMPERED for each in self._findings):
            self._compare_tables(store, scan)

    def _admitted(self, saved: Iterable[Saved]) -> Iterator[Saved]:
        """Those of the saved checkpoints that are signed; they say what the log has to hold."""
        for each in saved:
            try:
                self._files.opened(each.note, self._files.place.origin)
            except NoteError as error:
                self._found(Result.TAMPERED, f"{each.source} is not signed by a key of this log: {error}")
            else:
                yield each

    def _newest(self, note: object) -> Checkpoint | None:
        try:
            return self._files.opened(note, self._files.place.origin)
        except NoteError as error:
            self._found(Result.TAMPERED, f"{_OWN} is altered: {error}")
            return None

    def _retained(self, store: SqliteAuditStore, floor: Floor | None) -> Edge | None:
        """The tree of the records that retention has deleted, as it was signed; None where that cannot be told."""
        if floor is not None and type(floor.seq) is int and floor.seq > 0:
            self._floor = floor.seq
            self._remarks.append(f"retention has deleted the records up to {floor.seq}")
        for row in store.rows(_LOWEST, self._floor):
            self._found(Result.TAMPERED, "lies where the log has no records", row.seq)
            break
        if floor is None:
            return Edge(EMPTY, EMPTY)
        complete, rest = divmod(self._floor, BUNDLE)
        roots = store.bundle_roots(0, complete)
        try:
            signed = self._files.opened(floor.note, self._files.place.floor_origin)
        except NoteError as error:
            self._found(Result.TAMPERED, f"the floor under which records were deleted is altered: {error}")
            return None
        if not (are_hashes(roots, complete) and are_hashes(floor.leaves, rest)):
            self._found(Result.TAMPERED, "the hashes that deleted records leave behind are not all there")
            return None
        tree = Edge(EMPTY.appended(roots), EMPTY.appended(floor.leaves))
        if (signed.size, signed.root) != (floor.seq, tree.root()):
            self._found(Result.TAMPERED, "the hashes that deleted records leave behind are not those that were signed")
            return None
        return tree

    def _compare_deleted(self, store: SqliteAuditStore, expected: Iterable[Expected]) -> None:
        """Checkpoints of nothing but deleted records: their roots may still follow from the hashes that are left."""
        for each in expected:
            try:
                root = LogTree(store).edge(each.size).root()
            except Gap:
                self._remarks.append(f"{each.source} covers {each.size} records, too few to recompute since then")
                continue
            if root != each.root:
                self._found(Result.TAMPERED, other_than(each.size, f"that {each.source} covers"), 1)

    def _compare_ends(self, store: SqliteAuditStore, expected: Sequence[Expected]) -> None:
        """Whether the log holds all that is signed, and everything that it holds is."""
        last, head = self._last, self._head.size if self._head else 0
        most = max(expected, key=lambda one: one.size, default=None)
        if most and most.size > last:
            self._found(Result.TAMPERED, f"{missing(last + 1, most.size)}, though {most.source} covers it", last + 1)
        if store.bundle_roots(last // BUNDLE, 1):
            self._found(Result.TAMPERED, "is missing: the root of its bundle is there", last + 1)
        for one in self._saved:
            if one.checkpoint.size > head:
                own = f"{_OWN} covers {head} records" if self._head else "the log has no checkpoint"
                what = f"{own}, though {one.source} covers {one.checkpoint.size}: checkpoints have been removed"
                self._found(Result.TAMPERED, what)
        covered = max([self._floor, *(each.size for each in expected)])
        if covered < last and self._live:
            self._remarks.append(f"the records after {covered} are newer than the newest checkpoint")
        elif covered < last:
            self._found(Result.INCOMPLETE, f"is not covered by a checkpoint yet, nor any up to {last}", covered + 1)

    def _compare_tables(self, store: SqliteAuditStore, scan: Scan) -> None:
        """Whether what the log keeps of its legal holds and open decisions is what its records, all sound, say."""
        try:
            holds, kept = store.holds(), store.open_decisions()
        except StoreError as error:
            self._found(Result.INCOMPLETE, f"the legal holds in force and the open decisions cannot be read: {error}")
            return
        self._compare_holds(scan, {hold.id: hold for hold in holds})
        pending = {row.seq: row for row in kept}
        covered = scan.open_at.get(self._head.size, {}) if self._head else {}
        told = {seq: identity for identity, seq in covered.items()}
        for seq in sorted(told.keys() ^ pending.keys()):
            if seq in told:
                what = "has no completion, and is not among the decisions that wait for one"
                self._found(Result.TAMPERED, what, seq, told[seq])
            else:
                what = "is among the decisions that wait for a completion, and waits for none"
                self._found(Result.TAMPERED, what, seq, record_id(pending[seq].canonical))

    def _compare_holds(self, scan: Scan, holds: Mapping[str, Hold]) -> None:
        for identity, event in scan.holds.items():
            hold = holds.get(identity)
            if event.reach is None and hold:
                what = f"releases legal hold {identity}, which is still in force"
            elif event.reach is not None and hold is None:
                what = f"places legal hold {identity}, which no record releases, and which is not in force"
            elif event.reach is not None and hold and _reach(hold) != event.reach:
                what = f"places legal hold {identity}, which has another tenant, subject or time in force"
            else:
                continue
            self._found(Result.TAMPERED, what, event.seq, event.id)
        if self._floor == 0:  # elsewhere the record that placed it may have been deleted since
            for identity in [each for each in holds if each not in scan.holds]:
                self._found(Result.TAMPERED, f"legal hold {identity} is in force, and no record places it")

    def _unreadable(self, error: StoreError) -> None:
        seq = self._scan.next if self._scan else self._floor + 1
        why = error if self._files.place.file.exists() else "the file is gone"
        for each in self._saved:
            if each.checkpoint.size >= seq:
                covers = f"though {each.source} covers {each.checkpoint.size} records"
                self._found(Result.TAMPERED, f"cannot be read, nor any after it, {covers}: {why}", seq)
                return
        self._found(Result.INCOMPLETE, f"cannot be read, nor any after it: {why}", seq)

    def _found(self, result: Result, what: str, seq: int | None = None, record_id: Any = None) -> None:
        if len(self._findings) < MAX_FINDINGS:
            self._findings.append(Finding(result, what, seq, record_id))
        else:
            self._untold += 1


def _reach(hold: Hold) -> Reach:
    return hold.tenant, hold.subject, hold.since, hold.until
