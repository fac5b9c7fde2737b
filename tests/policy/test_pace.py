import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.policy.pace import FADE_S, LEARNT, TOLERANCE, USUAL_S, Pace, Usual

times = st.floats(0, 1e7)
moments = st.floats(0, 1e9)


def settled(ms=50.0, count=200, every=0.1, spread=0.5, seed=1):
    """What is known of a backend after `count` requests of log-normal times about `ms`."""
    chance = random.Random(seed)
    usual, pace, now = Usual(ms, 0.0), Pace(), 0.0
    for _ in range(count):
        now += every
        took = ms * math.exp(spread * chance.gauss(0, 1))
        usual = usual.seen(took, now)
        pace = pace.seen(took, usual.ms, now)
    return usual, pace, now


def after(usual, pace, now, ms, count, every=0.1):
    for _ in range(count):
        now += every
        usual = usual.seen(ms, now)
        pace = pace.seen(ms, usual.ms, now)
    return usual, pace, now


@pytest.mark.parametrize("ms", [0.5, 50.0, 20_000.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_usual_time_is_the_median(ms, seed):
    usual, pace, now = settled(ms, seed=seed)
    assert usual.ms == pytest.approx(ms, rel=0.2)
    assert pace.ratio == pytest.approx(1.0, abs=0.5)
    assert pace.typical_ms == pytest.approx(usual.ms, rel=0.1)
    assert pace.delay_ms(now) == 0


def test_an_unusual_first_request_is_soon_unlearnt():
    usual, _, _ = after(Usual(5000.0, 0.0), Pace(), 0.0, 50.0, LEARNT, every=0.01)
    assert usual.ms < 1000
    short, _, _ = after(Usual(5000.0, 0.0), Pace(), 0.0, 50.0, 5, every=0.01)
    assert short.ms > usual.ms


def test_the_first_steps_are_a_half_a_third_and_so_on():
    second = Usual(100.0, 0.0).seen(500.0, 0.0)
    assert (second.ms, second.count) == (150.0, 2)
    third = second.seen(500.0, 0.0)
    assert (third.ms, third.count) == (pytest.approx(200.0), 3)
    assert third.seen(200.0 / 2, 0.0).ms == pytest.approx(160.0)
    learnt = Usual(100.0, 0.0, count=LEARNT)
    assert learnt.seen(500.0, 0.0) == Usual(100.0, 0.0, LEARNT + 1)
    assert Usual(100.0, 0.0, count=LEARNT - 1).seen(500.0, 0.0).ms == pytest.approx(100 * (1 + 1 / LEARNT))


def test_later_the_usual_time_moves_with_the_clock_and_never_by_more_than_half():
    learnt = Usual(100.0, 0.0, count=LEARNT)
    assert learnt.seen(500.0, USUAL_S / 10).ms == pytest.approx(110.0)
    assert learnt.seen(5.0, USUAL_S / 10).ms == pytest.approx(100 / 1.1)
    assert learnt.seen(500.0, USUAL_S * 100) == Usual(150.0, USUAL_S * 100, LEARNT + 1)
    assert learnt.seen(100.0, USUAL_S / 10).ms == 100.0


def test_one_long_request_says_nothing_many_do():
    known = settled()
    _, pace, now = after(*known, 60_000.0, 1)
    assert pace.delay_ms(now) == 0
    _, pace, now = after(*known, 500.0, 40)
    assert pace.delay_ms(now) > 100
    _, pace, now = after(*known, 500.0, 60)
    assert 300 < pace.delay_ms(now) < 500


def test_what_is_slow_for_an_hour_is_the_usual():
    usual, pace, now = after(*settled(), 500.0, 3600, every=1.0)
    assert usual.ms == pytest.approx(500, rel=0.05)
    assert pace.delay_ms(now) == 0


def test_slowness_fades_while_nothing_is_heard():
    _, pace, now = after(*settled(), 500.0, 60)
    assert pace.delay_ms(now + FADE_S) == pytest.approx(pace.delay_ms(now) / math.e)
    assert pace.delay_ms(now + 600) < 0.001
    later = pace.seen(50.0, 50.0, now + 600)
    assert later.ratio == pytest.approx(1.0, abs=0.06)


def test_the_delay_is_what_exceeds_the_tolerance():
    assert Pace(TOLERANCE, 50.0, 0.0).delay_ms(0.0) == 0
    assert Pace(TOLERANCE + 3, 50.0, 7.0).delay_ms(7.0) == pytest.approx(150)
    assert Pace(TOLERANCE + 3, 50.0, 7.0).delay_ms(0.0) == pytest.approx(150), "a clock that stands back fades nothing"


def test_kinds_are_compared_with_their_own():
    """A long kind among short ones is no slowness, and a slow short one among long ones is."""
    pace = Pace()
    for number in range(200):
        pace = pace.seen(*((5000.0, 5000.0) if number % 2 else (10.0, 10.0)), 0.1 * number)
    assert pace == Pace(1.0, pace.typical_ms, pytest.approx(19.9))
    assert 10 < pace.typical_ms < 5000


@given(st.lists(st.tuples(times, moments), max_size=50), moments)
@settings(deadline=None)
def test_it_stays_a_number(requests, now):
    usual, pace = Usual(0.0, 0.0), Pace()
    for took, at in requests:
        usual = usual.seen(took, at)
        pace = pace.seen(took, usual.ms, at)
    assert math.isfinite(pace.delay_ms(now))
    assert pace.delay_ms(now) >= 0
