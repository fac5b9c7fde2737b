"""Every limit store keeps the same promises; a new store joins the list of fixtures."""

import tracemalloc

import pytest

from app.config import Rate
from app.policy.quota import Claim, Limit, Place
from app.stores.base import LimitStore
from app.stores.memory import MemoryLimits


def limit(key: str, rate: str = "10/minute") -> Limit:
    found = Rate.model_validate(rate)
    return Limit(key, "requests", found, str(found.amount))


@pytest.fixture(params=[MemoryLimits], ids=["memory"])
def limits(request) -> LimitStore:
    return request.param()


def take(limits, key, cost, now, rate="10/minute"):
    return limits.charge([Claim(limit(key, rate), cost)], now)[0]


def test_a_key_has_its_rate(limits):
    answers = [take(limits, "requests:a", 1, 100.0) for _ in range(11)]
    assert [answer.allowed for answer in answers] == [True] * 10 + [False]
    assert [answer.remaining for answer in answers] == [*range(9, -1, -1), 0]
    assert answers[-1].retry_after == pytest.approx(6)
    assert take(limits, "requests:a", 1, 106.0).allowed


def test_keys_are_counted_apart(limits):
    take(limits, "requests:a", 10, 0.0)
    assert not take(limits, "requests:a", 1, 0.0).allowed
    assert take(limits, "requests:b", 10, 0.0).allowed


def test_a_refusal_costs_nothing(limits):
    take(limits, "k", 6, 0.0)
    for _ in range(5):
        assert not take(limits, "k", 5, 0.0).allowed
    assert take(limits, "k", 4, 0.0).allowed


def test_what_one_limit_refuses_is_charged_to_none(limits):
    take(limits, "key", 9, 0.0)
    claims = [Claim(limit("tenant"), 2), Claim(limit("key"), 2), Claim(limit("model"), 2)]
    for _ in range(3):
        assert [answer.allowed for answer in limits.charge(claims, 0.0)] == [True, False, True]
        assert [answer.remaining for answer in limits.charge(claims, 0.0)] == [10, 1, 10]
    assert take(limits, "tenant", 10, 0.0).allowed
    assert take(limits, "model", 10, 0.0).allowed


def test_what_was_not_used_makes_room_again(limits):
    charged = take(limits, "k", 10, 0.0)
    assert limits.settle(limit("k"), charged, 4, 0.0).remaining == 4
    assert take(limits, "k", 4, 0.0).allowed
    assert not take(limits, "k", 1, 0.0).allowed


def test_what_is_back_already_is_not_given_back_again(limits):
    early = take(limits, "k", 10, 0.0)
    assert take(limits, "k", 10, 120.0).allowed
    limits.settle(limit("k"), early, 10, 120.0)
    assert not take(limits, "k", 1, 120.0).allowed


def test_use_beyond_the_estimate_is_charged_when_it_is_known(limits):
    charged = take(limits, "k", 2, 0.0)
    limits.settle(limit("k"), charged, -8, 0.0)
    assert not take(limits, "k", 1, 0.0).allowed
    idle = take(limits, "idle", 2, 0.0)
    limits.settle(limit("idle"), idle, -8, 1000.0)
    assert take(limits, "idle", 0, 1000.0).remaining == 2


def test_so_many_at_the_same_time(limits):
    two, other = Place("k", "concurrency", 2), Place("other", "concurrency", 2)
    assert [limits.acquire([two]) for _ in range(3)] == [None, None, two]
    assert limits.acquire([other]) is None
    limits.release([two])
    assert [limits.acquire([two]) for _ in range(2)] == [None, two]


def test_a_place_is_taken_under_every_bound_or_none(limits):
    wide, narrow = Place("tenant", "concurrency", 2), Place("model", "model-concurrency", 1)
    assert limits.acquire([wide, narrow]) is None
    assert limits.acquire([wide, narrow]) == narrow
    assert limits.acquire([wide]) is None, "the refusal took none of the tenant's places"


def test_what_was_used_stays_used_under_another_rate(limits):
    take(limits, "k", 10, 0.0, "10/hour")
    assert not take(limits, "k", 1, 0.0, "10/hour").allowed
    assert take(limits, "k", 1, 0.0, "100/second").remaining == 89
    assert take(limits, "k", 1, 1.0, "10/hour").remaining == 9


def test_another_rate_counts_from_when_it_was_first_asked_for(limits):
    take(limits, "k", 10, 0.0, "10/hour")
    assert not take(limits, "k", 1, 0.0).allowed
    assert take(limits, "k", 1, 6.0).allowed


def test_a_lower_rate_owes_no_more_than_all_of_it(limits):
    take(limits, "k", 100, 0.0, "100/second")
    assert take(limits, "k", 1, 0.0).retry_after == pytest.approx(6)


def test_what_was_not_used_counts_in_units_whatever_the_rate_was(limits):
    charged = take(limits, "k", 10, 0.0, "10/hour")
    limits.settle(limit("k"), charged, 10, 0.0)
    assert take(limits, "k", 10, 0.0).allowed


# --- memory


def test_memory_forgets_those_first_for_which_nothing_changes():
    limits = MemoryLimits(max_keys=100)
    take(limits, "spent", 10, 0.0)
    for number in range(10_000):
        assert take(limits, f"key-{number}", 1, number * 0.1).allowed  # recovered after six seconds
        assert len(limits) <= 100
    assert take(limits, "key-9999", 9, 1000.0).allowed
    late = MemoryLimits(max_keys=100)
    take(late, "spent", 10, 0.0, "10/day")
    for number in range(10_000):
        take(late, f"key-{number}", 1, number * 0.1)
    assert not take(late, "spent", 10, 1000.0, "10/day").allowed, "it was in the way of nobody"


def test_where_none_has_recovered_the_nearest_to_it_begins_anew():
    limits = MemoryLimits(max_keys=2)
    take(limits, "much", 10, 0.0)
    take(limits, "little", 2, 0.0)
    take(limits, "new", 10, 0.0)
    assert len(limits) == 2
    assert not take(limits, "much", 1, 0.0).allowed
    assert take(limits, "little", 10, 0.0).allowed, "two of its ten were forgotten"


def test_many_keys_take_bounded_memory():
    limits, one = MemoryLimits(max_keys=10_000), limit("")
    tracemalloc.start()
    try:
        for number in range(30_000):
            limits.charge([Claim(Limit(f"tenant/key/{number}/requests", "", one.rate, ""), 1)], 0.0)
            if number == 20_000:
                full, _ = tracemalloc.get_traced_memory()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(limits) == 10_000
    assert full < 4 << 20
    assert abs(after - full) < 64 << 10
