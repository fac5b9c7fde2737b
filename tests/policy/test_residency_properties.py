"""What holds for any regions, tenant, evidence, instruments and day: random worlds under the laws that ship."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import Region, ResidencySettings, Tenant
from app.policy.explain import resolve
from app.policy.ground import Ground
from app.policy.residency import decide
from app.policy.routing import RegionState
from app.policy.rules import LawBook
from app.settings_file import documents
from app.types import Decision, Evidence, Question, Reason
from tests.policy.naive import permits

DOCUMENTS = documents("default", Path())
LAWS = [content for _, content in DOCUMENTS]
BOOK = LawBook.build(DOCUMENTS)
RULES = {part["id"]: part for law in LAWS for part in (*law["members"], *law.get("rules", ()))}
PROPERTY = settings(deadline=None, max_examples=100)

PLACES = ("DE", "IE", "NO", "GB", "CH", "US", "SG", "JP", "KR", "CN", "TH", "MY", "BR", "CA", "IN")
PARTS = {"US": "US-CA", "DE": "DE-BY", "GB": "GB-NIR"}
SUBJECTS = (*PLACES, "FR", "US-CA", "US-TX", "DE-BY", "AX", "PR", "GL", "HK")
TURNS = sorted({day for part in RULES.values() for day in part["valid"] if day})
DAYS = st.one_of(
    st.builds(lambda day, by: day + timedelta(days=by), st.sampled_from(TURNS), st.integers(-1, 1)),
    st.dates(date(2017, 1, 1), date(2033, 1, 1)),
    st.just(date(2026, 11, 22)),
)
PERIODS = st.one_of(st.just([date(2015, 1, 1), date(2040, 1, 1)]), st.lists(DAYS, min_size=2, max_size=2).map(sorted))
GROUPS = st.sampled_from([None, "acme", "acme", "other"])

REGION = st.builds(
    lambda country, part, operator, scope: {
        "country": country,
        "subdivision": PARTS.get(country) if part else None,
        "operator": operator,
        "upstream_scope": scope,
    },
    st.sampled_from(PLACES),
    st.booleans(),
    st.fixed_dictionaries(
        {
            "name": st.just("x"),
            "role": st.sampled_from(["processor", "processor", "service_provider", "controller", "third_party"]),
            "group": GROUPS,
            "certifications": st.lists(
                st.fixed_dictionaries({"id": st.sampled_from(sorted(BOOK.certifications)), "valid": PERIODS}),
                max_size=3,
                unique_by=lambda held: str(held["id"]),
            ),
        }
    ),
    st.sampled_from(["regional"] * 6 + ["global"]),
)
INSTRUMENT = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["scc", "bcr", "contract", "consent"]),
        "law": st.sampled_from([None, *(law["id"] for law in LAWS)]),
        "to": st.lists(st.sampled_from(PLACES), max_size=4),
        "valid": PERIODS,
        "tia_valid": st.none() | PERIODS,
        "group": GROUPS,
        "withdrawn": st.none() | DAYS,
        "systematic": st.booleans(),
        **{name: st.sampled_from([True, True, False]) for name in ("explicit", "risks_informed", "written_summary")},
    }
)
NAMES = ("i0", "i1", "i2", "i3")
SWITCHES = st.frozensets(st.sampled_from([*sorted(BOOK.switches), *NAMES]), max_size=3)


@dataclass(frozen=True)
class World:
    """A configuration and a request to it."""

    ground: Ground
    tenant: Tenant
    residency: ResidencySettings
    question: Question

    @property
    def regions(self) -> tuple[Region, ...]:
        return self.ground.regions

    @property
    def posture(self) -> str:
        return self.tenant.posture or self.residency.posture

    def decide(self, **changes: Any) -> Decision:
        """The decision where the request has other fields."""
        return decide(replace(self.question, **changes), self.tenant, self.residency, self.ground)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    regions = draw(st.lists(REGION, min_size=1, max_size=4))
    ids = [f"r{number}" for number in range(len(regions))]
    instruments = draw(st.lists(INSTRUMENT, max_size=4))
    tenant = {
        "id": "t",
        "posture": draw(st.sampled_from([None, "residency", "transfer", "transfer"])),
        "on_conflict": draw(st.sampled_from([None, "refuse", "prefer"])),
        "allow_regions": draw(st.none() | st.lists(st.sampled_from(ids), unique=True)),
        "instruments": [{"id": name, **one} for name, one in zip(NAMES, instruments, strict=False)],
    }
    residency = {
        "posture": draw(st.sampled_from(["residency", "transfer"])),
        "on_conflict": draw(st.sampled_from(["refuse", "prefer"])),
        "disabled": sorted(draw(SWITCHES)),
    }
    own = [held for one in instruments for held in (one["valid"], one["tia_valid"], [one["withdrawn"]])]
    own += [held["valid"] for one in regions for held in one["operator"]["certifications"]]
    turns = [day + timedelta(days=by) for period in own for day in period or () if day for by in (-1, 0, 1)]
    codes = draw(st.lists(st.sampled_from(SUBJECTS), min_size=1, max_size=3, unique=True))
    question = Question(
        tenant="t",
        evidence=tuple(Evidence("claim", code) for code in codes),
        day=draw(st.one_of(DAYS, st.sampled_from(turns)) if turns else DAYS),
        requested=draw(st.none() | st.sampled_from([*ids, "elsewhere"])),
        basis=draw(st.none() | st.sampled_from(NAMES)),
        gpc=draw(st.booleans()),
        purpose=draw(st.sampled_from([None, None, None, "bulk_sensitive", "unheard-of"])),
        disabled=draw(SWITCHES),
    )
    placed = [{"id": name, "latitude": 0, "longitude": 0, **one} for name, one in zip(ids, regions, strict=True)]
    return World(
        Ground.lay(BOOK, [Region.model_validate(one) for one in placed]),
        Tenant.model_validate(tenant),
        ResidencySettings.model_validate(residency),
        question,
    )


WORLDS = worlds()


def lawful(decision: Decision) -> set[str]:
    """The regions that law and tenant permit, before the one that was asked for narrows them."""
    return {verdict.region for verdict in decision.verdicts if verdict.permitted}


@settings(PROPERTY, max_examples=300)
@given(WORLDS)
def test_the_law_is_what_its_files_say(world: World) -> None:
    allowed = world.tenant.allow_regions
    assert lawful(world.decide()) == {
        region.id
        for region in world.regions
        if permits(region, world.question, world.tenant, world.posture, world.residency.disabled, LAWS)
        and (allowed is None or region.id in allowed)
    }


@PROPERTY
@given(WORLDS, st.lists(st.sampled_from(SUBJECTS), min_size=1, max_size=3))
def test_more_evidence_never_permits_more(world: World, codes: list[str]) -> None:
    """From the first piece on: with none at all nothing is permitted, or what is configured for the unknown."""
    more = world.decide(evidence=(*world.question.evidence, *(Evidence("geoip", code) for code in codes)))
    assert set(more.permitted) <= lawful(more) <= lawful(world.decide())


@PROPERTY
@given(WORLDS, st.frozensets(st.sampled_from(["r0", "r1", "r2", "r3"])))
def test_a_tenant_rule_never_permits_more(world: World, allowed: frozenset[str]) -> None:
    free = replace(world, tenant=world.tenant.model_copy(update={"allow_regions": None}))
    bound = replace(world, tenant=world.tenant.model_copy(update={"allow_regions": tuple(allowed)}))
    found = bound.decide()
    assert set(found.permitted) <= lawful(found) == lawful(free.decide()) & allowed
    staying = replace(world, tenant=world.tenant.model_copy(update={"posture": "residency"}))
    moving = replace(world, tenant=world.tenant.model_copy(update={"posture": "transfer"}))
    assert lawful(staying.decide()) <= lawful(moving.decide())


@PROPERTY
@given(WORLDS, st.frozensets(st.sampled_from(["r0", "r1", "r2", "r3"])), st.sampled_from(["r0", "r1", "r2", "r3"]))
def test_taking_regions_down_never_permits_more(world: World, down: frozenset[str], another: str) -> None:
    decision = world.decide()
    before, after = (
        resolve(
            decision,
            [RegionState(one.id, 0.0, 0.0, one.id not in gone, None, 0.0) for one in world.regions],
            None,
        )
        for gone in (down, down | {another})
    )
    assert set(after.permitted) <= set(before.permitted) == set(decision.permitted) - down
    assert set(before.ranked) == set(before.permitted)
    assert after.verdicts == before.verdicts == decision.verdicts


@PROPERTY
@given(WORLDS, SWITCHES)
def test_a_kill_switch_never_permits_more(world: World, switches: frozenset[str]) -> None:
    assert lawful(world.decide(disabled=world.question.disabled | switches)) <= lawful(world.decide())


@PROPERTY
@given(WORLDS)
def test_the_intersection_over_jurisdictions(world: World) -> None:
    alone = [lawful(world.decide(evidence=(one,))) for one in world.question.evidence]
    assert lawful(world.decide()) == set.intersection(*alone)


@settings(PROPERTY, max_examples=25)  # each reads every law anew
@given(WORLDS, st.randoms(use_true_random=False))
def test_no_order_matters_but_that_of_the_regions(world: World, dice: random.Random) -> None:
    """Not that of files, rules, members, evidence, instruments or certificates."""
    book = LawBook.build([(file, _shuffled(content, dice)) for file, content in dice.sample(DOCUMENTS, len(DOCUMENTS))])
    regions = [
        region.model_copy(
            update={
                "operator": region.operator.model_copy(
                    update={"certifications": tuple(_mixed(region.operator.certifications, dice))}
                )
            }
        )
        for region in world.regions
    ]
    tenant = world.tenant.model_copy(update={"instruments": tuple(_mixed(world.tenant.instruments, dice))})
    asked = replace(world.question, evidence=tuple(_mixed(world.question.evidence, dice)))
    other = decide(asked, tenant, world.residency, Ground.lay(book, regions))
    # Several pieces of evidence of one source say no more who of them is the subject: the first is taken.
    assert replace(other, subject_country=None) == replace(world.decide(), subject_country=None)
    assert book.digest == BOOK.digest


def _mixed(values: Any, dice: random.Random) -> list[Any]:
    return dice.sample(values, len(values))


def _shuffled(content: Mapping[str, Any], dice: random.Random) -> dict[str, Any]:
    return {key: _mixed(value, dice) if key in ("rules", "members") else value for key, value in content.items()}


@settings(PROPERTY, max_examples=200)
@given(WORLDS)
def test_each_permission_names_a_rule_in_force(world: World) -> None:
    decision = world.decide()
    off = {*world.question.disabled, *world.residency.disabled}
    instruments = {one.id: one for one in world.tenant.instruments}
    for region, verdict in zip(world.regions, decision.verdicts, strict=True):
        assert verdict.permitted == verdict.reason.startswith("ALLOW_")
        if not verdict.permitted:
            continue
        name, _, instrument = verdict.rule.partition(":")
        rule = RULES[name]
        start, end = rule["valid"]
        assert start <= world.question.day <= (end or date.max)
        assert not off & {name, instrument}
        assert rule.get("kind") != "forbid"
        assert verdict.law == rule["law"]
        if instrument:
            registered = instruments[instrument]
            assert registered.type == rule["kind"]
            assert registered.valid[0] <= world.question.day <= registered.valid[1]
            assert region.country in registered.to or (registered.type == "bcr" and not registered.to)


@PROPERTY
@given(WORLDS)
def test_the_answer_follows_from_the_verdicts(world: World) -> None:
    decision = world.decide()
    assert [verdict.region for verdict in decision.verdicts] == [region.id for region in world.regions]
    assert bool(decision.permitted) == (decision.status == 200) == (decision.code is None)
    in_order = [verdict.region for verdict in decision.verdicts if verdict.permitted]
    wish = world.question.requested
    if wish in in_order:
        assert decision.permitted == (wish,)
    elif wish is None or (world.tenant.on_conflict or world.residency.on_conflict) == "prefer":
        assert list(decision.permitted) == in_order
        assert (decision.reason is Reason.REGION_OVERRIDDEN) == (wish is not None and bool(in_order))
    else:
        assert decision.permitted == ()
    if not decision.permitted:
        assert (decision.status, decision.code) in ((451, "residency_denied"), (403, "forbidden"))
        assert (decision.status == 403) == (decision.reason is Reason.DENY_TENANT)
    assert decision.jurisdictions == tuple(sorted(one.code for one in world.question.evidence))
