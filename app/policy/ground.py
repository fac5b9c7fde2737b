"""The laws of a book laid over the regions of a configuration: what each says of each region, and on which days. Pure.

Between two days on which something begins or ends, a law says the same of a region to everybody whom it protects,
unless the request brings an instrument, a kill switch or meets a prohibition. So that much is worked out here, once a
configuration; `policy.transfer` adds what a request changes, and looks at no date but the instruments' own.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from types import MappingProxyType
from typing import NamedTuple

from app.config import Region
from app.policy.law import PERMITS, Basis, Finding, Group, Law, Prohibition, Safeguard
from app.policy.rules import LawBook

_DAY = timedelta(days=1)


class Say(NamedTuple):
    """Something that can be said of a region abroad; of several, the least is the law's word."""

    rank: int
    """0 for a permission: the firmest one counts. Of failures alone, those of the last kind of basis that nearly held,
    and of these the one that is most easily put right."""
    finding: Finding


class Option(NamedTuple):
    """What one basis of the law says of a region abroad (None: nothing), and what if its rule is switched off."""

    rule: str
    say: Say | None
    switched_off: Say


@dataclass(frozen=True, slots=True)
class Row:
    """What one law says of every region to the people of one group, from one day to the next change.

    The tuples stand in the order of the regions. `options` and `standing` are None where the law has no transfer to
    weigh: at home, where it restricts none, and for a region that may compute anywhere.
    """

    group: Group
    staying: tuple[Finding, ...]
    """What is said where no transfer is wanted."""
    moving: tuple[Finding, ...]
    """And where one is, by the bases of the law alone."""
    standing: tuple[Say | None, ...]
    """As `moving`, to be weighed against what a request brings."""
    options: tuple[tuple[Option, ...] | None, ...]
    """What `standing` is the least of, `otherwise` besides."""
    otherwise: Say
    switches: frozenset[str]
    """The rules among `options`."""
    safeguards: tuple[Safeguard, ...]
    prohibitions: tuple[tuple[Prohibition, tuple[int, ...]], ...]
    """Each with the places, in the order of the regions, of those that it reaches."""


class Timeline(NamedTuple):
    """One law as it applies in one place: `rows[i]` from `starts[i]` on; None where the place is not its own then."""

    starts: tuple[date, ...]
    rows: tuple[Row | None, ...]


@dataclass(frozen=True, slots=True)
class Ground:
    """Everything that decisions on one configuration need of law and regions; `places` by ISO 3166-1 or -2 code."""

    book: LawBook
    regions: tuple[Region, ...]
    places: Mapping[str, tuple[Timeline, ...]]

    @classmethod
    def lay(cls, book: LawBook, regions: Sequence[Region]) -> "Ground":
        """`regions` stand in the order of the configuration."""
        places: dict[str, list[Timeline]] = defaultdict(list)
        for law in book.laws:
            for place, timeline in _timelines(law, regions):
                places[place].append(timeline)
        return cls(book, tuple(regions), MappingProxyType({name: tuple(found) for name, found in places.items()}))

    def rows(self, place: str, day: date) -> list[Row]:
        """What the laws of a place say on that day, in the order of their ids."""
        found = []
        for starts, rows in self.places.get(place, ()):
            at = bisect_right(starts, day)
            if at and (row := rows[at - 1]):
                found.append(row)
        return found


def say(kind: int, said: Finding) -> Say:
    """`kind` is the weight of the permission that the basis or instrument could give."""
    return Say(0 if said.weight <= PERMITS else 1 + PERMITS - kind, said)


def least(options: Sequence[Option] | None, disabled: frozenset[str], otherwise: Say) -> Say | None:
    """What the bases of the law come to once the rules in `disabled` are switched off; None where there are none."""
    if options is None:
        return None
    says = (option.switched_off if option.rule in disabled else option.say for option in options)
    return min((otherwise, *(one for one in says if one)))


def _timelines(law: Law, regions: Sequence[Region]) -> Iterator[tuple[str, Timeline]]:
    starts = tuple(sorted(set(_turns(law, regions))))
    eras = [{group.id: _row(law, group, day, regions) for group in _groups(law, day)} for day in starts]
    for place in law.groups:
        groups = [law.group(place, day) for day in starts]
        rows = tuple(era[group.id] if group else None for group, era in zip(groups, eras, strict=True))
        yield place, Timeline(starts, rows)


def _turns(law: Law, regions: Sequence[Region]) -> Iterator[date]:
    """The days from which the law may say something else than the day before."""
    bases = (*law.anywhere, *(basis for found in law.to.values() for basis in found))
    groups = (group for found in law.groups.values() for group in found)
    needed = {name for basis in bases for name in basis.needs}
    held = (one.valid for region in regions for one in region.operator.certifications if one.id in needed)
    dated: Iterable[Group | Basis | Safeguard | Prohibition] = (*groups, *bases, *law.safeguards, *law.prohibitions)
    for start, end in (*((one.start, one.end) for one in dated), *held):
        yield start
        if end < date.max:
            yield end + _DAY


def _groups(law: Law, day: date) -> Iterable[Group]:
    return {group.id: group for place in law.groups if (group := law.group(place, day))}.values()


def _row(law: Law, group: Group, day: date, regions: Sequence[Region]) -> Row:
    staying = tuple(_at_rest(law, group, day, region) for region in regions)
    otherwise = Say(2 + PERMITS, group.outside)
    options = tuple(
        _options(law, group, day, region) if said is group.outside and law.restricts and _somewhere(region) else None
        for region, said in zip(regions, staying, strict=True)
    )
    standing = tuple(least(some, frozenset(), otherwise) for some in options)
    return Row(
        group=group,
        staying=staying,
        moving=tuple(best.finding if best else said for said, best in zip(staying, standing, strict=True)),
        standing=standing,
        options=options,
        otherwise=otherwise,
        switches=frozenset(one.rule for some in options for one in some or ()),
        safeguards=tuple(one for one in law.safeguards if _in_force(one, group, day)),
        prohibitions=tuple((one, _reach(one, regions)) for one in law.prohibitions if _in_force(one, group, day)),
    )


def _in_force(rule: Safeguard | Prohibition, group: Group, day: date) -> bool:
    return rule.start <= day <= rule.end and _concerns(rule, group)


def _concerns(rule: Basis | Safeguard | Prohibition, group: Group) -> bool:
    return rule.members is None or group.id in rule.members


def _somewhere(region: Region) -> bool:
    return region.upstream_scope != "global"


def _at_rest(law: Law, group: Group, day: date, region: Region) -> Finding:
    """What the law says of data that stay; a region of global scope stands nowhere.

    An open law says the same inside and outside.
    """
    places = (region.country, region.subdivision or region.country)
    at_home = _somewhere(region) and any(law.group(place, day) for place in places)
    return group.inside if at_home else group.outside


def _options(law: Law, group: Group, day: date, region: Region) -> tuple[Option, ...]:
    """A basis that has ended still says so; one that has not begun says nothing."""
    bases = [
        basis
        for basis in law.to.get(region.country, ()) + law.anywhere
        if basis.start <= day
        and _concerns(basis, group)
        and (basis.roles is None or region.operator.role in basis.roles)
    ]
    return tuple(_option(basis, day, region) for basis in bases)


def _option(basis: Basis, day: date, region: Region) -> Option:
    kind = basis.permit.weight
    if basis.end < day:
        return Option(basis.id, say(kind, basis.ended), say(kind, basis.ended))
    said = _by_certificates(basis, day, region)
    return Option(basis.id, said and say(kind, said), say(kind, basis.disabled))


def _by_certificates(basis: Basis, day: date, region: Region) -> Finding | None:
    held = {one.id: one.valid for one in region.operator.certifications}
    periods = [held[name] for name in basis.needs if name in held and held[name][0] <= day]
    if len(periods) < len(basis.needs):
        return basis.missing
    return basis.permit if all(day <= end for _, end in periods) else basis.certificate_ended


def _reach(rule: Prohibition, regions: Sequence[Region]) -> tuple[int, ...]:
    return tuple(at for at, region in enumerate(regions) if _forbids(rule, region))


def _forbids(rule: Prohibition, region: Region) -> bool:
    return (rule.roles is None or region.operator.role in rule.roles) and (
        rule.to is None or not _somewhere(region) or region.country in rule.to
    )
