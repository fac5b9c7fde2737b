"""Codes as ISO 3166 has them, and points that lie where the countries do."""

import subprocess
import sys

import pycountry
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regions.catalogue import Code, CodeError, _codes, centroid, parse_code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("DE", Code("DE", "DE", None)),
        ("de", Code("DE", "DE", None)),
        ("US-CA", Code("US-CA", "US", "US-CA")),
        ("us-ca", Code("US-CA", "US", "US-CA")),
        ("GB-ENG", Code("GB-ENG", "GB", "GB-ENG")),
        ("GL", Code("GL", "GL", None)),
        ("NO", Code("NO", "NO", None)),
        ("CN-HK", Code("HK", "HK", None)),
        ("fr-nc", Code("NC", "NC", None)),
        ("NL-BQ2", Code("BQ", "BQ", None)),
    ],
)
def test_reads_codes_in_any_case(text: str, code: Code) -> None:
    assert parse_code(text) == code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UK", "GB"),
        ("uk", "GB"),
        ("EL", "GR"),
        ("UK-SCT", "GB-SCT"),
        ("UK-ZZ", "GB"),
        ("Germany", None),
        ("DEU", None),
        ("ZZ", None),
        ("EU", None),
        ("US-ZZ", None),
        ("CA-US", None),
        ("", None),
        ("DE ", None),
        ("DE\n", None),
        ("DE-", None),
        ("\u212aR", None),  # the Kelvin sign, whose lower case is an ASCII k
        ("D\u0130", None),
    ],
)
def test_refuses_what_iso_3166_does_not_have(text: str, expected: str | None) -> None:
    with pytest.raises(CodeError) as caught:
        parse_code(text)
    assert caught.value.expected == expected
    assert isinstance(caught.value, ValueError)
    assert (expected or "US-CA") in str(caught.value)


@given(st.text(max_size=8))
def test_any_text_is_a_code_or_a_code_error(text: str) -> None:
    try:
        code = parse_code(text)
    except CodeError:
        return
    assert code.code == text.upper() or pycountry.countries.get(alpha_2=code.code)
    assert parse_code(code.code) == code


@pytest.mark.parametrize(
    ("country", "latitude", "longitude", "within"),
    [
        ("US", 39.8, -98.6, 3),
        ("DE", 51.2, 10.4, 2),
        ("GB", 54.0, -2.5, 2),
        ("SG", 1.35, 103.8, 0.2),
        ("JP", 36.2, 138.3, 1),
        ("MT", 35.9, 14.4, 0.3),
        ("NR", -0.53, 166.93, 0.1),
        ("IM", 54.2, -4.5, 0.2),
        ("TL", -8.8, 125.9, 0.5),
        ("NF", -29.0, 168.0, 0.2),
        ("VG", 18.4, -64.6, 0.2),
    ],
)
def test_centroids_lie_in_their_country(country: str, latitude: float, longitude: float, within: float) -> None:
    point = centroid(country)
    assert point is not None
    assert abs(point[0] - latitude) <= within
    assert abs(point[1] - longitude) <= within


def test_a_country_without_a_point_has_none() -> None:
    assert centroid("AQ") is None
    assert centroid("ZZ") is None


def test_a_place_with_two_codes_has_one_here() -> None:
    """ISO 3166-2 lists some countries of ISO 3166-1 among the parts of another, under the same name."""
    names = {country.name.partition(",")[0]: country.alpha_2 for country in pycountry.countries}
    apart = {
        part.code: own
        for part in pycountry.subdivisions
        for name, own in names.items()
        if part.name.startswith(name) and own != part.country_code
    }
    for namesake in ("BE-WLX", "GN-ML", "IT-PG", "MT-53", "NG-NI", "NI-CI", "US-GA", "US-IN", "WS-PA"):
        del apart[namesake]
    assert {"CN-HK", "NL-AW", "US-PR"} <= apart.keys()
    assert {part: parse_code(part).code for part in apart} == apart


def test_the_codes_are_those_of_the_package() -> None:
    codes = [one.alpha_2 for one in pycountry.countries] + [one.code for one in pycountry.subdivisions]
    assert _codes() == set(codes)


def test_reading_codes_loads_neither_package() -> None:
    # To load them and have them index their tables takes a tenth of a gateway's start.
    code = (
        "import sys, regions.catalogue as c; assert c._codes.cache_info().currsize == 0; c.parse_code('US-CA');"
        "assert c._centroids.cache_info().currsize == 0; assert not {'pycountry', 'countryinfo'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
