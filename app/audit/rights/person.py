"""One person in the logs of a trail: at which tenant, under which pseudonyms, held by what, and their records."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from app.audit.keys import FileKeys
from app.audit.opener import Opener
from app.audit.place import log_file
from app.audit.pseudonym import Pseudonyms
from app.audit.record import Record
from app.config import RESERVED_LOG, AuditSettings
from app.errors import InvalidRequest
from app.stores.base import AuditQuery, AuditStore
from app.stores.sqlite import SqliteAuditStore

CHUNK: Final = 1000
"""Records read at once."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What one log knows of a person: the pseudonym, how many records it has, and which legal holds keep them.

    No record numbered above `last` is among them.
    """

    log: str
    subject: str
    records: int
    last: int
    holds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Person:
    """Where a person is known, and as whose; `tenant` is None where nobody is known."""

    tenant: str | None
    traces: tuple[Trace, ...]

    @property
    def holds(self) -> list[str]:
        """Ids of the legal holds that keep any of the records."""
        return sorted({hold for trace in self.traces for hold in trace.holds})


class People:
    """Finds persons in the logs named, through connections that change nothing. Blocking; raises `StoreError`."""

    def __init__(self, settings: AuditSettings, logs: Sequence[str]) -> None:
        self._settings = settings
        self._logs = [log for log in logs if log != RESERVED_LOG]
        self._keys = FileKeys(settings.key_directory)
        self._pseudonyms = Pseudonyms(self._keys)

    def find(self, subject_id: str, tenants: Sequence[str]) -> Person:
        """The person whom one of these tenants calls so; raises `InvalidRequest` where several do."""
        found: dict[str, list[Trace]] = {}
        for log in self._logs:
            for tenant in tenants:
                for subject in self._pseudonyms.known([log], [tenant], subject_id):
                    if trace := self._trace(log, subject):
                        found.setdefault(tenant, []).append(trace)
        if len(found) > 1:
            raise InvalidRequest("tenant_ambiguous", param="tenant", expected=sorted(found))
        for tenant, traces in found.items():
            return Person(tenant, tuple(traces))
        return Person(None, ())

    def records(self, trace: Trace) -> Iterator[list[Record]]:
        """The person's records in one log, opened, in order of time and in parts of at most `CHUNK`.

        Between the parts no file is open, so that a slow reader keeps nothing from being overwritten.
        """
        after: tuple[str, int] | None = None
        while True:
            query = AuditQuery(trace.last, CHUNK, subjects=frozenset([trace.subject]), after=after)
            with closing(self._store(trace.log)) as store, Opener(self._keys) as opener:
                rows = store.page(query)
                part = [opener.opened(trace.log, stored, subject) for _, _, stored, subject in rows]
            if part:
                yield part
            if len(rows) < CHUNK:
                return
            after = rows[-1][0], rows[-1][1]

    def _trace(self, log: str, subject: str) -> Trace | None:
        """What a log has of a pseudonym; None where it has neither a record nor a key."""
        with closing(self._store(log)) as store:
            records = store.count(subject)
            if not records and not self._has_key(log, subject):
                return None
            return Trace(log, subject, records, store.last_seq(), tuple(store.held(subject)))

    def _has_key(self, log: str, subject: str) -> bool:
        with closing(self._keys.subject_keys(log, readonly=True)) as keys:
            return keys.get(subject) is not None

    def _store(self, log: str) -> AuditStore:
        path = log_file(self._settings.path, log)
        return SqliteAuditStore(path, readonly=True, patience=self._settings.commit_deadline)
