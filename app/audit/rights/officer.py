"""What an officer asks of the trail and hears of it: who asked, what was done, and the records that tell of it."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from app.audit import record
from app.audit.log import new_id
from app.audit.pseudonym import holds_id
from app.audit.record import Record
from app.stores.base import Hold


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: tenant and id of the API key used, both None for a command at the machine."""

    tenant: str | None = None
    key_id: str | None = None
    request_id: str | None = None

    def silent_about(self, subject_id: str | None) -> "Actor":
        """The same without a request id that holds the person's id: what stands in a record cannot be taken back."""
        return replace(self, request_id=None) if subject_id and holds_id(self.request_id, subject_id) else self


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was erased of a person by log: records, and the id of the record that tells of it (None in a dry run).

    A log that had lost the person by the time it was asked is not among them.
    """

    tenant: str | None
    logs: tuple[tuple[str, int, str | None], ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "known": bool(self.logs),
            "tenant": self.tenant,
            "records": sum(records for _, records, _ in self.logs),
            "logs": [{"log": log, "records": records, "id": event} for log, records, event in self.logs],
        }


@dataclass(frozen=True, slots=True)
class Access:
    """What the logs hold about one person: how many records, and all of it as NDJSON in parts of many lines.

    The first line is a summary, the others are the records, log by log. `tenant` is the person's, None for nobody.
    """

    tenant: str | None
    records: int
    parts: AsyncIterator[bytes]

    @property
    def asked(self) -> dict[str, Any]:
        """What the record of the reading says was asked for: about a person that, not who."""
        return {"subject": True, "tenant": self.tenant}


@dataclass(frozen=True, slots=True)
class PlacedHold:
    """A legal hold, and the logs that keep it: with the pseudonym there where it is about one person."""

    hold: Hold
    logs: tuple[tuple[str, str | None], ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.hold.id,
            "placed": self.hold.placed,
            "note": self.hold.note,
            "tenant": self.hold.tenant,
            "from": self.hold.since,
            "to": self.hold.until,
            "logs": [{"log": log, "subject": subject} for log, subject in self.logs],
        }


def event(
    kind: record.EventKind, outcome: str, detail: Mapping[str, Any], by: Actor, subject: str | None = None
) -> Record:
    """The record of what an officer has done, now."""
    now = datetime.now(UTC)
    return record.event(
        kind=kind,
        id=new_id(now),
        time=now,
        outcome=outcome,
        detail=detail,
        request_id=by.request_id,
        tenant=by.tenant,
        key_id=by.key_id,
        subject=subject,
    )


def hold_event(hold: Hold, action: Literal["placed", "released"], by: Actor, subject: str | None) -> Record:
    """The record of a hold: without its note, which may name someone and could never be erased again."""
    detail = {"action": action, "hold": hold.id, "tenant": hold.tenant, "from": hold.since, "to": hold.until}
    return event("hold", action, detail, by, subject)
