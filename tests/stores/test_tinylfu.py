"""Admission by how often a key was asked for, within bounds that nothing breaks."""

import hashlib
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from app.stores.tinylfu import Frequencies, TinyLfu


def key(number: int) -> bytes:
    return hashlib.blake2b(b"%d" % number).digest()


def asked(cache: TinyLfu[int], number: int) -> bool:
    """Whether it was there; where not, it is put."""
    if cache.get(key(number)) is not None:
        return True
    cache.put(key(number), number, 1)
    return False


def test_a_scan_drives_nobody_out_who_is_asked_for_again() -> None:
    cache: TinyLfu[int] = TinyLfu(100, 100)
    for _ in range(5):
        for number in range(60):
            asked(cache, number)
    for number in range(1000, 6000):
        asked(cache, number)
    assert sum(cache.peek(key(number)) is not None for number in range(60)) >= 55


def test_what_becomes_popular_gets_in() -> None:
    cache: TinyLfu[int] = TinyLfu(100, 100)
    for _ in range(5):
        for number in range(100):
            asked(cache, number)
    for _ in range(30):
        for number in range(500, 550):
            asked(cache, number)
    assert sum(asked(cache, number) for number in range(500, 550)) >= 45


def test_the_window_grows_where_what_came_lately_comes_again() -> None:
    draw = random.Random(1)

    def hits(*, climbing: bool) -> int:
        cache: TinyLfu[int] = TinyLfu(1000, 1000, climbing=climbing)
        found = 0
        for number in range(40_000):
            again = number > 0 and draw.random() < 0.5
            found += asked(cache, number - draw.randrange(1, min(number, 800) + 1) if again else number)
        return found

    assert hits(climbing=True) > 1.2 * hits(climbing=False)


def test_frequencies_fade() -> None:
    frequencies = Frequencies(10)
    for _ in range(8):
        frequencies.add(key(1))
    assert frequencies.of(key(1)) == 8
    assert frequencies.of(key(2)) == 0
    for number in range(100, 192):
        frequencies.add(key(number))
    assert frequencies.of(key(1)) <= 4


step = st.tuples(st.sampled_from(["get", "put", "pop"]), st.integers(0, 20), st.integers(1, 12))


@given(st.lists(step, max_size=200))
@settings(deadline=None)
def test_it_holds_what_it_was_given_and_never_more_than_its_capacity(steps: list[tuple[str, int, int]]) -> None:
    cache: TinyLfu[tuple[int, int]] = TinyLfu(10, 4)
    held: dict[int, tuple[int, int]] = {}
    for action, number, cost in steps:
        if action == "put":
            held[number] = number, cost
            for gone, _ in cache.put(key(number), (number, cost), cost):
                del held[gone]
        elif action == "pop":
            assert cache.pop(key(number)) == held.pop(number, None)
        else:
            assert cache.get(key(number)) == held.get(number)
        assert len(cache) == len(held)
        assert cache.cost == sum(each for _, each in held.values()) <= 10
