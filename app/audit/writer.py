"""The trail: appends records to the logs of one audit directory, which it holds for itself alone."""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

from app.audit.intake import Job, Waiting
from app.audit.keys import FileKeys
from app.audit.ledger import Ledger
from app.audit.log import LogWriter, Observe, OpenStore
from app.audit.place import EDGE, Place
from app.audit.record import Record
from app.config import RESERVED_LOG, AuditSettings
from app.errors import AuditUnavailable
from app.stores.base import AuditStore, Hold, StoreError
from app.stores.sqlite import SqliteAuditStore

_Result = TypeVar("_Result")
_RETRY_AFTER = timedelta(seconds=1)
_JOB_PATIENCE = 30.0
"""Seconds that whoever asks for an erasure or the like waits for each part of it."""
_CLOSE_PATIENCE = 5.0
"""Seconds that closing waits for a write that hangs, beyond the commit deadline."""


class TrailError(Exception):
    """The audit directory cannot be used; the message is one line and names it."""


class TrailInUse(TrailError):
    """Another process has it open."""


class Trail:
    """Writes the logs named (the regions' ids, and `gateway`) of the gateway that stands in region `standing`.

    `observe(log, records, seconds)` is told of every commit, on the event loop.
    """

    def __init__(
        self,
        settings: AuditSettings,
        logs: Sequence[str],
        standing: str = EDGE,
        *,
        observe: Observe | None = None,
        open_store: OpenStore | None = None,
    ) -> None:
        self._settings = settings
        self._lock: int | None = None
        open_store = open_store or partial(_open_sqlite, patience=settings.commit_deadline)
        self._writers = {
            log: LogWriter(
                Place(settings.path, log, standing),
                settings,
                FileKeys(settings.key_directory),
                open_store,
                observe or _unobserved,
            )
            for log in logs
        }

    async def start(self) -> None:
        """Take the directory, open every log, complete what a crash left open. Raises `TrailError`."""
        self._lock = await asyncio.to_thread(_take_directory, self._settings.path)
        try:
            await self._open()
        except StoreError as error:
            await self.close()
            raise TrailError(str(error)) from error
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        """Open all logs at once, as each waits for the disk; and to their end, so that none is opened once closed."""
        loop = asyncio.get_running_loop()
        starts = (asyncio.to_thread(writer.start, loop) for writer in self._writers.values())
        for error in filter(None, await asyncio.gather(*starts, return_exceptions=True)):
            raise error

    async def append(self, log: str, records: Sequence[Record], timeout: float) -> None:  # noqa: ASYNC109 - the caller's share of its deadline, seconds
        """Return once all records are durable, in one commit; a decision and its completion may come together.

        Raises `AuditUnavailable` after `timeout` or the commit deadline, on a full queue, and while the log's file is
        not to be trusted. Its caller must then forward nothing, and must not append for that decision again: a late
        commit may still land, and the writer itself sees to it that each decision that landed gets its completion.

        Cancelled, it waits all the same, and raises CancelledError only where the records are durable: what is said
        of a request must not depend on when its client left.
        """
        writer = self._writers[log]
        if log == RESERVED_LOG and any(each["subject"] is not None for each in records):
            raise ValueError("the gateway's own log takes no pseudonym")
        limit = min(timeout, self._settings.commit_deadline)
        loop = asyncio.get_running_loop()
        item = Waiting(records, loop.create_future())
        if limit <= 0 or not writer.offer(item):
            raise AuditUnavailable(retry_after=_RETRY_AFTER)
        deadline = loop.call_later(limit, item.give_up)  # a tenth of the cost of `asyncio.timeout`
        try:
            await _told(item)
        except (TimeoutError, StoreError) as error:
            if item.landed:  # durable after all: only the loop was too busy to hear of it
                return
            writer.leave(item)
            raise AuditUnavailable(retry_after=_RETRY_AFTER) from error
        finally:
            deadline.cancel()

    async def checkpoint(self, log: str) -> str:
        """A signed note that covers everything that is durable in the log now. Raises `AuditUnavailable`."""
        return await self._ask(log, Ledger.checkpoint)

    async def erase(self, log: str, subject: str, event: Record) -> int:
        """Forget whom the records of a pseudonym are about, and record that; returns how many there were.

        Nothing is recorded where nothing was known. Between its parts others append; where it breaks off once it is
        recorded, the log's writer goes on with it. Raises `Held`, `AuditUnavailable`.
        """
        found = await self._ask(log, lambda ledger: ledger.erase(event, subject))
        while await self._ask(log, Ledger.forget):
            pass
        return found

    async def hold(self, log: str, hold: Hold, event: Record) -> None:
        """Place a legal hold. Raises `AuditUnavailable`."""
        await self._ask(log, lambda ledger: ledger.hold(event, hold))

    async def release(self, log: str, hold_id: str, event: Record) -> bool:
        """End a legal hold; False where the log has none of that id. Raises `AuditUnavailable`."""
        return await self._ask(log, lambda ledger: ledger.release(event, hold_id))

    async def _ask(self, log: str, work: Callable[[Ledger], _Result]) -> _Result:
        job = Job(work, asyncio.get_running_loop().create_future())
        if not self._writers[log].ask(job):
            raise AuditUnavailable(retry_after=_RETRY_AFTER)
        try:
            async with asyncio.timeout(_JOB_PATIENCE):
                result: _Result = await job.done
        except (TimeoutError, StoreError) as error:
            raise AuditUnavailable(retry_after=_RETRY_AFTER) from error
        finally:
            job.withdrawn = True
        return result

    @property
    def logs(self) -> Sequence[str]:
        """The logs, in the order given."""
        return tuple(self._writers)

    @property
    def trusted(self) -> bool:
        """Whether every log takes records: none of them has failed without having been looked over since."""
        return all(writer.trusted for writer in self._writers.values())

    async def close(self) -> None:
        """Write what waits, close the files, free the directory; a write that hangs is left behind."""
        end = time.monotonic() + self._settings.commit_deadline + _CLOSE_PATIENCE
        closed = [
            await asyncio.to_thread(writer.close, max(0.0, end - time.monotonic())) for writer in self._writers.values()
        ]
        if self._lock is not None and all(closed):
            os.close(self._lock)
            self._lock = None


async def _told(item: Waiting) -> None:
    """Wait for what becomes of the item, through every cancellation, which is passed on at the end.

    A task and a shield would do the same at ten times the cost.
    """
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            await item.done
            break
        except asyncio.CancelledError as error:
            cancelled = error
            if item.landed:
                break
            if item.done.cancelled():
                item.done = asyncio.get_running_loop().create_future()
    if cancelled is not None:
        raise cancelled


def _open_sqlite(path: Path, must_exist: bool, *, patience: float) -> AuditStore:
    return SqliteAuditStore(path, must_exist=must_exist, patience=patience)


def _unobserved(_log: str, _records: int, _seconds: float) -> None:
    pass


def _take_directory(directory: Path) -> int:
    """Make the directory and lock it until the process ends or the descriptor returned is closed."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise TrailError(f"audit directory {directory}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise TrailInUse(f"audit directory {directory} is in use by another gateway") from error
    return descriptor
