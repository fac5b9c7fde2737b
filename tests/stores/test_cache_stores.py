"""Every cache store keeps the same promises; a new store joins the list of fixtures."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import CacheSettings
from app.stores.base import CacheStore
from app.stores.memory import ENTRY_OVERHEAD, MemoryCache
from app.types import CacheEntry

LARGE = 1 << 20


def named(name):
    """A key: the store is given digests."""
    return hashlib.blake2b(name, digest_size=32).digest()


def entry(body=b"answer", stored=0.0, headers=(("content-type", "application/json"),), lasts=300.0, rescuing=0.0):
    end = stored + lasts
    return CacheEntry("eu-west", 200, headers, body, stored, end, end, end + rescuing)


@pytest.fixture(params=[MemoryCache], ids=["memory"])
def make(request):
    def build(**changes) -> CacheStore:
        return request.param(CacheSettings.model_validate({"max_entries": 3, "max_bytes": LARGE, "ttl": 300} | changes))

    return build


def test_a_stored_answer_comes_back_whole(make):
    cache = make()
    cache.put(named(b"k"), entry(b"\x00\xff"), 10.0)
    assert cache.get(named(b"k"), 10.0) == entry(b"\x00\xff")
    assert cache.get(named(b"other"), 10.0) is None


def test_an_answer_lives_for_its_time(make):
    cache = make()
    cache.put(named(b"k"), entry(stored=100.0, lasts=2.0, rescuing=3.0), 100.0)
    assert cache.get(named(b"k"), 104.999) is not None
    assert cache.get(named(b"k"), 105.0) is None
    assert cache.stats(105.0).entries == 0
    assert cache.stats(105.0).evictions == 0, "one that has outlived its time was not driven out"


def test_reading_does_not_prolong_a_life(make):
    cache = make()
    cache.put(named(b"k"), entry(lasts=5.0), 0.0)
    for now in (1.0, 3.0, 4.9):
        assert cache.get(named(b"k"), now) is not None
    assert cache.get(named(b"k"), 5.0) is None


def test_a_new_answer_replaces_the_old_and_its_age(make):
    cache = make()
    cache.put(named(b"k"), entry(b"old", lasts=5.0), 0.0)
    cache.put(named(b"k"), entry(b"new", 4.0, lasts=5.0), 4.0)
    assert cache.get(named(b"k"), 8.0) == entry(b"new", 4.0, lasts=5.0)
    assert cache.stats(8.0).entries == 1


def test_the_least_recently_used_goes_first(make):
    cache = make()
    for key in (b"a", b"b", b"c"):
        cache.put(named(key), entry(), 0.0)
    cache.get(named(b"a"), 1.0)
    cache.put(named(b"d"), entry(), 2.0)
    assert [key for key in (b"a", b"b", b"c", b"d") if cache.get(named(key), 3.0)] == [b"a", b"c", b"d"]
    assert cache.stats(3.0).evictions == 1


def test_bytes_are_bounded_too(make):
    room = 2 * (1000 + ENTRY_OVERHEAD)
    cache = make(max_entries=100, max_bytes=room)
    for key in (b"a", b"b", b"c"):
        cache.put(named(key), entry(bytes(1000), headers=()), 0.0)
    assert [key for key in (b"a", b"b", b"c") if cache.get(named(key), 0.0)] == [b"b", b"c"]
    assert cache.stats(0.0).bytes == room


def test_headers_take_room(make):
    cache = make()
    cache.put(named(b"a"), entry(b"", headers=(("name", "v" * 1000),)), 0.0)
    assert cache.stats(0.0).bytes >= 1004


def test_what_is_larger_than_the_store_is_not_kept_and_drives_nothing_out(make):
    cache = make(max_bytes=10_000)
    cache.put(named(b"a"), entry(b"old"), 0.0)
    cache.put(named(b"b"), entry(bytes(10_000)), 0.0)
    assert cache.get(named(b"a"), 0.0) == entry(b"old")
    cache.put(named(b"a"), entry(bytes(10_000)), 0.0)
    assert cache.get(named(b"a"), 0.0) is None, "the old answer would be stale"


steps = st.lists(
    st.tuples(st.sampled_from(["put", "get"]), st.integers(0, 7), st.integers(0, 3000), st.floats(0, 3)), max_size=60
)


@given(steps)
@settings(deadline=None)
def test_memory_agrees_with_a_plain_model(steps):
    """Never an answer that was not put, never one past its time, never more than the bounds."""
    limits = CacheSettings.model_validate({"max_entries": 3, "max_bytes": 8000, "ttl": 4})
    cache, model, now = MemoryCache(limits), {}, 0.0
    for action, number, size, pause in steps:
        now += pause
        key = bytes([number])
        if action == "put":
            model[key] = entry(bytes(size), stored=now, lasts=4.0)
            cache.put(named(key), model[key], now)
        found = cache.get(named(key), now)
        assert found is None or (found == model[key] and now < found.stored + 4)
        stats = cache.stats(now)
        assert stats.entries <= 3
        assert stats.bytes <= 8000
