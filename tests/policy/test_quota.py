"""Which limits apply to a request, and what its answer tells of them."""

import pytest

from app.config import Rate, Tenant
from app.policy.bill import Bill, span
from app.policy.quota import Account, Claim, Limit, account
from app.policy.rate import FULL, check

TENANT = Tenant.model_validate(
    {
        "id": "t",
        "limits": {
            "requests": "600/minute",
            "tokens": "1000/minute",
            "concurrency": 9,
            "per_key": {"requests": "60/minute", "concurrency": 4},
            "models": {"m": {"requests": "6/minute", "tokens": "100/hour", "concurrency": 1}, "free": {}},
        },
    }
)
ONE: Account = account(TENANT, "ab" * 32)


def test_a_request_has_the_limits_of_its_tenant_key_and_model():
    assert [(claim.limit.name, claim.cost) for claim in ONE.arrival] == [("requests", 1), ("key-requests", 1)]
    terms = ONE.of("m")
    assert [claim.limit.name for claim in terms.requests] == ["model-requests"]
    assert [limit.name for limit in terms.tokens] == ["tokens", "model-tokens"]
    assert [(place.name, place.most) for place in terms.places] == [
        ("concurrency", 9),
        ("key-concurrency", 4),
        ("model-concurrency", 1),
    ]
    assert terms.policy == (
        '"requests";q=600;w=60, "key-requests";q=60;w=60, "model-requests";q=6;w=60, '
        '"tokens";q=1000;w=60, "model-tokens";q=100;w=3600'
    )


@pytest.mark.parametrize("model", ["", "unknown", "M", "t/key/ab", "free"])
def test_no_name_of_a_callers_makes_a_limit(model):
    assert ONE.of(model).requests == ()
    assert [limit.key for limit in ONE.of(model).tokens] == ["t/tokens"]


def test_limits_are_kept_by_tenant_key_and_model_and_none_apart_from_what_it_is_of():
    other = account(TENANT, "cd" * 32)
    assert ONE.arrival[0].limit.key == other.arrival[0].limit.key
    assert ONE.arrival[1].limit.key != other.arrival[1].limit.key
    assert ONE.of("m").tokens[1].key == other.of("m").tokens[1].key
    elsewhere = account(TENANT.model_copy(update={"id": "u"}), "ab" * 32)
    keys = {limit.key for terms in (ONE.of("m"), elsewhere.of("m")) for limit in terms.tokens}
    assert len(keys) == 4


def test_without_limits_nothing_is_told():
    assert Bill(account(Tenant.model_validate({"id": "t"}), "ab" * 32).terms.policy).headers() == {}


def charge(name: str, rate: str, cost: int, *, before: int = 0) -> tuple:
    found = Rate.model_validate(rate)
    state = check(FULL, 0.0, found, before).tat
    return Claim(Limit(name, name, found, str(found.amount)), cost), check(state, 0.0, found, cost)


def test_the_tightest_limit_is_told():
    bill = Bill("p", [charge("requests", "10/minute", 5), charge("key-requests", "1000/minute", 900)])
    assert bill.headers() == {
        "ratelimit-policy": "p",
        "ratelimit": '"key-requests";r=100;t=54',
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "100",
        "x-ratelimit-reset-requests": "54s",
    }


def test_a_limit_that_refused_is_told_before_a_tighter_one():
    tight, refused = charge("tokens", "100/minute", 90), charge("key-tokens", "100/minute", 60, before=50)
    assert Bill("p", (), [tight, refused]).headers()["ratelimit"] == '"key-tokens";r=50;t=30'


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0201, "21ms"), (1, "1s"), (59.2, "1m0s"), (90, "1m30s"), (3600, "1h0m0s"), (86_400, "24h0m0s")],
)
def test_durations_are_spelled_as_openai_does(seconds, text):
    assert span(seconds) == text
