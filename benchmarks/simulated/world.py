"""The world that a routing simulation meets: regions, callers, distances and who may be served where. Seeded."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pycountry
from countryinfo import CountryInfo

from app.config import Settings
from app.policy.routing import FIBRE_KM_PER_MS, great_circle_km
from app.types import PermittedRegion, Place
from regions import catalogue

REGIONS: Final = 100
POINTS: Final = 4000
"""Places that callers call from."""
WIDTHS: Final = {REGIONS: 0.1, 30: 0.4, 5: 0.5}
"""How many of the nearest regions a country's law permits, and for which share of the countries."""
SERVICE_S: Final = 0.05
SPREAD: Final = 0.5
"""Service times are log-normal with this sigma, about `SERVICE_S` in the middle."""
SLOTS: Final = 4
"""Requests that a backend works on at once."""
USED: Final = 0.5
"""Share of its slots that a region needs for the callers that are nearest to it."""
MODEL: Final = "m"


@dataclass(frozen=True)
class World:
    """What does not change: regions, callers, distances and the law, the same for every policy."""

    settings: Settings
    places: list[Place]
    country: list[int]
    """Of each caller."""
    rtt: list[list[float]]
    """Seconds from each caller to each region and back, as they really are."""
    permitted: list[tuple[PermittedRegion, ...]]
    nearest: list[list[PermittedRegion]]
    """Permitted regions by distance, by country."""
    index: dict[str, int]


def build(callers: str, rate: float, chance: np.random.Generator) -> World:
    """The world; the number of backends follows the demand that nearest-first would send to a region."""
    known = sorted(_countries(), reverse=True)
    people = np.array([row[0] for row in known], float)
    area = np.array([row[1] for row in known], float)
    share = (people if callers == "people" else area) / sum(people if callers == "people" else area)
    middle = np.array([catalogue.centroid(row[2]) for row in known])
    home = chance.choice(len(known), POINTS, p=share)
    reach = np.sqrt(area[home] / math.pi) / 111 * np.sqrt(chance.random(POINTS)) * 0.8
    angle = chance.random(POINTS) * 2 * math.pi
    spots = middle[home] + np.stack([reach * np.sin(angle), reach * np.cos(angle)], 1)
    distance = np.array([[great_circle_km(*spot, *to) for to in middle[:REGIONS].tolist()] for spot in spots.tolist()])
    detour = chance.uniform(1.2, 2.0, (len(known), REGIONS))
    last_mile = chance.uniform(4, 25, (POINTS, 1))
    rtt = (2 * distance * detour[home] / FIBRE_KM_PER_MS + last_mile) / 1000
    ids = [PermittedRegion(row[2].lower()) for row in known[:REGIONS]]
    nearest = [
        [ids[i] for i in np.argsort([great_circle_km(*place, *to) for to in middle[:REGIONS].tolist()])]
        for place in middle.tolist()
    ]
    widths = chance.choice(list(WIDTHS), len(known), p=list(WIDTHS.values()))
    nearest = [order[:width] for order, width in zip(nearest, widths, strict=True)]
    demand = dict.fromkeys(ids, 0.0)
    for order, part in zip(nearest, share, strict=True):
        demand[order[0]] += part * rate
    sizes = [max(2, math.ceil(demand[one] * SERVICE_S * math.exp(SPREAD**2 / 2) / USED / SLOTS)) for one in ids]
    settings = _settings([row[2] for row in known[:REGIONS]], middle.tolist(), sizes)
    permitted = [tuple(one for one in ids if one in set(order)) for order in nearest]
    places = [Place(*place) for place in middle.tolist()]
    return World(settings, places, home.tolist(), rtt.tolist(), permitted, nearest, {r: i for i, r in enumerate(ids)})


def _countries() -> Iterator[tuple[int, float, str]]:
    """Population, area (km2) and code of each country that the package knows."""
    for one in pycountry.countries:
        info = CountryInfo(one.alpha_2)
        try:
            row = (info.population() or 0, info.area() or 0, one.alpha_2)
        except KeyError:
            continue
        if row[0] and row[1] > 0 and catalogue.centroid(one.alpha_2):
            yield row


def _settings(codes: list[str], middle: list[list[float]], sizes: list[int]) -> Settings:
    def region(code: str, place: list[float], size: int) -> dict[str, Any]:
        urls = [f"http://{code.lower()}-{number}" for number in range(size)]
        return {
            "id": code.lower(),
            "country": code,
            "latitude": place[0],
            "longitude": place[1],
            "operator": {"name": "simulated"},
            "backends": [{"url": url, "models": [MODEL]} for url in urls],
        }

    regions = [region(*row) for row in zip(codes, middle, sizes, strict=False)]
    return Settings.model_validate({"version": 1, "regions": regions, "tenants": [{"id": "t"}]})
