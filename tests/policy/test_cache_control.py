"""Directives of requests (RFC 9111, section 5.2.1) and of answers (5.2.2, RFC 5861)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.policy.cache_control import CacheControl, Lifetime, age, lifetime, parse


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], CacheControl()),
        (["no-store"], CacheControl(no_store=True)),
        (["No-Cache, max-age=5"], CacheControl(no_cache=True, max_age=5)),
        (["max-age=60", "max-age=10"], CacheControl(max_age=10)),
        (['max-age="7"'], CacheControl(max_age=7)),
        (["max-age=abc"], CacheControl(max_age=0)),
        (["max-age=-1"], CacheControl(max_age=0)),
        (["max-age"], CacheControl(max_age=0)),
        (["only-if-cached, x-own=1"], CacheControl(only_if_cached=True)),
        (["x-no-cache=no-cache"], CacheControl()),
    ],
)
def test_directives(values: list[str], expected: CacheControl) -> None:
    assert parse(values) == expected


def test_ages() -> None:
    assert CacheControl().accepts(10**9)
    assert not CacheControl(no_cache=True).accepts(0)
    assert CacheControl(max_age=5).accepts(5)
    assert not CacheControl(max_age=5).accepts(5.1)


TTL = 300.0


@pytest.mark.parametrize(
    ("values", "old", "expected"),
    [
        ([], 0, Lifetime(300, 300, 300)),
        ([], 290, Lifetime(10, 10, 10)),
        ([], 300, None),
        (["max-age=60"], 0, Lifetime(60, 60, 60)),
        (["max-age=60"], 20, Lifetime(40, 40, 40)),
        (["max-age=3600"], 0, Lifetime(300, 300, 300)),
        (["max-age=0"], 0, None),
        (["max-age=x"], 0, None),
        (["max-age=60, s-maxage=10"], 0, Lifetime(10, 10, 10)),
        (["max-age=60", "stale-while-revalidate=30, stale-if-error=90"], 0, Lifetime(60, 90, 150)),
        (["max-age=0, stale-while-revalidate=30"], 0, Lifetime(0, 30, 0)),
        (["max-age=60, stale-while-revalidate=86400"], 0, Lifetime(60, 360, 60)),
        (["max-age=60, stale-while-revalidate=30, must-revalidate"], 0, Lifetime(60, 60, 60)),
        (["s-maxage=60, stale-if-error=30"], 0, Lifetime(60, 60, 60)),
        (["No-Store"], 0, None),
        (["private"], 0, None),
        (['private="set-cookie"'], 0, None),
        (["no-cache, max-age=60"], 0, None),
        (["public, max-age=60, immutable"], 0, Lifetime(60, 60, 60)),
    ],
)
def test_lifetimes(values: list[str], old: float, expected: Lifetime | None) -> None:
    assert lifetime(values, old, TTL, 0.0, 0.0) == expected


def test_what_is_configured_holds_where_an_answer_says_nothing() -> None:
    assert lifetime([], 0, TTL, 60.0, 3600.0) == Lifetime(300, 360, 3900)
    assert lifetime(["max-age=10"], 0, TTL, 60.0, 3600.0) == Lifetime(10, 70, 3610)
    assert lifetime(["max-age=10, stale-if-error=5"], 0, TTL, 60.0, 3600.0) == Lifetime(10, 70, 15)
    assert lifetime(["max-age=10, must-revalidate"], 0, TTL, 60.0, 3600.0) == Lifetime(10, 10, 10)


def test_ages_of_answers() -> None:
    assert age([]) == 0
    assert age(["7", "30"]) == 30
    assert age(["-1"]) == age(["soon"]) == 0


@given(st.lists(st.text(max_size=40), max_size=3))
@settings(deadline=None)
def test_no_text_breaks_it(values: list[str]) -> None:
    parse(values)
    found = lifetime(values, 0, TTL, 1.0, 2.0)
    assert found is None or 0 <= found.fresh <= TTL
