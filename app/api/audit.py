"""The reading side of the trail: pages, exports, single records with their proofs, checkpoints and full checks."""

import asyncio
import base64
from typing import Annotated, Any

import orjson
import structlog
from fastapi import APIRouter, Path, Request, Response
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Message, Send

from app.api import audit_query
from app.api.access import exchange_of
from app.api.audit_pages import CHECK, CHECKPOINT, EXPORT, PAGE, PROOF, RECORD
from app.api.audit_query import FILTERS, PAGING, described, own_tenant, parameters
from app.api.audit_reads import Readings
from app.api.replies import answer
from app.audit.auditor import Auditor, Parts
from app.audit.growth import OutOfReach
from app.audit.reader import Reader
from app.audit.record import time_of
from app.audit.writer import Trail
from app.errors import AuditUnavailable, InvalidRequest
from app.exchange import Exchange
from app.stores.base import BUNDLE
from app.types import Reply

_STALL = 60.0
"""Seconds after which a client that takes nothing of an export is left."""
_PRIVATE = {"Cache-Control": "no-store"}
_RecordId = Annotated[str, Path(alias="id")]

log = structlog.get_logger("tidegate.audit")


def routes(reader: Reader, auditor: Auditor, trail: Trail) -> APIRouter:
    router = APIRouter(prefix="/v1/audit", tags=["audit"])
    readings = Readings(trail)

    @router.get("/logs", responses=PAGE, openapi_extra=described((*FILTERS, *PAGING)))
    async def logs(request: Request) -> Response:
        """Audit records, newest last."""
        async with readings.noted(request, "audit:read") as reading:
            given = parameters(request, (*FILTERS, *PAGING))
            asked = audit_query.filters(given, reading.principal, reader.logs)
            reading.filters = audit_query.noted(asked)
            page = await reader.page(asked, given.get("cursor"), audit_query.limit(given))
            reading.records = len(page.records)
        return _json({"records": page.records, "cursor": page.cursor})

    @router.get("/export", responses=EXPORT, openapi_extra=described(FILTERS))
    async def export(request: Request) -> Response:
        """Audit records as NDJSON: first a manifest, newest record last but one, then the checkpoints."""
        async with readings.noted(request, "audit:read") as reading:
            given = parameters(request, FILTERS)
            asked = audit_query.filters(given, reading.principal, reader.logs)
            reading.filters = audit_query.noted(asked)
            parts = await auditor.export(asked)
    ...
