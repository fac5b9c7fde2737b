"""Which regions may see a request, by evidence, law and tenant rule; nothing else makes a PermittedRegion. Pure.

Jurisdictions are the union of all evidence; a region is permitted where every law of every jurisdiction permits it. In
one law a prohibition beats a permission, and what no rule permits is refused. Then the tenant's own rule narrows, then
the region that the caller asked for. Health plays no part: see `policy.explain`.
"""

from collections.abc import Collection, Sequence
from datetime import date
from typing import Final, Literal

from app.config import Region, ResidencySettings, Tenant
from app.policy.ground import Ground, Row
from app.policy.law import DEFAULT_LAW, DEFAULT_RULE, PERMITS, WEIGHT, Finding, finding
from app.policy.transfer import Case, ask
from app.types import Caller, Decision, Evidence, PermittedRegion, Question, Reason, Verdict
from regions import catalogue

TENANT_RULE: Final = "tenant.allow_regions"
TENANT_LAW: Final = "tenant rule"

_UNKNOWN: Final = finding(Reason.UNKNOWN_JURISDICTION, DEFAULT_RULE, DEFAULT_LAW)
_PURPOSE: Final = finding(Reason.DENY_PURPOSE, DEFAULT_RULE, DEFAULT_LAW)
_SPEAKS_FOR_SUBJECT: Final = ("header", "claim", "tenant", "geo_hint", "geoip")
"""Sources of evidence, the one that names the subject most directly first."""


def evidence(
    tenant: Tenant, subject_header: str | None, caller: Caller, extra: Sequence[Evidence] = ()
) -> tuple[Evidence, ...]:
    """Every sign of whose law applies: the tenant's default always, the header and `extra` where given.

    The caller's place counts only where the tenant's callers are people: a server's says nothing of its users. Raises
    `catalogue.CodeError` for a code, sent as header or in `extra`, that ISO 3166 does not have.
    """
    found = [Evidence(one.source, catalogue.parse_code(one.code).code) for one in extra]
    if tenant.subject is not None:
        found.append(Evidence("tenant", tenant.subject))
    if subject_header is not None:
        found.append(Evidence("header", catalogue.parse_code(subject_header).code))
    if tenant.callers == "people" and caller.country is not None:
        found.append(Evidence("geo_hint" if caller.hinted else "geoip", caller.country))
    return tuple(dict.fromkeys(found))


def decide(question: Question, tenant: Tenant, residency: ResidencySettings, ground: Ground) -> Decision:
    """What may be done with the request, in the regions and by the laws of `ground`.

    `question.requested` is the id of a region or None; an id that is not configured is permitted nothing, and a basis
    that the tenant has not registered is none.
    """
    assumed = None if residency.unknown_subject == "refuse" else residency.unknown_subject
    codes = tuple(sorted({one.code for one in question.evidence})) or ((assumed,) if assumed else ())
    posture = tenant.posture or residency.posture
    case = Case(
        day=question.day,
        gpc=question.gpc,
        purpose=question.purpose,
        transfer=posture == "transfer",
        basis=question.basis,
        instruments=tenant.instruments,
        disabled=question.disabled.union(residency.disabled),
    )
    verdicts = _verdicts(_lawful(case, codes, ground), tenant.allow_regions, ground.regions)
    narrow = (tenant.on_conflict or residency.on_conflict) == "refuse"
    permitted, verdict = _choose(verdicts, question.requested, narrow=narrow, stay=posture == "residency")
    status, code = _status(verdict, permitted)
    return Decision(
        permitted=tuple(map(PermittedRegion, permitted)),
        verdicts=verdicts,
        status=status,
        code=code,
        reason=verdict.reason,
        rule=verdict.rule,
        law=verdict.law,
        jurisdictions=codes,
        subject_country=_subject_country(question.evidence) or (assumed and assumed[:2]),
    )


def _lawful(case: Case, codes: Sequence[str], ground: Ground) -> Sequence[Finding]:
    """What the law says of each region: where several laws apply the heaviest finding, of equal ones the first."""
    rows = _applicable(codes, case.day, ground)
    if rows is None:
        return [_UNKNOWN] * len(ground.regions)
    if case.purpose is not None and case.purpose not in ground.book.purposes:
        return [_PURPOSE] * len(ground.regions)
    found = ask(rows[0], case, ground.regions)
    for row in rows[1:]:
        more = ask(row, case, ground.regions)
        found = [one if one.weight >= other.weight else other for one, other in zip(found, more, strict=True)]
    return found


def _applicable(codes: Sequence[str], day: date, ground: Ground) -> Sequence[Row] | None:
    """What each law that applies says to whom it protects, the most local first; None where one code has no law."""
    local: dict[str, Row] = {}
    national: dict[str, Row] = {}
    for code in codes:
        country = code[:2]
        here = ground.rows(country, day)
        there = ground.rows(code, day) if code != country else []
        if not (here or there):
            return None
        local |= {row.group.id: row for row in there}
        national |= {row.group.id: row for row in here}
    return [*local.values(), *national.values()] or None


def _verdicts(
    lawful: Sequence[Finding], allowed: Collection[str] | None, regions: Sequence[Region]
) -> tuple[Verdict, ...]:
    """What remains of the law's permissions under the tenant's own rule."""
    return tuple(
        Verdict(region.id, False, Reason.DENY_TENANT, TENANT_RULE, TENANT_LAW)
        if weight <= PERMITS and allowed is not None and region.id not in allowed
        else Verdict(region.id, weight <= PERMITS, reason, rule, law)
        for region, (weight, reason, rule, law) in zip(regions, lawful, strict=True)
    )


def _choose(
    verdicts: Sequence[Verdict], requested: str | None, *, narrow: bool, stay: bool
) -> tuple[list[str], Verdict]:
    """The regions that remain once the caller's wish is heard, and the verdict that the answer rests on."""
    permitted = [verdict for verdict in verdicts if verdict.permitted]
    ids = [verdict.region for verdict in permitted]
    if requested is None:
        return ids, permitted[0] if permitted else _refusal(verdicts)
    wish = next((one for one in verdicts if one.region == requested), None) or _unconfigured(requested)
    if wish.permitted:
        return [requested], wish
    if narrow:
        if stay and permitted and wish.reason is Reason.DENY_NO_BASIS:
            wish = wish._replace(reason=Reason.DENY_REQUESTED_REGION)
        return [], wish
    if permitted:
        return ids, wish._replace(reason=Reason.REGION_OVERRIDDEN)
    return [], _refusal(sorted(verdicts, key=lambda one: one.region != requested))


def _refusal(verdicts: Sequence[Verdict]) -> Verdict:
    """Of refusals alone: the tenant's own, as then the law would permit a region; else the most restrictive."""
    own = next((one for one in verdicts if one.reason is Reason.DENY_TENANT), None)
    return own or max(verdicts, key=lambda one: WEIGHT[one.reason])


def _unconfigured(region: str) -> Verdict:
    return Verdict(region, False, Reason.DENY_REQUESTED_REGION, DEFAULT_RULE, DEFAULT_LAW)


def _status(
    verdict: Verdict, permitted: Sequence[str]
) -> tuple[Literal[200, 403, 451], Literal["residency_denied", "forbidden"] | None]:
    if permitted:
        return 200, None
    return (403, "forbidden") if verdict.reason is Reason.DENY_TENANT else (451, "residency_denied")


def _subject_country(found: Sequence[Evidence]) -> str | None:
    """ISO 3166-1 code of the person's country, by the evidence that names it most directly."""
    for source in _SPEAKS_FOR_SUBJECT:
        for one in found:
            if one.source == source:
                return one.code[:2]
    return None
