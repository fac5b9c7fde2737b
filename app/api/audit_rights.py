"""Erasure, access and legal holds over the audit trail: the API of a data-protection officer's duties."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
import structlog
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from app.access import Principal
from app.api.access import exchange_of, require
from app.api.audit_query import moment
from app.api.audit_reads import Readings
from app.audit.rights.officer import Actor
from app.audit.rights.rights import Rights
from app.audit.writer import Trail
from app.errors import AuditUnavailable, InvalidRequest
from app.exchange import Exchange

log = structlog.get_logger("tidegate.audit")
_UNCACHED = {"Cache-Control": "no-store"}

Subject = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"[^ \t]")]
"""A person's id at the caller, as it came in X-Subject-Id."""
Name = Annotated[str, Field(min_length=1, max_length=64)]
Officer = Annotated[Principal, Depends(require("audit:admin"))]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ErasureRequest(_Body):
    """Whom to erase; with `dry_run` only say what would be erased."""

    subject: Subject
    tenant: Name | None = None
    dry_run: StrictBool = False


class AccessRequest(_Body):
    """Whose records to read."""

    subject: Subject
    tenant: Name | None = None


class HoldRequest(_Body):
    """What to hold: the records that every field matches which is not null."""

    note: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
    tenant: Name | None = None
    subject: Subject | None = None
    since: str | None = Field(default=None, alias="from", json_schema_extra={"format": "date-time"})
    until: str | None = Field(default=None, alias="to", json_schema_extra={"format": "date-time"})


def routes(rights: Rights, trail: Trail) -> APIRouter:
    router = APIRouter(prefix="/v1/audit", tags=["audit"])
    readings = Readings(trail)

    @router.post("/erasures", summary="Forget a person in every log; the proofs of all records still hold")
    async def erase(request: Request, asked: ErasureRequest, officer: Officer) -> Response:
        by = _actor(request, officer)
        return _json((await rights.erase(asked.subject, asked.tenant, by, dry_run=asked.dry_run)).as_json())

    @router.post("/access", summary="Everything the trail holds about a person: a summary and the records, as NDJSON")
    async def access(request: Request, asked: AccessRequest) -> Response:
        async with readings.noted(request, "audit:admin") as reading:
            reading.filters, reading.persons = {"subject": True}, [asked.subject]
            found = await rights.access(asked.subject, asked.tenant)
            reading.filters, reading.records = found.asked, found.records
        parts = _whole(exchange_of(request), found.parts)
        return StreamingResponse(parts, media_type="application/x-ndjson", headers=_UNCACHED)

    @router.post("/holds", summary="Place a legal hold, which keeps records from erasure and retention")
    async def place(request: Request, asked: HoldRequest, officer: Officer) -> Response:
        since, until = _moment("from", asked.since), _moment("to", asked.until)
        if since and until and since >= until:
            raise InvalidRequest("field_value", param="to", expected=f"> {since}")
        placed = await rights.hold(
            asked.note,
            _actor(request, officer),
            tenant=asked.tenant,
            subject_id=asked.subject,
            since=since,
            until=until,
        )
        return _json(placed.as_json())

    @router.get("/holds", summary="The legal holds in force")
    async def holds(request: Request) -> Response:
        async with readings.noted(request, "audit:admin"):
            found = await rights.holds()
        return _json({"holds": [each.as_json() for each in found]})

    @router.delete("/holds/{hold_id}", summary="End a legal hold")
    async def release(request: Request, hold_id: str, officer: Officer) -> Response:
        return _json((await rights.release(hold_id, _actor(request, officer))).as_json())

    return router


async def _whole(exchange: Exchange, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The parts as they come; where they break off, the client sees its connection end."""
    try:
        async for part in parts:
            yield part
    except AuditUnavailable:
        exchange.cut = True
        log.warning("access broken off")
        raise


def _actor(request: Request, officer: Principal) -> Actor:
    return Actor(officer.tenant.id, officer.key_id, exchange_of(request).request_id)


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json", headers=_UNCACHED)


def _moment(name: str, value: str | None) -> str | None:
    return None if value is None else moment(name, value, "field_value")
