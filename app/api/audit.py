"""GET /v1/audit/logs: the query of a page of audit records, and who may see which."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, get_args

import orjson
from fastapi import APIRouter, Depends, Request, Response

from app.access import Principal
from app.api.access import require
from app.audit.pseudonym import is_pseudonym
from app.audit.reader import Filters, Reader
from app.audit.record import CompletionOutcome, DecisionOutcome, timestamp
from app.config import RESERVED_LOG
from app.errors import Forbidden, InvalidRequest
from app.facts import subject_code
from app.types import Reason

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

_RFC_3339 = re.compile(r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})$", re.ASCII)
_FILTERS = {
    "from": "since",
    "to": "until",
    "region": "region",
    "tenant": "tenant",
    "subject": "subject",
    "subject_country": "subject_country",
    "outcome": "outcome",
    "reason": "reason",
    "request_id": "request_id",
}
_KNOWN = (*_FILTERS, "limit", "cursor")


def _described() -> list[dict[str, Any]]:
    """The parameters for the API's description: read by hand, so that an unknown one is an error."""
    kinds: dict[str, dict[str, Any]] = {
        "from": {"type": "string", "format": "date-time"},
        "to": {"type": "string", "format": "date-time"},
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    }
    return [{"name": name, "in": "query", "schema": kinds.get(name, {"type": "string"})} for name in _KNOWN]


router = APIRouter()


@router.get("/v1/audit/logs", openapi_extra={"parameters": _described()})
async def logs(request: Request, principal: Annotated[Principal, Depends(require("audit:read"))]) -> Response:
    """Audit records, newest last: `{"records": [...], "cursor": "..." or null}`."""
    given = _parameters(request)
    limit = _limit(given.pop("limit", str(DEFAULT_LIMIT)))
    cursor = given.pop("cursor", None)
    reader: Reader = request.app.state.gateway_reader
    _check(given, reader.logs)
    page = await reader.page(_filters(given, principal), cursor, limit)
    body = orjson.dumps({"records": page.records, "cursor": page.cursor})
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})


def _parameters(request: Request) -> dict[str, str]:
    """The query's parameters, each known, sent once and not empty."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in _KNOWN:
            raise _refused(name, ", ".join(_KNOWN))
        if name in given or not value:
            raise _refused(name, f"{name}=...")
        given[name] = value
    return given


def _check(given: dict[str, str], logs: Sequence[str]) -> None:
    """Refuse values that no record can have: an empty page in answer to a typo would read as "there was nothing"."""
    known = {
        "region": [log for log in logs if log != RESERVED_LOG],
        "outcome": sorted({*get_args(DecisionOutcome), *get_args(CompletionOutcome)}),
        "reason": [reason.value for reason in Reason],
    }
    for name, values in known.items():
        if name in given and given[name] not in values:
            raise InvalidRequest("query", param=name, expected=values)
    if "subject_country" in given:
        given["subject_country"] = subject_code(given["subject_country"], "subject_country")


def _filters(given: dict[str, str], principal: Principal) -> Filters:
    """The filters asked for, narrowed to the caller's own tenant unless its scope is wider."""
    values: dict[str, Any] = {_FILTERS[name]: value for name, value in given.items()}
    for name in ("from", "to"):
        if name in given:
            values[_FILTERS[name]] = _moment(name, given[name])
    if principal.may("audit:admin"):
        return Filters(**values, subject_is_id=True)
    another_tenant = given.get("tenant", principal.tenant.id) != principal.tenant.id
    if another_tenant or not is_pseudonym(given.get("subject", "0" * 64)):
        raise Forbidden("scope", scope="audit:admin")
    return Filters(**{**values, "tenant": principal.tenant.id})


def _limit(value: str) -> int:
    if re.fullmatch(r"[0-9]{1,4}", value) and 1 <= int(value) <= MAX_LIMIT:
        return int(value)
    raise _refused("limit", f"1..{MAX_LIMIT}")


def _moment(name: str, value: str) -> str:
    try:
        if _RFC_3339.match(value):
            return timestamp(datetime.fromisoformat(value.upper().replace(" ", "T")))
    except (ValueError, OverflowError):
        pass  # such as the 31st of February
    raise _refused(name, "RFC 3339, 2026-01-31T12:00:00Z")


def _refused(name: str, expected: str) -> InvalidRequest:
    return InvalidRequest("query", param=name, expected=expected)
