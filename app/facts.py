"""What the headers of a request say: deadline, wished regions and evidence, read strictly and refused by name."""

import re
from dataclasses import dataclass
from datetime import date

from app.config import Settings, Tenant
from app.errors import InvalidRequest, PayloadTooLarge, UnknownRegion, UnsupportedMediaType
from app.exchange import DEFAULT_DEADLINE
from app.fields import Fields
from app.policy.residency import evidence
from app.types import Caller, Head, Question, Wire
from regions import catalogue

_MEDIA = {
    "problem": ("application/json",),
    "openai": ("application/json",),
    "kserve": ("application/json", "application/octet-stream"),
}
_REQUEST_ID = re.compile(r"^[\x21-\x7e]{1,128}$")
_TRACEPARENT = re.compile(r"^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")
_SUBJECT_ID_LIMIT = 512
_WHITE_SPACE = " \t"
"""Around a header's value (RFC 9110, section 5.6.3). Of other white space, some are bytes of letters in UTF-8."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What an inference request's headers ask for, checked."""

    question: Question
    prefer: tuple[str, ...]
    subject_id: str | None


def request_id(headers: Fields) -> str | None:
    """The caller's own request id where it is 1 to 128 visible ASCII characters, else None."""
    sent = headers.get("x-request-id", "")
    return sent if _REQUEST_ID.match(sent) else None


def traceparent(headers: Fields) -> str | None:
    """The caller's trace context where it is well-formed (W3C Trace Context, section 3.2), else None."""
    sent = headers.get("traceparent", "")
    return sent if _TRACEPARENT.match(sent) else None


def single(headers: Fields, name: str) -> str | None:
    """The one value of a header that may be sent once; raises `InvalidRequest` when it came twice or is empty."""
    values = headers.getlist(name)
    if len(values) > 1:
        raise InvalidRequest("header_repeated", param=name)
    value = values[0].strip(_WHITE_SPACE) if values else None
    if value == "":
        raise InvalidRequest("header", param=name, value=value)
    return value


def check_body_head(headers: Fields, wire: Wire, limit: int) -> None:
    """Refuse from the headers alone a body that is too large or of a kind that this endpoint does not read."""
    length = headers.get("content-length")
    if length is not None and length.isdigit() and int(length) > limit:
        raise PayloadTooLarge(limit=limit)
    kinds = _MEDIA[wire]
    media = (single(headers, "Content-Type") or kinds[0]).partition(";")[0].strip().lower()
    if media not in kinds:
        raise UnsupportedMediaType(param="Content-Type", value=media, expected=list(kinds))
    coding = headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        raise UnsupportedMediaType(param="Content-Encoding", value=coding, expected="identity")


def timeout(headers: Fields) -> tuple[float, bool]:
    """Seconds that the caller gives this request, and whether they bound a whole stream.

    X-Request-Timeout-Ms does; x-stainless-read-timeout (seconds) is the SDK's patience with each read.
    """
    for name, unit in (("X-Request-Timeout-Ms", 0.001), ("x-stainless-read-timeout", 1.0)):
        sent = single(headers, name)
        if sent is None:
            continue
        try:
            seconds = float(sent) * unit
        except ValueError:
            raise InvalidRequest("header", param=name, value=sent) from None
        if not 0 < seconds <= 86400:  # noqa: PLR2004 - a day; also refuses NaN
            raise InvalidRequest("header", param=name, value=sent)
        return seconds, unit < 1
    return DEFAULT_DEADLINE, False


def subject_code(value: str, param: str) -> str:
    """An ISO 3166 code in its canonical spelling; raises `InvalidRequest` naming the code to send instead."""
    try:
        return catalogue.parse_code(value).code
    except catalogue.CodeError as error:
        detail = "subject_reserved" if error.expected else "subject_code"
        raise InvalidRequest(detail, param=param, value=value, expected=error.expected) from None


def known_region(settings: Settings, region: str, param: str) -> str:
    if settings.region(region) is None:
        raise UnknownRegion(param=param, region=region, regions=[r.id for r in settings.regions])
    return region


def known_basis(tenant: Tenant, basis: str | None, param: str) -> str | None:
    if basis is not None and all(basis != instrument.id for instrument in tenant.instruments):
        raise InvalidRequest("basis_unknown", param=param, value=basis)
    return basis


def read(head: Head, settings: Settings, tenant: Tenant, caller: Caller, day: date) -> Facts:
    """The residency question that these headers ask; raises `InvalidRequest` or `UnknownRegion`."""
    headers = head.headers
    region = single(headers, "X-Region")
    subject = single(headers, "X-Data-Subject")
    subject_id = single(headers, "X-Subject-Id")
    if subject_id is not None and len(subject_id) > _SUBJECT_ID_LIMIT:
        raise InvalidRequest("header", param="X-Subject-Id", value=subject_id)
    prefer = [part.strip() for value in headers.getlist("X-Region-Prefer") for part in value.split(",")]
    question = Question(
        tenant=tenant.id,
        evidence=evidence(tenant, None if subject is None else subject_code(subject, "X-Data-Subject"), caller, ()),
        day=day,
        requested=None if region is None else known_region(settings, region, "X-Region"),
        basis=known_basis(tenant, single(headers, "X-Transfer-Basis"), "X-Transfer-Basis"),
        gpc="1" in (value.strip() for value in headers.getlist("Sec-GPC")),
    )
    preferred = tuple(known_region(settings, part, "X-Region-Prefer") for part in prefer if part)
    return Facts(question, preferred, subject_id)
