"""The parameters of queries about the trail: read strictly, and narrowed to what their caller may see."""

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, get_args

from fastapi import Request

from app.access import Principal
from app.audit.merkle import MAX_SIZE
from app.audit.pseudonym import is_pseudonym
from app.audit.reader import Filters
from app.audit.record import CompletionOutcome, DecisionOutcome, timestamp
from app.config import RESERVED_LOG
from app.errors import Forbidden, InvalidRequest, UnknownRegion
from app.facts import subject_code
from app.types import Reason

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

_RFC_3339 = re.compile(r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})$", re.ASCII)
_TIME = "RFC 3339, 2026-01-31T12:00:00Z"
_SIZE = re.compile(r"^(0|[1-9][0-9]{0,18})$", re.ASCII)
FILTERS = {
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
"""Fields of `Filters` by the parameters' names."""
PAGING = ("limit", "cursor")
_PERSONAL = ("subject", "request_id")
"""Filters whose values lead to a person."""


def described(names: Collection[str], *, required: Collection[str] = ()) -> dict[str, Any]:
    """These parameters for the API's description: they are read by hand, so that an unknown one is an error."""
    kinds: dict[str, dict[str, Any]] = {
        "from": {"type": "string", "format": "date-time"},
        "to": {"type": "string", "format": "date-time"},
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        "old": {"type": "integer", "minimum": 0},
    }
    text = {"type": "string"}
    return {
        "parameters": [
            {"name": name, "in": "query", "required": name in required, "schema": kinds.get(name, text)}
            for name in names
        ]
    }


def parameters(request: Request, known: Collection[str]) -> dict[str, str]:
    """The query's parameters, each known, sent once and not empty; raises `InvalidRequest`."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise _refused(name, ", ".join(known) or "0")
        if name in given or not value:
            raise _refused(name, f"{name}=...")
        given[name] = value
    return given


def filters(given: Mapping[str, str], principal: Principal, logs: Sequence[str]) -> Filters:
    """The filters asked for, narrowed to the caller's own tenant unless its scope is wider.

    Raises `Forbidden`, and `InvalidRequest` for values that no record can have: an empty page in answer to a typo would
    read as "there was nothing".
    """
    values: dict[str, Any] = {FILTERS[name]: value for name, value in given.items() if name in FILTERS}
    known = {
        "region": [log for log in logs if log != RESERVED_LOG],
        "outcome": sorted({*get_args(DecisionOutcome), *get_args(CompletionOutcome)}),
        "reason": [reason.value for reason in Reason],
    }
    for name, allowed in known.items():
        if name in given and given[name] not in allowed:
            raise InvalidRequest("query", param=name, expected=allowed)
    if "subject_country" in given:
        values["subject_country"] = subject_code(given["subject_country"], "subject_country")
    for name in ("from", "to"):
        if name in given:
            values[FILTERS[name]] = moment(name, given[name])
    if principal.may("audit:admin"):
        return Filters(**values, subject_is_id=True)
    another_tenant = given.get("tenant", principal.tenant.id) != principal.tenant.id
    if another_tenant or not is_pseudonym(given.get("subject", "0" * 64)):
        raise Forbidden("scope", scope="audit:admin")
    return Filters(**{**values, "tenant": principal.tenant.id})


def noted(asked: Filters) -> dict[str, Any]:
    """The filters as the trail remembers them: of those that lead to a person, only that they were set."""
    values = {name: getattr(asked, field) for name, field in FILTERS.items()}
    return {name: name in _PERSONAL or value for name, value in values.items() if value is not None}


def persons(asked: Filters) -> list[str]:
    """The values that `noted` leaves out."""
    return [value for name in _PERSONAL if (value := getattr(asked, name)) is not None]


def own_tenant(principal: Principal) -> str | None:
    """The tenant whose records alone the caller may see; None where all."""
    return None if principal.may("audit:admin") else principal.tenant.id


def limit(given: Mapping[str, str]) -> int:
    value = given.get("limit", str(DEFAULT_LIMIT))
    if re.fullmatch(r"[0-9]{1,4}", value) and 1 <= int(value) <= MAX_LIMIT:
        return int(value)
    raise _refused("limit", f"1..{MAX_LIMIT}")


def log(given: Mapping[str, str], logs: Sequence[str]) -> str:
    """The log that `region` names, `gateway` among them; raises `UnknownRegion`."""
    if "region" not in given:
        raise InvalidRequest("query", param="region", expected=list(logs))
    if given["region"] not in logs:
        raise UnknownRegion(param="region", region=given["region"], regions=list(logs))
    return given["region"]


def old_size(given: Mapping[str, str]) -> int | None:
    """The size of a tree that the caller knows of a log."""
    value = given.get("old")
    if value is None:
        return None
    if not _SIZE.match(value) or int(value) > MAX_SIZE:
        raise _refused("old", f"0..{MAX_SIZE}")
    return int(value)


def moment(name: str, value: str, detail: str = "query") -> str:
    """A time as records write it; raises `InvalidRequest` with that detail where the value is none."""
    try:
        if _RFC_3339.match(value):
            return timestamp(datetime.fromisoformat(value.upper().replace(" ", "T")))
    except (ValueError, OverflowError):
        pass  # such as the 31st of February
    raise InvalidRequest(detail, param=name, expected=_TIME)


def _refused(name: str, expected: str) -> InvalidRequest:
    return InvalidRequest("query", param=name, expected=expected)
