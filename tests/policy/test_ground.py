"""What a law says of a region, rule by rule: whose, where, for which operators, and from which day to which."""

from datetime import date, timedelta
from typing import Any

import pytest

from app.config import Region, ResidencySettings, Tenant
from app.policy.ground import Ground
from app.policy.residency import decide
from app.policy.rules import LawBook
from app.types import Evidence, Question, Reason, Verdict

ONE_DAY = timedelta(days=1)
BEGIN, JULY, END = date(2020, 1, 1), date(2022, 7, 1), date(2022, 12, 31)
ALWAYS = [BEGIN, None]
YEAR = [date(2022, 1, 1), END]
# On the last day of whatever ends with the year something else begins, which is no reason for it to end early.
LAW: dict[str, Any] = {
    "id": "xx",
    "name": "A law of France, Quebec and Monaco",
    "reviewed": BEGIN,
    "reviewed_until": END,
    "transfers": "restricted",
    "members": [
        {"id": "xx-home", "places": ["FR", "CA-QC"], "valid": ALWAYS, "law": "Art. 1"},
        {"id": "xx-annex", "places": ["MC"], "valid": ALWAYS, "law": "Art. 1"},
        {"id": "xx-late", "places": ["AD"], "valid": [END, None], "law": "Art. 1"},
    ],
    "rules": [
        {"id": "xx-jp", "kind": "adequacy", "to": ["JP"], "valid": YEAR, "law": "Art. 2", "name": "decision"},
        {
            "id": "xx-seal",
            "kind": "certification",
            "certifications": ["seal", "mark"],
            "roles": ["processor"],
            "members": ["xx-home"],
            "valid": ALWAYS,
            "law": "Art. 3",
        },
        {
            "id": "xx-contract",
            "kind": "contract",
            "accepts": ["xx"],
            "members": ["xx-home"],
            "valid": YEAR,
            "law": "Art. 4",
        },
        {
            "id": "xx-no",
            "kind": "forbid",
            "reason": "DENY_PURPOSE",
            "purposes": ["profiling"],
            "roles": ["controller"],
            "to": ["FR", "MC"],
            "members": ["xx-home"],
            "valid": YEAR,
            "law": "Art. 5",
        },
    ],
}
BOOK = LawBook.build([("xx.yaml", LAW)])
CONTRACT = {"id": "c", "type": "contract", "law": "xx", "to": ["JP"], "valid": [BEGIN, date(2030, 1, 1)]}
NOTHING = (Reason.DENY_NO_BASIS, "default-deny")


def said(place: str, code: str, day: date = JULY, *, contract: bool = False, **options: Any) -> tuple[Reason, str]:
    """What becomes of a person's data in one region, run as `options` say, where transfers are wanted."""
    country, _, part = place.partition("-")
    asked = {name: options.pop(name) for name in ("purpose", "disabled") if name in options}
    scope = options.pop("upstream_scope", "regional")
    region = Region.model_validate(
        {
            "id": "r",
            "country": country,
            "subdivision": place if part else None,
            "latitude": 0,
            "longitude": 0,
            "operator": {"name": "x", **options},
            "upstream_scope": scope,
        }
    )
    tenant = Tenant.model_validate({"id": "t", "posture": "transfer", "instruments": [CONTRACT] if contract else []})
    question = Question(tenant="t", evidence=(Evidence("header", code),), day=day, **asked)
    (verdict,) = decide(question, tenant, ResidencySettings(), Ground.lay(BOOK, [region])).verdicts
    return _short(verdict)


def _short(verdict: Verdict) -> tuple[Reason, str]:
    assert verdict.permitted == verdict.reason.startswith("ALLOW_")
    return verdict.reason, verdict.rule


def certificates(**valid: list[date]) -> list[dict[str, Any]]:
    return [{"id": name, "valid": period} for name, period in valid.items()]


def test_a_region_is_at_home_by_its_country_or_by_the_part_of_it() -> None:
    assert said("FR", "FR") == said("FR-IDF", "FR") == (Reason.ALLOW_INTRA, "xx-home")
    assert said("CA-QC", "FR") == said("FR", "CA-QC") == said("MC", "FR") == (Reason.ALLOW_INTRA, "xx-home")
    assert said("FR", "MC") == (Reason.ALLOW_INTRA, "xx-annex")
    assert said("CA", "FR") == said("CA-ON", "FR") == NOTHING
    assert said("FR", "FR", upstream_scope="global") == NOTHING
    assert said("AD", "FR", END - ONE_DAY) == NOTHING
    assert said("AD", "FR", END) == (Reason.ALLOW_INTRA, "xx-home")


def test_a_decision_holds_on_its_first_day_and_on_its_last() -> None:
    first, last = YEAR
    assert said("JP", "FR", first - ONE_DAY) == NOTHING
    assert said("JP", "FR", first) == said("JP", "FR", last) == (Reason.ALLOW_ADEQUACY, "xx-jp")
    assert said("JP", "FR", last + ONE_DAY) == (Reason.DENY_BASIS_EXPIRED, "xx-jp")
    assert said("US", "FR") == NOTHING


def test_a_decision_that_has_ended_says_so_whether_or_not_it_was_switched_off() -> None:
    off = frozenset({"xx-jp"})
    assert said("JP", "FR", disabled=off) == (Reason.DENY_NO_BASIS, "xx-jp")
    assert said("JP", "FR", END + ONE_DAY, disabled=off) == (Reason.DENY_BASIS_EXPIRED, "xx-jp")


def test_every_certificate_must_be_held_and_in_force() -> None:
    long = [BEGIN, date(2030, 1, 1)]
    both = certificates(seal=long, mark=YEAR)
    first, last = YEAR
    permitted = (Reason.ALLOW_CERT, "xx-seal")
    assert said("US", "FR", first - ONE_DAY, certifications=both) == NOTHING
    assert said("US", "FR", first, certifications=both) == permitted
    assert said("US", "FR", last, certifications=both) == permitted
    assert said("US", "FR", last + ONE_DAY, certifications=both) == (Reason.DENY_BASIS_EXPIRED, "xx-seal")
    assert said("US", "FR", certifications=certificates(seal=long)) == NOTHING
    assert said("US", "FR", certifications=[]) == NOTHING


def test_a_certificate_counts_for_the_roles_and_the_people_of_its_rule() -> None:
    both = certificates(seal=YEAR, mark=YEAR)
    assert said("US", "FR", certifications=both, role="processor") == (Reason.ALLOW_CERT, "xx-seal")
    assert said("US", "FR", certifications=both, role="controller") == NOTHING
    assert said("US", "MC", certifications=both, role="processor") == NOTHING


def test_an_instrument_counts_while_its_rule_is_in_force_and_for_its_people() -> None:
    first, last = YEAR
    abroad = (Reason.ALLOW_CONTRACT, "xx-contract:c")
    off = frozenset({"xx-jp"})
    assert said("JP", "FR", first - ONE_DAY, contract=True) == NOTHING
    assert said("JP", "FR", contract=True, disabled=off) == abroad
    assert said("JP", "FR", last, contract=True, disabled=off) == abroad
    assert said("JP", "FR", last + ONE_DAY, contract=True, disabled=off) == (Reason.DENY_BASIS_EXPIRED, "xx-jp")
    assert said("JP", "MC", contract=True, disabled=off) == (Reason.DENY_NO_BASIS, "xx-jp")


def test_the_firmest_permission_is_the_one_that_is_named() -> None:
    assert said("JP", "FR", contract=True) == (Reason.ALLOW_ADEQUACY, "xx-jp")
    both = certificates(seal=YEAR, mark=YEAR)
    assert said("JP", "FR", certifications=both) == (Reason.ALLOW_ADEQUACY, "xx-jp")
    off = frozenset({"xx-jp"})
    assert said("JP", "FR", certifications=both, contract=True, disabled=off) == (Reason.ALLOW_CERT, "xx-seal")


@pytest.mark.parametrize("contract", [True, False])
def test_a_prohibition_beats_what_permits_in_its_time_for_its_people_operators_and_places(contract: bool) -> None:
    options: dict[str, Any] = {"role": "controller", "purpose": "profiling", "contract": contract}
    first, last = YEAR
    home, refused = (Reason.ALLOW_INTRA, "xx-home"), (Reason.DENY_PURPOSE, "xx-no")
    assert said("FR", "FR", first, **options) == said("FR", "FR", last, **options) == refused
    assert said("FR", "FR", first - ONE_DAY, **options) == said("FR", "FR", last + ONE_DAY, **options) == home
    assert said("FR", "MC", **options) == (Reason.ALLOW_INTRA, "xx-annex")
    assert said("CA-QC", "FR", **options) == home
    assert said("FR", "FR", **{**options, "role": "processor"}) == home
    assert said("FR", "FR", **{**options, "purpose": None}) == home
    # A region that may compute anywhere may compute where it is forbidden.
    assert said("CA-QC", "FR", **options, upstream_scope="global") == refused


def test_a_law_that_names_a_part_of_a_country_speaks_for_that_part_alone() -> None:
    assert said("FR", "CA-QC") == (Reason.ALLOW_INTRA, "xx-home")
    assert said("FR", "CA-ON") == said("FR", "CA") == (Reason.UNKNOWN_JURISDICTION, "default-deny")
