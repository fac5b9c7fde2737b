"""What waits for a log: a bounded queue between the event loop and the log's thread, from which it takes groups."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from app.audit.ledger import Ledger
from app.audit.record import Record

GROUP = 128
"""Records after which a group is committed without waiting for more."""
JOBS = 64
"""Other things to do with a log that may wait."""
QUEUE = 4096
"""Records that may wait for a log; what comes on top is refused."""


@dataclass(eq=False, slots=True)
class Waiting:
    """Records that commit together, and the future that their appender waits on."""

    records: Sequence[Record]
    done: "asyncio.Future[None]"
    left: bool = False
    """The appender has gone with an error: what has not been written must not be, and nobody will complete the
    decisions in here."""
    landed: bool = False

    def give_up(self) -> None:
        """Its time is up."""
        if not self.done.done():
            self.done.set_exception(TimeoutError())

    def decisions(self) -> set[str]:
        return {each["id"] for each in self.records if each["kind"] == "decision"}

    def completed(self) -> set[str]:
        return {each["decision_id"] for each in self.records if each["kind"] == "completion"}


@dataclass(eq=False, slots=True)
class Job:
    """Something else to do with the log than to append, and the future of who asked for it."""

    work: Callable[[Ledger], Any]
    done: "asyncio.Future[Any]"
    withdrawn: bool = False
    """Who asked has gone: what has not been begun must not be."""


class Intake:
    """`offer`, `ask`, `leave` and `close` belong to the event loop, the rest to the log's thread. Shut until `trust`.

    It also keeps the debts: decisions whose own completion will not come, so that the thread has to write one.
    """

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._queue: deque[Waiting] = deque()
        self._queued = 0
        self._jobs: deque[Job] = deque()
        self._owed: dict[str, bool] = {}
        self._trusted = False
        self._closing = False

    def offer(self, item: Waiting) -> bool:
        """Take records in, unless the queue is full, the log not to be trusted, or the end near."""
        with self._ready:
            if self._closing or not self._trusted or self._queued + len(item.records) > QUEUE:
                self.owe(item.completed() - item.decisions(), forwarded=True)
                return False
            self._queue.append(item)
            self._queued += len(item.records)
            if len(self._queue) == 1:
                self._ready.notify()
            return True

    def ask(self, job: Job) -> bool:
        """Have something else done, unless too much waits, the log is not to be trusted, or the end is near."""
        with self._ready:
            if self._closing or not self._trusted or len(self._jobs) >= JOBS:
                return False
            self._jobs.append(job)
            self._ready.notify()
            return True

    def leave(self, item: Waiting) -> None:
        """The appender no longer waits: what is not being written yet will not be."""
        with self._ready:
            item.left = True
            if item.landed:
                self.owe(item.decisions() - item.completed(), forwarded=False)

    def close(self) -> None:
        """Take nothing more in."""
        with self._ready:
            self._closing = True
            self._ready.notify()

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def trusted(self) -> bool:
        return self._trusted

    @property
    def finished(self) -> bool:
        """Closed, and everything is out that can be written."""
        with self._ready:
            return self._closing and not self._queue and not (self._trusted and (self._owed or self._jobs))

    def trust(self) -> None:
        with self._ready:
            self._trusted = True

    def distrust(self) -> tuple[list[Waiting], list[Job]]:
        """Shut, and hand over everyone who waits."""
        with self._ready:
            self._trusted = False
            waiting, self._queued = list(self._queue), 0
            jobs = list(self._jobs)
            self._queue.clear()
            self._jobs.clear()
            return waiting, jobs

    def take_job(self) -> Job | None:
        with self._ready:
            return self._jobs.popleft() if self._jobs else None

    def owe(self, decisions: Iterable[str], *, forwarded: bool) -> None:
        """Note decisions to complete as lost, and whether a byte of their bodies may have reached a region."""
        with self._ready:
            for each in decisions:
                self._owed[each] = self._owed.get(each, False) or forwarded
            if self._owed:
                self._ready.notify()

    def take_owed(self) -> dict[str, bool]:
        with self._ready:
            owed, self._owed = self._owed, {}
            return owed

    def landed(self, items: Iterable[Waiting]) -> None:
        """These are durable; those whose appender has gone leave decisions behind that nobody will complete."""
        with self._ready:
            for item in items:
                item.landed = True
                if item.left:
                    self.owe(item.decisions() - item.completed(), forwarded=False)

    def pause(self, seconds: float) -> None:
        """Wait for a moment, or until closed."""
        end = time.monotonic() + seconds
        with self._ready:
            while not self._closing and (left := end - time.monotonic()) > 0:
                self._ready.wait(left)

    def take(self, until: float) -> list[Waiting]:
        """The next group; empty at `until` (monotonic seconds), when something else is to do, and when closed."""
        with self._ready:
            while not (self._queue or self._owed or self._jobs or self._closing):
                if (left := until - time.monotonic()) <= 0:
                    return []
                self._ready.wait(left)
            group: list[Waiting] = []
            size = 0
            while self._queue and (not group or size + len(self._queue[0].records) <= GROUP):
                group.append(self._queue.popleft())
                size += len(group[-1].records)
            self._queued -= size
            return group
