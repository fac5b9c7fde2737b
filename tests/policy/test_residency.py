"""The shared table of cases, and properties that hold for any evidence, tenant and day."""

import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from app.config import Instrument, Settings, Tenant
from app.policy.explain import resolve
from app.policy.residency import decide, evidence
from app.policy.routing import RegionState
from app.policy.rules import LawBook
from app.settings_file import documents, load
from app.types import Caller, Decision, Evidence, Place, Question, Reason
from regions.catalogue import CodeError, parse_code

DATA = Path(__file__).parents[1] / "data" / "residency"
CASES = YAML(typ="safe", pure=True).load((DATA / "cases.yaml").read_text())
TODAY = date(2026, 11, 22)
NOBODY = Caller(address=None, country=None, place=None)
WORLD = load(DATA / "world.yaml", {})
DOCUMENTS = documents("default", DATA)
BOOK = LawBook.build(DOCUMENTS)
ALL = [region.id for region in WORLD.regions]


def question(tenant: str, *codes: str, **options: Any) -> Question:
    signs = tuple(Evidence("header", code) for code in codes)
    return Question(tenant=tenant, evidence=signs, day=options.pop("day", TODAY), **options)


def answer(asked: Question, world: Settings = WORLD, book: LawBook = BOOK) -> Decision:
    tenant = world.tenant(asked.tenant)
    assert tenant is not None
    return decide(asked, tenant, world.regions, world.residency, book)


def states(down: list[str]) -> list[RegionState]:
    return [RegionState(one.id, one.latitude, one.longitude, one.id not in down, None, 0.0) for one in WORLD.regions]


def by_region(decision: Decision) -> dict[str, tuple[Reason, str, str]]:
    return {one.region: (one.reason, one.rule, one.law) for one in decision.verdicts}


def of_case(case: Mapping[str, Any]) -> Question:
    tenant = WORLD.tenant(case["tenant"])
    assert tenant is not None
    extra = [Evidence(one["source"], one["code"]) for one in case.get("evidence", [])]
    return Question(
        tenant=tenant.id,
        evidence=evidence(tenant, case["subject"], NOBODY, extra),
        day=case.get("at", TODAY),
        requested=case.get("region"),
        basis=case.get("basis"),
        gpc=case.get("gpc") == "1",
        purpose=case.get("purpose"),
        disabled=frozenset(case.get("disabled", ())),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_the_shared_table(case: Mapping[str, Any]) -> None:
    if case.get("status") == 400:
        with pytest.raises(CodeError):
            parse_code(case["subject"])
        return
    decision = answer(of_case(case))
    explanation = resolve(decision, states(case.get("down", [])), None)
    assert explanation.status == case.get("status", 200)
    assert set(explanation.permitted) == set(case.get("permitted", ()))
    if "reason" in case:
        assert explanation.reason == case["reason"]
        assert explanation.as_json()["reason"] == case["reason"]


# The article of each case that names one; the rest of the column is a remark on the whole set.
CITED = {case["id"]: case["law"] for case in CASES if case["id"] not in {3, 26, 30, 35, 36, 37}}


@pytest.mark.parametrize("case", [case for case in CASES if case["id"] in CITED], ids=lambda case: str(case["id"]))
def test_the_articles_of_the_shared_table(case: Mapping[str, Any]) -> None:
    assert resolve(answer(of_case(case)), states(case.get("down", [])), None).law == case["law"]


def test_adequate_countries_cite_the_article() -> None:
    verdicts = by_region(answer(question("move", "DE")))
    assert verdicts["jp"] == (Reason.ALLOW_ADEQUACY, "gdpr-adequacy-jp", "GDPR 45")
    assert verdicts["br"][2] == "GDPR 45"
    assert verdicts["us-dpf"] == (Reason.ALLOW_CERT, "eu-us-dpf", "2023/1795")
    assert verdicts["cn"] == (Reason.DENY_NO_BASIS, "default-deny", "GDPR 44")


def test_brazil_counts_for_the_union_only() -> None:
    assert "br" in answer(question("move", "DE")).permitted
    assert "br" not in answer(question("move", "NO")).permitted
    assert "br" not in answer(question("move", "DE", "NO")).permitted
    assert "br" not in answer(question("move", "DE", day=date(2026, 1, 25))).permitted


@pytest.mark.parametrize(
    ("code", "day", "home"),
    [
        ("DE", date(2018, 5, 25), True),
        ("DE", date(2018, 5, 24), False),
        ("NO", date(2018, 7, 20), True),
        ("NO", date(2018, 7, 19), False),
        ("GB", date(2020, 12, 31), True),
        ("CH", date(2023, 8, 31), False),
        ("CH", date(2023, 9, 1), True),
    ],
)
def test_membership_has_dates(code: str, day: date, home: bool) -> None:
    decision = answer(question("stay", code, day=day))
    assert (decision.status == 200) is home
    if not home:
        assert decision.reason is Reason.UNKNOWN_JURISDICTION


def test_the_united_kingdom_left() -> None:
    before = answer(question("stay", "GB", day=date(2020, 12, 31)))
    after = answer(question("stay", "GB", day=date(2021, 1, 1)))
    assert before.permitted == ("de", "ie", "uk")
    assert after.permitted == ("uk",)
    assert (after.law, answer(question("stay", "GB")).law) == ("UK GDPR 44", "UK GDPR 44A")
    assert "uk" not in answer(question("move", "DE", day=date(2021, 6, 27))).permitted
    assert "uk" in answer(question("move", "DE", day=date(2021, 6, 28))).permitted
    assert "uk" in answer(question("move", "DE", day=date(2031, 12, 27))).permitted


@pytest.mark.parametrize("code", ["GL", "GG", "IM", "JE", "JP", "BR", "TH", "SJ"])
def test_a_place_without_a_rule_file_is_unknown(code: str) -> None:
    for tenant in ("stay", "move", "asks"):
        decision = answer(question(tenant, code, basis="yes-us"))
        assert (decision.status, decision.code) == (451, "residency_denied")
        assert (decision.reason, decision.law) == (Reason.UNKNOWN_JURISDICTION, "default deny")
    assert answer(question("move", "DE", code)).permitted == ()


def test_a_subdivision_brings_its_country() -> None:
    assert answer(question("stay", "DE-BY")).permitted == ("de", "ie")
    assert answer(question("stay", "DE-BY")).subject_country == "DE"
    bulk = answer(question("stay", "US-CA", purpose="bulk_sensitive"))
    assert "cn" not in bulk.permitted
    assert "us-ads" in answer(question("stay", "US-TX", gpc=True)).permitted


def test_the_opt_out_reaches_third_parties_only() -> None:
    decision = answer(question("stay", "US-CA", gpc=True))
    assert [region for region in ALL if region not in decision.permitted] == ["us-ads"]
    assert by_region(decision)["us-ads"] == (Reason.DENY_GPC, "ccpa-opt-out", "11 CCR 7025")


def test_an_unknown_purpose_is_refused() -> None:
    decision = answer(question("stay", "US", purpose="bulk-sensitive"))
    assert (decision.status, decision.reason, decision.rule) == (451, Reason.DENY_PURPOSE, "default-deny")


@pytest.mark.parametrize(
    ("tenant", "code", "options", "reason", "law"),
    [
        ("asks", "DE", {"basis": "taken-back"}, Reason.DENY_CONSENT_INVALID, "GDPR 7(3)"),
        ("asks", "DE", {"basis": "taken-back", "day": date(2026, 5, 31)}, Reason.ALLOW_CONSENT, "GDPR 49(1)(a)"),
        ("asks", "DE", {"basis": "yes-us", "day": date(2028, 1, 1)}, Reason.DENY_BASIS_EXPIRED, "GDPR 49(1)(a)"),
        ("asks", "DE", {"basis": "yes-us", "day": date(2025, 12, 31)}, Reason.DENY_CERT_MISSING, "2023/1795"),
        ("asks", "DE", {}, Reason.DENY_CERT_MISSING, "2023/1795"),
        ("asks", "DE", {"basis": "nothing"}, Reason.DENY_CERT_MISSING, "2023/1795"),
        ("stay", "DE", {"basis": "yes-us"}, Reason.DENY_NO_BASIS, "GDPR 44"),
        ("asks", "SG", {"basis": "yes-us"}, Reason.ALLOW_CONSENT, "PDPR 2021 reg 10"),
        ("asks", "SG", {"basis": "routine"}, Reason.ALLOW_CONSENT, "PDPR 2021 reg 10"),
        ("asks", "SG", {"basis": "no-risks"}, Reason.DENY_CONSENT_INVALID, "PDPR 2021 reg 10"),
        ("asks", "GB", {"basis": "yes-us"}, Reason.ALLOW_CONSENT, "UK GDPR 49(1)(a)"),
        ("scc", "DE", {"day": date(2028, 1, 1)}, Reason.DENY_BASIS_EXPIRED, "GDPR 46(2)(c)"),
        ("scc", "DE", {"day": date(2025, 12, 31)}, Reason.DENY_CERT_MISSING, "2023/1795"),
        ("scc", "DE", {"disabled": frozenset({"gdpr-scc"})}, Reason.DENY_NO_BASIS, "GDPR 46(2)(c)"),
        ("scc", "DE", {"disabled": frozenset({"scc-us"})}, Reason.DENY_NO_BASIS, "GDPR 46(2)(c)"),
        ("scc", "GB", {}, Reason.DENY_CERT_MISSING, "SI 2023/1028: no UK Extension"),
        ("scc", "CH", {}, Reason.DENY_CERT_MISSING, "DPO Annex 1: no Swiss-US DPF"),
        ("sg-contract", "SG", {"day": date(2028, 1, 1)}, Reason.DENY_BASIS_EXPIRED, "PDPR 2021 reg 11"),
        ("sg-contract", "DE", {}, Reason.DENY_CERT_MISSING, "2023/1795"),
    ],
)
def test_what_counts_toward_the_united_states(
    tenant: str, code: str, options: dict[str, Any], reason: Reason, law: str
) -> None:
    found, _, cited = by_region(answer(question(tenant, code, **options)))["us"]
    assert (found, cited) == (reason, law)


def test_a_permission_names_the_instrument() -> None:
    assert answer(question("scc", "DE", requested="us")).rule == "gdpr-scc:scc-us"


def test_binding_rules_hold_where_the_law_takes_them() -> None:
    assert by_region(answer(question("bcr", "SG")))["us-full"][0] is Reason.ALLOW_BCR
    assert by_region(answer(question("bcr", "SG")))["jp"][0] is Reason.ALLOW_CERT  # its CBPR certificate is firmer
    assert by_region(answer(question("bcr", "GB")))["sg"][0] is Reason.DENY_NO_BASIS
    assert by_region(answer(question("bcr", "CH")))["sg"][0] is Reason.ALLOW_BCR


@pytest.mark.parametrize("missing", [None, (date(2027, 1, 1), date(2027, 12, 31))])
def test_clauses_without_a_current_assessment_do_not_count(missing: tuple[date, date] | None) -> None:
    registered = Instrument(
        id="scc", type="scc", to=("US",), valid=(date(2026, 1, 1), date(2027, 12, 31)), tia_valid=missing
    )
    tenant = Tenant(id="t", posture="transfer", instruments=(registered,))
    decision = decide(question("t", "DE"), tenant, WORLD.regions, WORLD.residency, BOOK)
    assert by_region(decision)["us"] == (Reason.DENY_NO_BASIS, "gdpr-scc:scc", "C-311/18")


def test_a_region_of_global_scope_stands_nowhere() -> None:
    world = [region.model_copy(update={"upstream_scope": "global"}) for region in WORLD.regions]
    stay, move = WORLD.tenants[0], WORLD.tenants[1]
    for tenant in (stay, move):
        assert decide(question(tenant.id, "DE"), tenant, world, WORLD.residency, BOOK).permitted == ()
        assert list(decide(question(tenant.id, "US"), tenant, world, WORLD.residency, BOOK).permitted) == ALL
        bulk = question(tenant.id, "US", purpose="bulk_sensitive")
        assert decide(bulk, tenant, world, WORLD.residency, BOOK).permitted == ()


def test_the_tenant_comes_after_the_law() -> None:
    decision = answer(question("only-de", "DE"))
    assert decision.permitted == ("de",)
    assert by_region(decision)["ie"] == (Reason.DENY_TENANT, "tenant.allow_regions", "tenant rule")
    assert by_region(decision)["us"][0] is Reason.DENY_NO_BASIS
    refused = answer(question("only-de", "SG"))
    assert (refused.status, refused.code, refused.reason) == (403, "forbidden", Reason.DENY_TENANT)
    unlawful = answer(question("only-de", "DE", requested="us"))
    assert (unlawful.status, unlawful.reason) == (451, Reason.DENY_REQUESTED_REGION)


def test_a_preferred_region_gives_way() -> None:
    assert answer(question("prefer", "DE", requested="ie")).permitted == ("ie",)
    overridden = answer(question("prefer", "DE", requested="us"))
    assert (overridden.permitted, overridden.reason) == (("de", "ie"), Reason.REGION_OVERRIDDEN)
    nothing = answer(question("prefer", "DE", "GB", requested="us"))
    assert (nothing.status, nothing.reason, nothing.permitted) == (451, Reason.DENY_NO_BASIS, ())
    tenant = WORLD.tenants[0].model_copy(update={"on_conflict": "prefer", "allow_regions": ("us",)})
    own = decide(question("stay", "DE", requested="us"), tenant, WORLD.regions, WORLD.residency, BOOK)
    assert (own.status, own.reason) == (403, Reason.DENY_TENANT)


def test_the_house_rule_holds_where_the_tenant_has_none() -> None:
    tenant = Tenant(id="t")
    house = WORLD.residency.model_copy(update={"posture": "transfer", "on_conflict": "prefer"})
    decision = decide(question("t", "DE", requested="us"), tenant, WORLD.regions, house, BOOK)
    assert "jp" in decision.permitted
    assert decision.reason is Reason.REGION_OVERRIDDEN


def test_a_region_that_is_not_configured_is_permitted_nothing() -> None:
    decision = answer(question("stay", "DE", requested="mars"))
    assert (decision.status, decision.permitted) == (451, ())


def test_no_evidence_is_refused_or_assumed() -> None:
    refused = answer(question("stay"))
    assert (refused.status, refused.reason, refused.jurisdictions) == (451, Reason.UNKNOWN_JURISDICTION, ())
    assert refused.subject_country is None
    house = WORLD.residency.model_copy(update={"unknown_subject": "US-CA"})
    tenant = WORLD.tenants[0]
    assumed = decide(question("stay"), tenant, WORLD.regions, house, BOOK)
    assert (assumed.status, assumed.jurisdictions, assumed.subject_country) == (200, ("US-CA",), "US")
    # A place that is known, and whose law is not, is no unknown subject.
    assert decide(question("stay", "GL"), tenant, WORLD.regions, house, BOOK).status == 451
    assert decide(question("stay", "DE"), tenant, WORLD.regions, house, BOOK).permitted == ("de", "ie")


def test_kill_switches_of_both_places_count() -> None:
    house = WORLD.residency.model_copy(update={"disabled": ("eu-us-dpf",)})
    asked = question("move", "DE", disabled=frozenset({"gdpr-adequacy-jp"}))
    decision = decide(asked, WORLD.tenants[1], WORLD.regions, house, BOOK)
    assert decision.permitted == ("de", "ie", "uk", "ch", "br")


def test_evidence_is_gathered_from_everything_that_counts() -> None:
    caller = Caller(address="192.0.2.1", country="FR", place=Place(46, 2, "address"))
    hinted = Caller(address="192.0.2.1", country="FR", place=Place(46, 2, "geo_hint"))
    servers = Tenant(id="t", subject="US-CA")
    people = Tenant(id="t", subject="US-CA", callers="people")
    claim = [Evidence("claim", "sg")]
    assert evidence(servers, None, caller) == (Evidence("tenant", "US-CA"),)
    assert evidence(servers, "de", caller) == (Evidence("tenant", "US-CA"), Evidence("header", "DE"))
    assert Evidence("geoip", "FR") in evidence(people, None, caller)
    assert Evidence("geo_hint", "FR") in evidence(people, None, hinted)
    assert evidence(Tenant(id="t"), None, caller) == ()
    assert evidence(Tenant(id="t"), None, NOBODY, claim) == (Evidence("claim", "SG"),)
    with pytest.raises(CodeError):
        evidence(servers, "UK", caller)
    with pytest.raises(CodeError):
        evidence(servers, None, caller, [Evidence("claim", "Germany")])


def test_the_subject_is_who_the_header_names() -> None:
    signs = (Evidence("geoip", "SG"), Evidence("tenant", "US-CA"), Evidence("header", "DE"))
    asked = Question(tenant="stay", evidence=signs, day=TODAY)
    assert answer(asked).subject_country == "DE"
    assert answer(replace(asked, evidence=signs[:2])).subject_country == "US"
    assert answer(replace(asked, evidence=signs[:1])).subject_country == "SG"
    assert answer(asked).jurisdictions == ("DE", "SG", "US-CA")


CODES = ("DE", "FR", "NO", "IS", "GB", "CH", "US", "US-CA", "US-TX", "SG", "GL", "JP", "PR", "DE-BY")
DAYS = st.integers(0, 5000).map(lambda days: date(2018, 1, 1) + timedelta(days=days))
SIGNS = st.frozensets(st.sampled_from(CODES), min_size=1, max_size=4)
QUESTIONS = st.builds(
    lambda tenant, codes, day, gpc, purpose, requested, basis, disabled: Question(
        tenant=tenant,
        evidence=tuple(Evidence("header", code) for code in sorted(codes)),
        day=day,
        gpc=gpc,
        purpose=purpose,
        requested=requested,
        basis=basis,
        disabled=disabled,
    ),
    st.sampled_from([tenant.id for tenant in WORLD.tenants]),
    SIGNS,
    DAYS,
    st.booleans(),
    st.sampled_from([None, None, "bulk_sensitive"]),
    st.none() | st.sampled_from(ALL),
    st.none() | st.sampled_from(["yes-us", "no-risks", "routine", "taken-back", "scc-us"]),
    st.frozensets(st.sampled_from(["eu-us-dpf", "gdpr-scc", "uk-extension", "gdpr-adequacy-gb"]), max_size=2),
)
PROPERTY = settings(deadline=None, max_examples=300)


@PROPERTY
@given(QUESTIONS.map(lambda asked: replace(asked, requested=None)), st.sampled_from(CODES))
def test_more_evidence_never_permits_more(asked: Question, code: str) -> None:
    more = replace(asked, evidence=(*asked.evidence, Evidence("geoip", code)))
    assert set(answer(more).permitted) <= set(answer(asked).permitted)


@PROPERTY
@given(QUESTIONS.map(lambda asked: replace(asked, requested=None)), st.frozensets(st.sampled_from(ALL)))
def test_a_tenant_rule_never_permits_more(asked: Question, allowed: frozenset[str]) -> None:
    tenant = WORLD.tenant(asked.tenant)
    assert tenant is not None
    narrowed = tenant.model_copy(update={"allow_regions": tuple(allowed & set(tenant.allow_regions or ALL))})
    permitted = set(decide(asked, narrowed, WORLD.regions, WORLD.residency, BOOK).permitted)
    assert permitted == set(answer(asked).permitted) & allowed


@PROPERTY
@given(QUESTIONS, st.frozensets(st.sampled_from(sorted(BOOK.switches))))
def test_a_kill_switch_never_permits_more(asked: Question, switches: frozenset[str]) -> None:
    asked = replace(asked, requested=None)
    fewer = answer(replace(asked, disabled=asked.disabled | switches)).permitted
    assert set(fewer) <= set(answer(asked).permitted)


@settings(PROPERTY, max_examples=40)  # each compiles the whole book anew
@given(QUESTIONS, st.randoms(use_true_random=False))
def test_the_order_of_rules_files_evidence_and_instruments_is_irrelevant(asked: Question, dice: random.Random) -> None:
    shuffled = [(file, _shuffled(content, dice)) for file, content in dice.sample(DOCUMENTS, len(DOCUMENTS))]
    book = LawBook.build(shuffled)
    tenant = WORLD.tenant(asked.tenant)
    assert tenant is not None
    instruments = tuple(dice.sample(tenant.instruments, len(tenant.instruments)))
    signs = tuple(dice.sample(asked.evidence, len(asked.evidence)))
    other = decide(
        replace(asked, evidence=signs),
        tenant.model_copy(update={"instruments": instruments}),
        WORLD.regions,
        WORLD.residency,
        book,
    )
    assert replace(other, subject_country=None) == replace(answer(asked), subject_country=None)
    assert book.digest == BOOK.digest


def _shuffled(content: Mapping[str, Any], dice: random.Random) -> dict[str, Any]:
    return {
        key: dice.sample(value, len(value)) if key in ("rules", "members") else value for key, value in content.items()
    }


RULES = {part["id"]: part for _, content in DOCUMENTS for part in (*content["members"], *content.get("rules", ()))}


@PROPERTY
@given(QUESTIONS)
def test_each_permission_names_a_rule_in_force(asked: Question) -> None:
    decision = answer(asked)
    for verdict in decision.verdicts:
        assert verdict.permitted == verdict.reason.startswith("ALLOW_")
        if verdict.permitted:
            rule = RULES[verdict.rule.partition(":")[0]]
            start, end = rule["valid"]
            assert start <= asked.day <= (end or date.max)
            assert not asked.disabled & {rule["id"]}
            assert rule.get("kind") != "forbid"
            assert verdict.law == rule["law"]


@PROPERTY
@given(QUESTIONS)
def test_the_permitted_are_a_part_of_the_verdicts_that_permit(asked: Question) -> None:
    decision = answer(asked)
    lawful = [verdict.region for verdict in decision.verdicts if verdict.permitted]
    assert [verdict.region for verdict in decision.verdicts] == ALL
    assert set(decision.permitted) <= set(lawful)
    assert bool(decision.permitted) == (decision.status == 200) == (decision.code is None)
    if asked.requested in lawful:
        assert decision.permitted == (asked.requested,)
    elif asked.requested is None or decision.reason is Reason.REGION_OVERRIDDEN:
        assert list(decision.permitted) == lawful
    else:
        assert decision.permitted == ()


@PROPERTY
@given(QUESTIONS)
def test_the_intersection_over_jurisdictions(asked: Question) -> None:
    asked = replace(asked, requested=None)
    alone = [set(answer(replace(asked, evidence=(sign,))).permitted) for sign in asked.evidence]
    assert set(answer(asked).permitted) == set.intersection(*alone)
