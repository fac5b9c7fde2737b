"""What a registered instrument is worth: whose rule takes it, where, inside which group, and what its flaws say."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from app.config import Tenant
from app.policy.ground import Ground
from app.policy.residency import decide
from app.policy.rules import LawBook
from app.settings_file import documents, load
from app.types import Decision, Evidence, Question, Reason

DATA = Path(__file__).parents[1] / "data" / "residency"
WORLD = load(DATA / "world.yaml", {})
GROUND = Ground.lay(LawBook.build(documents("default", DATA)), WORLD.regions)
TODAY = date(2026, 11, 22)
VALID = (date(2026, 1, 1), date(2027, 12, 31))
SOUND: dict[str, dict[str, Any]] = {
    "scc": {"type": "scc", "to": ["SG"], "tia_valid": VALID},
    "bcr": {"type": "bcr", "to": ["SG"], "group": "acme"},
    "consent": {"type": "consent", "to": ["SG"], "explicit": True, "risks_informed": True, "systematic": False},
}


def made(*codes: str, basis: str | None = None, allow: tuple[str, ...] | None = None, **registered: Any) -> Decision:
    """The decision for a tenant with these instruments, each by its id."""
    tenant = Tenant.model_validate(
        {
            "id": "t",
            "posture": "transfer",
            "allow_regions": allow,
            "instruments": [{"id": name, "valid": VALID, **values} for name, values in registered.items()],
        }
    )
    signs = tuple(Evidence("header", code) for code in codes)
    return decide(Question(tenant="t", evidence=signs, day=TODAY, basis=basis), tenant, WORLD.residency, GROUND)


def said(region: str, decision: Decision) -> tuple[Reason, str]:
    return next((one.reason, one.rule) for one in decision.verdicts if one.region == region)


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_instrument_covers_the_countries_that_it_names(kind: str) -> None:
    decision = made("DE", basis="x", x=SOUND[kind])
    assert said("sg", decision) == (Reason(f"ALLOW_{kind.upper()}"), f"gdpr-{kind}:x")
    assert not {"us", "us-ads", "cn"} & set(decision.permitted)


@pytest.mark.parametrize("kind", ["scc", "consent"])
def test_what_names_no_country_covers_none(kind: str) -> None:
    assert made("DE", basis="x", x={**SOUND[kind], "to": []}).permitted == made("DE", basis="x").permitted


def test_binding_rules_cover_their_group_alone_wherever_they_name_no_country() -> None:
    everywhere = made("DE", x={**SOUND["bcr"], "to": []})
    assert {one.region for one in everywhere.verdicts if one.reason is Reason.ALLOW_BCR} == {"sg"}
    assert said("us", everywhere)[0] is Reason.DENY_CERT_MISSING
    assert said("cn", everywhere) == (Reason.DENY_CERT_MISSING, "gdpr-bcr:x")


@pytest.mark.parametrize("to", [[], ["SG", "US", "CN"]])
def test_binding_rules_of_no_group_bind_nobody(to: list[str]) -> None:
    decision = made("DE", x={**SOUND["bcr"], "group": None, "to": to})
    assert decision.permitted == made("DE").permitted
    assert said("cn", decision) == (Reason.DENY_CERT_MISSING, "gdpr-bcr:x")


@pytest.mark.parametrize(
    ("flaw", "reason"),
    [
        ({"withdrawn": TODAY}, Reason.DENY_CONSENT_INVALID),
        ({"explicit": False}, Reason.DENY_CONSENT_INVALID),
        ({"risks_informed": False}, Reason.DENY_CONSENT_INVALID),
        ({"valid": (date(2026, 1, 1), date(2026, 11, 21))}, Reason.DENY_BASIS_EXPIRED),
    ],
)
def test_a_consent_that_is_worth_nothing_says_so_everywhere(flaw: dict[str, Any], reason: Reason) -> None:
    """From the day of its withdrawal on; only a sound one says that it was given for other countries."""
    decision = made("DE", basis="x", x={**SOUND["consent"], **flaw})
    assert said("sg", decision) == said("cn", decision) == (reason, "gdpr-consent:x")
    sound = made("DE", basis="x", x={**SOUND["consent"], "withdrawn": date(2026, 11, 23)})
    assert said("sg", sound) == (Reason.ALLOW_CONSENT, "gdpr-consent:x")
    assert said("cn", sound) == (Reason.DENY_CONSENT_SCOPE, "gdpr-consent:x")


def test_each_law_asks_for_its_own_instrument() -> None:
    """Where two laws restrict, what one of them accepts is not enough, and both have to be asked."""
    clauses = {**SOUND["scc"], "to": ["US"]}
    contract = {"type": "contract", "law": "sg_pdpa", "to": ["US"]}
    assert "us" not in made("DE", "SG", clauses=clauses).permitted
    assert "us" not in made("DE", "SG", contract=contract).permitted
    both = made("DE", "SG", clauses=clauses, contract=contract)
    assert "us" in both.permitted
    assert said("us", both) == (Reason.ALLOW_CONTRACT, "sg-contract:contract")  # of two permissions, the weaker one
    assert said("cn", both)[0] is Reason.DENY_NO_BASIS


@pytest.mark.parametrize("kind", SOUND)
def test_the_tenants_rule_narrows_what_an_instrument_permits(kind: str) -> None:
    decision = made("DE", basis="x", allow=("de",), x=SOUND[kind])
    assert decision.permitted == ("de",)
    assert said("sg", decision) == (Reason.DENY_TENANT, "tenant.allow_regions")
