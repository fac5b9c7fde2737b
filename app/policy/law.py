"""One law made ready for questions: its dated groups of places, permissions, safeguards and prohibitions. Pure.

What a rule can say is a `Finding`, built once here; `policy.residency` weighs findings against each other.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

from app.policy import lawfile
from app.policy.lawfile import LawFile
from app.types import Reason

_T = TypeVar("_T")

DEFAULT_RULE: Final = "default-deny"
DEFAULT_LAW: Final = "default deny"
INSTRUMENT_LAW: Final = "gdpr"
"""The law under which an instrument is registered unless it names one."""

_BY_WEIGHT: Final = (
    # Permissions, the firmest first.
    Reason.ALLOW_UNRESTRICTED,
    Reason.ALLOW_INTRA,
    Reason.ALLOW_ADEQUACY,
    Reason.ALLOW_CERT,
    Reason.ALLOW_SCC,
    Reason.ALLOW_BCR,
    Reason.ALLOW_CONTRACT,
    Reason.ALLOW_CONSENT,
    # Refusals, the one that is most easily put right first.
    Reason.DENY_CERT_MISSING,
    Reason.DENY_BASIS_EXPIRED,
    Reason.DENY_CONSENT_SYSTEMATIC,
    Reason.DENY_CONSENT_INVALID,
    Reason.DENY_CONSENT_SCOPE,
    Reason.DENY_NO_BASIS,
    Reason.DENY_PURPOSE,
    Reason.DENY_GPC,
    Reason.DENY_COUNTRY_OF_CONCERN,
    Reason.UNKNOWN_JURISDICTION,
)
WEIGHT: Final[Mapping[Reason, int]] = MappingProxyType({reason: place for place, reason in enumerate(_BY_WEIGHT)})
"""Where several laws speak of a region, the heaviest finding is its verdict: so a refusal beats every permission."""
_PERMITS_AS: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        "scc": Reason.ALLOW_SCC,
        "bcr": Reason.ALLOW_BCR,
        "contract": Reason.ALLOW_CONTRACT,
        "consent": Reason.ALLOW_CONSENT,
    }
)
PERMITS: Final = WEIGHT[Reason.ALLOW_CONSENT]
"""The weight of the weakest permission; whatever is heavier refuses."""


class Finding(NamedTuple):
    """What one rule says of one region; compares by weight."""

    weight: int
    reason: Reason
    rule: str
    law: str


def finding(reason: Reason, rule: str, law: str) -> Finding:
    return Finding(WEIGHT[reason], reason, rule, law)


@dataclass(frozen=True, slots=True)
class Group:
    """Places with one law, in force from `start` to `end` (inclusive): what it says of data inside and outside."""

    id: str
    start: date
    end: date
    inside: Finding
    outside: Finding


@dataclass(frozen=True, slots=True)
class Basis:
    """A permission by country alone (`needs` is empty) or by certificates that the operator holds."""

    id: str
    start: date
    end: date
    members: frozenset[str] | None
    needs: tuple[str, ...]
    roles: frozenset[str] | None
    permit: Finding
    ended: Finding
    certificate_ended: Finding
    missing: Finding | None
    disabled: Finding


@dataclass(frozen=True, slots=True)
class Safeguard:
    """A permission by an instrument that the tenant has registered; `rule` holds the conditions of its kind."""

    id: str
    start: date
    end: date
    members: frozenset[str] | None
    accepts: frozenset[str]
    rule: lawfile.Scc | lawfile.Bcr | lawfile.Contract | lawfile.Consent
    permits_as: Reason
    weight: int
    disabled: Finding


@dataclass(frozen=True, slots=True)
class Prohibition:
    """A refusal of what meets every condition that is not None; `gpc` is a condition where it is True."""

    start: date
    end: date
    members: frozenset[str] | None
    to: frozenset[str] | None
    roles: frozenset[str] | None
    purposes: frozenset[str] | None
    gpc: bool
    refuse: Finding


@dataclass(frozen=True, slots=True)
class Law:
    """One law: `groups` by place, `to` the bases by destination, `anywhere` those for any destination."""

    id: str
    reviewed_until: date
    restricts: bool
    groups: Mapping[str, tuple[Group, ...]]
    to: Mapping[str, tuple[Basis, ...]]
    anywhere: tuple[Basis, ...]
    safeguards: tuple[Safeguard, ...]
    prohibitions: tuple[Prohibition, ...]

    def group(self, place: str, day: date) -> Group | None:
        """The group that `place` (ISO 3166-1 or -2) belongs to on that day."""
        for group in self.groups.get(place, ()):
            if group.start <= day <= group.end:
                return group
        return None


def compile_law(law: LawFile) -> Law:
    """The same law whatever the order of its rules."""
    rules = sorted(law.rules, key=lambda rule: rule.id)
    groups: dict[str, list[Group]] = defaultdict(list)
    for members in sorted(law.members, key=lambda one: one.id):
        for place in members.places:
            groups[place].append(_group(members, law.transfers == "restricted"))
    to: dict[str, list[Basis]] = defaultdict(list)
    anywhere: list[Basis] = []
    for rule in rules:
        if isinstance(rule, lawfile.Adequacy | lawfile.Certification):
            for country in rule.to or ():
                to[country].append(_basis(rule))
            if rule.to is None:
                anywhere.append(_basis(rule))
    return Law(
        id=law.id,
        reviewed_until=law.reviewed_until,
        restricts=law.transfers == "restricted",
        groups=_frozen(groups),
        to=_frozen(to),
        anywhere=tuple(anywhere),
        safeguards=tuple(_safeguard(rule) for rule in rules if isinstance(rule, lawfile.InstrumentRule)),
        prohibitions=tuple(_prohibition(rule) for rule in rules if isinstance(rule, lawfile.Forbid)),
    )


def _frozen(lists: Mapping[str, list[_T]]) -> Mapping[str, tuple[_T, ...]]:
    return MappingProxyType({key: tuple(values) for key, values in lists.items()})


def _names(values: Iterable[str] | None) -> frozenset[str] | None:
    return None if values is None else frozenset(values)


def _end(valid: lawfile.Period) -> date:
    return valid[1] or date.max


def _group(members: lawfile.Members, restricts: bool) -> Group:
    free = Reason.ALLOW_INTRA if restricts else Reason.ALLOW_UNRESTRICTED
    inside = finding(free, members.id, members.law)
    outside = finding(Reason.DENY_NO_BASIS, DEFAULT_RULE, members.restriction or members.law) if restricts else inside
    return Group(members.id, members.valid[0], _end(members.valid), inside, outside)


def _basis(rule: lawfile.Adequacy | lawfile.Certification) -> Basis:
    name, permit, needs, roles = rule.law, Reason.ALLOW_CERT, list[str](), None
    missing = None
    if isinstance(rule, lawfile.Adequacy):
        name, permit = rule.name or rule.law, Reason.ALLOW_ADEQUACY
    else:
        needs, roles = sorted(rule.certifications), rule.roles
        if rule.to:  # only where the certificate is the country's way in does its absence say more than "no basis"
            missing = finding(Reason.DENY_CERT_MISSING, rule.id, rule.missing_law or rule.law)
    return Basis(
        id=rule.id,
        start=rule.valid[0],
        end=_end(rule.valid),
        members=_names(rule.members),
        needs=tuple(needs),
        roles=_names(roles),
        permit=finding(permit, rule.id, rule.law),
        ended=finding(Reason.DENY_BASIS_EXPIRED, rule.id, f"{name} ends {_end(rule.valid)}"),
        certificate_ended=finding(Reason.DENY_BASIS_EXPIRED, rule.id, rule.law),
        missing=missing,
        disabled=_switched_off(rule),
    )


def _safeguard(rule: lawfile.Scc | lawfile.Bcr | lawfile.Contract | lawfile.Consent) -> Safeguard:
    permits_as = _PERMITS_AS[rule.kind]
    return Safeguard(
        rule.id,
        rule.valid[0],
        _end(rule.valid),
        _names(rule.members),
        frozenset(rule.accepts),
        rule,
        permits_as,
        WEIGHT[permits_as],
        _switched_off(rule),
    )


def _prohibition(rule: lawfile.Forbid) -> Prohibition:
    return Prohibition(
        rule.valid[0],
        _end(rule.valid),
        _names(rule.members),
        _names(rule.to),
        _names(rule.roles),
        _names(rule.purposes),
        rule.gpc,
        finding(rule.reason, rule.id, rule.law),
    )


def _switched_off(rule: lawfile.Permit) -> Finding:
    return finding(Reason.DENY_NO_BASIS, rule.id, rule.disabled_law or rule.law)
