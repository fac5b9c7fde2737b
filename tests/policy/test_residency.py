"""The shared table of cases, and what each law says of single regions, instruments and days."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from app.config import Instrument, Region, Tenant
from app.policy.explain import resolve
from app.policy.ground import Ground
from app.policy.residency import decide, evidence
from app.policy.routing import RegionState
from app.policy.rules import LawBook
from app.settings_file import documents, load
from app.types import Caller, Decision, Evidence, Place, Question, Reason, Verdict
from regions.catalogue import CodeError, parse_code

DATA = Path(__file__).parents[1] / "data" / "residency"
CASES = YAML(typ="safe", pure=True).load((DATA / "cases.yaml").read_text())
TODAY = date(2026, 11, 22)
NOBODY = Caller(address=None, country=None, place=None)
WORLD = load(DATA / "world.yaml", {})
DOCUMENTS = documents("default", DATA)
BOOK = LawBook.build(DOCUMENTS)
GROUND = Ground.lay(BOOK, WORLD.regions)
ALL = [region.id for region in WORLD.regions]


def question(tenant: str, *codes: str, **options: Any) -> Question:
    signs = tuple(Evidence("header", code) for code in codes)
    return Question(tenant=tenant, evidence=signs, day=options.pop("day", TODAY), **options)


def answer(asked: Question) -> Decision:
    tenant = WORLD.tenant(asked.tenant)
    assert tenant is not None
    return decide(asked, tenant, WORLD.residency, GROUND)


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


@pytest.mark.parametrize(
    ("tenant", "code", "day", "permitted"),
    [
        # Japan: the EEA, the United Kingdom, and whoever abroad holds a CBPR certificate.
        ("stay", "JP", TODAY, {"jp"}),
        ("move", "JP", TODAY, {"de", "ie", "uk", "jp"}),
        ("move", "JP", date(2022, 4, 1), {"de", "ie", "uk", "jp"}),
        ("move", "JP", date(2022, 3, 31), set()),
        # Korea: the EEA since the first equivalency recognition.
        ("stay", "KR", TODAY, set()),
        ("move", "KR", date(2025, 9, 16), {"de", "ie"}),
        ("move", "KR", date(2025, 9, 15), set()),
        # The others list no country, and clauses and consent under the GDPR are none under them.
        ("move", "CN", TODAY, {"cn"}),
        ("move", "TH", TODAY, set()),
        ("move", "MY", TODAY, set()),
        ("scc", "CN", TODAY, {"cn"}),
        ("bcr", "TH", TODAY, set()),
        ("asks", "MY", TODAY, set()),
    ],
)
def test_the_asian_laws_without_instruments(tenant: str, code: str, day: date, permitted: set[str]) -> None:
    decision = answer(question(tenant, code, day=day, basis="yes-us"))
    assert set(decision.permitted) == permitted
    assert decision.reason is not Reason.UNKNOWN_JURISDICTION or day < TODAY


VALID = (date(2020, 1, 1), date(2030, 12, 31))


@pytest.mark.parametrize(
    ("code", "law", "instrument", "first", "reason", "cited"),
    [
        ("TH", "th_pdpa", {"type": "contract"}, date(2024, 3, 24), "ALLOW_CONTRACT", "PDPA B.E. 2562 s.29"),
        ("TH", "th_pdpa", {"type": "bcr", "group": "acme"}, date(2024, 3, 24), "ALLOW_BCR", "PDPA B.E. 2562 s.29"),
        (
            "TH",
            "th_pdpa",
            {"type": "consent", "explicit": True, "risks_informed": True},
            date(2022, 6, 1),
            "ALLOW_CONSENT",
            "PDPA B.E. 2562 s.28(2)",
        ),
        ("MY", "my_pdpa", {"type": "contract"}, date(2025, 4, 1), "ALLOW_CONTRACT", "PDPA 2010 s.129(3)(f)"),
        ("MY", "my_pdpa", {"type": "bcr", "group": "acme"}, date(2025, 4, 1), "ALLOW_BCR", "PDPA 2010 s.129(3)(f)"),
        (
            "MY",
            "my_pdpa",
            {"type": "consent", "explicit": True, "written_summary": True},
            date(2025, 4, 1),
            "ALLOW_CONSENT",
            "PDPA 2010 s.129(3)(a)",
        ),
        ("JP", "jp_appi", {"type": "contract"}, date(2022, 4, 1), "ALLOW_CONTRACT", "APPI Rules 16(1)"),
        ("JP", "jp_appi", {"type": "bcr", "group": "acme"}, date(2022, 4, 1), "ALLOW_BCR", "APPI Rules 16(1)"),
        (
            "JP",
            "jp_appi",
            {"type": "consent", "explicit": True, "risks_informed": True},
            date(2022, 4, 1),
            "ALLOW_CONSENT",
            "APPI 28(1)",
        ),
        ("KR", "kr_pipa", {"type": "contract"}, date(2023, 9, 15), "ALLOW_CONTRACT", "PIPA 28-8(1)3"),
        (
            "KR",
            "kr_pipa",
            {"type": "consent", "explicit": True, "written_summary": True},
            date(2023, 9, 15),
            "ALLOW_CONSENT",
            "PIPA 28-8(1)1",
        ),
        ("CN", "cn_pipl", {"type": "scc", "tia_valid": VALID}, date(2023, 6, 1), "ALLOW_SCC", "PIPL 38(1)(3)"),
    ],
)
def test_instruments_under_the_asian_laws(
    code: str, law: str, instrument: dict[str, Any], first: date, reason: str, cited: str
) -> None:
    """Each counts from its first day, in the countries that it names, and only where registered under that law."""
    registered = {"id": "x", "law": law, "to": ["US"], "valid": VALID, **instrument}
    asked = question("t", code, day=first, basis="x")

    def us_full(day: date, **changes: Any) -> Verdict:
        tenant = Tenant.model_validate({"id": "t", "posture": "transfer", "instruments": [{**registered, **changes}]})
        decision = decide(replace(asked, day=day), tenant, WORLD.residency, GROUND)
        return next(one for one in decision.verdicts if one.region == "us-full")

    assert (us_full(first).reason, us_full(first).law) == (reason, cited)
    assert not us_full(first - timedelta(days=1)).permitted
    assert not us_full(first, law=None).permitted
    assert not us_full(first, to=["SG"]).permitted


NOTHING = {"JP": (Reason.DENY_NO_BASIS, "APPI 28(1)"), "KR": (Reason.DENY_NO_BASIS, "PIPA 28-8(1)")}


@pytest.mark.parametrize(
    ("code", "certificate", "cited"), [("JP", "cbpr", "APPI Rules 16(2)"), ("KR", "isms-p", "PIPA 28-8(1)4")]
)
def test_certificates_that_count_anywhere(code: str, certificate: str, cited: str) -> None:
    us = next(region for region in WORLD.regions if region.id == "us")
    for name in (certificate, "prp"):
        held = {"id": name, "valid": ("2026-01-01", "2026-11-22")}
        operator = {"name": "x", "certifications": [held]}
        region = Region.model_validate({**us.model_dump(), "operator": operator})
        ground = Ground.lay(BOOK, [region])
        found = by_region(decide(question("move", code), WORLD.tenants[1], WORLD.residency, ground))["us"]
        assert (found[0], found[2]) == ((Reason.ALLOW_CERT, cited) if name == certificate else NOTHING[code])
        tomorrow = question("move", code, day=TODAY + timedelta(days=1))
        assert decide(tomorrow, WORLD.tenants[1], WORLD.residency, ground).permitted == ()


UNKNOWN = (Reason.UNKNOWN_JURISDICTION, "default-deny", "default deny")


@pytest.mark.parametrize("code", ["GL", "GG", "IM", "JE", "BR", "HK", "TW", "SJ", "NC"])
def test_a_place_without_a_rule_file_is_unknown(code: str) -> None:
    for tenant in ("stay", "move", "asks"):
        decision = answer(question(tenant, code, basis="yes-us"))
        assert (decision.status, decision.code) == (451, "residency_denied")
        assert (decision.reason, decision.rule, decision.law) == UNKNOWN
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
    assert (decision.status, decision.reason) == (451, Reason.DENY_PURPOSE)
    assert (decision.rule, decision.law) == ("default-deny", "default deny")


def test_bulk_sensitive_data_stay_out_of_countries_of_concern_alone() -> None:
    decision = answer(question("stay", "US", purpose="bulk_sensitive"))
    assert [region for region in ALL if region not in decision.permitted] == ["cn"]
    assert answer(question("stay", "US", purpose="bulk_sensitive", day=date(2025, 4, 7))).permitted == tuple(ALL)
    assert "cn" not in answer(question("stay", "US", purpose="bulk_sensitive", day=date(2025, 4, 8))).permitted


def test_parts_of_countries_with_laws_of_their_own() -> None:
    """Every part counts, whether or not its country has a law as well; the most local law is cited."""
    quebec = {
        "id": "qc",
        "name": "Law 25",
        "reviewed": TODAY,
        "reviewed_until": TODAY,
        "transfers": "restricted",
        "members": [{"id": "qc-home", "places": ["CA-QC"], "valid": [TODAY, None], "law": "s.17"}],
    }
    montreal = WORLD.regions[0].model_copy(update={"id": "montreal", "country": "CA", "subdivision": "CA-QC"})
    ground = Ground.lay(LawBook.build([*DOCUMENTS, ("qc.yaml", quebec)]), [*WORLD.regions, montreal])

    def found(*codes: str) -> Decision:
        return decide(question("stay", *codes), WORLD.tenants[0], WORLD.residency, ground)

    assert (found("CA-QC").permitted, found("CA-QC").law) == (("montreal",), "s.17")
    assert found("CA-QC", "US-CA").permitted == ("montreal",)
    assert found("CA-QC", "US-CA").jurisdictions == ("CA-QC", "US-CA")
    assert (found("CA-ON").status, found("CA").status, found("CA-QC", "CA").status) == (451, 451, 451)
    assert found("US-CA").law == found("US", "US-CA").law == "CCPA is no transfer rule"


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


@pytest.mark.parametrize(
    ("kind", "extra", "country", "said"),
    [
        # Of countries that they do not name, clauses say nothing even when switched off; a consent does.
        ("scc", {"tia_valid": (TODAY, TODAY)}, "SG", (Reason.DENY_NO_BASIS, "default-deny", "GDPR 44")),
        ("scc", {"tia_valid": (TODAY, TODAY)}, "US", (Reason.DENY_NO_BASIS, "gdpr-scc:x", "GDPR 46(2)(c)")),
        ("consent", {"explicit": True}, "SG", (Reason.DENY_NO_BASIS, "gdpr-consent:x", "GDPR 49(1)(a)")),
        ("consent", {"explicit": True}, "US", (Reason.DENY_NO_BASIS, "gdpr-consent:x", "GDPR 49(1)(a)")),
        ("bcr", {"group": "acme"}, "SG", (Reason.DENY_NO_BASIS, "default-deny", "GDPR 44")),
        ("bcr", {"group": "acme", "to": ()}, "SG", (Reason.DENY_NO_BASIS, "gdpr-bcr:x", "GDPR 47")),
    ],
)
def test_what_a_switched_off_instrument_says(
    kind: Any, extra: dict[str, Any], country: str, said: tuple[Reason, str, str]
) -> None:
    registered = Instrument.model_validate({"id": "x", "type": kind, "to": ("US",), "valid": (TODAY, TODAY), **extra})
    tenant = Tenant(id="t", posture="transfer", instruments=(registered,))
    for switch in ("x", f"gdpr-{kind}"):
        asked = question("t", "DE", basis="x", disabled=frozenset({switch}))
        verdicts = by_region(decide(asked, tenant, WORLD.residency, GROUND))
        assert verdicts[country.lower()] == said


@pytest.mark.parametrize(
    ("kind", "extra", "law"),
    [
        ("scc", {"tia_valid": (date(2026, 1, 1), date(2026, 12, 31))}, "GDPR 46(2)(c)"),
        ("bcr", {"group": "acme"}, "GDPR 47"),
        ("consent", {"explicit": True, "risks_informed": True, "systematic": False}, "GDPR 49(1)(a)"),
    ],
)
def test_an_instrument_counts_from_its_first_day_to_its_last(kind: Any, extra: dict[str, Any], law: str) -> None:
    valid = (date(2026, 3, 1), date(2026, 6, 30))
    registered = Instrument.model_validate({"id": "x", "type": kind, "to": ("SG",), "valid": valid, **extra})
    tenant = Tenant(id="t", posture="transfer", instruments=(registered,))

    def said(day: date) -> tuple[Reason, str, str]:
        return by_region(decide(question("t", "DE", basis="x", day=day), tenant, WORLD.residency, GROUND))["sg"]

    allowed = (Reason(f"ALLOW_{kind.upper()}"), f"gdpr-{kind}:x", law)
    assert said(valid[0]) == said(valid[1]) == allowed
    assert said(valid[0] - timedelta(days=1)) == (Reason.DENY_NO_BASIS, "default-deny", "GDPR 44")
    assert said(valid[1] + timedelta(days=1)) == (Reason.DENY_BASIS_EXPIRED, f"gdpr-{kind}:x", law)


def test_clauses_count_from_the_first_to_the_last_day_of_their_assessment() -> None:
    valid, assessed = (date(2026, 1, 1), date(2026, 12, 31)), (date(2026, 3, 1), date(2026, 6, 30))
    tenant = Tenant(
        id="t",
        posture="transfer",
        instruments=(Instrument(id="x", type="scc", to=("SG",), valid=valid, tia_valid=assessed),),
    )

    def said(day: date) -> tuple[Reason, str]:
        found = by_region(decide(question("t", "DE", day=day), tenant, WORLD.residency, GROUND))["sg"]
        return found[0], found[2]

    assert said(assessed[0]) == said(assessed[1]) == (Reason.ALLOW_SCC, "GDPR 46(2)(c)")
    assert said(assessed[0] - timedelta(days=1)) == (Reason.DENY_NO_BASIS, "C-311/18")
    assert said(assessed[1] + timedelta(days=1)) == (Reason.DENY_BASIS_EXPIRED, "C-311/18")


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
    decision = decide(question("t", "DE"), tenant, WORLD.residency, GROUND)
    assert by_region(decision)["us"] == (Reason.DENY_NO_BASIS, "gdpr-scc:scc", "C-311/18")


def test_a_region_of_global_scope_stands_nowhere() -> None:
    world = Ground.lay(BOOK, [region.model_copy(update={"upstream_scope": "global"}) for region in WORLD.regions])
    stay, move = WORLD.tenants[0], WORLD.tenants[1]
    for tenant in (stay, move):
        assert decide(question(tenant.id, "DE"), tenant, WORLD.residency, world).permitted == ()
        assert list(decide(question(tenant.id, "US"), tenant, WORLD.residency, world).permitted) == ALL
        bulk = question(tenant.id, "US", purpose="bulk_sensitive")
        assert decide(bulk, tenant, WORLD.residency, world).permitted == ()


def test_the_tenant_comes_after_the_law() -> None:
    decision = answer(question("only-de", "DE"))
    assert decision.permitted == ("de",)
    assert by_region(decision)["ie"] == (Reason.DENY_TENANT, "tenant.allow_regions", "tenant rule")
    assert by_region(decision)["us"][0] is Reason.DENY_NO_BASIS
    refused = answer(question("only-de", "SG"))
    assert (refused.status, refused.code, refused.reason) == (403, "forbidden", Reason.DENY_TENANT)
    unlawful = answer(question("only-de", "DE", requested="us"))
    assert (unlawful.status, unlawful.reason) == (451, Reason.DENY_REQUESTED_REGION)


def test_an_answer_rests_on_the_first_region_that_is_permitted() -> None:
    decision = answer(question("move", "DE"))
    assert (decision.reason, decision.rule, decision.law) == by_region(decision)["de"]
    decision = answer(question("move", "DE", requested="jp"))
    assert (decision.reason, decision.rule, decision.law) == by_region(decision)["jp"]


def test_a_refusal_of_everything_is_the_most_restrictive_one() -> None:
    decision = answer(question("stay", "SG", "GB", "US", purpose="bulk_sensitive"))
    assert {one.reason for one in decision.verdicts} == {Reason.DENY_NO_BASIS, Reason.DENY_COUNTRY_OF_CONCERN}
    assert (decision.reason, decision.law) == (Reason.DENY_COUNTRY_OF_CONCERN, "28 CFR 202.601")


def test_a_requested_region_is_to_blame_only_where_another_would_do() -> None:
    assert answer(question("stay", "DE", requested="us")).reason is Reason.DENY_REQUESTED_REGION
    assert answer(question("stay", "DE", "GB", requested="us")).reason is Reason.DENY_NO_BASIS
    barred = answer(question("stay", "US", purpose="bulk_sensitive", requested="cn"))
    assert barred.reason is Reason.DENY_COUNTRY_OF_CONCERN


def test_a_preferred_region_gives_way() -> None:
    assert answer(question("prefer", "DE", requested="ie")).permitted == ("ie",)
    overridden = answer(question("prefer", "DE", requested="us"))
    assert (overridden.permitted, overridden.reason) == (("de", "ie"), Reason.REGION_OVERRIDDEN)
    nothing = answer(question("prefer", "DE", "GB", requested="us"))
    assert (nothing.status, nothing.reason, nothing.permitted) == (451, Reason.DENY_NO_BASIS, ())
    # Of refusals alike, the one of the region that was asked for: each of the two laws keeps the other's regions out.
    assert answer(question("prefer", "DE", "GB", requested="de")).law == "UK GDPR 44A"
    assert answer(question("prefer", "DE", "GB", requested="uk")).law == "GDPR 44"
    tenant = WORLD.tenants[0].model_copy(update={"on_conflict": "prefer", "allow_regions": ("us",)})
    own = decide(question("stay", "DE", requested="us"), tenant, WORLD.residency, GROUND)
    assert (own.status, own.reason) == (403, Reason.DENY_TENANT)


def test_the_house_rule_holds_where_the_tenant_has_none() -> None:
    tenant = Tenant(id="t")
    house = WORLD.residency.model_copy(update={"posture": "transfer", "on_conflict": "prefer"})
    decision = decide(question("t", "DE", requested="us"), tenant, house, GROUND)
    assert "jp" in decision.permitted
    assert decision.reason is Reason.REGION_OVERRIDDEN


NOWHERE = (Reason.DENY_REQUESTED_REGION, "default-deny", "default deny")


def test_a_region_that_is_not_configured_is_permitted_nothing() -> None:
    decision = answer(question("stay", "DE", requested="mars"))
    assert (decision.status, decision.permitted) == (451, ())
    assert (decision.reason, decision.rule, decision.law) == NOWHERE
    assert answer(question("move", "DE", requested="mars")).reason is Reason.DENY_REQUESTED_REGION
    assert answer(question("stay", "DE", "GB", requested="mars")).reason is Reason.DENY_REQUESTED_REGION
    # Where another may take its place, one does; else the refusal is that of the regions there are.
    overridden = answer(question("prefer", "DE", requested="mars"))
    assert (overridden.permitted, overridden.reason) == (("de", "ie"), Reason.REGION_OVERRIDDEN)
    assert (overridden.rule, overridden.law) == NOWHERE[1:]
    nothing = answer(question("prefer", "DE", "GB", requested="mars"))
    assert (nothing.permitted, nothing.reason, nothing.law) == ((), Reason.DENY_NO_BASIS, "UK GDPR 44A")


def test_no_evidence_is_refused_or_assumed() -> None:
    refused = answer(question("stay"))
    assert (refused.status, refused.reason, refused.jurisdictions) == (451, Reason.UNKNOWN_JURISDICTION, ())
    assert refused.subject_country is None
    house = WORLD.residency.model_copy(update={"unknown_subject": "US-CA"})
    tenant = WORLD.tenants[0]
    assumed = decide(question("stay"), tenant, house, GROUND)
    assert (assumed.status, assumed.jurisdictions, assumed.subject_country) == (200, ("US-CA",), "US")
    # A place that is known, and whose law is not, is no unknown subject.
    assert decide(question("stay", "GL"), tenant, house, GROUND).status == 451
    assert decide(question("stay", "DE"), tenant, house, GROUND).permitted == ("de", "ie")


def test_kill_switches_of_both_places_count() -> None:
    house = WORLD.residency.model_copy(update={"disabled": ("eu-us-dpf",)})
    asked = question("move", "DE", disabled=frozenset({"gdpr-adequacy-jp"}))
    decision = decide(asked, WORLD.tenants[1], house, GROUND)
    assert decision.permitted == ("de", "ie", "uk", "ch", "br")


def test_evidence_is_gathered_from_everything_that_counts() -> None:
    caller = Caller(address="192.0.2.1", country="FR", place=Place(46, 2))
    hinted = Caller(address="192.0.2.1", country="FR", place=Place(46, 2), hinted=True)
    servers = Tenant(id="t", subject="US-CA")
    people = Tenant(id="t", subject="US-CA", callers="people")
    claim = [Evidence("claim", "sg")]
    assert evidence(servers, None, caller) == (Evidence("tenant", "US-CA"),)
    assert evidence(servers, "de", caller) == (Evidence("tenant", "US-CA"), Evidence("header", "DE"))
    assert Evidence("geoip", "FR") in evidence(people, None, caller)
    assert Evidence("geo_hint", "FR") in evidence(people, None, hinted)
    assert evidence(Tenant(id="t"), None, caller) == ()
    # A country without a known middle has no place; an address that no table knows has no country.
    assert evidence(people, None, replace(caller, country="BQ", place=None))[1:] == (Evidence("geoip", "BQ"),)
    assert evidence(people, None, NOBODY) == (Evidence("tenant", "US-CA"),)
    assert evidence(Tenant(id="t"), None, NOBODY, claim) == (Evidence("claim", "SG"),)
    with pytest.raises(CodeError):
        evidence(servers, "UK", caller)
    with pytest.raises(CodeError):
        evidence(servers, None, caller, [Evidence("claim", "Germany")])


def test_the_subject_is_whom_the_most_direct_evidence_names() -> None:
    """The header, what the caller says besides, the tenant's default, and only then where the caller is."""
    named = {"geoip": "SG", "geo_hint": "JP", "tenant": "US-CA", "claim": "GB", "header": "DE"}
    signs = tuple(Evidence(source, code) for source, code in named.items())
    for end in range(1, len(signs) + 1):
        decision = answer(Question(tenant="stay", evidence=signs[:end], day=TODAY))
        assert decision.subject_country == signs[end - 1].code[:2]
    assert decision.jurisdictions == ("DE", "GB", "JP", "SG", "US-CA")
