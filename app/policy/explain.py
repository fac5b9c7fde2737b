"""What becomes of a request once health is known: one answer for real requests, the dry run and the command. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, NamedTuple

from app.policy.residency import TENANT_LAW, TENANT_RULE
from app.policy.routing import HomeKey, RegionState, route
from app.types import Decision, PermittedRegion, Place, Reason, Score, Verdict

Status = Literal[200, 403, 421, 451, 503]
OK: Final = 200
Code = Literal["residency_denied", "forbidden", "misdirected", "no_healthy_region"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer, and each region's part in it. `ranked` holds the regions to try, best first; empty unless 200."""

    status: Status
    code: Code | None
    reason: Reason
    rule: str
    law: str
    ranked: tuple[PermittedRegion, ...]
    permitted: tuple[PermittedRegion, ...]
    """As `ranked`, in the order of the configuration."""
    verdicts: tuple[Verdict, ...]
    scores: Mapping[str, Score]

    @property
    def chosen(self) -> PermittedRegion | None:
        return self.ranked[0] if self.ranked else None

    def as_json(self) -> dict[str, Any]:
        """The shape of the contract: `POST /v1/route/explain` and `tidegate explain --json`."""
        return {
            "status": self.status,
            "code": self.code,
            "reason": self.reason.value,
            "permitted": list(self.permitted),
            "chosen": self.chosen,
            "regions": [
                {
                    "id": verdict.region,
                    "permitted": verdict.permitted,
                    "reason": verdict.reason.value,
                    "rule": verdict.rule,
                    "law": verdict.law,
                    "score": asdict(self.scores[verdict.region]),
                }
                for verdict in self.verdicts
            ],
        }


def resolve(
    decision: Decision,
    states: Sequence[RegionState],
    origin: Place | None,
    prefer: Sequence[str] = (),
    gateway_region: str | None = None,
    *,
    homes: Mapping[HomeKey, str] | None = None,
) -> Explanation:
    """The status that the request gets and the regions to try; never one outside `decision.permitted`.

    `states` covers every configured region in the configuration's order; `gateway_region` is where this gateway
    stands, None for a neutral edge; `homes` holds the choices of region so far. A region that warms up after an outage
    keeps its place here, although a part of its requests still goes to the next one.
    """
    by_id = {state.id: state for state in states}
    found = route(decision.permitted, by_id, origin, prefer, homes=homes)
    ranked = found.order
    outcome = conclude(decision, ranked, lambda region: by_id[region].up, gateway_region)
    if outcome.status != OK:
        ranked = ()
    return Explanation(
        status=outcome.status,
        code=outcome.code,
        reason=outcome.reason,
        rule=outcome.rule,
        law=outcome.law,
        ranked=ranked,
        permitted=tuple(region for region in decision.permitted if region in ranked),
        verdicts=decision.verdicts,
        scores=found.scores,
    )


def route_reason(decision: Decision, region: str) -> Reason:
    """The one token for an answer that `region` served: a failover may end on another basis than the first choice."""
    if decision.reason is Reason.REGION_OVERRIDDEN:
        return decision.reason
    return next(verdict.reason for verdict in decision.verdicts if verdict.region == region)


class Outcome(NamedTuple):
    """The status and code that a request gets, and by what right."""

    status: Status
    code: Code | None
    reason: Reason
    rule: str
    law: str


def conclude(
    decision: Decision,
    ranked: Sequence[PermittedRegion],
    up: Callable[[str], bool],
    gateway_region: str | None,
) -> Outcome:
    """What becomes of a request for which these regions are to be tried, best first; `up` says which regions are."""
    if decision.status != OK:
        return Outcome(decision.status, decision.code, decision.reason, decision.rule, decision.law)
    here = next((verdict for verdict in decision.verdicts if verdict.region == gateway_region), None)
    if here is not None and not here.permitted:
        return Outcome(421, "misdirected", Reason.MISDIRECTED, here.rule, here.law)
    if not ranked:
        # Where a lawful region is up and the tenant alone bars it, the tenant's rule is why nothing is left.
        barred = any(one.reason is Reason.DENY_TENANT and up(one.region) for one in decision.verdicts)
        rule, law = (TENANT_RULE, TENANT_LAW) if barred else (decision.rule, decision.law)
        return Outcome(503, "no_healthy_region", Reason.NO_COMPLIANT_HEALTHY, rule, law)
    if decision.reason is Reason.REGION_OVERRIDDEN:
        return Outcome(OK, None, decision.reason, decision.rule, decision.law)
    chosen = next(verdict for verdict in decision.verdicts if verdict.region == ranked[0])
    return Outcome(OK, None, chosen.reason, chosen.rule, chosen.law)
