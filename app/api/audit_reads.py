"""Who reads the trail is in the trail: a record of each reading, durable before the answer's body."""

import math
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import Request

from app.access import Principal
from app.api.access import exchange_of
from app.audit.rights.officer import Actor, event
from app.audit.writer import Trail
from app.config import RESERVED_LOG
from app.errors import AuditUnavailable, GatewayError, InvalidRequest, Unauthenticated
from app.types import Scope


@dataclass(slots=True)
class Reading:
    """One reading while its answer is made: who reads, and what is noted of it."""

    principal: Principal
    filters: Mapping[str, Any] = field(default_factory=dict)
    persons: Collection[str] = ()
    """What in the question leads to a person: an erasure could not take it out of the note again."""
    records: int | None = None
    """How many the answer shows, where that is known before it leaves."""


class Readings:
    """Notes readings in the gateway's own log."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    @asynccontextmanager
    async def noted(self, request: Request, scope: Scope) -> AsyncIterator[Reading]:
        """Make the answer inside; once outside, the reading is noted, and so is a refusal that was raised inside.

        A question that could not be understood asked for nothing, and is not. Raises `Unauthenticated`, `Forbidden`,
        and `AuditUnavailable` in place of any answer where nothing can be noted.
        """
        principal = exchange_of(request).principal
        if principal is None:
            raise Unauthenticated
        reading = Reading(principal)
        try:
            principal.require(scope)
            yield reading
        except InvalidRequest:
            raise
        except GatewayError as error:
            await self._note(request, reading, error.status)
            raise
        await self._note(request, reading, HTTPStatus.OK)

    async def _note(self, request: Request, reading: Reading, status: int) -> None:
        by = Actor(reading.principal.tenant.id, reading.principal.key_id, exchange_of(request).request_id)
        for each in reading.persons:
            by = by.silent_about(each)
        detail = {"path": request.scope["route"].path, "filters": reading.filters, "status": int(status)}
        if reading.records is not None:
            detail["records"] = reading.records
        try:
            await self._trail.append(RESERVED_LOG, [event("read", _outcome(status), detail, by)], math.inf)
        except AuditUnavailable as error:
            raise AuditUnavailable("reading", retry_after=error.values["retry_after"]) from error


def _outcome(status: int) -> str:
    if status < HTTPStatus.BAD_REQUEST:
        return "served"
    return "refused" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"
