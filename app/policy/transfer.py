"""What a request changes in what a law says: instruments it may rest on, kill switches, prohibitions it meets. Pure."""

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from app.config import Instrument, Region
from app.policy import lawfile
from app.policy.ground import Row, Say, least, say
from app.policy.law import INSTRUMENT_LAW, Finding, Prohibition, Safeguard, finding
from app.types import Reason


class Case(NamedTuple):
    """What a law wants to know of a request besides the region."""

    day: date
    gpc: bool
    purpose: str | None
    transfer: bool
    """Whether the tenant's posture lets data leave the jurisdiction at all."""
    basis: str | None
    instruments: tuple[Instrument, ...]
    disabled: frozenset[str]


class _Claim(NamedTuple):
    """What comes of one registered instrument that counts in the case."""

    to: tuple[str, ...] | None
    """The countries that it covers; None: all."""
    inside: Say
    elsewhere: Say | None = None
    """What it says of countries that it does not cover."""
    group: str | None = None
    """The group of operators within which it holds, where it is bound to one."""
    outside_group: Say | None = None


def ask(row: Row, case: Case, regions: Sequence[Region]) -> Sequence[Finding]:
    """What the law says of each region; `regions` are those that the row was made for."""
    found = _abroad(row, case, regions) if case.transfer else row.staying
    for rule, reach in row.prohibitions:
        if _in_play(rule, case):
            found = [max(said, rule.refuse) if at in reach else said for at, said in enumerate(found)]
    return found


def _in_play(rule: Prohibition, case: Case) -> bool:
    return (case.gpc or not rule.gpc) and (rule.purposes is None or case.purpose in rule.purposes)


def _abroad(row: Row, case: Case, regions: Sequence[Region]) -> Sequence[Finding]:
    claims = _claims(row.safeguards, case) if case.instruments else []
    switched_off = not row.switches.isdisjoint(case.disabled)
    if not (claims or switched_off):
        return row.moving
    standing: Sequence[Say | None] = row.standing
    if switched_off:
        standing = [least(options, case.disabled, row.otherwise) for options in row.options]
    found = list(row.moving)
    for at, best in enumerate(standing):
        if best:
            word = best
            for claim in claims:
                said = _of_region(claim, regions[at])
                if said and said < word:
                    word = said
            found[at] = word.finding
    return found


def _of_region(claim: _Claim, region: Region) -> Say | None:
    if claim.to is not None and region.country not in claim.to:
        return claim.elsewhere
    if claim.group is not None and claim.group != region.operator.group:
        return claim.outside_group
    return claim.inside


def _claims(safeguards: Sequence[Safeguard], case: Case) -> list[_Claim]:
    return [
        _claim(safeguard, instrument, case)
        for safeguard in safeguards
        for instrument in case.instruments
        if _counts(safeguard, instrument, case)
    ]


def _counts(safeguard: Safeguard, instrument: Instrument, case: Case) -> bool:
    """Whether the law takes an instrument of this kind, and the instrument may speak in this case at all."""
    rule = safeguard.rule
    if instrument.type != rule.kind or (instrument.law or INSTRUMENT_LAW) not in safeguard.accepts:
        return False
    # A basis that is named stands alone; without a name every instrument counts but consent, which counts only by name.
    named = not isinstance(rule, lawfile.Consent) if case.basis is None else instrument.id == case.basis
    return named and instrument.valid[0] <= case.day


def _claim(safeguard: Safeguard, instrument: Instrument, case: Case) -> _Claim:
    rule = safeguard.rule
    to = None if isinstance(rule, lawfile.Bcr) and not instrument.to else instrument.to

    def said(reason: Reason, law: str) -> Say:
        return say(safeguard.weight, finding(reason, f"{safeguard.id}:{instrument.id}", law))

    if safeguard.id in case.disabled or instrument.id in case.disabled:
        off = said(Reason.DENY_NO_BASIS, safeguard.disabled.law)
        return _Claim(to, off, off if isinstance(rule, lawfile.Consent) else None)
    permitted = safeguard.permits_as, rule.law
    if isinstance(rule, lawfile.Consent):
        flaw = _flaw_of_consent(rule, instrument, case.day)
        regular = rule.occasional and instrument.systematic
        here = flaw or ((Reason.DENY_CONSENT_SYSTEMATIC, rule.guidance) if regular else permitted)
        return _Claim(to, said(*here), said(*(flaw or (Reason.DENY_CONSENT_SCOPE, rule.guidance))))
    inside = said(*(_flaw(rule, instrument, case.day) or permitted))
    if isinstance(rule, lawfile.Bcr):
        outsider = said(Reason.DENY_CERT_MISSING, f"{rule.law}: operator outside the group")
        return _Claim(to, inside if instrument.group else outsider, None, instrument.group, outsider)
    return _Claim(to, inside)


def _flaw(rule: lawfile.InstrumentRule, instrument: Instrument, day: date) -> tuple[Reason, str] | None:
    """Why an instrument permits nothing after all wherever it is used, and the article that says so."""
    if day > instrument.valid[1]:
        return Reason.DENY_BASIS_EXPIRED, rule.law
    if isinstance(rule, lawfile.Scc):
        assessed = instrument.tia_valid
        if assessed is None or day < assessed[0]:
            return Reason.DENY_NO_BASIS, rule.tia_law
        if day > assessed[1]:
            return Reason.DENY_BASIS_EXPIRED, rule.tia_law
    return None


def _flaw_of_consent(rule: lawfile.Consent, consent: Instrument, day: date) -> tuple[Reason, str] | None:
    if consent.withdrawn is not None and consent.withdrawn <= day:
        return Reason.DENY_CONSENT_INVALID, rule.withdrawal_law
    if day > consent.valid[1]:
        return Reason.DENY_BASIS_EXPIRED, rule.law
    if not all(getattr(consent, name) for name in rule.conditions):
        return Reason.DENY_CONSENT_INVALID, rule.law
    return None
