"""The form of a law file (`configs/residency/*.yaml`), and everything that can be wrong within one of them."""

from collections.abc import Iterator, Mapping
from datetime import date
from itertools import combinations
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from app.config import Country, Id, Jurisdiction
from app.types import Reason
from regions import catalogue
from regions.settings import Section


def _no_code(value: str) -> str:
    try:
        catalogue.parse_code(value)
    except catalogue.CodeError:
        return value
    raise ValueError(f"{value!r} is an ISO 3166 code; an area needs a name of its own")


Text = Annotated[str, Field(min_length=1)]
Area = Annotated[Id, AfterValidator(_no_code)]
"""What several places are called together, such as EEA."""
Period = tuple[date, date | None]
"""First and last day in force, both inclusive; no last day while none is known."""
Claim = tuple[Any, ...]
"""What a rule decides. Two rules that claim the same on the same day would contradict each other."""


class LawInvalid(ValueError):
    """Law files that cannot be used; `problems` holds (file, what is wrong and in which rule) for all of them."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{file}: {message}" for file, message in problems))


class _Dated(Section):
    id: Id
    valid: Period
    law: Text
    """The article that a verdict cites."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        start, end = self.valid
        if end is not None and end < start:
            raise ValueError(f"valid ends on {end}, before it begins on {start}")
        return self


class Members(_Dated):
    """Places that share one law: it protects who is there, and data move freely between the places of all groups."""

    places: tuple[Jurisdiction, ...] = Field(min_length=1)
    areas: tuple[Area, ...] = ()
    """The names by which statements (`tidegate prove`) may call these places."""
    restriction: Text | None = None
    """The article that keeps data in, where it is not the one that lets them move inside."""

    def claims(self) -> frozenset[Claim]:
        return frozenset(("member", place) for place in self.places)


class _Rule(_Dated):
    members: tuple[Id, ...] | None = None
    """Groups whose people the rule is about; None: all of the law's."""

    def claims(self) -> frozenset[Claim]:
        """What the rule decides, for each group on its own."""
        return frozenset((group, *rest) for group in self.members or ("*",) for rest in self._subjects())

    def _subjects(self) -> Iterator[Claim]:
        raise NotImplementedError


class Permit(_Rule):
    disabled_law: Text | None = None
    """Cited instead of `law` once a kill switch has taken the rule out."""


class Adequacy(Permit):
    kind: Literal["adequacy"]
    to: tuple[Country, ...] = Field(min_length=1)
    name: Text | None = None
    """What the decision is called when its end is the reason of a refusal."""

    def _subjects(self) -> Iterator[Claim]:
        return ((self.kind, country) for country in self.to)


class Certification(Permit):
    """The operator must hold all `certifications`; `to` is None where a certificate counts in any country."""

    kind: Literal["certification"]
    certifications: tuple[Id, ...] = Field(min_length=1)
    to: tuple[Country, ...] | None = Field(default=None, min_length=1)
    roles: tuple[str, ...] | None = None
    missing_law: Text | None = None

    def _subjects(self) -> Iterator[Claim]:
        held = tuple(sorted(self.certifications))
        return ((self.kind, held, country) for country in self.to or ("*",))


class InstrumentRule(Permit):
    accepts: tuple[Id, ...] = Field(min_length=1)
    """Laws under which a tenant may have registered the instrument for it to count here."""
    kind: str

    def _subjects(self) -> Iterator[Claim]:
        return ((self.kind, law) for law in self.accepts)


class Scc(InstrumentRule):
    kind: Literal["scc"]
    tia_law: Text


class Bcr(InstrumentRule):
    kind: Literal["bcr"]


class Contract(InstrumentRule):
    kind: Literal["contract"]


class Consent(InstrumentRule):
    kind: Literal["consent"]
    conditions: tuple[Literal["explicit", "risks_informed", "written_summary"], ...] = Field(min_length=1)
    occasional: bool
    """Whether consent is no basis for systematic transfers."""
    guidance: Text
    withdrawal_law: Text


class Forbid(_Rule):
    """Refuses what meets every condition that is given; it beats any permission."""

    kind: Literal["forbid"]
    reason: Literal[Reason.DENY_GPC, Reason.DENY_PURPOSE, Reason.DENY_COUNTRY_OF_CONCERN]
    to: tuple[Country, ...] | None = Field(default=None, min_length=1)
    roles: tuple[str, ...] | None = Field(default=None, min_length=1)
    purposes: tuple[Text, ...] | None = Field(default=None, min_length=1)
    gpc: bool = False

    def _subjects(self) -> Iterator[Claim]:
        for purpose in self.purposes or ("*",):
            for country in self.to or ("*",):
                for role in self.roles or ("*",):
                    yield self.kind, self.reason, self.gpc, purpose, country, role


Rule = Annotated[
    Adequacy | Certification | Scc | Bcr | Contract | Consent | Forbid,
    Field(discriminator="kind"),
]


class LawFile(Section):
    """One law: whose it is, whether it restricts where data go, and its dated rules."""

    id: Id
    name: Text
    reviewed: date
    reviewed_until: date
    transfers: Literal["restricted", "open"]
    members: tuple[Members, ...] = Field(min_length=1)
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _review(self) -> Self:
        if self.reviewed_until < self.reviewed:
            raise ValueError(f"reviewed_until {self.reviewed_until} lies before reviewed {self.reviewed}")
        return self

    def inconsistencies(self) -> Iterator[str]:
        """What its parts say against each other, each naming the rules at fault."""
        groups = {group.id for group in self.members}
        for rule in self.rules:
            for name in sorted(set(rule.members or ()) - groups):
                yield f"{rule.id}: members names {name!r}; this file has {', '.join(sorted(groups))}"
            if self.transfers == "open" and not isinstance(rule, Forbid):
                yield f"{rule.id}: kind {rule.kind} has no use in a law whose transfers are open"
        yield from _overlaps(self.members)
        yield from _overlaps(self.rules)


def read(file: str, document: Mapping[str, Any]) -> LawFile:
    """The law in one file; raises `LawInvalid` with everything that is wrong with it."""
    try:
        law = LawFile.model_validate(document)
    except ValidationError as error:
        # A list whose entries are wrong is counted as empty too: that is no problem of its own.
        errors = [one for one in error.errors(include_url=False) if one["type"] != "too_short" or not one["input"]]
        found = [f"{_where(document, tuple(one['loc']))}{one['msg'].removeprefix('Value error, ')}" for one in errors]
        raise LawInvalid([(file, message) for message in found]) from error
    if problems := [(file, message) for message in law.inconsistencies()]:
        raise LawInvalid(problems)
    return law


def _where(document: Mapping[str, Any], location: tuple[int | str, ...]) -> str:
    """`rule-id: key.path: `, from pydantic's location; a rule without an id goes by its place in the list."""
    match location:
        case ("rules" | "members" as section, int(index), *rest):
            part = document[section][index]
            name = part.get("id") if isinstance(part, Mapping) else None
            tag = part.get("kind") if isinstance(part, Mapping) else None
            inner = rest[1:] if rest and section == "rules" and rest[0] == tag else rest
            return "".join(f"{piece}: " for piece in (name or f"{section}.{index}", ".".join(map(str, inner))) if piece)
        case ():
            return ""
    return ".".join(map(str, location)) + ": "


def _overlaps(rules: tuple[Members, ...] | tuple[Rule, ...]) -> Iterator[str]:
    for one, other in combinations(rules, 2):
        same = _shared(one.claims(), other.claims())
        if one.id != other.id and same and _together(one.valid, other.valid):
            about = ", ".join(str(part) for part in same if part not in ("*", "member"))
            yield f"{other.id}: overlaps {one.id} ({about}): both are in force at once; end one before the other begins"


def _shared(one: frozenset[Claim], other: frozenset[Claim]) -> Claim | None:
    """A claim of both; `*` stands for any value in its place."""
    for mine in sorted(one, key=repr):
        for theirs in sorted(other, key=repr):
            if len(mine) == len(theirs) and all(a == b or "*" in (a, b) for a, b in zip(mine, theirs, strict=True)):
                return tuple(b if a == "*" else a for a, b in zip(mine, theirs, strict=True))
    return None


def _together(one: Period, other: Period) -> bool:
    return one[0] <= (other[1] or date.max) and other[0] <= (one[1] or date.max)
