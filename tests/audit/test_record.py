"""The records: fields of the contract, canonical bytes, nothing that a canonical form does not have."""

import json
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audit import record
from app.types import Decision, Evidence, PermittedRegion, Question, Reason, Verdict

NOW = datetime(2026, 11, 22, 10, 0, 0, 5, tzinfo=UTC)
PROMISED = {
    "id",
    "log",
    "seq",
    "time",
    "kind",
    "request_id",
    "tenant",
    "subject",
    "subject_country",
    "jurisdictions",
    "requested_region",
    "region",
    "outcome",
    "reason",
    "rule",
    "law",
    "model",
    "status",
}

VERDICTS = (
    Verdict("us-east", False, Reason.DENY_NO_BASIS, "eu_gdpr.transfer", "GDPR 44"),
    Verdict("eu-west", True, Reason.ALLOW_INTRA, "eu_gdpr.intra", "GDPR 44"),
)
DECIDED = Decision(
    permitted=(PermittedRegion("eu-west"),),
    verdicts=VERDICTS,
    status=200,
    code=None,
    reason=Reason.REGION_OVERRIDDEN,
    rule="override",
    law="GDPR 44",
    jurisdictions=("EU",),
    subject_country="DE",
)
QUESTION = Question("demo", (Evidence("header", "DE"),), date(2026, 11, 22), requested="us-east", basis="scc-1")


def made(**changes):
    fields = {
        "id": "d1",
        "time": NOW,
        "request_id": "r1",
        "outcome": "permitted",
        "tenant": "demo",
        "key_id": "0a1b2c3d",
        "question": QUESTION,
        "decided": DECIDED,
        "region": "eu-west",
        "model": "minilm",
    }
    return record.decision(**{**fields, **changes})


def test_both_kinds_hold_what_the_contract_promises():
    decision = made()
    ended = record.completion(id="c1", time=NOW, decision=decision, outcome="served", status=200)
    for each in (decision, ended):
        assert record.numbered(each, "eu-west", 1).keys() >= PROMISED
    assert ended["decision_id"] == "d1"
    assert (ended["subject_country"], ended["region"], ended["reason"]) == ("DE", "eu-west", "REGION_OVERRIDDEN")


def test_a_decision_says_on_what_evidence_and_against_which_candidates():
    decision = made()
    assert decision["evidence"] == [{"source": "header", "code": "DE"}]
    assert [(each["region"], each["permitted"], each["reason"]) for each in decision["candidates"]] == [
        ("us-east", False, "DENY_NO_BASIS"),
        ("eu-west", True, "ALLOW_INTRA"),
    ]
    assert (decision["requested_region"], decision["basis"]) == ("us-east", "scc-1")


def test_the_chosen_regions_verdict_stands_for_the_decisions_own_and_a_given_reason_for_both():
    chosen = made(verdict=VERDICTS[1])
    assert (chosen["reason"], chosen["rule"], chosen["law"]) == ("ALLOW_INTRA", "eu_gdpr.intra", "GDPR 44")
    down = made(verdict=VERDICTS[1], reason=Reason.NO_COMPLIANT_HEALTHY, region=None)
    assert (down["reason"], down["law"], down["region"]) == ("NO_COMPLIANT_HEALTHY", "GDPR 44", None)


def test_a_refusal_before_anything_was_decided_has_empty_fields():
    early = made(question=None, decided=None, region=None, reason="invalid_request", outcome="refused", status=400)
    assert (early["reason"], early["rule"], early["jurisdictions"], early["candidates"]) == (
        "invalid_request",
        None,
        [],
        [],
    )
    record.canonical(early)


def test_a_completion_lists_its_attempts_and_may_name_another_region():
    tried = (record.Attempt("eu-west", "connect", None), record.Attempt("eu-north", "served", 200))
    ended = record.completion(
        id="c1",
        time=NOW,
        decision=made(),
        outcome="served",
        status=200,
        region="eu-north",
        attempts=tried,
        body_may_have_arrived=True,
    )
    assert ended["region"] == "eu-north"
    assert ended["attempts"][0] == {"region": "eu-west", "outcome": "connect", "status": None}
    assert ended["body_may_have_arrived"] is True


def test_a_lost_completion_knows_no_status():
    ended = record.lost(id="c1", time=NOW, decision=made(), body_may_have_arrived=True)
    assert (ended["outcome"], ended["status"], ended["decision_id"]) == ("lost", None, "d1")


@given(
    st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(9998, 1, 1)),  # noqa: DTZ001 - the zone is drawn below
    st.integers(-14 * 60, 14 * 60),
)
@settings(deadline=None)
def test_times_are_utc_of_fixed_width(moment, offset):
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    text = record.timestamp(aware)
    assert len(text) == 27
    assert datetime.fromisoformat(text) == aware


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(request_id=_TEXT, model=_TEXT, hints=st.lists(_TEXT, max_size=3), size=st.integers(0, 2**53 - 1))
@settings(deadline=None)
def test_canonical_bytes_are_those_of_rfc_8785(request_id, model, hints, size):
    """Without floats the standard library spells JSON as ECMAScript does, which RFC 8785 refers to."""
    decision = made(request_id=request_id, model=model, ignored_hints=hints, bytes_in=size)
    expected = json.dumps(decision, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    assert record.canonical(decision) == expected
    assert b"subject_id" not in expected


def test_an_integer_that_a_double_cannot_hold_has_no_canonical_form():
    with pytest.raises(TypeError):
        record.canonical(made(bytes_in=2**53))
