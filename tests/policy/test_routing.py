import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.policy.routing import (
    RegionState,
    great_circle_km,
    home_key,
    margin,
    route,
    score,
    settle,
    warmth,
)
from app.types import Place, Score

PLACES = {"us-east": (38.9, -77.4), "eu-west": (53.3, -6.3), "ap-southeast": (1.35, 103.8)}
BERLIN = Place(52.5, 13.4)
NEW_YORK = Place(40.7, -74.0)
SYDNEY = Place(-33.9, 151.2)

degrees = {"latitude": st.floats(-90, 90), "longitude": st.floats(-180, 180)}
ids = st.sampled_from([f"r{number}" for number in range(6)])
states_lists = st.lists(
    st.builds(
        RegionState,
        id=ids,
        **degrees,
        up=st.booleans(),
        latency_ms=st.none() | st.floats(0, 1e5),
        load=st.floats(0, 1e5),
    ),
    unique_by=lambda state: state.id,
    max_size=6,
)
origins = st.none() | st.builds(Place, **degrees)


def fleet(**changes):
    """The three regions of the default configuration: idle, up and 5 ms away, but for the changes."""
    told = {"up": True, "latency_ms": 5.0, "load": 0.0}
    return [
        RegionState(name, *place, position=position, **told | changes.get(name.replace("-", "_"), {}))
        for position, (name, place) in enumerate(PLACES.items())
    ]


def routed(states, origin, prefer=(), permitted=tuple(PLACES), **how):
    return route(permitted, {state.id: state for state in states}, origin, prefer, **how)


def order(states, origin, prefer=(), permitted=tuple(PLACES), **how):
    return list(routed(states, origin, prefer, permitted, **how).order)


@pytest.mark.parametrize(
    ("start", "end", "km"),
    [
        ((50.0379, 8.5622), (40.6413, -73.7781), 6200),  # Frankfurt to New York JFK, as airlines publish it
        ((1.3644, 103.9915), (-33.9399, 151.1753), 6300),  # Singapore to Sydney
        ((0.0, 179.5), (0.0, -179.5), 111.2),  # over the date line: one degree of the equator
    ],
)
def test_great_circle(start, end, km):
    assert great_circle_km(*start, *end) == pytest.approx(km, rel=0.01)


@pytest.mark.parametrize(
    ("start", "end", "share"),
    [
        ((90.0, 0.0), (-90.0, 0.0), 1 / 2),
        ((0.0, 0.0), (0.0, 180.0), 1 / 2),
        ((0.0, 0.0), (0.0, 90.0), 1 / 4),
        ((60.0, 10.0), (60.0, 10.0), 0.0),
        ((10.0, 30.0), (80.0, 30.0), 70 / 360),
        ((45.0, -90.0), (45.0, 90.0), 1 / 4),  # over the pole
        ((60.0, 0.0), (60.0, 60.0), 2 * math.asin(1 / 4) / math.tau),
    ],
)
def test_great_circles_that_geometry_gives(start, end, share):
    assert great_circle_km(*start, *end) == pytest.approx(share * math.tau * 6371.0088, rel=1e-9, abs=1e-6)


@given(**degrees, to_latitude=st.floats(-90, 90), to_longitude=st.floats(-180, 180))
@settings(deadline=None)
def test_distance_is_symmetric_and_bounded(latitude, longitude, to_latitude, to_longitude):
    there = great_circle_km(latitude, longitude, to_latitude, to_longitude)
    assert 0 <= there <= math.pi * 6371.01
    assert there == pytest.approx(great_circle_km(to_latitude, to_longitude, latitude, longitude), abs=1e-6)


@pytest.mark.parametrize(
    ("origin", "first"), [(BERLIN, "eu-west"), (NEW_YORK, "us-east"), (SYDNEY, "ap-southeast"), (None, "us-east")]
)
def test_nearest_first(origin, first):
    assert order(fleet(), origin)[0] == first


def test_without_an_origin_the_configuration_orders():
    scores = score(fleet(), None)
    assert [entry.rtt_ms for entry in scores.values()] == [0, 100, 200]
    assert {entry.distance_km for entry in scores.values()} == {None}
    assert order(fleet(), None) == list(PLACES)


def test_the_score_shows_its_parts():
    entry = score(fleet(eu_west={"latency_ms": 100.0, "load": 1000.0}), BERLIN)["eu-west"]
    assert entry.total == pytest.approx(entry.rtt_ms + 100)
    assert entry.distance_km == pytest.approx(1320, rel=0.02)
    assert entry.rtt_ms == pytest.approx(entry.distance_km * 0.015)
    assert (entry.latency_ms, entry.load) == (100.0, 1000.0)


@pytest.mark.parametrize(
    ("latency", "load", "added"),
    [
        (0.0, 0, 0),
        (20.0, 0, 1.82),
        (100.0, 0, 33.3),
        (200.0, 0, 100),
        (1000.0, 0, 833.3),
        (0.0, 200, 1.82),
        (5, 2000, 103.8),
    ],
)
def test_what_a_wait_adds(latency, load, added):
    entry = score(fleet(us_east={"latency_ms": latency, "load": load}), None)["us-east"]
    assert entry.total == pytest.approx(added, abs=0.05)


@pytest.mark.parametrize("noise", [{"latency_ms": 60.0}, {"load": 200.0}, {"latency_ms": 60.0, "load": 200.0}])
@pytest.mark.parametrize("origin", [NEW_YORK, BERLIN, SYDNEY, None])
def test_noise_moves_nobody_across_an_ocean(origin, noise):
    home = order(fleet(), origin)[0]
    assert order(fleet(**{home.replace("-", "_"): noise}), origin)[0] == home


@pytest.mark.parametrize("trouble", [{"latency_ms": 1000.0}, {"load": 10_000.0}])
def test_a_region_that_is_clearly_worse_is_left(trouble):
    assert order(fleet(eu_west=trouble), BERLIN) == ["us-east", "ap-southeast", "eu-west"]


def test_between_equally_near_regions_the_faster_one_wins():
    twins = [RegionState(name, 50.0, 8.0, up=True, latency_ms=ms, load=0.0) for name, ms in (("a", 80.0), ("b", 20.0))]
    assert order(twins, BERLIN, permitted=("a", "b")) == ["b", "a"]


def test_preferred_regions_come_first_in_their_order():
    assert order(fleet(), BERLIN, ("ap-southeast", "us-east")) == ["ap-southeast", "us-east", "eu-west"]
    assert order(fleet(), BERLIN, ("ap-southeast", "ap-southeast")) == ["ap-southeast", "eu-west", "us-east"]


def test_preference_opens_no_region_that_is_down_or_not_permitted():
    down = fleet(us_east={"up": False})
    assert order(down, BERLIN, ("us-east", "ap-southeast"), permitted=("us-east", "eu-west")) == ["eu-west"]


@given(states_lists, origins, st.lists(ids), st.lists(ids))
@settings(deadline=None)
def test_rank_is_the_permitted_that_are_up_each_once(states, origin, permitted, prefer):
    ranked = order(states, origin, prefer, permitted)
    assert len(ranked) == len(set(ranked))
    assert set(ranked) == set(permitted) & {state.id for state in states if state.up}


@given(states_lists, origins, st.data())
@settings(deadline=None)
def test_more_latency_or_load_never_improves_a_score(states, origin, data):
    if not states:
        return
    index = data.draw(st.integers(0, len(states) - 1))
    old = states[index]
    worse = RegionState(
        old.id,
        old.latitude,
        old.longitude,
        up=old.up,
        latency_ms=(old.latency_ms or 0.0) + data.draw(st.floats(0, 1e4)),
        load=old.load + data.draw(st.floats(0, 1e4)),
    )
    before = score(states, origin)[old.id].total
    after = score([*states[:index], worse, *states[index + 1 :]], origin)[old.id].total
    assert after >= before - 1e-6


# --- hysteresis: two regions that are nearly as good do not take turns

PARIS = Place(48.9, 2.4)
HERE, THERE, FAR = "here", "there", "far"
AWAY = {HERE: 0.0, THERE: 2.0, FAR: 40.0}
"""Degrees to the east of Paris: 0, 2.2 and 44 ms to go there and back."""


def near(**changes):
    """Two regions close to Paris and one that is not: idle, up and without delay, but for the changes."""
    told = {"up": True, "latency_ms": 0.0, "load": 0.0}
    return [
        RegionState(name, 48.9, 2.4 + east, position=position, **told | changes.get(name, {}))
        for position, (name, east) in enumerate(AWAY.items())
    ]


def after(previous, states, **how):
    how = {"permitted": tuple(AWAY), "homes": {home_key(PARIS, tuple(AWAY)): previous}} | how
    return routed(states, PARIS, **how)


def test_the_best_region_stays_the_best_until_another_is_clearly_better():
    worse = near(here={"latency_ms": 35.0})  # adds 5.2: `there` is 3 better, which is within the margin
    assert after(None, worse).order == (THERE, HERE, FAR)
    assert after(HERE, worse).order == (HERE, THERE, FAR)
    assert after(THERE, worse).order == (THERE, HERE, FAR)
    much_worse = near(here={"latency_ms": 60.0})  # adds 13.8
    assert after(HERE, much_worse).order == (THERE, HERE, FAR)


def test_who_was_best_comes_first_and_the_others_keep_their_order():
    assert after(THERE, near()).order == (THERE, HERE, FAR)
    assert after(FAR, near()).order == (HERE, THERE, FAR), "too far behind"
    assert after("elsewhere", near()).order == (HERE, THERE, FAR)


def test_who_was_best_counts_for_nothing_when_down_or_not_permitted():
    down = near(there={"up": False})
    assert after(THERE, down).order == (HERE, FAR)
    homes = {home_key(PARIS, (HERE, FAR)): THERE}
    assert routed(near(), PARIS, permitted=(HERE, FAR), homes=homes).order == (HERE, FAR)


def test_choices_are_remembered_by_place_and_permitted_set():
    assert home_key(PARIS, [HERE]) == (PARIS, (HERE,))
    homes = {home_key(BERLIN, tuple(AWAY)): THERE, home_key(PARIS, (HERE, THERE)): THERE, home_key(None, (HERE,)): HERE}
    assert routed(near(), PARIS, permitted=tuple(AWAY), homes=homes).order == (HERE, THERE, FAR)
    assert routed(near(), PARIS, permitted=(HERE, THERE), homes=homes).order == (THERE, HERE)


@pytest.mark.parametrize(("best", "expected"), [(0.0, 5.0), (49.0, 5.0), (50.0, 5.0), (60.0, 6.0), (1000.0, 100.0)])
def test_the_margin(best, expected):
    assert margin(best) == pytest.approx(expected)


def test_who_was_best_is_known_by_its_name():
    """Not by being the very same string: names come from the configuration and from requests."""
    previous = "".join(list(THERE))
    assert previous is not THERE
    assert after(previous, near()).order == (THERE, HERE, FAR)


def test_the_margin_is_measured_from_the_best():
    """From neither the second best nor the one that is left."""
    totals = {"a": 100.0, "b": 104.0, "c": 111.0}
    scores = {name: Score(None, 0.0, None, 0.0, total) for name, total in totals.items()}
    assert settle(("a", "b", "c"), scores, "c") == ["a", "b", "c"]
    scores["c"] = Score(None, 0.0, None, 0.0, 109.0)
    assert settle(("a", "b", "c"), scores, "c") == ["c", "a", "b"]


def test_exactly_the_margin_is_not_clearly_better():
    scores = {"a": Score(None, 0.0, None, 0.0, 40.0), "b": Score(None, 0.0, None, 0.0, 45.0)}
    assert settle(("a", "b"), scores, "b") == ["b", "a"]
    scores["b"] = Score(None, 0.0, None, 0.0, 45.1)
    assert settle(("a", "b"), scores, "b") == ["a", "b"]
    assert settle((), {}, "b") == []


def test_noise_makes_nobody_flap():
    """A thousand choices while the latency of two neighbours jitters: without a memory they take turns all the time."""
    chance = random.Random(1)
    homes, flips, without = {}, 0, 0
    last = bare = HERE
    for _ in range(1000):
        states = near(here={"latency_ms": chance.uniform(5, 35)}, there={"latency_ms": chance.uniform(5, 35)})
        home = routed(states, PARIS, permitted=tuple(AWAY), homes=homes).home
        homes[home_key(PARIS, tuple(AWAY))] = home
        flips, last = flips + (home != last), home
        free = routed(states, PARIS, permitted=tuple(AWAY)).home
        without, bare = without + (free != bare), free
    assert flips <= 20
    assert without > 200


# --- slow start: a region that has come back gets a growing share


@pytest.mark.parametrize(
    ("seconds", "share"),
    [(-5.0, 0.1), (0.0, 0.1), (3.0, 0.1), (3.3, 0.11), (15.0, 0.5), (29.7, 0.99), (30.0, 1.0), (1e6, 1.0)],
)
def test_warmth_grows_evenly(seconds, share):
    assert warmth(1000.0 + seconds, 1000.0) == pytest.approx(share)
    assert warmth(seconds, None) == 1.0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_a_region_takes_its_share_and_stands_behind_for_the_rest(share):
    warming = near(here={"share": share})
    firsts = [after(HERE, warming, draw=draw / 1000).order[0] for draw in range(1000)]
    assert firsts.count(HERE) == pytest.approx(1000 * share, abs=1)
    assert set(firsts) <= {HERE, THERE}
    behind = after(HERE, warming, draw=0.999).order
    assert behind == ((HERE, THERE, FAR) if share == 1.0 else (THERE, FAR, HERE))


def test_a_draw_of_just_the_share_goes_to_the_next():
    assert after(None, near(here={"share": 0.5}), draw=0.5).order[0] == THERE
    assert after(None, near(here={"share": 0.5}), draw=math.nextafter(0.5, 0)).order[0] == HERE


def test_without_a_draw_warming_up_changes_nothing():
    warming = {state.id: state for state in near(here={"share": 0.1})}
    assert route(tuple(AWAY), warming, PARIS).order == (HERE, THERE, FAR)


def test_a_region_is_first_of_the_configuration_and_warm_unless_told_otherwise():
    state = RegionState("a", 0.0, 0.0, up=True, latency_ms=None, load=0.0)
    assert (state.position, state.share) == (0, 1.0)


def test_the_stand_in_is_not_taken_for_the_best():
    """Else hysteresis would keep callers away from a region that has warmed up."""
    route_now = after(None, near(here={"share": 0.1}), draw=0.5)
    assert (route_now.order[0], route_now.home) == (THERE, HERE)


def test_warming_up_closes_no_region_that_is_the_only_one():
    only = near(here={"share": 0.1}, there={"up": False}, far={"up": False})
    assert after(None, only, draw=0.99).order == (HERE,)
    all_of_them = near(**{name: {"share": 0.1} for name in AWAY})
    assert after(None, all_of_them, draw=0.99).order == (HERE, THERE, FAR)


def test_a_wish_goes_before_hysteresis_and_slow_start():
    warming = near(far={"share": 0.1})
    wished = after(HERE, warming, prefer=(FAR,), draw=0.9)
    assert (wished.order, wished.home) == ((FAR, HERE, THERE), HERE)


def test_nothing_permitted_is_up():
    nothing = routed(near(here={"up": False}), PARIS, permitted=(HERE,))
    assert (nothing.order, nothing.home) == ((), None)
    assert list(nothing.scores) == list(AWAY)
    assert routed([], PARIS, permitted=(HERE,)).order == ()


@given(states_lists, origins, st.lists(ids), st.lists(ids), st.none() | ids, st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_no_memory_and_no_draw_opens_or_closes_a_region(states, origin, prefer, permitted, previous, draw):
    homes = {} if previous is None else {home_key(origin, permitted): previous}
    made = routed(states, origin, prefer, permitted, homes=homes, draw=draw)
    alive = set(permitted) & {state.id for state in states if state.up}
    assert len(made.order) == len(alive)
    assert set(made.order) == alive
    assert (made.home in alive) if alive else (made.home is None)
    if made.home:
        best = min(made.scores[region].total for region in alive)
        assert made.scores[made.home].total <= best + margin(best) + 1e-9
    assert made.scores == score(states, origin), "memory and chance change no score"


@given(states_lists, origins, st.lists(ids))
@settings(deadline=None)
def test_without_memory_and_draw_the_order_is_that_of_the_scores(states, origin, permitted):
    made = routed(states, origin, (), permitted)
    totals = [made.scores[region].total for region in made.order]
    assert totals == sorted(totals)


def test_equal_scores_stand_in_the_order_of_the_configuration():
    twins = {
        name: RegionState(name, 1.0, 1.0, up=True, latency_ms=None, load=0.0, position=at)
        for name, at in zip("abc", (2, 0, 1), strict=True)
    }
    assert route(("a", "b", "c"), twins, PARIS).order == ("b", "c", "a")


def test_a_region_of_which_nothing_is_known_waits_for_nothing():
    states = near(here={"latency_ms": None})
    entry = score(states, PARIS)[HERE]
    assert (entry.latency_ms, entry.total) == (None, 0.0)
