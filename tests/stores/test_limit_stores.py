"""Every limit store keeps the same promises; a new store joins the list of fixtures."""

import pytest

from app.config import Rate
from app.stores.base import LimitStore
from app.stores.memory import MemoryLimits

TEN = Rate.model_validate("10/minute")


@pytest.fixture(params=[MemoryLimits], ids=["memory"])
def limits(request) -> LimitStore:
    return request.param()


def test_a_key_has_its_rate(limits):
    answers = [limits.charge("requests:a", TEN, 1, 100.0) for _ in range(11)]
    assert [answer.allowed for answer in answers] == [True] * 10 + [False]
    assert [answer.remaining for answer in answers] == [*range(9, -1, -1), 0]
    assert answers[-1].retry_after == pytest.approx(6)
    assert limits.charge("requests:a", TEN, 1, 106.0).allowed


def test_keys_are_counted_apart(limits):
    limits.charge("requests:a", TEN, 10, 0.0)
    assert not limits.charge("requests:a", TEN, 1, 0.0).allowed
    assert limits.charge("requests:b", TEN, 10, 0.0).allowed


def test_a_refusal_costs_nothing(limits):
    limits.charge("k", TEN, 6, 0.0)
    for _ in range(5):
        assert not limits.charge("k", TEN, 5, 0.0).allowed
    assert limits.charge("k", TEN, 4, 0.0).allowed


def test_a_refund_makes_room_again(limits):
    limits.charge("k", TEN, 10, 0.0)
    limits.refund("k", 4)
    assert limits.charge("k", TEN, 4, 0.0).allowed
    assert not limits.charge("k", TEN, 1, 0.0).allowed


def test_use_beyond_the_estimate_is_charged_afterwards(limits):
    limits.charge("k", TEN, 2, 0.0)
    limits.refund("k", -8)
    assert not limits.charge("k", TEN, 1, 0.0).allowed


def test_a_refund_to_a_key_that_is_not_known_gives_nothing(limits):
    limits.refund("k", 5)
    assert limits.charge("k", TEN, 10, 0.0).remaining == 0


def test_so_many_at_the_same_time(limits):
    assert [limits.acquire("k", 2) for _ in range(3)] == [True, True, False]
    assert limits.acquire("other", 2)
    limits.release("k")
    assert [limits.acquire("k", 2) for _ in range(2)] == [True, False]


def test_memory_forgets_the_key_longest_unused():
    limits = MemoryLimits(max_keys=2)
    for key in ("a", "b"):
        limits.charge(key, TEN, 10, 0.0)
    limits.charge("a", TEN, 1, 0.0)
    limits.charge("c", TEN, 10, 0.0)
    assert not limits.charge("a", TEN, 1, 0.0).allowed
    assert limits.charge("b", TEN, 10, 0.0).allowed, "b made room for c"


def test_what_was_used_stays_used_under_another_rate(limits):
    slow, quick = Rate.model_validate("10/hour"), Rate.model_validate("100/second")
    limits.charge("k", slow, 10, 0.0)
    assert not limits.charge("k", slow, 1, 0.0).allowed
    assert limits.charge("k", quick, 1, 0.0).remaining == 89
    assert limits.charge("k", slow, 1, 1.0).remaining == 9


def test_a_lower_rate_owes_no_more_than_all_of_it(limits):
    limits.charge("k", Rate.model_validate("100/second"), 100, 0.0)
    assert limits.charge("k", TEN, 1, 0.0).retry_after == pytest.approx(6)


def test_a_refund_counts_in_units_whatever_the_rate_was(limits):
    limits.charge("k", Rate.model_validate("10/hour"), 10, 0.0)
    limits.charge("k", TEN, 0, 0.0)
    limits.refund("k", 10)
    assert limits.charge("k", TEN, 10, 0.0).allowed
