"""Reads the trail: pages through all logs at once, in the order of time, unmoved by what is written meanwhile.

A first page fixes the last number of each log; records are immutable, so the set of records with numbers up to those,
ordered by (time, log, seq), never changes, and a cursor is a place in that order. (Retention may still shorten it.)
"""

import asyncio
import hashlib
import heapq
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import ParamSpec, TypeVar

import orjson

from app.audit.cursor import Place, decode, encode
from app.audit.keys import FileKeys
from app.audit.opener import Opener
from app.audit.place import log_file
from app.audit.pseudonym import Pseudonyms, is_pseudonym
from app.audit.record import Record, canonical, time_of
from app.config import AuditSettings
from app.errors import AuditUnavailable, NotFound
from app.stores.base import AuditQuery, StoreError
from app.stores.sqlite import SqliteAuditStore

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Row = tuple[str, str, int, bytes, str | None]
"""Time, log, number, stored bytes and pseudonym of a record."""
_AT_ONCE = 2
"""Readings that have a thread at the same time; requests for inference need threads as well."""
_STRETCH = 20_000
"""Records that are looked at before it is asked how long a page has taken (about 50 ms)."""
_PAGE_TIME = 0.5
"""Seconds after which a page goes out with what it has, and a cursor that goes on behind what was looked at."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What a reader asks for; None leaves a field open. Times as `record.timestamp` writes them.

    `subject` is a pseudonym; with `subject_is_id` it may be the caller's own id as well, whose pseudonyms at all
    tenants (or the one asked for) in all regions then match.
    """

    since: str | None = None
    until: str | None = None
    region: str | None = None
    tenant: str | None = None
    subject: str | None = None
    subject_country: str | None = None
    outcome: str | None = None
    reason: str | None = None
    request_id: str | None = None
    subject_is_id: bool = False

    def equal(self) -> dict[str, str]:
        """The columns that must have one value."""
        names = ("region", "tenant", "subject_country", "outcome", "reason", "request_id")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def digest(self) -> str:
        """Ties a cursor to the filters it was given out for."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return hashlib.sha256(canonical(fields)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Page:
    """Records in ascending time, and where to go on; None once the newest record as of the first page is in.

    There may be fewer than asked for, and none, before the end: where filters leave little of much.
    """

    records: list[Record]
    cursor: str | None


class Reader:
    """Reads the logs named from their files, through connections that cannot write, off the event loop."""

    def __init__(
        self,
        settings: AuditSettings,
        logs: Sequence[str],
        tenants: Callable[[], Sequence[str]],
        *,
        page_time: float = _PAGE_TIME,
    ) -> None:
        self._page_time = page_time
        self._directory = settings.path
        self._patience = settings.commit_deadline
        self._logs = tuple(sorted(logs))
        self._keys = FileKeys(settings.key_directory)
        self._pseudonyms = Pseudonyms(self._keys)
        self._tenants = tenants
        self._threads = ThreadPoolExecutor(_AT_ONCE, "audit-read")

    @property
    def logs(self) -> Sequence[str]:
        return self._logs

    async def aside(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Do blocking work on the trail in a thread, a few at a time; its `StoreError` becomes `AuditUnavailable`."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, partial(work, *args, **kwargs))
        except (StoreError, orjson.JSONDecodeError) as error:
            raise AuditUnavailable("read", retry_after=timedelta(seconds=1)) from error

    async def page(self, filters: Filters, cursor: str | None, limit: int) -> Page:
        """The page behind a cursor, or the first; `InvalidRequest` for a cursor not of these filters.

        `AuditUnavailable` where a log cannot be read.
        """
        place = decode(cursor, filters.digest(), self._logs) if cursor is not None else None
        return await self.aside(self._page, filters, place, limit)

    async def record(self, record_id: str, tenant: str | None) -> Record:
        """The record of that id, and of that tenant unless None. Raises `NotFound`, `AuditUnavailable`."""
        return await self.aside(self._record, record_id, tenant)

    def subjects(self, filters: Filters) -> frozenset[str] | None:
        """The pseudonyms that `filters.subject` stands for; None where it is open. Blocking; raises `StoreError`."""
        if filters.subject is None:
            return None
        itself = frozenset([filters.subject] if is_pseudonym(filters.subject) else [])
        if not filters.subject_is_id:
            return itself
        tenants = [filters.tenant] if filters.tenant else self._tenants()
        return itself | self._pseudonyms.known(self._logs, tenants, filters.subject)

    def opened(self, log: str) -> SqliteAuditStore:
        """A log's store, for its caller to close. Blocking; raises `StoreError`."""
        return SqliteAuditStore(log_file(self._directory, log), readonly=True, patience=self._patience)

    def _page(self, filters: Filters, place: Place | None, limit: int) -> Page:
        subjects = self.subjects(filters)
        rows: list[list[_Row]] = []
        ends: list[tuple[str, str, int]] = []
        with ExitStack() as stack:
            stores = {log: stack.enter_context(closing(self.opened(log))) for log in self._logs}
            if place is None:
                place = Place({log: store.last_seq() for log, store in stores.items()})
            until = time.monotonic() + self._page_time
            for log, store in stores.items():
                query = AuditQuery(
                    bound=place.bounds.get(log, 0),
                    limit=limit + 1,
                    since=filters.since,
                    until=filters.until,
                    equal=filters.equal(),
                    subjects=subjects,
                    after=place.after(log),
                )
                found, end = _searched(store, query, until)
                rows.append([(moment, log, seq, raw, subject) for moment, seq, raw, subject in found])
                ends += [(end[0], log, end[1])] if end else []
        # Behind the first place at which a log has not been searched any further, others could come in between.
        end_of_all = min(ends, default=None)
        merged = [row for row in heapq.merge(*rows) if end_of_all is None or row[:3] <= end_of_all][: limit + 1]
        with Opener(self._keys) as opener:
            records = [opener.opened(log, raw, subject) for _, log, _, raw, subject in merged[:limit]]
        last = merged[limit - 1][:3] if len(merged) > limit else end_of_all
        return Page(records, encode(Place(place.bounds, *last), filters.digest()) if last else None)

    def _record(self, record_id: str, tenant: str | None) -> Record:
        moment = time_of(record_id)
        for log in self._logs if moment else ():
            with closing(self.opened(log)) as store:
                row = store.find(moment or "", record_id)
            if row and tenant in (None, row.columns["tenant"]):
                with Opener(self._keys) as opener:
                    return opener.opened(log, row.canonical, row.columns["subject"])
        raise NotFound("expired" if moment and self._has_expired(moment) else "record", id=record_id)

    def _has_expired(self, moment: str) -> bool:
        """Whether retention has deleted records of that time."""
        for log in self._logs:
            with closing(self.opened(log)) as store, store.snapshot():
                floor = store.floor()
                oldest = [*store.rows(floor.seq + 1, floor.seq + 1)] if floor else []
            if any(moment < (row.columns["time"] or "") for row in oldest):
                return True
        return False


def _searched(
    store: SqliteAuditStore, query: AuditQuery, until: float
) -> tuple[list[tuple[str, int, bytes, str | None]], tuple[str, int] | None]:
    """The records that a query finds, and up to where, (time, seq), it got until then; None where it is done."""
    found: list[tuple[str, int, bytes, str | None]] = []
    while True:
        end = store.stretch(query, _STRETCH)
        found += store.page(replace(query, upto=end, limit=query.limit - len(found)))
        if end is None or len(found) == query.limit:
            return found, None
        if time.monotonic() >= until:
            return found, end
        query = replace(query, after=end)
