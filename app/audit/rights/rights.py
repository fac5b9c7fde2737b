"""A data subject's rights and an officer's duties over all logs of a trail: erasure, access, legal holds.

One change at a time: whether a hold stands in the way is looked up in every log before anything is erased in one. What
breaks off in the middle is finished by doing it again.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import orjson

from app.audit import record
from app.audit.ledger import Held
from app.audit.log import new_id
from app.audit.place import log_file
from app.audit.record import Record
from app.audit.rights.disclosure import Disclosure
from app.audit.rights.officer import Access, Actor, Erasure, PlacedHold, event, hold_event
from app.audit.rights.person import People, Person, Trace
from app.audit.writer import Trail
from app.config import AuditSettings, Settings
from app.errors import AuditUnavailable, Forbidden, InvalidRequest, NotFound
from app.stores.base import AuditQuery, Hold, StoreError
from app.stores.sqlite import SqliteAuditStore

_RETRY_AFTER: Final = timedelta(seconds=1)
_Result = TypeVar("_Result")


class Rights:
    """Exercises rights on a trail that is open for writing in this process.

    `settings` are those in force, which say who the tenants and the recipients are and how long records are kept; None
    where no configuration is known. Raises `AuditUnavailable` where a log can be neither read nor written.
    """

    def __init__(self, trail: Trail, audit: AuditSettings, settings: Callable[[], Settings | None]) -> None:
        self._trail = trail
        self._audit = audit
        self._settings = settings
        self._people = People(audit, trail.logs)
        self._changing = asyncio.Lock()

    async def erase(self, subject_id: str, tenant: str | None, by: Actor, *, dry_run: bool = False) -> Erasure:
        """Forget a person in every log that knows them; a dry run tells what would be erased.

        Raises `Forbidden`, with nothing erased, where a legal hold keeps any of the records, `InvalidRequest` where
        several tenants have such a person and none is named, or the one named is not known.
        """
        by = by.silent_about(subject_id)
        async with self._changing:
            person = await self._find(subject_id, tenant)
            if person.holds:
                raise _held(person.holds)
            if dry_run:
                return Erasure(person.tenant, tuple((trace.log, trace.records, None) for trace in person.traces))
            erasure = uuid.uuid4().hex
            tried = [await self._erase(trace, erasure, person.tenant, by) for trace in person.traces]
        erased = tuple(each for each in tried if each)
        return Erasure(person.tenant if erased else None, erased)

    async def access(self, subject_id: str, tenant: str | None) -> Access:
        """Everything about one person. That it was read is for the caller to record, before any of it leaves.

        Raises `InvalidRequest` as `erase` does.
        """
        person = await self._find(subject_id, tenant)
        disclosed, logs = await _reading(self._disclosed, person)
        summary = {
            "kind": "access",
            "time": record.timestamp(datetime.now(UTC)),
            "tenant": person.tenant,
            "known": bool(person.traces),
            "retention_s": settings.audit.retention if (settings := self._settings()) else None,
            "logs": logs,
            **disclosed,
        }
        return Access(person.tenant, disclosed["records"], self._parts(summary, person))

    async def hold(
        self,
        note: str,
        by: Actor,
        *,
        tenant: str | None = None,
        subject_id: str | None = None,
        since: str | None = None,
        until: str | None = None,
    ) -> PlacedHold:
        """Place a legal hold in every log; one on a person only in those that know them.

        So no log comes to hold a pseudonym whose person's data never entered it. Raises `InvalidRequest` as `erase`
        does, `NotFound` for a person whom no log knows: such a hold would keep nothing; and `AuditUnavailable`, which
        names the hold, where a log could not be changed: the hold is then ended again wherever that can be.
        """
        async with self._changing:
            logs: list[tuple[str, str | None]] = [(log, None) for log in self._trail.logs]
            if subject_id is not None:
                person = await self._find(subject_id, tenant)
                if not person.traces:
                    raise NotFound("person")
                tenant = person.tenant
                logs = [(trace.log, trace.subject) for trace in person.traces]
            elif tenant is not None:
                await self._check_tenant(tenant)
            now = datetime.now(UTC)
            hold = Hold(new_id(now), record.timestamp(now), note, tenant, None, since, until)
            await self._place(hold, logs, by.silent_about(subject_id))
        return PlacedHold(hold, tuple(logs))

    async def holds(self) -> list[PlacedHold]:
        """The legal holds in force, the oldest first."""
        found: dict[str, PlacedHold] = {}
        for log, hold in await _reading(self._holds):
            known = found.get(hold.id) or PlacedHold(replace(hold, subject=None), ())
            found[hold.id] = replace(known, logs=(*known.logs, (log, hold.subject)))
        return sorted(found.values(), key=lambda each: (each.hold.placed, each.hold.id))

    async def release(self, hold_id: str, by: Actor) -> PlacedHold:
        """End a legal hold in every log that has it; raises `NotFound` where none has."""
        async with self._changing:
            found = next((each for each in await self.holds() if each.hold.id == hold_id), None)
            if found is None:
                raise NotFound("hold", hold=hold_id)
            for log, subject in found.logs:
                with _changes():
                    await self._trail.release(log, hold_id, hold_event(found.hold, "released", by, subject))
        return found

    async def _place(self, hold: Hold, logs: Sequence[tuple[str, str | None]], by: Actor) -> None:
        for number, (log, subject) in enumerate(logs, 1):
            try:
                await self._trail.hold(log, replace(hold, subject=subject), hold_event(hold, "placed", by, subject))
            except AuditUnavailable as error:
                for begun, name in logs[:number]:  # the one that failed as well: it may have landed there
                    with suppress(AuditUnavailable):
                        await self._trail.release(begun, hold.id, hold_event(hold, "released", by, name))
                raise AuditUnavailable("hold", hold=hold.id, retry_after=_RETRY_AFTER) from error

    async def _erase(self, trace: Trace, erasure: str, tenant: str | None, by: Actor) -> tuple[str, int, str] | None:
        """What a log has erased, with its record's id; None where it no longer knew the person, and recorded nothing.

        Retention deletes at any time, and so may have been first.
        """
        erased = event("erasure", "erased", {"erasure": erasure, "tenant": tenant}, by)
        with _changes():
            try:
                records = await self._trail.erase(trace.log, trace.subject, erased)
            except Held as error:
                raise _held(error.holds) from error
        if not records and not await _reading(self._has, trace.log, erased):
            return None
        return trace.log, records, erased["id"]

    async def _find(self, subject_id: str, tenant: str | None) -> Person:
        """The person of that id, around which a header could not have held white space."""
        tenants = self._tenants() if tenant is None else [tenant]
        person = await _reading(self._people.find, subject_id.strip(" \t"), tenants)
        if tenant is not None and not person.traces:
            await self._check_tenant(tenant)
        return person

    async def _check_tenant(self, tenant: str) -> None:
        """Refuse a tenant who neither is configured nor has left a record: an error of writing, most likely."""
        if tenant not in self._tenants() and not await _reading(self._recorded, tenant):
            raise InvalidRequest("tenant_unknown", param="tenant", value=tenant)

    def _tenants(self) -> list[str]:
        settings = self._settings()
        return [tenant.id for tenant in settings.tenants] if settings else []

    def _recorded(self, tenant: str) -> bool:
        for log in self._trail.logs:
            with closing(self._store(log)) as store:
                if store.page(AuditQuery(store.last_seq(), 1, equal={"tenant": tenant})):
                    return True
        return False

    def _has(self, log: str, event: Record) -> bool:
        with closing(self._store(log)) as store:
            return store.find(event["time"], event["id"]) is not None

    def _holds(self) -> list[tuple[str, Hold]]:
        found: list[tuple[str, Hold]] = []
        for log in self._trail.logs:
            with closing(self._store(log)) as store:
                found += [(log, hold) for hold in store.holds()]
        return found

    def _disclosed(self, person: Person) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The summary of a person's records, and where they lie."""
        settings = self._settings()
        disclosure = Disclosure(settings.regions if settings else ())
        logs = []
        for trace in person.traces:
            times: list[str] = []
            count = 0
            for part in self._people.records(trace):
                for each in part:
                    disclosure.take(each)
                times += [part[0]["time"], part[-1]["time"]]
                count += len(part)
            span = {"oldest": min(times, default=None), "newest": max(times, default=None)}
            logs.append({"log": trace.log, "records": count, **span, "holds": list(trace.holds)})
        return disclosure.as_json(), logs

    async def _parts(self, summary: dict[str, Any], person: Person) -> AsyncIterator[bytes]:
        """The summary and the records; breaks off where there are no longer as many as the summary says."""
        yield _lines([summary])
        count = 0
        for trace in person.traces:
            parts = self._people.records(trace)
            while part := await _reading(_next, parts):
                count += len(part)
                yield _lines(part)
        if count != summary["records"]:
            raise AuditUnavailable("read", retry_after=_RETRY_AFTER)

    def _store(self, log: str) -> SqliteAuditStore:
        path = log_file(self._audit.path, log)
        return SqliteAuditStore(path, readonly=True, patience=self._audit.commit_deadline)


def _held(holds: Sequence[str]) -> Forbidden:
    return Forbidden("held", holds=list(holds), extra={"holds": list(holds)})


def _lines(objects: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(each, option=orjson.OPT_APPEND_NEWLINE) for each in objects)


def _next(parts: Iterator[list[Record]]) -> list[Record]:
    return next(parts, [])


async def _reading(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Read files off the event loop."""
    try:
        return await asyncio.to_thread(work, *arguments)
    except (StoreError, orjson.JSONDecodeError) as error:
        raise AuditUnavailable("read", retry_after=_RETRY_AFTER) from error


@contextmanager
def _changes() -> Iterator[None]:
    try:
        yield
    except AuditUnavailable as error:
        raise AuditUnavailable("change", retry_after=_RETRY_AFTER) from error
