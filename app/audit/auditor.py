"""Gives out what the logs have signed: checkpoints, proofs, exports, full checks; off the event loop, a few at once."""

import asyncio
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Self, TypeVar

from app.audit.check.findings import Report
from app.audit.check.saved import Saved
from app.audit.check.verify import Observe, verify
from app.audit.checkpoint import NoteError, VerifierKey, claimed
from app.audit.export import Source, export
from app.audit.growth import Growth, Heads
from app.audit.keys import FileKeys
from app.audit.place import Place, log_file
from app.audit.proof import Proof, ProofError, prove
from app.audit.reader import Filters, Reader
from app.audit.record import Record
from app.audit.writer import Trail
from app.config import AuditSettings
from app.errors import AuditUnavailable, DeadlineExceeded, NotFound, Overloaded
from app.stores.base import StoreError

_T = TypeVar("_T")
_RETRY_AFTER = timedelta(seconds=1)
_STRANGERS = 16
"""Requests for checkpoints that may wait: whoever asks for one needs no key."""
_EXPORTS = 4
_PART = 64 << 10
"""Bytes of an export that are made at a time."""
_CHECK_LIMIT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Shown:
    """A proof, and the public keys of its log, one a line, the newest last."""

    proof: Proof
    keys: str


class Auditor:
    """Reads the logs of a running trail, whose newest records it has signed first."""

    def __init__(self, settings: AuditSettings, reader: Reader, trail: Trail) -> None:
        self._directory = settings.path
        self._keys = FileKeys(settings.key_directory)
        self._reader = reader
        self._trail = trail
        self._heads = Heads(settings.path, settings.commit_deadline)
        self._strangers = 0
        self._strangers_turn = asyncio.Lock()
        self._exports = 0
        self._checking = False

    async def checkpoint(self, log: str) -> str:
        """The newest checkpoint of a log, which its writer makes every second. Raises `Overloaded`."""
        return await self._for_a_stranger(partial(self._heads.newest, log))

    async def growth(self, log: str, old: int) -> Growth:
        """The newest checkpoint, and that it extends the tree of `old` records. Raises `OutOfReach`, `Overloaded`."""
        return await self._for_a_stranger(partial(self._heads.growth, log, old))

    async def verifiers(self, log: str) -> Sequence[VerifierKey]:
        """The keys that a log's checkpoints are verified with, the newest last. Raises `Overloaded`."""
        return await self._for_a_stranger(partial(self._heads.verifiers, log))

    async def _for_a_stranger(self, work: Callable[[], _T]) -> _T:
        if self._strangers >= _STRANGERS:
            raise Overloaded("audit", retry_after=_RETRY_AFTER)
        self._strangers += 1
        try:
            async with self._strangers_turn:
                return await asyncio.to_thread(work)
        except StoreError as error:
            raise AuditUnavailable("read", retry_after=_RETRY_AFTER) from error
        finally:
            self._strangers -= 1

    async def proof(self, record: Record) -> "Shown":
        """That a record of the trail is in a tree that a checkpoint signs. Raises `NotFound` where it no longer is."""
        await self._trail.checkpoint(record["log"])
        return await self._reader.aside(self._prove, record)

    def _prove(self, record: Record) -> "Shown":
        log = record["log"]
        keys = Place(self._directory, log, "").verifiers()
        with closing(self._reader.opened(log)) as store, store.snapshot():
            if store.get(record["seq"]) is None:
                raise NotFound("expired", id=record["id"])
            try:
                return Shown(prove(store, record), "".join(f"{key.line()}\n" for key in keys))
            except ProofError as error:
                raise StoreError(str(error)) from error

    async def export(self, filters: Filters) -> "Parts":
        """The matching records as `app.audit.export` writes them, under checkpoints that cover all of them.

        Whoever gets the parts closes them. Raises `Overloaded`, `AuditUnavailable`.
        """
        if self._exports >= _EXPORTS:
            raise Overloaded("audit", retry_after=_RETRY_AFTER)
        self._exports += 1
        with ExitStack() as held:
            held.callback(self._exported)
            for log in self._reader.logs:
                await self._trail.checkpoint(log)
            sources = [Source(log, log, log_file(self._directory, log), self._keys) for log in self._reader.logs]
            subjects = await self._reader.aside(self._reader.subjects, filters)
            parts = Parts(export(sources, filters, subjects, covered=True), self._reader, self._exported)
            held.pop_all()
        await parts.begin()
        return parts

    def _exported(self) -> None:
        self._exports -= 1

    async def verify(self) -> Report:
        """A full check of every log, one check at a time. Raises `Overloaded`, `DeadlineExceeded`."""
        if self._checking:
            raise Overloaded("audit", retry_after=_RETRY_AFTER)
        self._checking = True
        left = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            saved = {log: note for log in self._reader.logs if (note := await self._signed(log))}
            work = partial(verify, self._directory, list(saved.values()), _until(left), live=saved.keys())
            checking = loop.run_in_executor(None, work)
        except BaseException:
            self._checking = False
            raise
        checking.add_done_callback(self._checked)
        try:
            async with asyncio.timeout(_CHECK_LIMIT.total_seconds()):
                return await asyncio.shield(checking)
        except TimeoutError as error:
            raise DeadlineExceeded(limit=_CHECK_LIMIT) from error
        except OSError as error:
            raise AuditUnavailable("read", retry_after=_RETRY_AFTER) from error
        finally:
            left.set()

    async def _signed(self, log: str) -> Saved | None:
        """What the log's writer knows of it, and its file must hold; None where the writer does not trust the file."""
        try:
            note = await self._trail.checkpoint(log)
            checkpoint = claimed(note)
        except (AuditUnavailable, NoteError):
            return None
        return Saved("the checkpoint made for this check", note, checkpoint)

    def _checked(self, checking: "asyncio.Future[Report]") -> None:
        self._checking = False
        if not checking.cancelled():
            checking.exception()  # whoever asked may have left, and nobody else misses it


class Parts:
    """Lines in parts of some KiB, each made in a thread when it is asked for; `close` ends it, wherever it is."""

    def __init__(self, lines: Generator[bytes, None, None], reader: Reader, closed: Callable[[], None]) -> None:
        self._lines = lines
        self._reader = reader
        self._closed: Callable[[], None] | None = closed
        self._lock = threading.Lock()
        self._first: bytes | None = None

    async def begin(self) -> None:
        """Make the first part now, so that what is wrong with a log from the start is said in place of an answer."""
        try:
            self._first = await anext(self)
        except BaseException:
            self.close()
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Raises `AuditUnavailable` where a log cannot be read any further."""
        part, self._first = self._first or await self._reader.aside(self._next), None
        if not part:
            raise StopAsyncIteration
        return part

    def close(self) -> None:
        """Let go of the files, once no thread is at work on them; idempotent."""
        if self._closed:
            self._closed()
            self._closed = None
            asyncio.get_running_loop().run_in_executor(None, self._end)

    def _next(self) -> bytes:
        part = bytearray()
        with self._lock:
            for line in self._lines:
                part += line
                if len(part) >= _PART:
                    break
        return bytes(part)

    def _end(self) -> None:
        with self._lock:
            self._lines.close()


def _until(left: threading.Event) -> Observe:
    """Watches a check, and breaks it off once whoever asked for it has left."""

    def observe(_log: str, _seq: int, _last: int) -> None:
        if left.is_set():
            raise _Left

    return observe


class _Left(Exception):
    pass
