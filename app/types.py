"""The vocabulary of the gateway: small frozen records that cross the walls between rooms, and no behaviour."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Literal, NamedTuple, NewType

from app.fields import Fields

PermittedRegion = NewType("PermittedRegion", str)
"""Id of a region that may see the request. Only `policy.residency.decide` makes one, so holding one is the proof."""

Wire = Literal["openai", "kserve", "problem"]
"""Which of the contract's three shapes an answer takes."""

Scope = Literal["infer", "audit:read", "audit:admin", "admin"]


class Reason(StrEnum):
    """Why a region was permitted or refused: one token, the same in headers, audit and explain."""

    ALLOW_INTRA = "ALLOW_INTRA"
    ALLOW_ADEQUACY = "ALLOW_ADEQUACY"
    ALLOW_CERT = "ALLOW_CERT"
    ALLOW_SCC = "ALLOW_SCC"
    ALLOW_BCR = "ALLOW_BCR"
    ALLOW_CONTRACT = "ALLOW_CONTRACT"
    ALLOW_CONSENT = "ALLOW_CONSENT"
    ALLOW_UNRESTRICTED = "ALLOW_UNRESTRICTED"
    REGION_OVERRIDDEN = "REGION_OVERRIDDEN"
    DENY_REQUESTED_REGION = "DENY_REQUESTED_REGION"
    DENY_NO_BASIS = "DENY_NO_BASIS"
    DENY_BASIS_EXPIRED = "DENY_BASIS_EXPIRED"
    DENY_CERT_MISSING = "DENY_CERT_MISSING"
    DENY_CONSENT_INVALID = "DENY_CONSENT_INVALID"
    DENY_CONSENT_SCOPE = "DENY_CONSENT_SCOPE"
    DENY_CONSENT_SYSTEMATIC = "DENY_CONSENT_SYSTEMATIC"
    DENY_GPC = "DENY_GPC"
    DENY_PURPOSE = "DENY_PURPOSE"
    DENY_COUNTRY_OF_CONCERN = "DENY_COUNTRY_OF_CONCERN"
    DENY_TENANT = "DENY_TENANT"
    UNKNOWN_JURISDICTION = "UNKNOWN_JURISDICTION"
    NO_COMPLIANT_HEALTHY = "NO_COMPLIANT_HEALTHY"
    MISDIRECTED = "MISDIRECTED"


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a request before a byte of its body: request line, headers and the peer's address."""

    method: str
    path: str
    headers: Fields
    peer: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """A point on Earth in degrees (WGS 84)."""

    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end once trusted proxies are peeled off; `country` is ISO 3166-1 or None.

    `hinted` says that a trusted proxy named the country; otherwise the address did.
    """

    address: str | None
    country: str | None
    place: Place | None
    hinted: bool = False
    ignored_hints: tuple[str, ...] = ()
    """Names of forwarding and geo headers that an untrusted peer sent and that therefore count for nothing."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One sign of whose law applies: `source` is tenant, header, geoip, geo_hint or claim; `code` ISO 3166-1/-2."""

    source: str
    code: str


@dataclass(frozen=True, slots=True)
class Question:
    """Everything that a residency decision depends on besides law and configuration."""

    tenant: str
    evidence: tuple[Evidence, ...]
    day: date
    requested: str | None = None
    basis: str | None = None
    gpc: bool = False
    purpose: str | None = None
    disabled: frozenset[str] = frozenset()


class Verdict(NamedTuple):
    """What law and tenant rule say of one region, before the caller's own choice narrows it."""

    region: str
    permitted: bool
    reason: Reason
    rule: str
    law: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of `policy.residency.decide`; health plays no part in it.

    `permitted` holds the regions that may see the data, narrowed to the requested one where that is permitted, in the
    order of the configuration; it is empty exactly when `status` is not 200. `verdicts` covers every region.
    """

    permitted: tuple[PermittedRegion, ...]
    verdicts: tuple[Verdict, ...]
    status: Literal[200, 403, 451]
    code: Literal["residency_denied", "forbidden"] | None
    reason: Reason
    rule: str
    law: str
    jurisdictions: tuple[str, ...]
    subject_country: str | None


@dataclass(frozen=True, slots=True)
class Score:
    """The parts of a region's rank, in kilometres and milliseconds; smaller totals are served first."""

    distance_km: float | None
    rtt_ms: float
    latency_ms: float | None
    load: float
    total: float


@dataclass(frozen=True, slots=True)
class Call:
    """An inference request after its wire shape has been read; `body` is what goes on to the backend, untouched."""

    wire: Literal["openai", "kserve"]
    path: str
    model: str
    body: bytes
    headers: tuple[tuple[str, str], ...]
    canonical: bytes
    """The parts of the body that shape the answer, in one spelling: for the cache key."""
    cacheable: bool
    stream: bool
    tokens: int
    """An estimate of the tokens that this request will use, its answer's included: what the limit sets aside."""
    answer_tokens: int = 0
    """Those of them that are for the answer: as many as the caller allows."""
    texts: tuple[str, ...] = ()
    """Where it is for the embeddings of several texts: those. `canonical` is `base` and their JSON then."""
    base: bytes = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer on its way to the client; a stream's completion is durable before its last chunk is yielded."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A stored answer and which region computed it. Times are of the monotonic clock, in seconds.

    `stored` is when it was computed. Until `fresh` it is given out as it is, until `renewing` while another is fetched,
    and until `rescuing` where none can be had.
    """

    region: str
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    stored: float
    fresh: float
    renewing: float
    rescuing: float
