"""What a request holds of the limits is given back once, whichever way and however often it is said to end."""

from datetime import UTC, datetime

import pytest

from app.access import Principal
from app.config import Tenant
from app.errors import RateLimited
from app.exchange import Exchange
from app.fields import Fields
from app.limiting import Hold, Limiter
from app.policy.quota import account
from app.stores.memory import MemoryLimits
from app.telemetry.metrics import Metrics
from app.telemetry.observed import CacheStats
from app.types import Call, Head

LIMITS = {"requests": "1000/day", "tokens": "1000/day", "concurrency": 1, "models": {"m": {"tokens": "500/day"}}}
TENANT = Tenant.model_validate({"id": "t", "limits": LIMITS})
CALL = Call("openai", "/v1/chat/completions", "m", b"", (), b"", cacheable=True, stream=False, tokens=100)


@pytest.fixture
def limiter() -> Limiter:
    return Limiter(MemoryLimits(), Metrics(list, lambda: CacheStats(0, 0, 0)))


def held(limiter: Limiter) -> tuple[Exchange, Hold]:
    head = Head("POST", CALL.path, Fields([]), None)
    exchange = Exchange(head, "id", None, "openai", "en", datetime.now(UTC))
    exchange.principal = Principal(TENANT, "0" * 8, account(TENANT, "0" * 64))
    limiter.admit(exchange, exchange.principal)
    return exchange, limiter.reserve(exchange, CALL)


def left(exchange: Exchange) -> tuple[str, str]:
    headers = exchange.bill.headers()
    return headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-remaining-tokens"]


def test_the_first_word_on_what_was_used_counts(limiter):
    exchange, hold = held(limiter)
    assert left(exchange) == ("999", "400")
    hold.enter()
    hold.settle(30)
    hold.settle(0)
    hold.settle(400)
    hold.leave()
    hold.leave()
    assert left(exchange) == ("999", "470")
    again, _ = held(limiter)
    assert left(again) == ("998", "370")


def test_what_nothing_was_said_of_comes_back_whole(limiter):
    exchange, hold = held(limiter)
    hold.enter()
    hold.leave()
    assert left(exchange) == ("999", "500")


def test_a_place_is_free_once_and_a_refusal_for_it_charges_nothing(limiter):
    _, first = held(limiter)
    first.enter()
    for _ in range(3):
        exchange, hold = held(limiter)
        with pytest.raises(RateLimited):
            hold.enter()
        hold.leave()
        assert left(exchange) == ("999", "400"), "what the first holds, and no more"
    first.leave()
    first.leave()
    _, second = held(limiter)
    second.enter()
    _, third = held(limiter)
    with pytest.raises(RateLimited):
        third.enter()
