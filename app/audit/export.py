"""Records of several logs for whoever takes them along: NDJSON between a manifest and the logs' checkpoints.

It reads page by page and holds no snapshot meanwhile, so that a slow reader never keeps a log's file from being tidied:
records do not change, and those written after the beginning do not count.
"""

import heapq
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from app.audit.checkpoint import NoteError, claimed
from app.audit.keys import KeyStore
from app.audit.opener import Opener
from app.audit.reader import Filters
from app.stores.base import AuditQuery, Floor, StoreError
from app.stores.sqlite import SqliteAuditStore

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Source:
    """One log to read: what it is called in the answer, its name and file, and where its subjects' keys may lie."""

    label: str
    log: str
    file: Path
    keys: KeyStore


@dataclass(frozen=True, slots=True)
class _Log:
    """A log as of the beginning: records after `last` do not count."""

    source: Source
    store: SqliteAuditStore
    opener: Opener
    last: int
    floor: Floor | None
    head: str | None

    def span(self) -> Mapping[str, int]:
        floor = self.floor.seq if self.floor else 0
        return {"first": floor + 1, "last": self.last, "floor": floor}


def export(
    sources: Sequence[Source], filters: Filters, subjects: frozenset[str] | None, *, covered: bool = False
) -> Generator[bytes, None, None]:
    """Lines of NDJSON: `{"kind": "manifest", ...}`, the records in order of time, `{"kind": "checkpoint", ...}`.

    The last line says how many records there are, and holds the newest checkpoint that each log had at the beginning.
    `subjects` are the pseudonyms that `filters.subject` stands for. With `covered`, what those checkpoints do not cover
    yet is left out. Blocking; raises `StoreError`.
    """
    with ExitStack() as stack:
        logs = {source.label: _begin(source, stack, covered=covered) for source in sources}
        spans = {label: log.span() for label, log in logs.items()}
        yield _line({"kind": "manifest", "filters": _asked(filters, subjects), "logs": spans})
        count = 0
        for _, label, _, stored, subject in heapq.merge(*(_matching(log, filters, subjects) for log in logs.values())):
            yield _line(logs[label].opener.opened(logs[label].source.log, stored, subject))
            count += 1
        checkpoints = {label: log.head for label, log in logs.items()}
        yield _line({"kind": "checkpoint", "records": count, "checkpoints": checkpoints})


def _begin(source: Source, stack: ExitStack, *, covered: bool) -> _Log:
    store = stack.enter_context(closing(SqliteAuditStore(source.file, readonly=True)))
    opener = stack.enter_context(Opener(source.keys))
    with store.snapshot():
        head = store.head()
        last = _covered(source, head) if covered else store.last_seq()
        return _Log(source, store, opener, last, store.floor(), head)


def _covered(source: Source, head: str | None) -> int:
    try:
        return claimed(head).size if head else 0
    except NoteError as error:
        raise StoreError(f"audit log {source.file}: its checkpoint: {error}") from error


def _matching(
    log: _Log, filters: Filters, subjects: frozenset[str] | None
) -> Iterator[tuple[str, str, int, bytes, str | None]]:
    """A log's matching records: time, label, seq, stored bytes, pseudonym; in that order."""
    after: tuple[str, int] | None = None
    while True:
        query = AuditQuery(
            bound=log.last,
            limit=_PAGE,
            since=filters.since,
            until=filters.until,
            equal=filters.equal(),
            subjects=subjects,
            after=after,
        )
        page = log.store.page(query)
        for time, seq, stored, subject in page:
            yield time, log.source.label, seq, stored, subject
        if len(page) < _PAGE:
            return
        after = page[-1][0], page[-1][1]


def _asked(filters: Filters, subjects: frozenset[str] | None) -> Mapping[str, Any]:
    """The filters by their names in the API; of a subject only the pseudonyms, as the file may pass through hands."""
    asked: dict[str, Any] = {"from": filters.since, "to": filters.until, **filters.equal()}
    if subjects is not None:
        asked["subject"] = sorted(subjects)
    return {name: value for name, value in asked.items() if value is not None}


def _line(content: Mapping[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS)
