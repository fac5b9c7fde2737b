"""Reads the trail: pages through all logs at once, in the order of time, unmoved by what is written meanwhile.

A first page fixes the last number of each log; records are immutable, so the set of records with numbers up to those,
ordered by (time, log, seq), never changes, and a cursor is a place in that order. (Retention may still shorten it.)
"""

import asyncio
import base64
import binascii
import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson

from app.audit.pseudonym import Pseudonyms
from app.audit.record import Record, canonical
from app.audit.writer import log_path
from app.config import AuditSettings
from app.errors import AuditUnavailable, InvalidRequest
from app.stores.base import AuditQuery, StoreError
from app.stores.sqlite import SqliteAuditStore

_MAX_SEQ = 2**53 - 1
_MAX_CURSOR = 16_384
_TIME_LENGTH = len("2026-01-01T00:00:00.000000Z")


@dataclass(frozen=True, slots=True)
class Filters:
    """What a reader asks for; None leaves a field open. Times as `record.timestamp` writes them.

    `subject` is a pseudonym; with `subject_is_id` it may be the caller's own id as well, whose pseudonyms of all
    regions then match.
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
    """Records in ascending time, and where to go on; None once the newest record as of the first page is in."""

    records: list[Record]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in the order (time, log, seq), behind which a page begins; `bounds` are the logs' last numbers."""

    bounds: dict[str, int]
    time: str = ""
    log: str = ""
    seq: int = 0

    def after(self, log: str) -> tuple[str, int] | None:
        """Where that log goes on, as (time, seq)."""
        if not self.time:
            return None
        if log == self.log:
            return self.time, self.seq
        return self.time, _MAX_SEQ if log < self.log else 0


class Reader:
    """Reads the logs named from their files, through connections that cannot write, off the event loop."""

    def __init__(self, settings: AuditSettings, logs: Sequence[str]) -> None:
        self._directory: Path = settings.path
        self._patience = settings.commit_deadline
        self._logs = tuple(sorted(logs))
        self._pseudonyms = Pseudonyms(settings)

    @property
    def logs(self) -> Sequence[str]:
        return self._logs

    async def page(self, filters: Filters, cursor: str | None, limit: int) -> Page:
        """The page behind a cursor, or the first; `InvalidRequest` for a cursor not of these filters.

        `AuditUnavailable` where a log cannot be read.
        """
        place = _decode(cursor, filters, self._logs) if cursor is not None else None
        try:
            return await asyncio.to_thread(self._page, filters, place, limit)
        except (StoreError, orjson.JSONDecodeError) as error:
            raise AuditUnavailable("read", retry_after=timedelta(seconds=1)) from error

    def _page(self, filters: Filters, place: _Place | None, limit: int) -> Page:
        subjects = self._subjects(filters)
        stores: dict[str, SqliteAuditStore] = {}
        try:
            for log in self._logs:
                stores[log] = SqliteAuditStore(log_path(self._directory, log), readonly=True, patience=self._patience)
            if place is None:
                place = _Place({log: store.last_seq() for log, store in stores.items()})
            rows: list[list[tuple[str, str, int, bytes]]] = []
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
                rows.append([(time, log, seq, raw) for time, seq, raw in store.page(query)])
        finally:
            for store in stores.values():
                store.close()
        merged = list(heapq.merge(*rows))[: limit + 1]
        records = [orjson.loads(raw) for *_, raw in merged[:limit]]
        if len(merged) <= limit:
            return Page(records, None)
        time, log, seq, _ = merged[limit - 1]
        return Page(records, _encode(_Place(place.bounds, time, log, seq), filters))

    def _subjects(self, filters: Filters) -> frozenset[str] | None:
        if filters.subject is None:
            return None
        own = self._pseudonyms.known(self._logs, filters.subject) if filters.subject_is_id else frozenset()
        return own | {filters.subject}


def _encode(place: _Place, filters: Filters) -> str:
    content = {"b": place.bounds, "f": filters.digest(), "l": place.log, "s": place.seq, "t": place.time}
    return base64.urlsafe_b64encode(canonical(content)).rstrip(b"=").decode()


def _decode(cursor: str, filters: Filters, logs: Sequence[str]) -> _Place:
    """Read a cursor. It is not secret and not signed: filters and scope are checked anew with every page."""
    if len(cursor) > _MAX_CURSOR:
        raise InvalidRequest("cursor", param="cursor")
    try:
        content = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise InvalidRequest("cursor", param="cursor") from None
    if not _sound(content, logs) or content["f"] != filters.digest():
        raise InvalidRequest("cursor", param="cursor")
    return _Place(content["b"], content["t"], content["l"], content["s"])


def _sound(content: Any, logs: Sequence[str]) -> bool:
    if not isinstance(content, dict) or content.keys() != {"b", "f", "l", "s", "t"}:
        return False
    bounds, log, seq, time = content["b"], content["l"], content["s"], content["t"]
    return (
        isinstance(bounds, dict)
        and all(each in logs and _number(bound) for each, bound in bounds.items())
        and isinstance(log, str)
        and log in logs
        and _number(seq)
        and isinstance(time, str)
        and len(time) == _TIME_LENGTH
    )


def _number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SEQ
