"""The budget `auto` over a clock of the test's own."""

from hypothesis import given
from hypothesis import strategies as st

from regions.engine.budget import AutoBudget
from regions.settings import AutoBudgetSettings

SETTINGS = AutoBudgetSettings(min=0.2, max=0.6, latency=0.05)


def test_it_starts_at_the_top_falls_by_two_steps_and_rises_by_one_each_second():
    auto = AutoBudget(SETTINGS, now=10.0)
    assert auto.at(10.0) == 0.6
    auto.waited(0.04, 10.0)
    assert auto.at(10.0) == 0.6
    auto.waited(0.06, 10.0)
    assert auto.at(10.0) == 0.5
    auto.waited(0.06, 10.5)
    assert auto.at(10.6) == 0.4
    assert auto.at(11.4) == 0.4
    assert auto.at(11.6) == 0.45
    auto.waited(0.06, 11.6)
    assert auto.at(11.7) == 0.35
    assert auto.at(100.0) == 0.6


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), max_size=60))
def test_it_keeps_to_its_bounds_and_to_few_levels(events):
    auto, now = AutoBudget(SETTINGS, now=0.0), 0.0
    for passed, waited in events:
        now += passed
        auto.waited(waited, now)
        budget = auto.at(now)
        assert 0.2 <= budget <= 0.6
        assert abs(budget / 0.05 - round(budget / 0.05)) < 1e-6
