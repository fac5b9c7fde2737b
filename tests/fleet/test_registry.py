from collections import Counter

import pytest

from app.fleet.registry import HOMES_LIMIT, START_LIMIT, Registry
from app.policy.routing import FIRST_SHARE, WARM_UP_S, home_key
from app.types import PermittedRegion, Place
from tests.fleet.servers import settings_for

MANAGED = {"managed": True, "models": ["minilm", "dynamic-moe"]}
R0, R1 = PermittedRegion("r0"), PermittedRegion("r1")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def url(number=1, **backend):
    return {"url": f"http://127.0.0.1:{number}"} | backend


def build(clock, *regions, **changes):
    managed = {f"r{number}": f"http://127.0.0.1:1{number}" for number in range(len(regions))}
    return Registry(settings_for(*regions, **changes), managed, clock)


def probe(registry, *answers, seconds=0.005, backend=0, promptly=False):
    for ok in answers:
        registry.probed(registry.backends[backend], ok, seconds, promptly)


def fail(registry, times, backend=0):
    for _ in range(times):
        registry.started(registry.backends[backend])
        registry.finished(registry.backends[backend], failed=True, seconds=None)


def up(registry, region="r0"):
    return registry.states()[region].up


def test_a_managed_worker_is_up_from_its_first_good_probe(clock):
    registry = build(clock, [MANAGED])
    assert not up(registry)
    assert registry.backends[0].url == "http://127.0.0.1:10"
    probe(registry, False, False, False, False)
    assert not up(registry)
    probe(registry, True)
    assert up(registry)


def test_a_server_of_its_own_is_up_until_a_first_probe_fails(clock):
    registry = build(clock, [url()])
    assert up(registry)
    probe(registry, False)
    assert not up(registry)
    probe(registry, True)
    assert up(registry)


def test_three_bad_probes_take_it_down_and_two_good_ones_bring_it_back(clock):
    registry = build(clock, [MANAGED])
    probe(registry, True, False, False)
    assert up(registry)
    probe(registry, False)
    assert not up(registry)
    probe(registry, True)
    assert not up(registry)
    probe(registry, False, True)
    assert not up(registry), "good ones count in a row"
    probe(registry, True)
    assert up(registry)


def test_an_answered_request_stands_against_bad_probes(clock):
    registry = build(clock, [MANAGED])
    probe(registry, True, False, False)
    registry.started(registry.backends[0])
    registry.finished(registry.backends[0], failed=False, seconds=0.1)
    probe(registry, False)
    assert up(registry)


def test_a_refused_connection_takes_it_down_at_once(clock):
    registry = build(clock, [MANAGED])
    probe(registry, True, True, True)
    registry.refused(registry.backends[0])
    assert not up(registry)
    probe(registry, True)
    assert not up(registry)
    probe(registry, True)
    assert up(registry)


def test_the_word_of_the_supervisor_brings_it_back_at_once(clock):
    registry = build(clock, [MANAGED])
    probe(registry, True)
    fail(registry, 5)
    registry.refused(registry.backends[0])
    probe(registry, False, promptly=True)
    assert not up(registry)
    probe(registry, True, promptly=True)
    assert up(registry)
    assert registry.describe()[0]["breaker"] == "closed"


def test_failures_open_the_breaker_for_its_time(clock):
    registry = build(clock, [url()])
    fail(registry, 4)
    assert up(registry)
    fail(registry, 1)
    assert not up(registry)
    assert registry.pick(R0, "minilm", "openai", 0.5) is None
    assert registry.describe()[0] | {"latency_ms": None} == {
        "id": "r0",
        "country": "IE",
        "health": "up",
        "breaker": "open",
        "latency_ms": None,
        "in_flight": 0,
        "models": ["minilm"],
    }
    clock.now += 60
    assert registry.describe()[0]["breaker"] == "half_open"
    backend = registry.pick(R0, "minilm", "openai", 0.5)
    registry.started(backend)
    assert registry.pick(R0, "minilm", "openai", 0.5) is None, "one trial at a time"
    registry.finished(backend, failed=False, seconds=0.1)
    assert registry.describe()[0]["breaker"] == "closed"


def test_a_trial_whose_caller_went_away_leaves_the_next_one_its_turn(clock):
    registry = build(clock, [url()])
    fail(registry, 5)
    clock.now += 60
    registry.started(registry.backends[0])
    registry.finished(registry.backends[0], failed=False, seconds=None)
    assert registry.describe()[0]["breaker"] == "half_open"
    assert registry.pick(R0, "minilm", "openai", 0.5) is not None


def test_good_probes_after_it_opened_close_the_breaker(clock):
    registry = build(clock, [MANAGED])
    probe(registry, *[True] * 10)
    fail(registry, 5)
    probe(registry, True)
    assert not up(registry), "probes from before the failures do not count"
    probe(registry, True)
    assert up(registry)


def test_a_region_without_backends_counts_as_up(clock):
    registry = build(clock, [])
    assert up(registry)
    assert registry.pick(R0, "minilm", "openai", 0.5) is None
    assert registry.describe()[0]["health"] == "up"
    assert registry.ready()


def test_a_region_is_up_while_one_of_its_backends_is(clock):
    registry = build(clock, [url(1), url(2)])
    registry.refused(registry.backends[0])
    assert up(registry)
    registry.refused(registry.backends[1])
    assert not up(registry)


def test_what_each_protocol_serves(clock):
    registry = build(
        clock,
        [MANAGED],
        [url(1, protocol="openai", models=["llama"]), url(2, protocol="kserve", models=["resnet", "minilm"])],
    )
    assert registry.regions_serving("minilm", "openai") == {"r0"}
    assert registry.regions_serving("minilm", "kserve") == {"r0", "r1"}
    assert registry.regions_serving("llama", "openai") == {"r1"}
    assert registry.regions_serving("llama", "kserve") == frozenset()
    assert registry.regions_serving("none", "openai") == frozenset()
    assert registry.models() == {
        "minilm": ("r0", "r1"),
        "dynamic-moe": ("r0",),
        "llama": ("r1",),
        "resnet": ("r1",),
    }
    assert list(registry.models()) == ["minilm", "dynamic-moe", "llama", "resnet"]


def test_pick_stays_in_the_region_with_the_model_and_outside_what_was_tried(clock):
    registry = build(clock, [url(1)], [url(2), url(3, models=["other"]), url(4)])
    first, _, _, last = registry.backends
    drawn = {registry.pick(R1, "minilm", "openai", draw / 20).url for draw in range(20)}
    assert drawn <= {"http://127.0.0.1:2", "http://127.0.0.1:4"}
    assert registry.pick(R1, "minilm", "openai", 0.3, exclude={registry.backends[1]}) is last
    assert registry.pick(R1, "minilm", "openai", 0.3, exclude={registry.backends[1], last}) is None
    assert registry.pick(R0, "minilm", "openai", 0.999999) is first


def test_pick_takes_the_less_busy_of_two(clock):
    registry = build(clock, [url(1), url(2)])
    registry.started(registry.backends[0])
    assert {registry.pick(R0, "minilm", "openai", draw / 10).url for draw in range(10)} == {"http://127.0.0.1:2"}
    registry.finished(registry.backends[0], failed=False, seconds=2.0)
    registry.started(registry.backends[1])
    registry.finished(registry.backends[1], failed=False, seconds=0.2)
    assert registry.pick(R0, "minilm", "openai", 0.1).url == "http://127.0.0.1:2", "the quicker one of two idle"


def test_requests_spread_by_weight(clock):
    registry = build(clock, [url(1, weight=3.0), url(2), url(3)])
    for number in range(500):
        registry.started(registry.pick(R0, "minilm", "openai", (number * 0.618034) % 1.0))
    shares = [backend.condition.in_flight for backend in registry.backends]
    assert shares[0] == pytest.approx(300, abs=15)
    assert shares[1] == pytest.approx(100, abs=15)


def test_both_choices_follow_the_draw(clock):
    registry = build(clock, [url(1), url(2), url(3)])
    for backend, load in zip(registry.backends, (0, 1, 2), strict=True):
        for _ in range(load):
            registry.started(backend)
    drawn = Counter(registry.pick(R0, "minilm", "openai", draw / 600).url for draw in range(600))
    assert drawn == {"http://127.0.0.1:1": 400, "http://127.0.0.1:2": 200}, "the busiest of three never wins"


def test_load_and_latency_of_a_region(clock):
    registry = build(clock, [url(1, weight=1.0), url(2, weight=3.0)])
    for _ in range(8):
        registry.started(registry.backends[0])
    probe(registry, True, seconds=0.010)
    probe(registry, True, seconds=0.030, backend=1)
    state = registry.states()["r0"]
    assert (state.load, state.latency_ms) == (2.0, 20.0)
    registry.refused(registry.backends[0])
    state = registry.states()["r0"]
    assert (state.load, state.latency_ms) == (0.0, 30.0), "only those that can be used count"
    assert registry.describe()[0]["in_flight"] == 8


def test_a_hiccup_fades_and_lasting_slowness_shows(clock):
    registry = build(clock, [MANAGED])
    probe(registry, True, seconds=0.005)
    clock.now += 5
    probe(registry, True, seconds=0.905)
    assert 100 < registry.states()["r0"].latency_ms < 200
    for _ in range(12):
        clock.now += 5
        probe(registry, True, seconds=0.905)
    assert registry.states()["r0"].latency_ms > 750


def test_slow_requests_are_no_latency_of_the_region(clock):
    registry = build(clock, [url()])
    probe(registry, True)
    registry.started(registry.backends[0])
    registry.finished(registry.backends[0], failed=False, seconds=30.0)
    assert registry.states()["r0"].latency_ms == 5.0


def test_ready_once_every_managed_worker_has_answered(clock):
    registry = build(clock, [MANAGED], [MANAGED, url()])
    probe(registry, True)
    probe(registry, False, backend=1)
    assert not registry.ready()
    probe(registry, True, backend=1)
    assert registry.ready()
    registry.refused(registry.backends[0])
    assert registry.ready(), "readiness is about the start"


def test_ready_waits_for_a_managed_worker_no_longer_than_its_time(clock):
    registry = build(clock, [MANAGED])
    clock.now += START_LIMIT - 0.1
    assert not registry.ready()
    clock.now += 0.1
    assert registry.ready()


def test_a_managed_backend_without_a_worker_is_an_error(clock):
    with pytest.raises(ValueError, match="region r0 has a managed backend"):
        Registry(settings_for([MANAGED]), {}, clock)


# --- slow start: what has come back gets a growing share


def shares(registry, draws=100):
    """Requests in flight on each backend after so many have been started, none of them finished."""
    for number in range(draws):
        registry.started(registry.pick(R0, "minilm", "openai", (number * 0.618034) % 1.0))
    taken = [backend.condition.in_flight for backend in registry.backends]
    for backend in registry.backends:
        for _ in range(backend.condition.in_flight):
            registry.finished(backend, failed=False, seconds=None)
    return taken


def came_back(registry, clock):
    probe(registry, True)
    registry.refused(registry.backends[0])
    clock.now += 100
    probe(registry, True, True)


def test_a_backend_that_came_back_takes_a_growing_part_of_its_regions_requests(clock):
    registry = build(clock, [url(1), url(2)])
    probe(registry, True, backend=1)
    assert shares(registry) == [50, 50]
    came_back(registry, clock)
    first = shares(registry)[0]
    assert 1 <= first <= 12
    clock.now += WARM_UP_S / 2
    half = shares(registry)[0]
    assert first < 25 < half < 40
    clock.now += WARM_UP_S / 2
    assert shares(registry) == [50, 50]


def test_an_idle_backend_that_came_back_is_not_taken_for_the_quickest(clock):
    registry = build(clock, [url(1), url(2)])
    for backend, seconds in zip(registry.backends, (0.1, 0.2), strict=True):
        registry.started(backend)
        registry.finished(backend, failed=False, seconds=seconds)
    assert registry.pick(R0, "minilm", "openai", 0.5) is registry.backends[0]
    came_back(registry, clock)
    assert {registry.pick(R0, "minilm", "openai", draw / 20).url for draw in range(20)} == {"http://127.0.0.1:2"}


def test_a_region_that_came_back_takes_a_growing_share(clock):
    registry = build(clock, [url(1), url(2)], [url(3)])
    probe(registry, True)
    for backend in registry.backends[:2]:
        registry.refused(backend)
    assert not up(registry)
    clock.now += 100
    probe(registry, True, True)
    clock.now += 15
    assert registry.states()["r0"].share == pytest.approx(0.5)
    probe(registry, True, backend=1)  # the first good one of all: it starts with the others
    assert registry.states()["r0"].share == 1.0
    assert registry.states()["r1"].share == 1.0


def test_nothing_warms_up_at_the_start(clock):
    registry = build(clock, [MANAGED], [url()])
    for backend in (0, 1):
        probe(registry, False, False, False, backend=backend)
        clock.now += 20
        probe(registry, True, backend=backend)
    assert [state.share for state in registry.states().values()] == [1.0, 1.0]


def test_the_word_of_the_supervisor_starts_the_warming_up(clock):
    registry = build(clock, [MANAGED])
    probe(registry, True)
    registry.refused(registry.backends[0])
    probe(registry, True, promptly=True)
    assert registry.states()["r0"].share == FIRST_SHARE
    clock.now += 10
    probe(registry, True, promptly=True)
    assert registry.states()["r0"].share == pytest.approx(1 / 3), "once more is no second return"


@pytest.mark.parametrize("how", ["trial", "probes"])
def test_a_breaker_that_closes_starts_the_warming_up(clock, how):
    registry = build(clock, [url()])
    probe(registry, True)
    fail(registry, 4)
    registry.started(registry.backends[0])
    registry.finished(registry.backends[0], failed=False, seconds=0.1)
    assert registry.states()["r0"].share == 1.0, "it never opened"
    fail(registry, 5)
    clock.now += 60
    if how == "trial":
        registry.started(registry.backends[0])
        registry.finished(registry.backends[0], failed=False, seconds=0.1)
    else:
        probe(registry, True, True)
    assert up(registry)
    assert registry.states()["r0"].share == FIRST_SHARE


# --- hysteresis and pace


def test_choices_are_remembered_up_to_a_limit(clock):
    registry = build(clock, [url()])
    keys = [home_key(Place(float(number), 0.0), ("r0", "r1")) for number in range(HOMES_LIMIT)]
    for key in keys:
        registry.settled(key, R0)
    registry.settled(keys[0], R1)
    registry.settled(keys[2], R0)
    assert (registry.homes[keys[0]], registry.homes[keys[1]], len(registry.homes)) == (R1, R0, HOMES_LIMIT)
    registry.settled(home_key(None, ("r0",)), R0)
    assert len(registry.homes) == HOMES_LIMIT
    assert keys[1] not in registry.homes, "the choice that was changed longest ago is forgotten"
    assert keys[0] in registry.homes
    with pytest.raises(TypeError):
        registry.homes[keys[0]] = R0


def requests(registry, clock, times, seconds, kind="minilm", backend=0):
    for _ in range(times):
        clock.now += 0.1
        registry.started(registry.backends[backend])
        registry.finished(registry.backends[backend], failed=False, seconds=seconds, kind=kind)


def test_slow_requests_count_where_they_are_slower_than_their_kind_usually_is(clock):
    registry = build(clock, [url()])
    probe(registry, True)
    requests(registry, clock, 50, 0.05, "embed")
    requests(registry, clock, 50, 30.0, "chat")
    assert registry.states()["r0"].latency_ms == 5.0, "another kind, and usual for it"
    requests(registry, clock, 50, 300.0, "chat")
    assert registry.states()["r0"].latency_ms > 1000
    assert registry.describe()[0]["latency_ms"] > 1000
    clock.now += 600
    assert registry.states()["r0"].latency_ms == pytest.approx(5.0, abs=0.1), "nobody has complained since"


def test_requests_of_no_kind_are_compared_with_nothing(clock):
    registry = build(clock, [url()])
    probe(registry, True)
    requests(registry, clock, 50, 0.05, None)
    requests(registry, clock, 50, 50.0, None)
    assert registry.states()["r0"].latency_ms == 5.0


def test_states_of_some_regions(clock):
    registry = build(clock, [url(1)], [url(2)], [url(3)])
    assert registry.states(("r2", "r1")) == {name: registry.states()[name] for name in ("r1", "r2")}
    assert [state.position for state in registry.states().values()] == [0, 1, 2]


def test_servers_that_remain_keep_their_condition_and_those_that_went_are_forgotten(clock):
    before = build(clock, [url(1), url(2)], [url(3, models=["first"])])
    for backend in (0, 1, 2):
        probe(before, True, backend=backend)
    fail(before, 5, backend=0)
    before.started(before.backends[2])
    settings = settings_for([url(1), url(4)], [url(3, models=["second"], weight=3)])
    after = Registry(settings, {}, clock, before)
    assert after.backends[0] is before.backends[0]
    assert not up(Registry(settings_for([url(1)]), {}, clock, after))
    assert after.backends[1].health == "unknown"
    assert after.backends[2] is not before.backends[2]
    assert after.backends[2].condition.in_flight == 1
    assert [each.regions_serving("first", "openai") for each in (before, after)] == [{"r1"}, set()]
    before.finished(before.backends[2], failed=False, seconds=0.1)
    assert after.backends[2].condition.in_flight == 0


def test_a_successor_has_been_ready_for_as_long_and_remembers_choices(clock):
    before = build(clock, [MANAGED])
    before.settled(home_key(None, (R0,)), R0)
    clock.now += START_LIMIT
    after = Registry(settings_for([MANAGED]), {"r0": "http://127.0.0.1:10"}, clock, before)
    assert after.ready()
    assert after.homes == {home_key(None, (R0,)): R0}
