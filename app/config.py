"""Frozen settings, built once from one YAML file and the environment, and passed down; nothing else reads either.

Reading keeps the line of every key, so that each problem can be reported as `FILE:LINE: path.to.key: ...`.
"""

import hashlib
import ipaddress
import os
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from app.geoip import Database
from app.types import Scope
from regions import catalogue
from regions.settings import Duration, Section, Wait, WorkerSettings

DEMO_KEY = "tidegate-demo"
DEMO_KEY_HASH = "sha256:" + hashlib.sha256(DEMO_KEY.encode()).hexdigest()

_SIZES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"^(\d+)\s*(B|KiB|MiB|GiB)?$")
_RATE = re.compile(r"^(\d+)/(second|minute|hour|day)$")
_RATE_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_KEY_HASH = re.compile(r"^sha256:[0-9a-f]{64}$")
_ID = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$")
_NO_NAME = re.compile(r"[\x00\ud800-\udfff]")
_URL = re.compile(r"^https?://[^/\s?#@]+(?:/[^\s?#]*)?$")
RESERVED_LOG = "gateway"
WITNESS = "witness"
"""What belongs to the witness of others' audit logs goes under this name, which no log may have."""


def environment() -> dict[str, str]:
    """The environment of this process; nothing else in the gateway reads it."""
    return dict(os.environ)


def _size(value: Any) -> Any:
    if isinstance(value, str):
        match = _SIZE.match(value.strip())
        if not match:
            raise ValueError(f"{value!r} is not a size; write bytes or a number with KiB, MiB or GiB, such as 16MiB")
        return int(match[1]) * _SIZES[match[2] or ""]
    return value


def _identifier(value: str) -> str:
    if not _ID.match(value):
        raise ValueError(f"{value!r} is not an id; use 1 to 64 letters, digits, '.', '_' and '-'")
    return value


def _jurisdiction(value: str) -> str:
    return catalogue.parse_code(value).code


def _country(value: str) -> str:
    place = catalogue.parse_code(value)
    if place.subdivision:
        raise ValueError(f"{value!r} is a subdivision; write the country here and the subdivision in its own key")
    return place.code


def _http_url(value: str) -> str:
    if not _URL.match(value):
        # Not shown: a URL with a user name in it may hold a password as well.
        raise ValueError("is not a URL to append paths to; write such as https://host:port/path, without user or query")
    return value.rstrip("/")


def _file_glob(value: str) -> str:
    if _NO_NAME.search(value):
        raise ValueError(f"{value!r} holds a character that no file's name has; write `default`, or a glob in UTF-8")
    return value


def _key_hash(value: str) -> str:
    if not _KEY_HASH.match(value):
        raise ValueError("a key is stored as sha256: and 64 hex digits; `tidegate keys new` makes one")
    return value


def _region_id(value: str) -> str:
    if value == RESERVED_LOG:
        raise ValueError(f"{RESERVED_LOG!r} is the name of the gateway's own audit log; choose another id")
    if value == WITNESS:
        raise ValueError(f"{WITNESS!r} is the name under which other gateways' audit logs are kept; choose another id")
    return _identifier(value)


Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Id = Annotated[str, AfterValidator(_identifier)]
RegionId = Annotated[str, AfterValidator(_region_id)]
FileGlob = Annotated[str, AfterValidator(_file_glob)]
KeyHash = Annotated[str, AfterValidator(_key_hash)]
Url = Annotated[str, AfterValidator(_http_url)]
Country = Annotated[str, AfterValidator(_country)]
Jurisdiction = Annotated[str, AfterValidator(_jurisdiction)]


def _in_order(value: tuple[date, date]) -> tuple[date, date]:
    if value[0] > value[1]:
        raise ValueError(f"begins on {value[0]}, after it ends on {value[1]}; write [from, to]")
    return value


Validity = Annotated[tuple[date, date], AfterValidator(_in_order)]
"""The first and the last day."""


def _beside_the_file(value: Path, info: ValidationInfo) -> Path:
    base: Path = (info.context or {}).get("base", Path())
    return base / value


class Rate(Section):
    """So many per so many seconds, written `60000/minute`; `burst` may come at once (the full amount unless given)."""

    amount: int = Field(gt=0)
    seconds: int = Field(gt=0)
    burst: int = Field(gt=0)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            match = _RATE.match(value.strip())
            if not match:
                raise ValueError(f"{value!r} is not a rate; write such as 600/minute (second, minute, hour, day)")
            return {"amount": int(match[1]), "seconds": _RATE_SECONDS[match[2]], "burst": int(match[1])}
        if isinstance(value, dict):
            return {"burst": value.get("amount"), **value}
        if isinstance(value, cls):
            return value
        raise ValueError(f"{value!r} is not a rate; write such as 600/minute (second, minute, hour, day)")


class GatewaySettings(Section):
    listen: str = "127.0.0.1:8080"
    region: str | None = None
    security: Literal["minimal", "standard", "strict"] = "standard"
    body_limit: Size = 16 << 20
    trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    geoip: Path | None = None
    public_urls: dict[str, Url] = Field(default_factory=dict)

    @field_validator("geoip")
    @classmethod
    def _database(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        path = _beside_the_file(value, info) if value else None
        if path:
            Database(path)
        return path

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65535 or not host:  # noqa: PLR2004 - the largest TCP port
            raise ValueError(f"{value!r} is not an address; write HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080")
        return value

    @property
    def host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @property
    def on_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class Certification(Section):
    id: Id
    valid: Validity


class Operator(Section):
    """Who runs a region: facts that law asks for (role, group of undertakings, certifications held)."""

    name: str
    role: Literal["processor", "service_provider", "controller", "third_party"] = "processor"
    group: str | None = None
    certifications: tuple[Certification, ...] = ()


class Backend(Section):
    """A server in a region: a worker of ours that `tidegate up` starts (`managed`), or one that stands already."""

    managed: bool = False
    url: Url | None = None
    protocol: Literal["openai", "kserve", "tidegate"] = "tidegate"
    models: tuple[str, ...] = Field(min_length=1)
    api_key: SecretStr | None = None
    weight: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.managed == (self.url is not None):
            raise ValueError("a backend is either `managed: true` or has a `url`, exactly one of both")
        return self


class Region(Section):
    id: RegionId
    country: Country
    subdivision: Jurisdiction | None = None
    latitude: float = Field(ge=-90, le=90)
    longitude: float = Field(ge=-180, le=180)
    operator: Operator
    upstream_scope: Literal["regional", "global"] = "regional"
    backends: tuple[Backend, ...] = ()

    @field_validator("backends")
    @classmethod
    def _one_worker(cls, value: tuple[Backend, ...]) -> tuple[Backend, ...]:
        if sum(backend.managed for backend in value) > 1:
            raise ValueError("a region has at most one managed backend, its router worker; list all models there")
        return value

    @field_validator("subdivision")
    @classmethod
    def _in_country(cls, value: str | None, info: ValidationInfo) -> str | None:
        country = info.data.get("country")
        if value and country and not value.startswith(country + "-"):
            raise ValueError(f"{value} does not lie in country {country}; write {country}-... or null")
        return value


class ResidencySettings(Section):
    rules: FileGlob = "default"
    posture: Literal["residency", "transfer"] = "residency"
    on_conflict: Literal["refuse", "prefer"] = "refuse"
    unknown_subject: Literal["refuse"] | Jurisdiction = "refuse"
    misdirected: Literal["reject", "redirect"] = "reject"
    disabled: tuple[str, ...] = ()


class Instrument(Section):
    """A legal basis that a tenant has registered; which fields count depends on its type and on the law."""

    id: Id
    type: Literal["scc", "bcr", "contract", "consent"]
    valid: Validity
    to: tuple[Country, ...] = ()
    law: str | None = None
    group: str | None = None
    tia_valid: Validity | None = None
    explicit: bool = False
    risks_informed: bool = False
    written_summary: bool = False
    systematic: bool = True
    withdrawn: date | None = None


class Quota(Section):
    requests: Rate | None = None
    tokens: Rate | None = None
    concurrency: int | None = Field(default=None, gt=0)


class Limits(Quota):
    """Of a tenant: for all that it sends, for each of its keys by itself, and for models by their names."""

    per_key: Quota = Quota()
    models: dict[str, Quota] = Field(default_factory=dict)

    def __hash__(self) -> int:
        """Pydantic's own would ask the dictionary for its."""
        return hash((self.requests, self.tokens, self.concurrency, self.per_key, frozenset(self.models.items())))


class Tenant(Section):
    id: Id
    keys: tuple[KeyHash, ...] = ()
    scopes: tuple[Scope, ...] = ("infer",)
    subject: Jurisdiction | None = None
    callers: Literal["servers", "people"] = "servers"
    posture: Literal["residency", "transfer"] | None = None
    on_conflict: Literal["refuse", "prefer"] | None = None
    allow_regions: tuple[str, ...] | None = None
    instruments: tuple[Instrument, ...] = ()
    limits: Limits = Limits()


class CacheSettings(Section):
    max_entries: int = Field(default=10_000, gt=0)
    max_bytes: Size = 256 << 20
    ttl: Duration = 300.0
    stale_while_revalidate: Wait = 0.0
    stale_if_error: Wait = 0.0
    sampled: bool = False


class BreakerSettings(Section):
    failures: int = Field(default=5, gt=0)
    recovery: Duration = 60.0


class RetrySettings(Section):
    attempts: int = Field(default=3, gt=0, le=10)
    base: Duration = 0.05
    cap: Duration = 2.0
    budget: float = Field(default=0.2, ge=0, le=1)


class HealthSettings(Section):
    interval: Duration = 5.0
    timeout: Duration = 1.0
    healthy: int = Field(default=2, gt=0)
    unhealthy: int = Field(default=3, gt=0)


class ResilienceSettings(Section):
    breaker: BreakerSettings = BreakerSettings()
    retry: RetrySettings = RetrySettings()
    health: HealthSettings = HealthSettings()


class AuditSettings(Section):
    path: Path = Field(default=Path("var/audit"), validate_default=True)
    keys: Path | None = None
    """Directory of the private keys; None takes `keys` beside `path`. A copy of `path` must not carry them."""
    retention: Duration = 365 * 86400.0
    commit_deadline: Duration = 1.0
    witness: Duration | None = 10.0
    """Seconds between looks at the checkpoints of the gateways in `gateway.public_urls`; None looks at none."""
    peers: dict[str, Url] = Field(default_factory=dict)
    """Where this gateway reaches those of other regions, as far as `gateway.public_urls` does not lead there."""

    @field_validator("path", "keys")
    @classmethod
    def _placed(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        return None if value is None else _beside_the_file(value, info)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.key_directory.is_relative_to(self.path.absolute()):
            raise ValueError("keys lies inside path; write a directory outside of it")
        return self

    @property
    def key_directory(self) -> Path:
        return (self.keys or self.path.parent / "keys").absolute()


class Settings(Section):
    """The whole configuration; `Region` order matters: the first region is the primary."""

    version: Literal[1]
    gateway: GatewaySettings = GatewaySettings()
    regions: tuple[Region, ...] = Field(min_length=1)
    residency: ResidencySettings = ResidencySettings()
    tenants: tuple[Tenant, ...] = Field(min_length=1)
    cache: CacheSettings = CacheSettings()
    resilience: ResilienceSettings = ResilienceSettings()
    audit: AuditSettings = AuditSettings()
    worker: WorkerSettings = WorkerSettings()

    @property
    def peers(self) -> dict[str, str]:
        """The other regions' gateways, by region, at the URLs where this one reaches them."""
        urls = {**self.gateway.public_urls, **self.audit.peers}
        return {region: url for region, url in urls.items() if region != self.gateway.region}

    def region(self, region_id: str) -> Region | None:
        return next((region for region in self.regions if region.id == region_id), None)

    def tenant(self, tenant_id: str) -> Tenant | None:
        return next((tenant for tenant in self.tenants if tenant.id == tenant_id), None)
