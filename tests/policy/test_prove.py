"""Proofs: what the shared world holds, dates, and a comparison with a search that skips nothing on small worlds."""

import random
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from app.config import Certification, Instrument, Operator, Region, ResidencySettings, Settings, Tenant
from app.policy.ground import Ground
from app.policy.prove import Ask, Proof, departures, prove
from app.policy.residency import decide, evidence
from app.policy.rules import LawBook
from app.policy.statement import Statement, parse
from app.settings_file import documents, load
from app.types import Caller, Evidence, Question, Reason

DATA = Path(__file__).parents[1] / "data" / "residency"
BOOK = LawBook.build(documents("default", DATA))
WORLD = load(DATA / "world.yaml", {})
TODAY = date(2026, 11, 22)


def proof(text: str, world: Settings = WORLD, book: LawBook = BOOK) -> Proof:
    return prove(parse(text), world, book, TODAY)


def world_of(*tenants: Tenant, certified: Sequence[Certification] = ()) -> Settings:
    """The shared world with these tenants, and these certificates for region `us` alone."""
    regions = [
        region.model_copy(update={"operator": Operator(name="us", certifications=tuple(certified))})
        for region in WORLD.regions
        if region.id == "us"
    ] + [region for region in WORLD.regions if region.country not in ("US", "CN")]
    return WORLD.model_copy(update={"tenants": tenants, "regions": tuple(regions)})


def clauses(start: date, end: date, **values: Any) -> Instrument:
    return Instrument.model_validate({"id": "scc-us", "type": "scc", "to": ("US",), "valid": (start, end), **values})


def test_a_tenant_that_stays_holds_and_says_what_was_searched() -> None:
    found = proof("DE only reaches EEA for stay")
    assert found.holds
    assert (found.reached, found.inside) == (("de", "ie"), ("de", "ie"))
    covered = found.covered
    assert (covered.tenants, covered.instruments, covered.subjects) == (("stay",), 0, ("DE",))
    assert (covered.regions, covered.laws) == (len(WORLD.regions), len(BOOK.laws))
    assert covered.reviewed_until == min(law.reviewed_until for law in BOOK.laws)
    assert (covered.first, covered.last, covered.days[0]) == (TODAY, date(2028, 11, 22), TODAY)
    assert date(2028, 1, 1) in covered.days  # the day after the certificates of us-dpf
    assert covered.decisions == len(covered.days) * 2 * (1 + len(BOOK.purposes))


def test_clauses_for_the_united_states_are_the_counterexample() -> None:
    found = proof("DE never reaches us").counterexample
    assert found is not None
    assert (found.tenant, found.region.id, found.ask) == ("scc", "us", Ask(TODAY, "DE"))
    assert found.headers == {"X-Data-Subject": "DE"}
    assert (found.verdict.reason, found.verdict.rule) == (Reason.ALLOW_SCC, "gdpr-scc:scc-us")


def test_consent_counts_only_by_its_name() -> None:
    found = proof("DE never reaches us for asks").counterexample
    assert found is not None
    assert found.headers == {"X-Data-Subject": "DE", "X-Transfer-Basis": "yes-us"}
    assert found.verdict.reason is Reason.ALLOW_CONSENT
    assert proof("DE never reaches us for asks until 2026-11-22").counterexample == found
    assert proof("DE never reaches us for move").holds


@pytest.mark.parametrize(("until", "holds"), [("2027-08-31", True), ("2027-09-01", False)])
def test_a_certification_that_begins_next_year(until: str, holds: bool) -> None:
    later = Certification(id="eu-us-dpf", valid=(date(2027, 9, 1), date(2027, 12, 31)))
    world = world_of(Tenant(id="t", posture="transfer"), certified=[later])
    found = proof(f"DE never reaches US until {until}", world)
    assert found.holds is holds
    if found.counterexample:
        assert (found.counterexample.ask.day, found.counterexample.verdict.rule) == (date(2027, 9, 1), "eu-us-dpf")
    assert proof("DE never reaches US", world).holds is False


def test_an_instrument_that_begins_later_and_an_assessment_that_is_later_still() -> None:
    start, assessed = date(2027, 1, 1), (date(2027, 3, 1), date(2027, 6, 30))
    mover = Tenant(id="t", posture="transfer", instruments=(clauses(start, date(2027, 12, 31), tia_valid=assessed),))
    found = proof("DE never reaches US", world_of(mover))
    assert found.counterexample is not None
    assert found.counterexample.ask == Ask(assessed[0], "DE")
    assert {start, *assessed} - {assessed[1]} <= set(found.covered.days)
    assert {assessed[1] + timedelta(days=1), date(2028, 1, 1)} <= set(found.covered.days)
    assert proof("DE never reaches US until 2027-02-28", world_of(mover)).holds


def test_consent_that_is_withdrawn_reaches_until_the_day_before() -> None:
    kind = {"type": "consent", "explicit": True, "risks_informed": True, "systematic": False, "tia_valid": None}
    past = clauses(date(2026, 1, 1), date(2027, 12, 31), withdrawn=TODAY, **kind)
    soon = past.model_copy(update={"withdrawn": date(2027, 2, 1)})
    assert proof("DE never reaches US", world_of(Tenant(id="t", posture="transfer", instruments=(past,)))).holds
    found = proof("DE never reaches US", world_of(Tenant(id="t", posture="transfer", instruments=(soon,))))
    assert not found.holds
    assert date(2027, 2, 1) in found.covered.days


def test_every_dated_field_of_an_instrument_is_a_turn() -> None:
    """A new field of another form would have to be taught to `prove`."""
    dated = {name for name, field in Instrument.model_fields.items() if date in _types(field.annotation)}
    pairs = {name for name in dated if "tuple" in str(Instrument.model_fields[name].annotation)}
    assert (pairs, dated - pairs) == ({"valid", "tia_valid"}, {"withdrawn"})


def _types(annotation: Any) -> set[Any]:
    return {annotation} | {found for argument in get_args(annotation) for found in _types(argument)}


def test_a_default_that_names_the_subject_needs_no_header() -> None:
    valid = (date(2026, 1, 1), date(2027, 12, 31))
    both = (clauses(*valid, tia_valid=valid),)
    header = Tenant(id="header", posture="transfer", subject="US", instruments=both)
    default = Tenant(id="default", posture="transfer", subject="DE-BY", instruments=both)
    found = proof("DE never reaches US", world_of(header, default)).counterexample
    assert found is not None
    assert (found.tenant, found.headers) == ("default", {})


def test_fewest_departures_come_first_then_no_instrument_then_today_then_the_earlier_day() -> None:
    soon, late = TODAY + timedelta(days=1), TODAY + timedelta(days=2)
    asks = [
        Ask(TODAY),
        Ask(TODAY, subject="DE"),
        Ask(TODAY, gpc=True),
        Ask(soon),
        Ask(late),
        Ask(TODAY, basis="b"),
        Ask(TODAY, subject="DE", gpc=True),
        Ask(soon, subject="DE"),
        Ask(TODAY, subject="DE", basis="b"),
        Ask(late, basis="b"),
        Ask(soon, subject="DE", basis="b"),
    ]
    shuffled = random.Random(1).sample(asks, len(asks))
    assert sorted(shuffled, key=lambda ask: departures(ask, TODAY)) == asks


def test_of_equal_tenants_one_is_searched_and_the_first_is_named() -> None:
    twins = [WORLD.tenants[4].model_copy(update={"id": name, "callers": "people"}) for name in ("a", "b")]
    found = proof("DE never reaches US", world_of(*twins))
    assert found.counterexample is not None
    assert found.counterexample.tenant == "a"
    assert found.covered.tenants == ("a", "b")
    assert found.covered.decisions == proof("DE never reaches US", world_of(twins[0])).covered.decisions


def test_nobody_reaches_anything_without_a_law() -> None:
    found = proof("GL only reaches GL")
    assert (found.holds, found.reached, found.inside) == (True, (), ())


def test_an_area_counts_every_member() -> None:
    found = proof("EEA only reaches EEA for stay")
    assert found.holds
    assert {"DE", "NO", "GF"} <= set(found.covered.subjects)
    broken = proof("EEA never reaches BR").counterexample
    assert broken is not None
    assert (broken.ask.subject, broken.tenant) == ("AT", "move")
    assert proof("NO never reaches BR").holds


# --- small worlds, and a search that enumerates everything that `prove` leaves out

START = date(2027, 1, 1)
DAYS = 3
CODES = ("DE", "SG", "US", "US-CA", "US-TX")  # no law names Texas

NOBODY = Caller(None, None, None)


SAFEGUARDS = ("scc", "contract", "consent")
ALWAYS = (START - timedelta(days=9), START + timedelta(days=9))


@st.composite
def periods(draw: st.DrawFn, *, open_ended: bool = True) -> tuple[date, date | None]:
    start = draw(st.integers(-2, DAYS))
    length = draw(st.none() | st.integers(0, DAYS)) if open_ended else draw(st.integers(0, DAYS))
    first = START + timedelta(days=start)
    return first, None if length is None else first + timedelta(days=length)


CLOSED = st.booleans().flatmap(lambda ever: st.just(ALWAYS) if ever else periods(open_ended=False))
MOSTLY = st.sampled_from([True, True, True, False]).flatmap(
    lambda ever: st.just((ALWAYS[0], None)) if ever else periods()
)
TO = st.sampled_from((["US"], ["SG", "US"], ["SG"], ["DE"]))


def rules(law: str) -> dict[str, st.SearchStrategy[dict[str, Any]]]:
    """Each kind of rule, so that no two can contradict each other; the order is the one of their ids."""
    dated = {"valid": MOSTLY, "law": st.just("Art. 2")}
    accepts = {"accepts": st.just(["l0", "l1"]), **dated}
    forbid = {"kind": st.just("forbid"), **dated}
    made = {
        "adequacy": {"to": TO, **dated},
        "certification": {"certifications": st.just(["seal"]), "to": st.none() | TO, **dated},
        "scc": {"tia_law": st.just("Art. 3"), **accepts},
        "contract": accepts,
        "consent": {
            "conditions": st.just(["explicit"]),
            "occasional": st.booleans(),
            "guidance": st.just("Art. 4"),
            "withdrawal_law": st.just("Art. 5"),
            **accepts,
        },
        "no-gpc": {"reason": st.just("DENY_GPC"), "gpc": st.just(True), "to": st.none() | TO, **forbid},
        "no-ads": {"reason": st.just("DENY_PURPOSE"), "purposes": st.just(["ads"]), **forbid},
    }
    return {
        name: st.fixed_dictionaries({"id": st.just(f"{law}-{name}"), "kind": st.just(name), **fields})
        for name, fields in made.items()
    }


@st.composite
def laws(draw: st.DrawFn, law: str) -> dict[str, Any]:
    first = law == "l0"  # restricts transfers from DE; the other may be about anything
    restricted = first or draw(st.booleans())
    kinds = rules(law)
    chosen = draw(st.sets(st.sampled_from(["no-ads", "no-gpc"])))
    if restricted:  # mostly by way of an instrument, as that is where there is most to be missed
        chosen |= set(SAFEGUARDS) if first else draw(st.sets(st.sampled_from(SAFEGUARDS)))
        chosen |= draw(st.sets(st.sampled_from(["adequacy", "certification"]), max_size=1))
    places = draw(st.permutations(["SG", "US", "US-CA"]))[: draw(st.sampled_from([0, 1, 2, 3] if first else [1, 2]))]
    places += ["DE"] * (first or draw(st.booleans()))
    split = draw(st.integers(1, len(places)))
    groups = [("a", places[:split]), ("b", places[split:])]
    return {
        "id": law, "name": law, "reviewed": START, "reviewed_until": START,
        "transfers": "restricted" if restricted else "open",
        "members": [
            {"id": f"{law}-{name}", "places": inside, "valid": draw(MOSTLY), "law": "Art. 1",
             "areas": draw(st.sampled_from([[], ["ZONE"]]))}
            for name, inside in groups if inside
        ],
        "rules": [draw(kinds[name]) for name in sorted(chosen)],
    }  # fmt: skip


@st.composite
def instruments(draw: st.DrawFn, name: str) -> Instrument:
    return Instrument(
        id=name,
        type=draw(st.sampled_from(SAFEGUARDS)),
        law=draw(st.sampled_from(["l0", "l1"])),
        valid=draw(CLOSED),
        tia_valid=draw(CLOSED),
        to=tuple(draw(TO)),
        explicit=draw(st.sampled_from([True, True, False])),
        systematic=draw(st.booleans()),
        withdrawn=draw(st.none() | st.none() | st.integers(0, DAYS).map(lambda number: START + timedelta(days=number))),
    )


@st.composite
def regions(draw: st.DrawFn) -> tuple[Region, ...]:
    made = []
    for name, country in (("r0", "DE"), ("r1", draw(st.sampled_from(["SG", "US"]))), ("r2", "US")):
        part = draw(st.sampled_from([None, "US-CA", "US-VA"])) if country == "US" else None
        held = tuple(Certification(id="seal", valid=valid) for valid in draw(st.lists(CLOSED, max_size=1)))
        scope = draw(st.sampled_from(["regional"] * 5 + ["global"]))
        operator = Operator(name="o", certifications=held)
        made.append(
            Region(id=name, country=country, subdivision=part, latitude=0, longitude=0, operator=operator,
                   upstream_scope=scope)
        )  # fmt: skip
    return tuple(made)


@st.composite
def tenants(draw: st.DrawFn, name: str) -> Tenant:
    return Tenant(
        id=name,
        subject=draw(st.sampled_from([None, None, *CODES])),
        callers=draw(st.sampled_from(["servers", "people"])),
        posture=draw(st.sampled_from(["transfer", "transfer", "transfer", "residency"])),
        on_conflict=draw(st.sampled_from(["refuse", "prefer"])),
        allow_regions=draw(st.sampled_from([None, None, None, ("r0", "r2")])),
        instruments=tuple(draw(instruments(f"i{number}")) for number in range(draw(st.sampled_from([1, 2, 0])))),
    )


class World(NamedTuple):
    settings: Settings
    book: LawBook
    statement: Statement


@st.composite
def worlds(draw: st.DrawFn) -> World:
    book = LawBook.build([(f"{name}.yaml", draw(laws(name))) for name in ("l0", "l1")])
    made = Settings(
        version=1,
        regions=draw(regions()),
        residency=ResidencySettings(unknown_subject=draw(st.sampled_from(["refuse", "DE"]))),
        tenants=tuple(draw(tenants(name)) for name in ("t0", "t1")[: draw(st.integers(1, 2))]),
    )
    zone = ["ZONE"] * bool(book.areas)
    statement = Statement(
        subject=draw(st.sampled_from(["DE", "DE", "DE", "SG", "US", "US-CA", *zone])),
        kind=draw(st.sampled_from(["never", "only"])),
        places=tuple(draw(st.lists(st.sampled_from(["DE", "SG", "US", "r0", "r2", *zone]), min_size=1, max_size=2))),
        until=START + timedelta(days=DAYS - 1),
    )
    return World(made, book, statement)


def members(world: World, name: str, day: date) -> set[str]:
    """The codes that a name stands for."""
    groups = world.book.areas.get(name)
    if groups is None:
        return {name}
    return {place for one in groups if one.valid[0] <= day <= (one.valid[1] or day) for place in one.places}


def concerns(world: World, signs: Sequence[Evidence], day: date) -> bool:
    """Whether any sign says that the request is about the statement's subject."""
    codes = members(world, world.statement.subject, day)
    return any(one.code in codes or one.code[:2] in codes for one in signs)


def contradicts(world: World, region: Region, day: date) -> bool:
    never = world.statement.kind == "never"
    if region.id in world.statement.places:
        return never
    codes = [members(world, name, day) for name in world.statement.places if not name.startswith("r")]
    if region.upstream_scope == "global":
        return bool(codes) or not never
    inside: set[str] = set().union(*codes)
    unsure = region.subdivision is None and never and any(code.startswith(f"{region.country}-") for code in inside)
    return (bool(inside & {region.country, region.subdivision}) or unsure) == never


def signs_of(tenant: Tenant) -> Iterator[tuple[str | None, tuple[Evidence, ...]]]:
    """The header, and what follows from it, the caller's place and a claim."""
    for header in (None, *CODES):
        for others in ((), *((code,) for code in CODES), *combinations(("DE", "US"), 2)):
            caller = Caller(None, others[0] if others else None, None)
            claims = [Evidence("claim", code) for code in others]
            yield header, evidence(tenant, header, caller, claims)


def everything(world: World) -> Iterator[tuple[Ask, int, Question, Tenant]]:
    """Every request about the subject, and how many departures it makes that `Ask` has no word for."""
    made, book, _ = world
    switches = [frozenset[str](), *(frozenset({name}) for name in sorted(book.switches)[:2]), book.switches]
    days = [START + timedelta(days=number) for number in range(DAYS)]
    for tenant in made.tenants:
        bases = (None, *(one.id for one in tenant.instruments))
        for header, signs in dict.fromkeys(signs_of(tenant)):
            more = len(signs) - (header is not None) - (tenant.subject is not None)
            for day in days:
                if not concerns(world, signs, day):
                    continue
                for basis in bases:
                    for gpc in (False, True):
                        for purpose in (None, *book.purposes):
                            for requested in (None, "r0", "r2"):
                                for off in dict.fromkeys(switches):
                                    yield (
                                        Ask(day, header, basis, gpc, purpose),
                                        more + (requested is not None) + len(off),
                                        Question(tenant.id, signs, day, requested, basis, gpc, purpose, off),
                                        tenant,
                                    )


@settings(deadline=None, max_examples=100)
@given(worlds())
def test_a_search_that_skips_nothing_finds_the_same(world: World) -> None:
    made, book, statement = world
    found = prove(statement, made, book, START)
    ground = Ground.lay(book, made.regions)
    reached: set[str] = set()
    least: tuple[Any, ...] | None = None
    for ask, more, question, tenant in everything(world):
        permitted = decide(question, tenant, made.residency, ground).permitted
        reached.update(permitted)
        if any(one.id in permitted and contradicts(world, one, ask.day) for one in made.regions):
            count, *rest = departures(ask, START)
            least = min(least or (count + more, *rest), (count + more, *rest))
    event("holds" if least is None else "is contradicted")
    assert found.reached == tuple(one.id for one in made.regions if one.id in reached)
    assert found.holds == (least is None)
    if found.counterexample and least:
        assert departures(found.counterexample.ask, START) == least
        confirm(world, found, ground)


def confirm(world: World, found: Proof, ground: Ground) -> None:
    """The counterexample is a real request: sent as it says, and with the region named, it gets there."""
    broken = found.counterexample
    assert broken is not None
    tenant = world.settings.tenant(broken.tenant)
    assert tenant is not None
    ask = broken.ask
    signs = evidence(tenant, broken.headers.get("X-Data-Subject"), NOBODY)
    question = Question(tenant.id, signs, ask.day, broken.region.id, ask.basis, ask.gpc, ask.purpose)
    assert concerns(world, signs, ask.day)
    decision = decide(question, tenant, world.settings.residency, ground)
    assert decision.permitted == (broken.region.id,)
    assert (decision.reason, decision.rule, decision.law) == broken.verdict[2:]
