"""What one law says of one region: a prohibition, a home, or a basis on which data may leave for it. Pure."""

from dataclasses import dataclass
from datetime import date

from app.config import Instrument, Region
from app.policy import lawfile
from app.policy.law import INSTRUMENT_LAW, PERMITS, Basis, Finding, Group, Law, Prohibition, Safeguard, finding
from app.types import Reason


@dataclass(frozen=True, slots=True)
class Case:
    """What a law wants to know of a request besides the region."""

    day: date
    gpc: bool
    purpose: str | None
    transfer: bool
    """Whether the tenant's posture lets data leave the jurisdiction at all."""
    basis: str | None
    instruments: tuple[Instrument, ...]
    disabled: frozenset[str]


@dataclass(frozen=True, slots=True)
class Stand:
    """One law's part in a case: what of it is in force and in play, sorted out once for all regions."""

    law: Law
    group: Group
    case: Case
    prohibitions: tuple[Prohibition, ...]
    instruments: tuple[tuple[Safeguard, Instrument], ...]


def stand(law: Law, group: Group, case: Case) -> Stand:
    prohibitions = tuple(one for one in law.prohibitions if _in_play(one, group, case))
    instruments: tuple[tuple[Safeguard, Instrument], ...] = ()
    if case.transfer and case.instruments:
        instruments = tuple(
            (safeguard, one)
            for safeguard in law.safeguards
            if safeguard.start <= case.day <= safeguard.end
            and (safeguard.members is None or group.id in safeguard.members)
            for one in case.instruments
            if _counts(safeguard, one, case)
        )
    return Stand(law, group, case, prohibitions, instruments)


def ask(stand: Stand, region: Region) -> Finding:
    """What the law says of `region`; one of global scope stands nowhere."""
    refusals = [one.refuse for one in stand.prohibitions if _forbids(one, region)]
    if refusals:
        return max(refusals)
    law, group, day = stand.law, stand.group, stand.case.day
    if not law.restricts:
        return group.inside
    if region.upstream_scope == "global":
        return group.outside
    if law.group(region.country, day) or (region.subdivision and law.group(region.subdivision, day)):
        return group.inside
    return _abroad(stand, region) if stand.case.transfer else group.outside


def _in_play(rule: Prohibition, group: Group, case: Case) -> bool:
    return (
        rule.start <= case.day <= rule.end
        and (case.gpc or not rule.gpc)
        and (rule.purposes is None or case.purpose in rule.purposes)
        and (rule.members is None or group.id in rule.members)
    )


def _forbids(rule: Prohibition, region: Region) -> bool:
    return (rule.roles is None or region.operator.role in rule.roles) and (
        rule.to is None or region.upstream_scope == "global" or region.country in rule.to
    )


def _abroad(stand: Stand, region: Region) -> Finding:
    """The firmest permission; else, of the last kind of basis that nearly held, the failure most easily put right."""
    group, case = stand.group, stand.case
    found: list[tuple[int, Finding]] = []
    for basis in stand.law.to.get(region.country, ()) + stand.law.anywhere:
        if basis.start <= case.day and (basis.members is None or group.id in basis.members):
            said = _by_basis(basis, case, region)
            if said:
                found.append((basis.permit.weight, said))
    for safeguard, instrument in stand.instruments:
        said = _by_instrument(safeguard, instrument, case, region)
        if said:
            found.append((safeguard.weight, said))
    if not found:
        return group.outside
    permits = [said for _, said in found if said.weight <= PERMITS]
    if permits:
        return min(permits)
    last = max(kind for kind, _ in found)
    return min(said for kind, said in found if kind == last)


def _by_basis(basis: Basis, case: Case, region: Region) -> Finding | None:
    if basis.roles is not None and region.operator.role not in basis.roles:
        return None
    if case.day > basis.end:
        return basis.ended
    if basis.id in case.disabled:
        return basis.disabled
    if not basis.needs:
        return basis.permit
    held = {one.id: one.valid for one in region.operator.certifications}
    periods = [held[name] for name in basis.needs if name in held and held[name][0] <= case.day]
    if len(periods) < len(basis.needs):
        return basis.missing
    return basis.permit if all(case.day <= end for _, end in periods) else basis.certificate_ended


def _counts(safeguard: Safeguard, instrument: Instrument, case: Case) -> bool:
    """Whether the law takes an instrument of this kind, and the instrument may speak in this case at all."""
    rule = safeguard.rule
    if instrument.type != rule.kind or (instrument.law or INSTRUMENT_LAW) not in safeguard.accepts:
        return False
    named = instrument.id == case.basis or not isinstance(rule, lawfile.Consent)  # consent counts only by name
    return named and instrument.valid[0] <= case.day


def _by_instrument(safeguard: Safeguard, instrument: Instrument, case: Case, region: Region) -> Finding | None:
    """What comes of one registered instrument; None where it says nothing of this region."""
    rule = safeguard.rule
    listed = region.country in instrument.to
    if not (listed or isinstance(rule, lawfile.Consent) or (isinstance(rule, lawfile.Bcr) and not instrument.to)):
        return None
    name = f"{safeguard.id}:{instrument.id}"
    if safeguard.id in case.disabled or instrument.id in case.disabled:
        return finding(Reason.DENY_NO_BASIS, name, safeguard.disabled.law)
    flaw = _flaw(rule, instrument, case, region)
    return finding(flaw[0], name, flaw[1]) if flaw else finding(safeguard.permits_as, name, rule.law)


def _flaw(
    rule: lawfile.InstrumentRule, instrument: Instrument, case: Case, region: Region
) -> tuple[Reason, str] | None:
    """Why the instrument permits nothing after all, and the article that says so."""
    if isinstance(rule, lawfile.Consent):
        return _flaw_of_consent(rule, instrument, case, region)
    if isinstance(rule, lawfile.Bcr) and (instrument.group is None or instrument.group != region.operator.group):
        return Reason.DENY_CERT_MISSING, f"{rule.law}: operator outside the group"
    if case.day > instrument.valid[1]:
        return Reason.DENY_BASIS_EXPIRED, rule.law
    if isinstance(rule, lawfile.Scc):
        assessed = instrument.tia_valid
        if assessed is None or case.day < assessed[0]:
            return Reason.DENY_NO_BASIS, rule.tia_law
        if case.day > assessed[1]:
            return Reason.DENY_BASIS_EXPIRED, rule.tia_law
    return None


def _flaw_of_consent(
    rule: lawfile.Consent, consent: Instrument, case: Case, region: Region
) -> tuple[Reason, str] | None:
    withdrawn = consent.withdrawn is not None and consent.withdrawn <= case.day
    flaws = (
        (withdrawn, Reason.DENY_CONSENT_INVALID, rule.withdrawal_law),
        (case.day > consent.valid[1], Reason.DENY_BASIS_EXPIRED, rule.law),
        (not all(getattr(consent, name) for name in rule.conditions), Reason.DENY_CONSENT_INVALID, rule.law),
        (region.country not in consent.to, Reason.DENY_CONSENT_SCOPE, rule.guidance),
        (rule.occasional and consent.systematic, Reason.DENY_CONSENT_SYSTEMATIC, rule.guidance),
    )
    return next(((reason, law) for holds, reason, law in flaws if holds), None)
