"""What a statement such as `DE only reaches EEA` says: from its words to codes, regions, tenants and days. Pure.

Capitals are codes and areas, so that a region called `us` is never taken for the country, nor the other way round.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal, cast

from app.config import Region, Settings, Tenant
from app.policy.rules import LawBook
from regions import catalogue

FORM: Final = "SUBJECT never|only reaches REGIONS-OR-COUNTRIES [for TENANT] [until DATE]"
EXAMPLE: Final = "DE only reaches EEA"
HORIZON_YEARS: Final = 2

Kind = Literal["never", "only"]

_WORDS: Final = re.compile(
    r"(?P<subject>[^\s,]+) (?P<kind>never|only) reaches (?P<places>.+?)"
    r"(?: for (?P<tenant>[^\s,]+))?(?: until (?P<until>[^\s,]+))?"
)
_BETWEEN: Final = re.compile(r" ?, ?(?:or )?| or ")
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class StatementInvalid(ValueError):
    """A statement that says nothing about this configuration: what is wrong and what would be right, in one line."""


@dataclass(frozen=True, slots=True)
class Statement:
    """The words of a statement; `read` says what they mean in a configuration."""

    subject: str
    kind: Kind
    places: tuple[str, ...]
    tenant: str | None = None
    until: date | None = None

    def __str__(self) -> str:
        words = f"{self.subject} {self.kind} reaches {', '.join(self.places)}"
        words += f" for {self.tenant}" if self.tenant else ""
        return words + (f" until {self.until}" if self.until else "")


def parse(text: str) -> Statement:
    """The statement in `text`; raises `StatementInvalid`. Whether its names exist is for `read` to say."""
    match = _WORDS.fullmatch(" ".join(text.split()))
    if not match:
        raise StatementInvalid(f"{text!r} is no statement; write {FORM}, such as: {EXAMPLE}")
    places = tuple(_BETWEEN.split(match["places"]))
    for place in places:
        if not place or " " in place:
            raise StatementInvalid(f"{place!r} is not one place; put a comma or `or` between places: {FORM}")
    until = None if match["until"] is None else _day(match["until"])
    return Statement(match["subject"], cast("Kind", match["kind"]), places, match["tenant"], until)


def _day(text: str) -> date:
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass  # such as 2027-02-30
    raise StatementInvalid(f"until: {text!r} is not a day; write YYYY-MM-DD, such as 2027-12-31")


@dataclass(frozen=True, slots=True)
class Meaning:
    """A statement in the terms of one configuration; `first` to `last` are its days, both inclusive."""

    statement: Statement
    tenants: tuple[Tenant, ...]
    first: date
    last: date
    book: LawBook

    def subjects(self, day: date) -> tuple[str, ...]:
        """ISO 3166 codes by which a request can name such a person on that day, countries before their parts.

        A part of a country counts as well where a law names it: its people may have a law where the country has none.
        """
        codes = _codes(self.statement.subject, day, self.book)
        parts = {place for place in self.book.by_place if place[:2] in codes}
        return (*sorted(codes), *sorted(parts - codes))

    def inside(self, region: Region, day: date) -> bool:
        """Whether `region` counts as one of the places that are named.

        A doubt never helps the statement: a region of global scope may compute anywhere, so for `never` it lies in
        every country and for `only` in none. A region that is named by its id is meant whatever its scope.
        """
        names = self.statement.places
        if region.id in names:
            return True
        codes = [_codes(name, day, self.book) for name in names if _is_place(name, self.book)]
        if region.upstream_scope == "global":
            return bool(codes) and self.statement.kind == "never"
        return any(_lies_in(region, some, doubt=self.statement.kind == "never") for some in codes)

    def breaks(self, region: Region, day: date) -> bool:
        """Whether a request of such a person that may be served in `region` contradicts the statement."""
        return self.inside(region, day) == (self.statement.kind == "never")


def read(statement: Statement, settings: Settings, book: LawBook, today: date) -> Meaning:
    """What the statement says of this configuration; raises `StatementInvalid` for a name that is not in it."""
    if not _is_subject(statement.subject, book):
        raise StatementInvalid(f"subject: {_unknown(statement.subject, book)}")
    ids = [region.id for region in settings.regions]
    for name in statement.places:
        _check_place(name, ids, book)
    tenants = settings.tenants
    if statement.tenant is not None:
        tenants = tuple(tenant for tenant in tenants if tenant.id == statement.tenant)
    if not tenants:
        known = ", ".join(tenant.id for tenant in settings.tenants)
        raise StatementInvalid(f"for: there is no tenant {statement.tenant!r}; configured: {known}")
    last = statement.until or _years_after(today, HORIZON_YEARS)
    if last < today:
        raise StatementInvalid(f"until: {last} has passed; write {today} or a later day")
    return Meaning(statement, tenants, today, last, book)


def _check_place(name: str, regions: Sequence[str], book: LawBook) -> None:
    is_place = _is_place(name, book)
    if is_place and name in regions:
        raise StatementInvalid(f"{name!r} is a place and the id of a region; give the region another id")
    if is_place or name in regions:
        return
    if _is_subject(name, book):
        raise StatementInvalid(f"{name!r} is a part of a country; name the country {name[:2]}, or regions by their ids")
    raise StatementInvalid(f"{_unknown(name, book)}, or a region: {', '.join(regions)}")


def _is_subject(name: str, book: LawBook) -> bool:
    """An ISO 3166 code in capitals, or an area."""
    try:
        return name in book.areas or catalogue.parse_code(name).code == name
    except catalogue.CodeError:
        return False


def _is_place(name: str, book: LawBook) -> bool:
    """A country in capitals, or an area."""
    return _is_subject(name, book) and (name in book.areas or "-" not in name)


def _unknown(name: str, book: LawBook) -> str:
    areas = f", an area ({', '.join(sorted(book.areas))})" if book.areas else ""
    try:
        code = catalogue.parse_code(name).code
    except catalogue.CodeError as error:
        hint = f"write {error.expected}" if error.expected else "write an ISO 3166 code, such as DE"
        return f"{name!r} is unknown; {hint}{areas}"
    return f"{name!r} is unknown; codes are written in capitals: {code}{areas}"


def _codes(name: str, day: date, book: LawBook) -> frozenset[str]:
    """The places of an area on that day, or the code itself."""
    if name not in book.areas:
        return frozenset((name,))
    groups = (group for group in book.areas[name] if group.valid[0] <= day <= (group.valid[1] or date.max))
    return frozenset(place for group in groups for place in group.places)


def _lies_in(region: Region, codes: Collection[str], *, doubt: bool) -> bool:
    """`doubt` is the answer where it is unknown in which part of its country the region lies, and parts are asked."""
    if region.country in codes or region.subdivision in codes:
        return True
    return doubt and region.subdivision is None and any(code.startswith(f"{region.country}-") for code in codes)


def _years_after(day: date, years: int) -> date:
    """The same day of a later year; from a 29th of February, the 28th where there is none."""
    try:
        return day.replace(year=day.year + years)
    except ValueError:
        return day.replace(year=day.year + years, day=28)
