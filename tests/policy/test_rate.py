import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import Rate
from app.policy.rate import FULL, check, settled

SIXTY = Rate.model_validate("60/minute")

rates = st.builds(Rate, amount=st.integers(1, 10**7), seconds=st.sampled_from([1, 60, 3600]), burst=st.integers(1, 500))
arrivals = st.lists(st.tuples(st.floats(0, 20), st.integers(0, 40)), min_size=1, max_size=80)


def admit(rate, tat, now, times):
    """How many single units fit at one moment, and the state after."""
    admitted = 0
    for _ in range(times):
        answer = check(tat, now, rate, 1)
        tat, admitted = answer.tat, admitted + answer.allowed
    return admitted, tat


def test_the_whole_amount_may_come_at_once_and_then_one_a_second():
    admitted, tat = admit(SIXTY, FULL, 1000.0, 100)
    assert admitted == 60
    assert admit(SIXTY, tat, 1000.9, 5)[0] == 0
    assert admit(SIXTY, tat, 1001.0, 5)[0] == 1
    assert admit(SIXTY, tat, 1010.0, 50)[0] == 10


def test_what_an_answer_says():
    first = check(FULL, 500.0, SIXTY, 20)
    assert (first.allowed, first.limit, first.remaining, first.retry_after) == (True, 60, 40, 0.0)
    assert first.reset_after == pytest.approx(20)
    late = check(first.tat, 500.0, SIXTY, 50)
    assert (late.allowed, late.remaining) == (False, 40)
    assert late.retry_after == pytest.approx(10)
    assert check(late.tat, 510.0, SIXTY, 50).allowed


def test_more_than_the_burst_never_fits():
    answer = check(FULL, 0.0, SIXTY, 61)
    assert (answer.allowed, answer.retry_after, answer.remaining) == (False, None, 60)


def test_what_was_not_used_is_given_back():
    spent = check(FULL, 0.0, SIXTY, 60)
    back = settled(spent.tat, 0.0, SIXTY, spent, 15)
    assert check(back, 0.0, SIXTY, 15).allowed
    assert not check(back, 0.0, SIXTY, 16).allowed


def test_of_what_is_half_worked_off_half_is_given_back():
    first = check(FULL, 0.0, SIXTY, 60)
    assert settled(first.tat, 30.0, SIXTY, first, 60) == pytest.approx(30.0)
    assert settled(first.tat, 30.0, SIXTY, first, 10) == pytest.approx(50.0)


def test_use_beyond_the_estimate_is_charged():
    spent = check(FULL, 0.0, SIXTY, 10)
    assert check(settled(spent.tat, 0.0, SIXTY, spent, -20), 0.0, SIXTY, 0).remaining == 30


@given(rates, st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20), st.integers(0, 40), st.floats(0, 1)), max_size=40))
@settings(deadline=None)
def test_what_is_used_keeps_to_the_rate_however_much_was_set_aside(rate, requests):
    """Requests one after the other, each of which uses a share of what it set aside."""
    tat, now, used = FULL, 0.0, []
    for pause, takes, cost, share in requests:
        now += pause
        answer = check(tat, now, rate, cost)
        tat = answer.tat
        if answer.allowed:
            used.append((now, round(cost * share)))
            now += takes
            tat = settled(tat, now, rate, answer, cost - round(cost * share))
    per_second = rate.amount / rate.seconds
    for first, (begin, _) in enumerate(used):
        total = 0
        for end, units in used[first:]:
            total += units
            assert total <= rate.burst + per_second * (end - begin + 2e-6 * len(used)) + 1e-6


@given(rates, st.floats(0, 1e7))
@settings(deadline=None)
def test_exactly_the_burst_fits_at_any_hour(rate, now):
    tick = rate.amount / rate.seconds * 2e-6
    assert rate.burst <= admit(rate, FULL, now, rate.burst + 100)[0] <= rate.burst + tick


@given(rates, arrivals, st.floats(0, 1e6))
@settings(deadline=None)
def test_every_window_holds_at_most_the_burst_and_the_rate(rate, arrivals, start):
    tat, now, admitted = FULL, start, []
    for pause, cost in arrivals:
        now += pause
        answer = check(tat, now, rate, cost)
        tat = answer.tat
        if answer.allowed:
            admitted.append((now, cost))
    per_second = rate.amount / rate.seconds
    for first, (begin, _) in enumerate(admitted):
        total = 0
        for end, cost in admitted[first:]:
            total += cost
            assert total <= rate.burst + per_second * (end - begin + 2e-6) + 1e-6


@given(rates, arrivals, st.floats(0, 1e6))
@settings(deadline=None)
def test_a_refusal_says_when_it_fits_and_takes_nothing(rate, arrivals, start):
    tat, now = FULL, start
    for pause, cost in arrivals:
        now += pause
        answer = check(tat, now, rate, cost)
        assert 0 <= answer.remaining <= rate.burst
        assert answer.reset_after >= 0
        if not answer.allowed:
            assert max(tat, now) == answer.tat
            assert (answer.retry_after is None) is (cost > rate.burst)
            if answer.retry_after is not None:
                assert answer.retry_after > 0
                assert check(answer.tat, now + answer.retry_after, rate, cost).allowed
        tat = answer.tat
