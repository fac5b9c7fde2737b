"""ISO 3166 codes as the whole house reads them, and where each country lies; the tables come from kept packages.

Of pycountry only its tables are read: to load it and have it index them takes a tenth of a gateway's start.
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import orjson

_FORM: Final = re.compile(r"(?P<country>[A-Za-z]{2})(?:-(?P<part>[A-Za-z0-9]{1,3}))?")
_RESERVED: Final = MappingProxyType({"UK": "GB", "EL": "GR"})
_COUNTRIES_LISTED_AS_PARTS: Final = MappingProxyType(
    {part: code for code, parts in {
        "AS": "US-AS", "AW": "NL-AW", "AX": "FI-01", "BL": "FR-BL", "BQ": "NL-BQ1 NL-BQ2 NL-BQ3", "CW": "NL-CW",
        "GF": "FR-973", "GP": "FR-971", "GU": "US-GU", "HK": "CN-HK", "MF": "FR-MF", "MO": "CN-MO", "MP": "US-MP",
        "MQ": "FR-972", "NC": "FR-NC", "PF": "FR-PF", "PM": "FR-PM", "PR": "US-PR", "RE": "FR-974",
        "SJ": "NO-21 NO-22", "SX": "NL-SX", "TF": "FR-TF", "TW": "CN-TW", "UM": "US-UM", "VI": "US-VI", "WF": "FR-WF",
        "YT": "FR-976",
    }.items() for part in parts.split()}
)  # fmt: skip
"""ISO 3166-2 entries that say "see also" a code of ISO 3166-1: law treats these places apart, so one code stands."""


class CodeError(ValueError):
    """Text that is not an ISO 3166 code; `expected` is the code to write instead where one is plain, else None."""

    def __init__(self, text: str, expected: str | None = None) -> None:
        self.text = text
        self.expected = expected
        if expected:
            super().__init__(f"{text!r} is not the ISO 3166 code; write {expected}")
        else:
            super().__init__(f"{text!r} is not an ISO 3166 code of a country or subdivision; write such as DE or US-CA")


@dataclass(frozen=True, slots=True)
class Code:
    """A country (ISO 3166-1 alpha-2) or a part of one (ISO 3166-2); `code` is the longest form that is known."""

    code: str
    country: str
    subdivision: str | None


def parse_code(text: str) -> Code:
    """The place that `text` names, in any case; `CN-HK` is `HK`, as Hong Kong has a code and law of its own.

    Raises `CodeError`, with `expected` set for UK and EL, which the EU's own style uses and ISO 3166 does not.
    """
    match = _FORM.fullmatch(text)
    if not match:
        raise CodeError(text)
    country, code = match["country"].upper(), text.upper()
    if country in _RESERVED:
        right = _RESERVED[country] + code[2:]
        raise CodeError(text, right if right in _codes() else _RESERVED[country])
    if code not in _codes():
        raise CodeError(text)
    code = _COUNTRIES_LISTED_AS_PARTS.get(code, code)
    return Code(code, code[:2], code if "-" in code else None)


def centroid(country: str) -> tuple[float, float] | None:
    """Latitude and longitude (degrees, to about a degree) of a country's middle; None where none is known."""
    return _centroids().get(country)


def _listed(table: str, name: str) -> Iterator[str]:
    """What one of pycountry's tables has under this name; 3166-1 is of countries, 3166-2 of their parts."""
    package = importlib.util.find_spec("pycountry")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("pycountry is not installed")
    content = orjson.loads((Path(package.origin).parent / "databases" / f"iso{table}.json").read_bytes())
    return (entry[name] for entry in content[table])


@cache
def _codes() -> frozenset[str]:
    """Every code of ISO 3166-1 alpha-2 and ISO 3166-2, read once in about 5 ms."""
    return frozenset(_listed("3166-1", "alpha_2")).union(_listed("3166-2", "code"))


@cache
def _centroids() -> Mapping[str, tuple[float, float]]:
    """Every country's point, read once in about 20 ms.

    The package's `latlng` is the country's middle. Some small territories lack it and have their capital's place,
    which is as good there; other capitals in the package are wrong (TL, NF, IM) and are not used.
    """
    from countryinfo import CountryInfo  # noqa: PLC0415 - whoever only reads codes needs none of it

    points: dict[str, tuple[float, float]] = {}
    for country in _listed("3166-1", "alpha_2"):
        info = CountryInfo(country)
        point = info.latlng() or info.capital_latlng()
        if point and all(isinstance(degrees, int | float) for degrees in point):
            points[country] = (float(point[0]), float(point[1]))
    return MappingProxyType(points)
