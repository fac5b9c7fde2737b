"""What would happen to a request: the options of explain, as the command and the endpoint share them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.config import Settings, Tenant
from app.errors import InvalidRequest
from app.facts import known_basis, known_region, subject_code
from app.policy.explain import Explanation, resolve
from app.policy.ground import Ground
from app.policy.residency import decide, evidence
from app.policy.routing import HomeKey, RegionState
from app.types import Caller, Evidence, Place, Question

Name = Annotated[str, Field(min_length=1, max_length=64)]
Names = Annotated[tuple[Name, ...], Field(max_length=64)]

_NOBODY = Caller(address=None, country=None, place=None)


class NamedEvidence(BaseModel):
    """One more sign of whose law applies."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    source: Name
    code: Name


class ExplainRequest(BaseModel):
    """The options of `tidegate explain` and the body of `POST /v1/route/explain`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    subject: Name | None = None
    tenant: Name | None = None
    region: Name | None = None
    prefer: Names = ()
    transfer_basis: Name | None = None
    gpc: Names = ()
    evidence: Annotated[tuple[NamedEvidence, ...], Field(max_length=64)] = ()
    purpose: Name | None = None
    down: Names = ()
    disabled: Names = ()
    at: date | None = None


@dataclass(frozen=True, slots=True)
class Malformed:
    """The answer where the request would be refused as malformed: nothing is decided, and no region has a verdict."""

    error: InvalidRequest

    def as_json(self) -> dict[str, Any]:
        """As `Explanation.as_json`, with the option at fault as `param`."""
        answer = {"status": self.error.status, "code": self.error.code, "reason": None, "permitted": [], "chosen": None}
        return {**answer, "regions": [], "param": self.error.param}


def all_up(settings: Settings) -> list[RegionState]:
    """Every region as where nothing is known of it but its place: up, idle, and of no known latency."""
    return [
        RegionState(one.id, one.latitude, one.longitude, True, None, 0.0, position)
        for position, one in enumerate(settings.regions)
    ]


def to_question(options: ExplainRequest, settings: Settings, tenant: Tenant, today: date) -> Question:
    """The residency question of a dry run; raises `InvalidRequest` or `UnknownRegion` naming the option at fault.

    Nobody calls: the place of whoever asks for the explanation is no evidence of a subject's.
    """
    extra = tuple(Evidence(one.source, subject_code(one.code, "evidence")) for one in options.evidence)
    subject = None if options.subject is None else subject_code(options.subject, "subject")
    return Question(
        tenant=tenant.id,
        evidence=evidence(tenant, subject, _NOBODY, extra),
        day=options.at or today,
        requested=None if options.region is None else known_region(settings, options.region, "region"),
        basis=known_basis(tenant, options.transfer_basis, "transfer_basis"),
        gpc="1" in (value.strip() for value in options.gpc),
        purpose=options.purpose,
        disabled=frozenset(options.disabled),
    )


def explain(
    options: ExplainRequest,
    *,
    settings: Settings,
    ground: Ground,
    tenant: Tenant,
    states: Sequence[RegionState],
    origin: Place | None,
    today: date,
    homes: Mapping[HomeKey, str] | None = None,
) -> Explanation | Malformed:
    """The decision and ranking that such a request would get now, with the regions in `down` counted as down.

    Raises `InvalidRequest` for `down` and `disabled`, which are no part of the request.
    """
    down = {known_region(settings, region, "down") for region in options.down}
    switches = ground.book.switches.union(instrument.id for instrument in tenant.instruments)
    if not switches.issuperset(options.disabled):
        raise InvalidRequest("field_value", param="disabled", expected=sorted(switches))
    try:
        question = to_question(options, settings, tenant, today)
        prefer = tuple(known_region(settings, region, "prefer") for region in options.prefer)
    except InvalidRequest as error:
        return Malformed(error)
    return resolve(
        decide(question, tenant, settings.residency, ground),
        states=[replace(state, up=state.up and state.id not in down) for state in states],
        origin=origin,
        prefer=prefer,
        gateway_region=settings.gateway.region,
        homes=homes,
    )
