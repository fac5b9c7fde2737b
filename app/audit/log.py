"""One log's writer: a thread that commits what waits in groups, and trusts its file only as long as no write fails."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import structlog

from app.audit import record
from app.audit.intake import Intake, Job, Waiting
from app.audit.keys import KeyStore
from app.audit.ledger import Held, Ledger
from app.audit.place import Place
from app.config import AuditSettings
from app.stores.base import AuditEntry, AuditStore, StoreError
from app.stores.subject_keys import DamagedKey

_EXPIRE_EVERY = 3600.0
_EXPIRE_CHUNK = 2000
_SIGN_EVERY = 1.0
"""Seconds at most from a record's commit to a checkpoint that covers it."""
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


def new_id(moment: datetime) -> str:
    """An id for a record of that time."""
    return record.new_id(moment, random.getrandbits(62))  # names a record; nothing is kept safe by it


class Refused(Exception):
    """An item that cannot be appended, which is no fault of the log's."""


class LogWriter:
    """Owns one log. `start`, `offer`, `ask`, `leave` and `close` are its callers' side, the rest runs in its thread.

    Each decision gets exactly one completion: whatever keeps the true one from being written (a crash, a failed
    write, a full queue, an appender that gave up) makes the writer add one with outcome `lost`, and a completion whose
    decision is not open is refused.
    """

    def __init__(
        self, place: Place, settings: AuditSettings, keys: KeyStore, open_store: OpenStore, observe: Observe
    ) -> None:
        self.name = place.log
        self._place = place
        self._settings = settings
        self._keys = keys
        self._open_store = open_store
        self._observe = observe
        self._intake = Intake()
        self.offer = self._intake.offer
        self.ask = self._intake.ask
        self.leave = self._intake.leave
        self._ledger: Ledger | None = None
        self._left: Ledger | None = None
        self._expire_at = 0.0
        self._sign_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"audit-{self.name}", daemon=True)

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
                if self._ledger is None:
                    self._open()
                    pauses = _pauses()
                    log.warning("audit log trusted again", log=self.name, seq=self._opened().seq)
                self._commit(self._intake.take(min(self._expire_at, self._sign_at)))
                self._settle()
                self._work()
                self._expire()
                self._sign()
            except StoreError as error:
                self._distrust(str(error))
            except Exception as error:
                # The edge of this thread: if it died, the log could never heal.
                log.exception("audit writer failed", log=self.name)
                self._distrust(type(error).__name__)
            if self._ledger is None:
                self._intake.pause(next(pauses))
        if self._ledger:
            with suppress(StoreError):  # the next start signs what this one could not
                self._ledger.checkpoint()
            self._ledger.close()

    def _open(self) -> None:
        """Open the file and look whether it still ends as we left it; at a start, close what was left open."""
        first = self._left is None
        store = self._open_store(self._place.file, not first)
        try:
            self._ledger = Ledger(self._place, store, self._keys, *([self._left.tree] if self._left else []))
        except BaseException:
            store.close()
            raise
        try:
            if first:
                self._intake.owe(self._ledger.pending, forwarded=True)
            self._settle()
            self._ledger.checkpoint()
            while first and self._ledger.forget():  # an erasure that broke off
                pass
        except BaseException:
            self._ledger.close()
            self._ledger = None
            raise
        self._left = self._ledger
        self._intake.trust()

    def _commit(self, group: Sequence[Waiting]) -> None:
        """Make a group durable in one commit and tell its appenders."""
        if not group:
            return
        ledger = self._opened()
        entries: list[AuditEntry] = []
        accepted: list[Waiting] = []
        started = time.perf_counter()
        try:
            ledger.know(each for item in group for each in item.records)
            open_now = set(ledger.pending)
            for item in group:
                try:
                    numbered = self._number(item, ledger.seq + len(entries) + 1, open_now)
                except (Refused, TypeError, DamagedKey) as error:
                    self._intake.owe(item.completed(), forwarded=True)
                    self._resolve([item], StoreError(str(error)) if isinstance(error, Refused) else error)
                else:
                    entries += numbered
                    accepted.append(item)
            if entries:
                ledger.commit(entries)
        except BaseException as error:
            self._fail(group, error if isinstance(error, StoreError) else StoreError(type(error).__name__))
            raise
        self._intake.landed(accepted)
        self._resolve(accepted, None, (len(entries), time.perf_counter() - started) if entries else None)

    def _number(self, item: Waiting, first: int, open_now: set[str]) -> list[AuditEntry]:
        """Entries for one item from the number `first` on; `open_now` is kept up to date if it is accepted."""
        if item.left:
            raise Refused("withdrawn")
        decisions, completed = item.decisions(), item.completed()
        if not completed <= open_now | decisions:
            raise Refused(f"audit log {self._place.file}: a completion without an open decision")
        entry = self._opened().entry
        entries = [entry(each, seq) for seq, each in enumerate(item.records, first)]
        open_now |= decisions
        open_now -= completed
        return entries

    def _settle(self) -> None:
        """Complete the decisions that nobody else will complete."""
        ledger = self._opened()
        owed = self._intake.take_owed()
        now = datetime.now(UTC)
        entries: list[AuditEntry] = []
        try:
            for decision in owed.keys() & ledger.pending.keys():
                ended = record.lost(
                    id=new_id(now), time=now, decision=ledger.pending[decision], body_may_have_arrived=owed[decision]
                )
                entries.append(ledger.entry(ended, ledger.seq + len(entries) + 1))
            if entries:
                ledger.commit(entries)
        except BaseException:
            for decision, forwarded in owed.items():
                self._intake.owe([decision], forwarded=forwarded)
            raise
        if entries:
            log.warning("decisions closed as lost", log=self.name, count=len(entries))

    def _work(self) -> None:
        """Do what has been asked for besides appending; who asked hears of the error as well."""
        while job := self._intake.take_job():
            if job.withdrawn:
                continue
            try:
                self._answer(job, job.work(self._opened()), None)
            except Held as error:
                self._answer(job, None, error)
            except BaseException as error:
                self._answer(job, None, error if isinstance(error, StoreError) else StoreError(type(error).__name__))
                raise

    def _expire(self) -> None:
        if self._intake.closing or time.monotonic() < self._expire_at:
            return
        now = datetime.now(UTC)
        before = record.timestamp(now - timedelta(seconds=self._settings.retention))
        event = record.event(
            kind="retention", id=new_id(now), time=now, outcome="deleted", detail={"older_than": before}
        )
        gone = self._opened().expire(event, before, _EXPIRE_CHUNK)
        if gone:
            log.info("records past retention deleted", log=self.name, count=gone)
        else:
            self._expire_at = time.monotonic() + _EXPIRE_EVERY

    def _sign(self) -> None:
        if (now := time.monotonic()) >= self._sign_at:
            self._opened().checkpoint()
            self._opened().forget()  # where whoever asked for an erasure no longer does
            self._sign_at = now + _SIGN_EVERY

    def _distrust(self, error: str) -> None:
        """Let go of the file, and fail everyone who waits for it."""
        if self._ledger:
            self._ledger.close()
            self._ledger = None
        if self._intake.trusted:
            log.error("audit log not trusted", log=self.name, error=error)
        waiting, jobs = self._intake.distrust()
        self._fail(waiting, StoreError(error))
        for job in jobs:
            self._answer(job, None, StoreError(error))

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
                _end(item.done, None, error)
            if commit:
                self._observe(self.name, *commit)

        self._on_loop(tell)

    def _answer(self, job: Job, result: Any, error: Exception | None) -> None:
        self._on_loop(lambda: _end(job.done, result, error))

    def _on_loop(self, tell: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            self._loop.call_soon_threadsafe(tell)

    def _opened(self) -> Ledger:
        if self._ledger is None:
            raise StoreError(f"audit log {self._place.file}: not open")
        return self._ledger


def _end(done: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    """Tell whoever still waits."""
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
