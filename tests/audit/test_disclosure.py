"""The summary of one person's records: who received their data, for what, and why that was permitted."""

from datetime import UTC, datetime

from app.audit import record
from app.audit.record import Attempt
from app.audit.rights.disclosure import Disclosure
from app.config import Region

NOW = datetime(2026, 11, 22, tzinfo=UTC)
REGIONS = [
    Region(id="eu-west", country="IE", latitude=53, longitude=-6, operator={"name": "acme-eu", "role": "controller"})
]


def candidate(region, reason, law):
    return {"region": region, "permitted": True, "reason": reason, "rule": f"rule-{region}", "law": law}


def request(number, *attempts, region="eu-west", model="minilm", **end):
    decided = {
        **record.decision(
            id=f"d{number}",
            time=NOW,
            request_id="r",
            outcome="permitted",
            tenant="demo",
            key_id="0",
            region=region,
            model=model,
        ),
        "jurisdictions": ["DE"],
        "evidence": [{"source": "header", "code": "DE"}, {"source": "tenant", "code": "US"}],
        "candidates": [
            candidate("eu-west", "ALLOW_INTRA", "GDPR 44"),
            candidate("us-east", "ALLOW_SCC", "GDPR 46(2)(c)"),
        ],
        "basis": "scc-1",
    }
    ended = record.completion(
        id=f"c{number}", time=NOW, decision=decided, outcome="served", status=200, attempts=attempts, **end
    )
    return [decided, ended]


def summary(*requests, regions=REGIONS):
    disclosure = Disclosure(regions)
    for each in (each for pair in requests for each in pair):
        disclosure.take(each)
    return disclosure.as_json()


def test_every_region_that_was_sent_to_is_a_recipient_with_its_own_basis():
    tried_both = [Attempt("eu-west", "failed", 500), Attempt("us-east", "served", 200)]
    told = summary(request(1, *tried_both), request(2, Attempt("us-east", "served", 200), region="us-east"))
    assert [(each["region"], each["reason"], each["law"], each["requests"]) for each in told["recipients"]] == [
        ("eu-west", "ALLOW_INTRA", "GDPR 44", 1),
        ("us-east", "ALLOW_SCC", "GDPR 46(2)(c)", 2),
    ]
    first, second = told["recipients"]
    assert (first["country"], first["operator"], first["role"]) == ("IE", "acme-eu", "controller")
    assert (second["country"], second["operator"], second["role"]) == (None, None, None)
    assert {each["basis"] for each in told["recipients"]} == {"scc-1"}


def test_a_refused_connection_and_the_cache_receive_nothing():
    told = summary(request(1, Attempt("eu-west", "refused", None)), request(2, cache="HIT"))
    assert told["recipients"] == []


def test_what_may_have_arrived_counts_as_received():
    told = summary(request(1, body_may_have_arrived=True))
    assert [(each["region"], each["requests"]) for each in told["recipients"]] == [("eu-west", 1)]


def test_purposes_laws_and_what_they_were_concluded_from():
    told = summary(request(1), request(2, model="llama"), request(3, model=None), regions=())
    assert told["purposes"] == [
        {"purpose": "inference", "model": None, "requests": 1},
        {"purpose": "inference", "model": "llama", "requests": 1},
        {"purpose": "inference", "model": "minilm", "requests": 1},
        {"purpose": "accountability", "records": 6},
    ]
    assert (told["records"], told["jurisdictions"]) == (6, ["DE"])
    assert told["evidence"] == [{"source": "header", "code": "DE"}, {"source": "tenant", "code": "US"}]
