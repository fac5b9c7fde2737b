"""Whether a statement such as `DE only reaches EEA` holds for every request a configuration may get. Pure.

Every decision comes from `policy.residency.decide`; there is no second model of the law. The requests are finite in all
but three respects, and those need no search, because what they add never permits more (`test_prove.py` and
`test_residency_properties.py` under `tests/policy` hold `decide` to that):

- evidence: a law more can only refuse more, so the least evidence that names the subject, which is the tenant's default
  and one header, stands for all of it: further headers, claims, and the caller's place where callers are people;
- kill switches: they take permissions away;
- the region asked for, on whichever conflict rule: what remains is a part of what a request without one may reach.

Days are searched at the turns alone: between two of them no rule, membership, instrument or certificate changes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, NamedTuple

from app.config import Instrument, Limits, Region, Settings, Tenant
from app.policy.ground import Ground
from app.policy.residency import decide, evidence
from app.policy.rules import LawBook
from app.policy.statement import Meaning, Statement, read
from app.types import Caller, Question, Verdict

_NOBODY: Final = Caller(address=None, country=None, place=None)


class Ask(NamedTuple):
    """How a request departs from a plain one, sent today without any header."""

    day: date
    subject: str | None = None
    """Sent as X-Data-Subject."""
    basis: str | None = None
    """Sent as X-Transfer-Basis."""
    gpc: bool = False
    purpose: str | None = None


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A request that contradicts the statement: the region that may serve it, and what permits that."""

    tenant: str
    ask: Ask
    region: Region
    verdict: Verdict

    @property
    def headers(self) -> dict[str, str]:
        ask = self.ask
        sent = {"X-Data-Subject": ask.subject, "X-Transfer-Basis": ask.basis, "Sec-GPC": "1" if ask.gpc else None}
        return {name: value for name, value in sent.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Coverage:
    """What was searched; `days` are the turns that stand for every day from `first` to `last`."""

    tenants: tuple[str, ...]
    instruments: int
    subjects: tuple[str, ...]
    regions: int
    laws: int
    reviewed_until: date
    """The first day on which some law's review runs out; later days take the law files as they stand."""
    first: date
    last: date
    days: tuple[date, ...]
    decisions: int


@dataclass(frozen=True, slots=True)
class Proof:
    """The answer. `reached` are the regions that may serve such a person at all; `inside` those that were named."""

    statement: Statement
    counterexample: Counterexample | None
    covered: Coverage
    reached: tuple[str, ...]
    inside: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return self.counterexample is None


def prove(statement: Statement, settings: Settings, book: LawBook, today: date) -> Proof:
    """Searches every request from `today` on; raises `StatementInvalid` for a name that the configuration lacks.

    Of several counterexamples it gives the one that departs least from a plain request (see `departures`), of equal
    ones the first in the order of the configuration.
    """
    meaning = read(statement, settings, book, today)
    tenants = _distinct(meaning.tenants)
    ground = Ground.lay(book, settings.regions)
    days = {tenant.id: turns(tenant, ground, meaning) for tenant in tenants}
    every_day = sorted({day for some in days.values() for day in some})
    breaking = {day: [one for one in settings.regions if meaning.breaks(one, day)] for day in every_day}
    smallest: Counterexample | None = None
    reached: set[str] = set()
    decisions = 0
    for tenant in tenants:
        for ask in _asks(tenant, days[tenant.id], meaning):
            decision = decide(_question(tenant, ask), tenant, settings.residency, ground)
            decisions += 1
            reached.update(decision.permitted)
            broken = next((region for region in breaking[ask.day] if region.id in decision.permitted), None)
            if broken and (smallest is None or departures(ask, today) < departures(smallest.ask, today)):
                verdict = next(one for one in decision.verdicts if one.region == broken.id)
                smallest = Counterexample(tenant.id, ask, broken, verdict)
    return Proof(
        statement=statement,
        counterexample=smallest,
        covered=_coverage(meaning, settings, every_day, decisions),
        reached=tuple(region.id for region in settings.regions if region.id in reached),
        inside=tuple(one.id for one in settings.regions if any(meaning.inside(one, day) for day in every_day)),
    )


def _distinct(tenants: Sequence[Tenant]) -> Sequence[Tenant]:
    """Of tenants that differ in nothing that a decision rests on, the first."""
    found: dict[Tenant, Tenant] = {}
    for tenant in tenants:
        plain = {"id": "", "keys": (), "scopes": (), "callers": "servers", "limits": Limits()}
        found.setdefault(tenant.model_copy(update=plain), tenant)
    return list(found.values())


def departures(ask: Ask, today: date) -> tuple[int, bool, bool, date, bool, bool]:
    """How far from a plain request: first by the number of ways, then no instrument, today, the earlier day."""
    named, later, purpose = ask.basis is not None, ask.day > today, ask.purpose is not None
    return (ask.subject is not None) + named + later + ask.gpc + purpose, named, later, ask.day, ask.gpc, purpose


def turns(tenant: Tenant, ground: Ground, meaning: Meaning) -> list[date]:
    """The first day, and each until the last on which anything changes that a decision for the tenant rests on."""
    changes = {day for laws in ground.places.values() for law in laws for day in law.starts}
    changes.update(day for instrument in tenant.instruments for day in _changes(instrument))
    return sorted({meaning.first, *(day for day in changes if meaning.first < day <= meaning.last)})


def _changes(instrument: Instrument) -> Iterator[date]:
    """The days from which a dated field, whichever it is, counts or no longer does."""
    for _, value in instrument:
        match value:
            case (date() as start, date() as end):
                yield start
                if end < date.max:
                    yield end + timedelta(days=1)
            case date():
                yield value


def _asks(tenant: Tenant, days: Sequence[date], meaning: Meaning) -> Iterator[Ask]:
    bases = (None, *(instrument.id for instrument in tenant.instruments))
    purposes = (None, *sorted(meaning.book.purposes))
    for day in days:
        for subject in _subjects(tenant, meaning.subjects(day)):
            for basis in bases:
                for gpc in (False, True):
                    for purpose in purposes:
                        yield Ask(day, subject, basis, gpc, purpose)


def _subjects(tenant: Tenant, codes: Sequence[str]) -> Sequence[str | None]:
    """The headers to try; none is needed where the tenant's default already names such a person."""
    default = tenant.subject
    if default is not None and (default in codes or default[:2] in codes):
        return (None,)
    return codes


def _question(tenant: Tenant, ask: Ask) -> Question:
    return Question(
        tenant=tenant.id,
        evidence=evidence(tenant, ask.subject, _NOBODY),
        day=ask.day,
        basis=ask.basis,
        gpc=ask.gpc,
        purpose=ask.purpose,
    )


def _coverage(meaning: Meaning, settings: Settings, days: Sequence[date], decisions: int) -> Coverage:
    subjects = {code for day in days for code in meaning.subjects(day)}
    return Coverage(
        tenants=tuple(tenant.id for tenant in meaning.tenants),
        instruments=sum(len(tenant.instruments) for tenant in meaning.tenants),
        subjects=tuple(sorted(subjects)),
        regions=len(settings.regions),
        laws=len(meaning.book.laws),
        reviewed_until=min(law.reviewed_until for law in meaning.book.laws),
        first=meaning.first,
        last=meaning.last,
        days=tuple(days),
        decisions=decisions,
    )
