"""The reading side of the trail: pages, exports, single records with their proofs, checkpoints and full checks."""

import asyncio
import base64
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import orjson
import structlog
from fastapi import APIRouter, Request, Response
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Message, Send

from app.api import audit_query, audit_schemas
from app.api.access import exchange_of
from app.api.audit_query import FILTERS, PAGING, described, parameters
from app.api.audit_reads import Reading, Readings
from app.api.departure import Departure
from app.audit.auditor import Auditor, Parts
from app.audit.growth import OutOfReach
from app.audit.reader import Filters, Reader
from app.audit.record import Record, time_of
from app.audit.witness.extension import KEYS_HEADER, listed
from app.audit.writer import Trail
from app.errors import AuditUnavailable, InvalidRequest
from app.exchange import CLIENT_CLOSED, Exchange
from app.stores.base import BUNDLE

_STALL = 60.0
"""Seconds after which a client that takes nothing of an export is left."""
_HEADERS = {"Cache-Control": "no-store"}
_CHECKPOINT = ("region", "old")

log = structlog.get_logger("tidegate.audit")


def routes(reader: Reader, auditor: Auditor, trail: Trail) -> APIRouter:
    router = APIRouter(prefix="/v1/audit", tags=["audit"], default_response_class=Response)
    readings = Readings(trail)
    _route_records(router, reader, auditor, readings)
    _route_proofs(router, reader, auditor, readings)
    return router


def _route_records(router: APIRouter, reader: Reader, auditor: Auditor, readings: Readings) -> None:
    @router.get("/logs", responses=audit_schemas.PAGE, openapi_extra=described((*FILTERS, *PAGING)))
    async def logs(request: Request) -> Response:
        """Audit records, newest last."""
        async with readings.noted(request, "audit:read") as reading:
            given = parameters(request, (*FILTERS, *PAGING))
            asked = _asked(given, reading, reader)
            page = await reader.page(asked, given.get("cursor"), audit_query.limit(given))
            reading.records = len(page.records)
        return _json({"records": page.records, "cursor": page.cursor})

    @router.get("/export", responses=audit_schemas.EXPORT, openapi_extra=described(FILTERS))
    async def export(request: Request) -> Response:
        """Audit records as NDJSON: a manifest, the records in order of time, the checkpoints that cover them."""
        with ExitStack() as held:
            async with readings.noted(request, "audit:read") as reading:
                parts = await auditor.export(_asked(parameters(request, FILTERS), reading, reader))
                held.callback(parts.close)
            held.pop_all()
        return _Export(exchange_of(request), parts)

    @router.get("/records/{id}", responses=audit_schemas.RECORD)
    async def record(request: Request, id: str) -> Response:  # noqa: A002 - its name in the contract
        """One audit record."""
        async with readings.noted(request, "audit:read") as reading:
            found = await _found(request, id, reading, reader)
            reading.records = 1
        return _json(found)


def _route_proofs(router: APIRouter, reader: Reader, auditor: Auditor, readings: Readings) -> None:
    @router.get("/records/{id}/proof", responses=audit_schemas.PROOF)
    async def proof(request: Request, id: str) -> Response:  # noqa: A002 - as above
        """One audit record, and the proof that it is in the tree that a checkpoint signs."""
        async with readings.noted(request, "audit:read") as reading:
            found = await auditor.proof(await _found(request, id, reading, reader))
            reading.records = 1
        return _json({**found.proof.as_json(), "key": found.keys})

    @router.get(
        "/checkpoint", responses=audit_schemas.CHECKPOINT, openapi_extra=described(_CHECKPOINT, required=["region"])
    )
    async def checkpoint(request: Request) -> Response:
        """A log's newest checkpoint; with `old`, the proof that it extends the tree of that size. Needs no key."""
        given = parameters(request, _CHECKPOINT)
        of, old = audit_query.log(given, reader.logs), audit_query.old_size(given)
        note = await auditor.checkpoint(of) if old is None else await _grown(auditor, of, old)
        keys = await auditor.verifiers(of)  # after the note, so that the key of the note is among them
        return PlainTextResponse(note, headers={**_HEADERS, KEYS_HEADER: listed(keys)})

    @router.get("/verify", responses=audit_schemas.REPORT)
    async def verify(request: Request) -> Response:
        """A full check of every log: each record, hash and signature."""
        with Departure(request.receive):
            async with readings.noted(request, "audit:admin") as reading:
                parameters(request, ())
                report = await auditor.verify()
                reading.records = report.records
            return _json(report.as_json())
        return Response(status_code=CLIENT_CLOSED)  # which nobody reads: the client has left


def _asked(given: Mapping[str, str], reading: Reading, reader: Reader) -> Filters:
    asked = audit_query.filters(given, reading.principal, reader.logs)
    reading.filters, reading.persons = audit_query.noted(asked), audit_query.persons(asked)
    return asked


async def _found(request: Request, record_id: str, reading: Reading, reader: Reader) -> Record:
    parameters(request, ())
    if time_of(record_id):  # else it is any text, which the trail need not keep
        reading.filters = {"id": record_id}
    return await reader.record(record_id, audit_query.own_tenant(reading.principal))


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json", headers=_HEADERS)


async def _grown(auditor: Auditor, of: str, old: int) -> str:
    """The newest checkpoint as the body of an add-checkpoint request (https://c2sp.org/tlog-witness)."""
    try:
        growth = await auditor.growth(of, old)
    except OutOfReach as error:
        if error.first is None:
            raise InvalidRequest("query", param="old", expected=f"0..{error.size}") from None
        raise InvalidRequest("old_size", param="old", size=old, first=error.first, step=BUNDLE) from None
    path = "".join(f"{base64.b64encode(each).decode()}\n" for each in growth.path)
    return f"old {growth.old}\n{path}\n{growth.note}"


class _Export(StreamingResponse):
    """Parts as fast as the client takes them; closed however that ends."""

    def __init__(self, exchange: Exchange, parts: Parts) -> None:
        headers = {**_HEADERS, "Content-Disposition": 'attachment; filename="audit.ndjson"'}
        super().__init__(parts, media_type="application/x-ndjson", headers=headers)
        self._exchange = exchange
        self._parts = parts

    async def stream_response(self, send: Send) -> None:
        async def patiently(message: Message) -> None:
            async with asyncio.timeout(_STALL):
                await send(message)

        try:
            await super().stream_response(patiently)
        except (TimeoutError, AuditUnavailable) as error:
            self._exchange.cut = True
            log.warning("export broken off", error=type(error).__name__)
            raise
        finally:
            self._parts.close()
