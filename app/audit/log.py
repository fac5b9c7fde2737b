"""One log's writer: a thread that commits what waits in groups, and trusts its file only as long as no write fails."""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from pathlib import Path

import structlog

from app.audit import record
from app.audit.intake import Intake, Waiting
from app.config import AuditSettings
from app.stores.base import AuditEntry, AuditStore, StoreError

_EXPIRE_EVERY = 3600.0
_EXPIRE_CHUNK = 1000
_BACK_OFF = (0.05, 0.1, 0.2, 0.4, 0.8)
_BACK_OFF_CAP = 1.0

OpenStore = Callable[[Path, bool], AuditStore]
"""Opens the store of a log; the flag says that its file must be there already."""
Observe = Callable[[str, int, float], None]
"""Told of each commit: log, records, seconds. Called on the event loop."""

log = structlog.get_logger("tidegate.audit")


def _pauses() -> Iterator[float]:
    """Seconds to wait between attempts to open a log again."""
    return chain(_BACK_OFF, repeat(_BACK_OFF_CAP))


class LogWriter:
    """Owns one log. `start`, `offer`, `leave` and `close` are its callers' side, the rest runs in its own thread.

    Each decision gets exactly one completion: whatever keeps the true one from being written (a crash, a failed
    write, a full queue, an appender that gave up) makes the writer add one with outcome `lost`, and a completion whose
    decision is not open is refused.
    """

    def __init__(self, name: str, path: Path, settings: AuditSettings, open_store: OpenStore, observe: Observe) -> None:
        self.name = name
        self._path = path
        self._settings = settings
        self._open_store = open_store
        self._observe = observe
        self._intake = Intake()
        self.offer = self._intake.offer
        self.leave = self._intake.leave
        self._store: AuditStore | None = None
        self._pending: dict[str, record.Record] = {}
        self._seq = 0
        self._tail: AuditEntry | None = None
        self._expire_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"audit-{name}", daemon=True)

    @property
    def trusted(self) -> bool:
        return self._intake.trusted

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the log, close what a crash left open, start the thread. Blocks; raises `StoreError`."""
        self._loop = loop
        self._open()
        self._thread.start()

    def close(self, patience: float) -> bool:
        """Write what waits, let go of the file. Blocks; False if the thread hangs in a write after `patience` s."""
        self._intake.close()
        if self._thread.ident is not None:
            self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pauses = _pauses()
        while not self._intake.finished:
            try:
                if self._store is None:
                    self._open()
                    pauses = _pauses()
                    log.warning("audit log trusted again", log=self.name, seq=self._seq)
                self._commit(self._intake.take(self._expire_at))
                self._settle()
                self._expire()
            except StoreError as error:
                self._distrust(str(error))
            except Exception as error:
                # The edge of this thread: if it died, the log could never heal.
                log.exception("audit writer failed", log=self.name)
                self._distrust(type(error).__name__)
            if self._store is None:
                self._intake.pause(next(pauses))
        if self._store:
            self._store.close()

    def _open(self) -> None:
        """Open the file and look whether it still ends as we left it; at a start, close what was left open."""
        first = self._seq == 0
        store = self._open_store(self._path, not first)
        try:
            self._check_tail(store)
            self._seq = store.last_seq()
            self._pending = {each["id"]: each for each in store.open_decisions()}
            self._store = store
            if first:
                self._intake.owe(self._pending, forwarded=True)
            self._settle()
        except BaseException:
            self._store = None
            store.close()
            raise
        self._intake.trust()

    def _check_tail(self, store: AuditStore) -> None:
        if store.last_seq() < self._seq:
            raise StoreError(f"audit log {self._path}: record {self._seq}, which was written, is missing")
        if self._tail and store.get(self._tail.seq) != self._tail.canonical:
            raise StoreError(f"audit log {self._path}: record {self._tail.seq} is not what was written")

    def _commit(self, group: Sequence[Waiting]) -> None:
        """Make a group durable in one commit and tell its appenders."""
        entries: list[AuditEntry] = []
        accepted: list[Waiting] = []
        open_now = set(self._pending)
        for item in group:
            try:
                numbered = self._number(item, len(entries), open_now)
            except (StoreError, TypeError) as error:
                self._intake.owe(item.completed(), forwarded=True)
                self._resolve([item], error)
            else:
                entries += numbered
                accepted.append(item)
        if not entries:
            return
        started = time.perf_counter()
        try:
            self._append(entries)
        except BaseException as error:
            self._fail(accepted, error if isinstance(error, StoreError) else StoreError(type(error).__name__))
            raise
        seconds = time.perf_counter() - started
        self._intake.landed(accepted)
        self._resolve(accepted, None, (len(entries), seconds))

    def _number(self, item: Waiting, offset: int, open_now: set[str]) -> list[AuditEntry]:
        """Entries for one item, after `offset` others of its group; `open_now` is kept up to date if it is accepted."""
        if item.withdrawn:
            raise StoreError("withdrawn")
        if not item.completed() <= open_now | item.decisions():
            raise StoreError(f"audit log {self._path}: a completion without an open decision")
        entries = [self._entry(each, self._seq + offset + place) for place, each in enumerate(item.records, 1)]
        open_now |= item.decisions()
        open_now -= item.completed()
        return entries

    def _entry(self, unnumbered: record.Record, seq: int) -> AuditEntry:
        numbered = record.numbered(unnumbered, self.name, seq)
        return AuditEntry(seq, numbered, record.canonical(numbered))

    def _append(self, entries: Sequence[AuditEntry]) -> None:
        self._opened().append(entries)
        self._seq, self._tail = entries[-1].seq, entries[-1]
        for entry in entries:
            if entry.record["kind"] == "decision":
                self._pending[entry.record["id"]] = dict(entry.record)
            else:
                self._pending.pop(entry.record["decision_id"], None)

    def _settle(self) -> None:
        """Complete the decisions that nobody else will complete."""
        owed = self._intake.take_owed()
        now = datetime.now(UTC)
        entries: list[AuditEntry] = []
        for decision in owed.keys() & self._pending.keys():
            ended = record.lost(
                id=uuid.uuid4().hex,
                time=now,
                decision=self._pending[decision],
                body_may_have_arrived=owed[decision],
            )
            entries.append(self._entry(ended, self._seq + len(entries) + 1))
        if not entries:
            return
        try:
            self._append(entries)
        except BaseException:
            for decision, forwarded in owed.items():
                self._intake.owe([decision], forwarded=forwarded)
            raise
        log.warning("decisions closed as lost", log=self.name, count=len(entries))

    def _expire(self) -> None:
        if self._intake.closing or time.monotonic() < self._expire_at:
            return
        before = record.timestamp(datetime.now(UTC) - timedelta(seconds=self._settings.retention))
        gone = self._opened().expire(before, _EXPIRE_CHUNK)
        if not gone:
            self._expire_at = time.monotonic() + _EXPIRE_EVERY
            return
        log.info("records past retention deleted", log=self.name, count=gone)
        if self._tail and self._opened().get(self._tail.seq) is None:
            self._tail = None

    def _distrust(self, error: str) -> None:
        """Let go of the file, and fail everyone who waits for it."""
        if self._store:
            self._store.close()
            self._store = None
        if self._intake.trusted:
            log.error("audit log not trusted", log=self.name, error=error)
        self._fail(self._intake.distrust(), StoreError(error))

    def _fail(self, items: Sequence[Waiting], error: StoreError) -> None:
        """Nothing of these may be thought written; if it was, what it left open is completed as lost."""
        for item in items:
            self._intake.owe(item.decisions(), forwarded=False)
            self._intake.owe(item.completed(), forwarded=True)
        self._resolve(items, error)

    def _resolve(
        self, items: Sequence[Waiting], error: Exception | None, commit: tuple[int, float] | None = None
    ) -> None:
        def tell() -> None:
            for item in items:
                if item.done.done():
                    continue
                if error is None:
                    item.done.set_result(None)
                else:
                    item.done.set_exception(error)
            if commit:
                self._observe(self.name, *commit)

        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(tell)

    def _opened(self) -> AuditStore:
        if self._store is None:
            raise StoreError(f"audit log {self._path}: not open")
        return self._store
