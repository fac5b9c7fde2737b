from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.config import BreakerSettings
from app.policy.breaker import Breaker

FIVE = BreakerSettings(failures=5, recovery=60.0)


def failed(times: int, now: float = 0.0, breaker: Breaker | None = None) -> Breaker:
    breaker = breaker or Breaker()
    for _ in range(times):
        breaker = breaker.failed(now, FIVE)
    return breaker


def test_opens_at_the_fifth_failure_in_a_row():
    assert failed(4).state(0.0, FIVE) == "closed"
    assert failed(5).state(0.0, FIVE) == "open"
    assert not failed(5).permits(0.0, FIVE)


def test_a_success_between_failures_starts_the_count_anew():
    breaker = failed(4, breaker=failed(4).succeeded(0.0, FIVE))
    assert breaker.state(0.0, FIVE) == "closed"


def test_lets_one_trial_by_after_the_pause():
    breaker = failed(5, now=10.0)
    assert not breaker.permits(69.9, FIVE)
    assert breaker.permits(70.0, FIVE)
    assert breaker.state(70.0, FIVE) == "half_open"
    assert not breaker.started(70.0, FIVE).permits(70.0, FIVE)


def test_the_trial_decides():
    trial = failed(5).started(60.0, FIVE)
    assert trial.succeeded(61.0, FIVE) == Breaker()
    again = trial.failed(61.0, FIVE)
    assert not again.permits(120.9, FIVE)
    assert again.permits(121.0, FIVE)


def test_a_trial_that_proves_nothing_is_given_back():
    trial = failed(5).started(60.0, FIVE)
    assert trial.abandoned().permits(61.0, FIVE)
    assert trial.permits(120.0, FIVE), "a trial that never reports must not bar the backend for ever"


def test_late_answers_of_old_attempts_change_nothing_while_open():
    breaker = failed(5)
    assert breaker.succeeded(30.0, FIVE) == breaker
    assert breaker.failed(30.0, FIVE) == breaker


def test_probes_close_it():
    assert failed(5).reset().permits(0.0, FIVE)


def test_starting_while_closed_is_no_trial():
    assert Breaker(failures=2).started(0.0, FIVE) == Breaker(failures=2)


class OneTrialAtATime(RuleBasedStateMachine):
    """Whatever comes: never a request while open, never two trials within the pause, closed only by a proof."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.breaker = Breaker()
        self.streak = 0

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds):
        self.now += seconds

    @precondition(lambda self: self.breaker.permits(self.now, FIVE))
    @rule()
    def start(self):
        half_open = self.breaker.state(self.now, FIVE) == "half_open"
        self.breaker = self.breaker.started(self.now, FIVE)
        assert self.breaker.permits(self.now, FIVE) is not half_open

    @rule()
    def fail(self):
        self.breaker = self.breaker.failed(self.now, FIVE)
        self.streak += 1
        assert self.streak < 5 or not self.breaker.permits(self.now, FIVE) or self.breaker.opened is not None

    @rule()
    def succeed(self):
        closes = self.breaker.state(self.now, FIVE) != "open"
        self.breaker = self.breaker.succeeded(self.now, FIVE)
        self.streak = 0 if closes else self.streak

    @invariant()
    def few_failures_keep_it_closed(self):
        assert self.streak >= 5 or self.breaker.opened is None


TestOneTrialAtATime = OneTrialAtATime.TestCase
TestOneTrialAtATime.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)


@given(failures=st.integers(1, 20), recovery=st.floats(0.001, 1e4), now=st.floats(0, 1e6))
@settings(deadline=None)
def test_settings_are_kept(failures, recovery, now):
    wanted = BreakerSettings(failures=failures, recovery=recovery)
    breaker = Breaker()
    for number in range(1, failures + 1):
        breaker = breaker.failed(now, wanted)
        assert (breaker.state(now, wanted) == "open") is (number == failures)
    assert breaker.permits(now + recovery, wanted)
