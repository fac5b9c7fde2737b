"""The newest records of several logs, and those that come after: what `tidegate audit tail` follows."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing

from app.audit.export import Source
from app.audit.opener import Opener
from app.audit.reader import Filters
from app.audit.record import Record
from app.stores.base import StoredRow
from app.stores.sqlite import SqliteAuditStore

_PAGE = 500
_MORE = 5000
"""Records of a log that are read at once while following, at most; the rest comes next."""


class Tail:
    """Reads backwards from the ends of the logs, then forwards. Blocking; raises `StoreError`."""

    def __init__(self, sources: Sequence[Source], filters: Filters, subjects: frozenset[str] | None) -> None:
        self._sources = sources
        self._filters = filters
        self._subjects = subjects
        self._read: dict[str, int] = {}

    def newest(self, count: int) -> list[Record]:
        """The last `count` matching records of all logs, in order of time."""
        found: list[tuple[str, str, int, Record]] = []
        for source in self._sources:
            with closing(SqliteAuditStore(source.file, readonly=True)) as store:
                self._read[source.label] = store.last_seq()
                found += self._told(source, self._backwards(store, self._read[source.label], count))
        return _in_order(found)[max(0, len(found) - count) :]

    def more(self) -> list[Record]:
        """What has been written since, in order of time as far as it is known by now."""
        found: list[tuple[str, str, int, Record]] = []
        for source in self._sources:
            with closing(SqliteAuditStore(source.file, readonly=True)) as store:
                first = self._read[source.label] + 1
                last = min(store.last_seq(), first + _MORE - 1)
                found += self._told(source, [row for row in store.rows(first, last) if self._matches(row)])
                self._read[source.label] = max(last, first - 1)
        return _in_order(found)

    def _backwards(self, store: SqliteAuditStore, last: int, count: int) -> Sequence[StoredRow]:
        floor = store.floor()
        lowest = floor.seq + 1 if floor else 1
        found: deque[StoredRow] = deque()
        while last >= lowest and len(found) < count:
            rows = store.rows(max(lowest, last - _PAGE + 1), last)
            found.extendleft(reversed([row for row in rows if self._matches(row)]))
            last -= _PAGE
        return list(found)[max(0, len(found) - count) :]

    def _matches(self, row: StoredRow) -> bool:
        columns, filters = row.columns, self._filters
        time = columns["time"] or ""
        return (
            all(columns[name] == value for name, value in filters.equal().items())
            and (filters.since is None or time >= filters.since)
            and (filters.until is None or time < filters.until)
            and (self._subjects is None or columns["subject"] in self._subjects)
        )

    @staticmethod
    def _told(source: Source, rows: Sequence[StoredRow]) -> Iterator[tuple[str, str, int, Record]]:
        with Opener(source.keys) as opener:
            for row in rows:
                record = opener.opened(source.log, row.canonical, row.columns["subject"])
                yield str(row.columns["time"]), source.label, row.seq, record


def _in_order(found: Sequence[tuple[str, str, int, Record]]) -> list[Record]:
    return [record for *_, record in sorted(found, key=lambda each: each[:3])]
