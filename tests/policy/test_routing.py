import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.policy.routing import QUEUE_MS, STEP_MS, RegionState, great_circle_km, rank, score
from app.types import PermittedRegion, Place

PLACES = {"us-east": (38.9, -77.4), "eu-west": (53.3, -6.3), "ap-southeast": (1.35, 103.8)}
BERLIN = Place(52.5, 13.4, "address")
NEW_YORK = Place(40.7, -74.0, "address")
SYDNEY = Place(-33.9, 151.2, "address")

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
origins = st.none() | st.builds(Place, **degrees, source=st.just("address"))


def fleet(**changes):
    """The three regions of the default configuration: idle, up and 5 ms away, but for the changes."""
    told = {"up": True, "latency_ms": 5.0, "load": 0.0}
    return [
        RegionState(id=name, latitude=place[0], longitude=place[1], **told | changes.get(name.replace("-", "_"), {}))
        for name, place in PLACES.items()
    ]


def order(states, origin, prefer=(), permitted=tuple(PLACES)):
    return rank(
        [PermittedRegion(region) for region in permitted],
        {state.id: state for state in states},
        score(states, origin),
        prefer,
    )


@pytest.mark.parametrize(
    ("start", "end", "km"),
    [
        ((50.0379, 8.5622), (40.6413, -73.7781), 6200),  # Frankfurt to New York JFK, as airlines publish it
        ((1.3644, 103.9915), (-33.9399, 151.1753), 6300),  # Singapore to Sydney
        ((0.0, 179.5), (0.0, -179.5), 111.2),  # over the date line: one degree of the equator
        ((90.0, 0.0), (-90.0, 0.0), math.pi * 6371.0088),
    ],
)
def test_great_circle(start, end, km):
    assert great_circle_km(*start, *end) == pytest.approx(km, rel=0.01)


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
    assert [entry.rtt_ms for entry in scores.values()] == [0, STEP_MS, 2 * STEP_MS]
    assert {entry.distance_km for entry in scores.values()} == {None}
    assert order(fleet(), None) == list(PLACES)


def test_the_score_shows_its_parts():
    entry = score(fleet(eu_west={"latency_ms": 100.0, "load": 1000.0}), BERLIN)["eu-west"]
    assert entry.distance_km == pytest.approx(1320, rel=0.02)
    assert entry.rtt_ms == pytest.approx(entry.distance_km * 0.015)
    assert (entry.latency_ms, entry.load) == (100.0, 1000.0)
    wait = 100 + QUEUE_MS * 1000
    assert entry.total == pytest.approx(entry.rtt_ms + wait**2 / (wait + 200))


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
    scores = score(twins, BERLIN)
    assert rank([PermittedRegion("a"), PermittedRegion("b")], {t.id: t for t in twins}, scores, ()) == ["b", "a"]


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
