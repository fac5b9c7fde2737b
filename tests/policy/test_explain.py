"""The status of a request once health is known, and the answer of the dry run."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.policy.explain import Explanation, resolve, route_reason
from app.policy.ground import Ground
from app.policy.residency import decide
from app.policy.routing import RegionState
from app.policy.rules import LawBook
from app.settings_file import documents, load
from app.types import Decision, Evidence, Place, Question, Reason

DATA = Path(__file__).parents[1] / "data" / "residency"
WORLD = load(DATA / "world.yaml", {})
BOOK = LawBook.build(documents("default", DATA))
GROUND = Ground.lay(BOOK, WORLD.regions)
ALL = [region.id for region in WORLD.regions]
PARIS = Place(48.9, 2.4)
DUBLIN = Place(53.3, -6.3)


def decision(tenant: str, code: str | None, **options: Any) -> Decision:
    one = WORLD.tenant(tenant)
    assert one is not None
    signs = (Evidence("header", code),) if code else ()
    asked = Question(tenant=tenant, evidence=signs, day=date(2026, 11, 22), **options)
    return decide(asked, one, WORLD.residency, GROUND)


def states(*down: str) -> list[RegionState]:
    return [RegionState(one.id, one.latitude, one.longitude, one.id not in down, None, 0.0) for one in WORLD.regions]


def outcome(explanation: Explanation) -> tuple[int, str | None, Reason]:
    return explanation.status, explanation.code, explanation.reason


def test_the_nearest_permitted_region_is_chosen() -> None:
    assert resolve(decision("stay", "DE"), states(), PARIS).chosen == "de"
    assert resolve(decision("stay", "DE"), states(), DUBLIN).chosen == "ie"
    assert resolve(decision("stay", "DE"), states(), DUBLIN).ranked == ("ie", "de")
    assert resolve(decision("stay", "DE"), states(), DUBLIN).permitted == ("de", "ie")
    assert resolve(decision("stay", "DE"), states("ie"), DUBLIN).chosen == "de"
    assert resolve(decision("stay", "DE"), states(), PARIS, prefer=("us", "ie")).chosen == "ie"


def test_the_reason_is_that_of_the_chosen_region() -> None:
    made = decision("move", "DE")
    near = resolve(made, states(), Place(51.5, -0.1))
    assert (near.chosen, near.reason, near.rule, near.law) == (
        "uk",
        Reason.ALLOW_ADEQUACY,
        "gdpr-adequacy-gb",
        "GDPR 45",
    )
    assert route_reason(made, "us-dpf") is Reason.ALLOW_CERT
    overridden = decision("prefer", "DE", requested="us")
    assert resolve(overridden, states(), DUBLIN).reason is Reason.REGION_OVERRIDDEN
    assert route_reason(overridden, "ie") is Reason.REGION_OVERRIDDEN


def test_a_refusal_names_nothing() -> None:
    for made, expected in (
        (decision("stay", "DE", requested="us"), (451, "residency_denied", Reason.DENY_REQUESTED_REGION)),
        (decision("only-de", "DE", requested="ie"), (403, "forbidden", Reason.DENY_TENANT)),
        (decision("stay", None), (451, "residency_denied", Reason.UNKNOWN_JURISDICTION)),
    ):
        explanation = resolve(made, states(), PARIS, gateway_region="us")
        assert outcome(explanation) == expected
        assert (explanation.permitted, explanation.ranked, explanation.chosen) == ((), (), None)


def test_no_permitted_region_is_up() -> None:
    explanation = resolve(decision("stay", "DE"), states("de", "ie"), PARIS)
    assert outcome(explanation) == (503, "no_healthy_region", Reason.NO_COMPLIANT_HEALTHY)
    assert (explanation.permitted, explanation.chosen, explanation.law) == ((), None, "GDPR 44")
    asked = resolve(decision("stay", "DE", requested="ie"), states("ie"), PARIS)
    assert (outcome(asked)[0], asked.permitted) == (503, ())


def test_the_tenant_rule_is_named_where_it_alone_leaves_nothing() -> None:
    assert resolve(decision("only-de", "DE"), states("de"), PARIS).law == "tenant rule"
    assert resolve(decision("only-de", "DE"), states("de", "ie"), PARIS).law == "GDPR 44"


def test_a_gateway_where_the_data_may_not_enter() -> None:
    made = decision("stay", "DE")
    explanation = resolve(made, states(), PARIS, gateway_region="us")
    assert outcome(explanation) == (421, "misdirected", Reason.MISDIRECTED)
    assert (explanation.permitted, explanation.chosen) == ((), None)
    assert resolve(made, states("de", "ie"), PARIS, gateway_region="us").status == 421
    assert resolve(made, states(), PARIS, gateway_region="ie").status == 200
    # It may stand in a lawful region and send the request on to another that was asked for.
    assert resolve(decision("stay", "DE", requested="de"), states(), PARIS, gateway_region="ie").status == 200


def test_the_json_of_the_contract() -> None:
    answer = resolve(decision("stay", "DE"), states("de"), PARIS).as_json()
    assert list(answer) == ["status", "code", "reason", "permitted", "chosen", "regions"]
    assert (answer["status"], answer["code"], answer["reason"]) == (200, None, "ALLOW_INTRA")
    assert (answer["permitted"], answer["chosen"]) == (["ie"], "ie")
    assert [region["id"] for region in answer["regions"]] == ALL
    for region in answer["regions"]:
        assert list(region) == ["id", "permitted", "reason", "rule", "law", "score"]
        assert list(region["score"]) == ["distance_km", "rtt_ms", "latency_ms", "load", "total"]
    assert answer["regions"][0] | {"score": None} == {
        "id": "de",
        "permitted": True,
        "reason": "ALLOW_INTRA",
        "rule": "gdpr-eu",
        "law": "GDPR 44",
        "score": None,
    }
    assert {type(value) for value in (answer["reason"], answer["chosen"])} == {str}


@settings(deadline=None, max_examples=200)
@given(
    st.builds(
        decision,
        st.sampled_from([tenant.id for tenant in WORLD.tenants]),
        st.sampled_from([None, "DE", "GB", "US-CA", "SG", "GL"]),
        requested=st.none() | st.sampled_from(ALL),
    ),
    st.frozensets(st.sampled_from(ALL)),
    st.sampled_from(ALL),
    st.lists(st.sampled_from(ALL), max_size=3),
    st.none() | st.sampled_from(ALL),
)
def test_taking_regions_down_never_permits_more(
    made: Decision, down: frozenset[str], another: str, prefer: list[str], here: str | None
) -> None:
    before = resolve(made, states(*down), PARIS, prefer, here)
    after = resolve(made, states(*down, another), PARIS, prefer, here)
    assert set(after.permitted) <= set(before.permitted) <= set(made.permitted) - down
    assert sorted(before.ranked) == sorted(before.permitted)
    assert (before.status == 200) == bool(before.permitted) == (before.code is None) == (before.chosen is not None)
    assert after.verdicts == made.verdicts


@pytest.mark.parametrize("place", [None, PARIS])
def test_scores_cover_every_region_whatever_the_answer(place: Place | None) -> None:
    assert list(resolve(decision("stay", None), states(*ALL), place).scores) == ALL
