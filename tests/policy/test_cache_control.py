"""Request directives of RFC 9111, section 5.2.1."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.policy.cache_control import CacheControl, parse


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


@given(st.lists(st.text(max_size=40), max_size=3))
@settings(deadline=None)
def test_no_text_breaks_it(values: list[str]) -> None:
    parse(values)
