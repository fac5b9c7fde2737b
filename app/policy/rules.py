"""Every law that was loaded, as one book; and what a configuration asks of the law in vain. Pure."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Any

from app.config import Instrument, Region, Settings
from app.policy import lawfile
from app.policy.law import INSTRUMENT_LAW, Law, compile_law
from app.policy.lawfile import LawFile, LawInvalid, Members, Permit

__all__ = ["LawBook", "LawInvalid"]

Found = Iterator[tuple[tuple[str | int, ...], str]]
"""Problems of a configuration: the key at fault and what would be right."""
Files = list[tuple[str, LawFile]]
Problems = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class LawBook:
    """The laws in the order of their ids, and what is looked up in them by name."""

    laws: tuple[Law, ...]
    by_place: Mapping[str, tuple[Law, ...]]
    """The laws that name a place (ISO 3166-1 or -2) as theirs, on whatever day."""
    purposes: frozenset[str]
    certifications: frozenset[str]
    switches: frozenset[str]
    """The rules that a kill switch may name: permissions only, as a switch must never permit more."""
    accepted: frozenset[tuple[str, str]]
    """(type, law) of every instrument that some rule accepts."""
    areas: Mapping[str, tuple[Members, ...]]
    """The groups of places that go by a common name, such as EEA; which of them belong to it depends on the day."""
    digest: str
    """SHA-256 of the content in one spelling; the order of files and of rules plays no part."""

    @classmethod
    def build(cls, documents: Sequence[tuple[str, Mapping[str, Any]]]) -> "LawBook":
        """From (file, content) pairs; raises `LawInvalid` with every problem of every file."""
        files, problems = _read(documents)
        problems = problems or _between(files)  # a file that cannot be read would be missed by its name as well
        if problems:
            raise LawInvalid(sorted(problems))
        ordered = sorted((law for _, law in files), key=lambda law: law.id)
        rules = [rule for law in ordered for rule in law.rules]
        laws = tuple(map(compile_law, ordered))
        return cls(
            laws=laws,
            by_place=_by_place(laws),
            purposes=_union(rule.purposes or () for rule in rules if isinstance(rule, lawfile.Forbid)),
            certifications=_union(rule.certifications for rule in rules if isinstance(rule, lawfile.Certification)),
            switches=frozenset(rule.id for rule in rules if isinstance(rule, Permit)),
            accepted=frozenset(
                (rule.kind, law) for rule in rules if isinstance(rule, lawfile.InstrumentRule) for law in rule.accepts
            ),
            areas=_areas(ordered),
            digest=_digest(ordered),
        )

    def stale(self, day: date) -> list[Law]:
        """The laws that nobody has reviewed for that day."""
        return [law for law in self.laws if law.reviewed_until < day]

    def check(self, settings: Settings) -> list[tuple[tuple[str | int, ...], str]]:
        """What in `settings` no law knows, or could never count, as (key, what is wrong)."""
        return [*self._switches(settings), *self._certificates(settings), *self._instruments(settings),
                *self._global_regions(settings)]  # fmt: skip

    def _switches(self, settings: Settings) -> Found:
        registered = {instrument.id for tenant in settings.tenants for instrument in tenant.instruments}
        for index, name in enumerate(settings.residency.disabled):
            if name not in self.switches and name not in registered:
                yield ("residency", "disabled", index), f"no law has a permission {name!r}{_known(self.switches)}"

    def _certificates(self, settings: Settings) -> Found:
        for index, region in enumerate(settings.regions):
            for place, held in enumerate(region.operator.certifications):
                if held.id not in self.certifications:
                    key = ("regions", index, "operator", "certifications", place, "id")
                    yield key, f"no law knows a certification {held.id!r}{_known(self.certifications)}"

    def _instruments(self, settings: Settings) -> Found:
        for index, tenant in enumerate(settings.tenants):
            for place, instrument in enumerate(tenant.instruments):
                key = ("tenants", index, "instruments", place)
                law = instrument.law or INSTRUMENT_LAW
                if (instrument.type, law) not in self.accepted:
                    takers = {name for kind, name in self.accepted if kind == instrument.type}
                    yield (*key, "law"), f"no rule accepts a {instrument.type} under law {law!r}{_known(takers)}"
                for field, why in _lacking(instrument):
                    yield (*key, field), why

    def _global_regions(self, settings: Settings) -> Found:
        """A region that may compute anywhere cannot serve where law permits by the place of the region."""
        for index, region in enumerate(settings.regions):
            if region.upstream_scope == "global" and (rule := self._relied_on(region, settings)):
                why = f"global is refused, as {rule} permits region {region.id} by where it stands"
                yield ("regions", index, "upstream_scope"), f"{why}; make its upstream regional, or take the region out"

    def _relied_on(self, region: Region, settings: Settings) -> str | None:
        """A rule that could permit `region` by its place, on any day and for any tenant."""
        places = {region.country, region.subdivision or region.country}
        movers = [one for one in settings.tenants if (one.posture or settings.residency.posture) == "transfer"]
        held = {one.id for one in region.operator.certifications}
        restricting = [law for law in self.laws if law.restricts]
        if home := next((law.groups[place][0].id for law in restricting for place in places & law.groups.keys()), None):
            return home
        for law in restricting:
            for basis in (*law.to.get(region.country, ()), *law.anywhere) if movers else ():
                if held.issuperset(basis.needs):
                    return basis.id
        instruments = (one for tenant in movers for one in tenant.instruments)
        return next((f"instrument {one.id}" for one in instruments if _covers(one, region)), None)


def _covers(instrument: Instrument, region: Region) -> bool:
    if instrument.type == "bcr":
        return instrument.group is not None and instrument.group == region.operator.group
    return region.country in instrument.to


def _lacking(instrument: Instrument) -> Iterator[tuple[str, str]]:
    """Fields without which an instrument of its type never counts."""
    if instrument.type == "bcr" and instrument.group is None:
        yield "group", "binding corporate rules hold inside a group; name it as the operators of the regions do"
    if instrument.type != "bcr" and not instrument.to:
        yield "to", f"a {instrument.type} counts for the countries that it names; name at least one"
    if instrument.type == "scc" and instrument.tia_valid is None:
        yield "tia_valid", "clauses count only with a transfer impact assessment; give its first and last day"


def _known(names: Iterable[str]) -> str:
    return f"; known: {', '.join(sorted(names))}" if names else ""


def _union(sets: Iterable[Iterable[str]]) -> frozenset[str]:
    return frozenset().union(*sets)


def _read(
    documents: Sequence[tuple[str, Mapping[str, Any]]],
) -> tuple[list[tuple[str, LawFile]], list[tuple[str, str]]]:
    files: list[tuple[str, LawFile]] = []
    problems: list[tuple[str, str]] = []
    for file, document in documents:
        try:
            files.append((file, lawfile.read(file, document)))
        except LawInvalid as error:
            problems += error.problems
    return files, problems


def _between(files: Files) -> Problems:
    """Ids that stand twice, and laws that a rule names and no file holds."""
    problems: Problems = []
    laws = {law.id for _, law in files}
    first: dict[str, str] = {}
    for file, law in files:
        for name in (law.id, *(group.id for group in law.members), *(rule.id for rule in law.rules)):
            if name in first:
                problems.append(
                    (file, f"{name}: the id stands already in {first[name]}; all laws share one space of ids")
                )
            first.setdefault(name, file)
        for rule in law.rules:
            accepts = rule.accepts if isinstance(rule, lawfile.InstrumentRule) else ()
            problems += [
                (file, f"{rule.id}: accepts names {name!r}, which no file holds{_known(laws)}")
                for name in sorted(set(accepts) - laws)
            ]
    return problems


def _by_place(laws: Sequence[Law]) -> Mapping[str, tuple[Law, ...]]:
    places: dict[str, list[Law]] = defaultdict(list)
    for law in laws:
        for place in law.groups:
            places[place].append(law)
    return MappingProxyType({place: tuple(found) for place, found in places.items()})


def _areas(laws: Sequence[LawFile]) -> Mapping[str, tuple[Members, ...]]:
    areas: dict[str, list[Members]] = defaultdict(list)
    for members in (group for law in laws for group in law.members):
        for name in members.areas:
            areas[name].append(members)
    return MappingProxyType({name: tuple(groups) for name, groups in areas.items()})


def _digest(laws: Sequence[LawFile]) -> str:
    content = [law.model_dump(mode="json") for law in laws]
    for law in content:
        for part in ("members", "rules"):
            law[part] = sorted((_sorted_lists(one) for one in law[part]), key=lambda one: str(one["id"]))
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sorted_lists(part: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of names are sets here; `valid` alone has an order."""
    return {key: sorted(value) if isinstance(value, list) and key != "valid" else value for key, value in part.items()}
