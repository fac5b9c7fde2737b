"""From an outcome that permits nothing to the error that tells its caller why, and what would be right."""

from app.config import Settings
from app.errors import Forbidden, GatewayError, Misdirected, NoHealthyRegion, ResidencyDenied
from app.policy.explain import Outcome
from app.types import Decision, Question, Reason

_BLOCKED_BY = {"Link": '</v1/route/explain>; rel="blocked-by"'}
"""RFC 7725, section 4: who blocks. It is this gateway, and there it says why."""


def refusal(outcome: Outcome, decision: Decision, question: Question, settings: Settings, path: str) -> GatewayError:
    """The error for a decision that permits no region that is up, or none from where this gateway stands."""
    match outcome.code:
        case "no_healthy_region":
            return NoHealthyRegion.among(decision.permitted)
        case "misdirected":
            return _misdirected(decision, settings, path)
        case "forbidden":
            return _forbidden(outcome, decision, question)
    lawful = _lawful(decision)
    unknown = outcome.reason is Reason.UNKNOWN_JURISDICTION
    return ResidencyDenied(
        "unknown" if unknown else "region" if lawful and question.requested else None,
        reason=outcome.reason,
        headers=_BLOCKED_BY,
        extra={"reason": outcome.reason, "rule": decision.rule, "law": decision.law, "permitted": lawful},
        law=decision.law,
        region=question.requested,
        permitted=lawful,
    )


def _lawful(decision: Decision) -> list[str]:
    return [verdict.region for verdict in decision.verdicts if verdict.permitted]


def _forbidden(outcome: Outcome, decision: Decision, question: Question) -> Forbidden:
    return Forbidden(
        "region" if question.requested else None,
        reason=outcome.reason,
        extra={"reason": outcome.reason, "permitted": _lawful(decision)},
        tenant=question.tenant,
        region=question.requested,
    )


def _misdirected(decision: Decision, settings: Settings, path: str) -> Misdirected:
    gateway = settings.gateway
    lawful = _lawful(decision)
    hosts = [gateway.public_urls[region] for region in lawful if region in gateway.public_urls]
    error = Misdirected(
        reason=Reason.MISDIRECTED,
        extra={"reason": Reason.MISDIRECTED, "hosts": hosts},
        region=gateway.region,
        hosts=hosts or lawful,
    )
    if hosts and settings.residency.misdirected == "redirect":
        # 307 keeps method and body; never 308, which a browser would remember for every later subject.
        error.status = 307
        error.headers["Location"] = hosts[0] + path
    return error
