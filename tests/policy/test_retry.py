import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import RetrySettings
from app.policy.retry import FLOOR_PER_SECOND, WINDOW, Budget, delay, retryable

FIFTH = RetrySettings(attempts=3, base=0.05, cap=2.0, budget=0.2)


@pytest.mark.parametrize(
    ("outcome", "status", "expected"),
    [
        ("refused", None, True),
        ("connect_timeout", None, True),
        ("reset", None, True),
        ("redirect", 302, True),
        ("status", 502, True),
        ("status", 503, True),
        ("status", 504, True),
        ("status", 500, True),
        ("status", 501, False),
        ("status", 429, False),
        ("timeout", None, False),
    ],
)
def test_which_failures_are_worth_another_attempt(outcome, status, expected):
    assert retryable(outcome, status) is expected


def test_delay_doubles_up_to_the_cap():
    longest = [delay(attempt, FIFTH, 1.0) for attempt in (1, 2, 3, 6, 7, 10)]
    assert longest == pytest.approx([0.05, 0.1, 0.2, 1.6, 2.0, 2.0])
    assert delay(3, FIFTH, 0.25) == pytest.approx(0.05)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_delay_is_jittered_over_the_whole_span(attempt, draw):
    assert 0 <= delay(attempt, FIFTH, draw) <= FIFTH.cap
    assert delay(attempt, FIFTH, 0.0) == 0


def spend(budget, now, wanted=FIFTH, limit=10_000):
    """How many retries are affordable at one moment, and what is left."""
    for number in range(limit):
        after = budget.retried(now, wanted)
        if after is None:
            return number, budget
        budget = after
    raise AssertionError("the budget has no end")


def test_a_lone_request_may_be_repeated():
    assert Budget().requested(1000.0).retried(1000.0, FIFTH) is not None


def test_an_idle_gateway_affords_the_floor_and_no_more():
    spent, budget = spend(Budget(), 0.0)
    assert spent == FLOOR_PER_SECOND * WINDOW
    assert budget.retried(0.1, FIFTH) is None
    assert budget.retried(WINDOW, FIFTH) is not None


def test_retries_are_a_fifth_of_requests():
    budget = Budget()
    for _ in range(1000):
        budget = budget.requested(5.0)
    assert spend(budget, 5.0)[0] == 1000 * 0.2 + FLOOR_PER_SECOND * WINDOW


def test_a_budget_of_zero_permits_none():
    wanted = RetrySettings(budget=0.0)
    assert Budget().requested(0.0).retried(0.0, wanted) is None


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 30), st.integers(0, 60)), min_size=1, max_size=60))
@settings(deadline=None)
def test_the_sum_of_retries_stays_within_share_and_floor(rounds):
    """Over any run: at most a share of all requests, the floor's rate, and one window's floor on top."""
    budget, now, requests, retries = Budget(), 0.0, 0, 0
    for pause, arriving, failing in rounds:
        now += pause
        for _ in range(arriving):
            budget, requests = budget.requested(now), requests + 1
        for _ in range(failing):
            after = budget.retried(now, FIFTH)
            if after is not None:
                budget, retries = after, retries + 1
    assert retries <= FIFTH.budget * requests + FLOOR_PER_SECOND * (now + WINDOW) + 1e-6


def test_a_clock_that_stands_still_is_no_refill():
    _, budget = spend(Budget(), 7.0)
    assert budget.retried(7.0, FIFTH) is None
    assert budget.retried(6.0, FIFTH) is None
