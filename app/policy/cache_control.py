"""Cache-Control (RFC 9111, RFC 5861): what a caller asks of the cache, and how long an answer lasts. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_SECONDS = re.compile(r'^"?(\d{1,9})"?$')


@dataclass(frozen=True, slots=True)
class CacheControl:
    """What a caller asks of the cache; `max_age` in seconds."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age: int | None = None

    @property
    def bypasses(self) -> bool:
        """Whether the cache plays no part: nothing is looked up, nothing kept."""
        return self.no_store

    def accepts(self, age: float) -> bool:
        """Whether a kept answer of this age, in seconds, will do."""
        return not self.no_cache and (self.max_age is None or age <= self.max_age)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long an answer may be given out, in seconds from now.

    Until `fresh` as it is; until `renewing` while another is fetched; until `rescuing` where none can be had.
    """

    fresh: float
    renewing: float
    rescuing: float


def parse(values: Sequence[str]) -> CacheControl:
    """The directives of all Cache-Control fields of a request; unknown ones are passed over (section 5.2.3).

    Of several `max-age` the smallest counts, and one that is no number counts as 0: the careful reading.
    """
    found = _directives(values)
    return CacheControl(
        no_store="no-store" in found,
        no_cache="no-cache" in found,
        only_if_cached="only-if-cached" in found,
        max_age=found.get("max-age"),
    )


def lifetime(values: Sequence[str], age: float, ttl: float, renewing: float, rescuing: float) -> Lifetime | None:
    """How long an answer with these Cache-Control fields lasts that was `age` seconds old as it came; None: not kept.

    `ttl` bounds what the answer says of itself, which `s-maxage` does before `max-age`. `renewing` and `rescuing` are
    the seconds beyond freshness where it says nothing of `stale-while-revalidate` and `stale-if-error` (RFC 5861).
    This cache is shared by a tenant's callers: what is `private`, or has to be asked for again each time, is not kept.
    """
    found = _directives(values)
    if not found.keys().isdisjoint(("no-store", "no-cache", "private")):
        return None
    said = found.get("s-maxage", found.get("max-age"))
    fresh = max(0.0, (ttl if said is None else min(ttl, said)) - age)
    if found.keys().isdisjoint(("must-revalidate", "proxy-revalidate", "s-maxage")):  # sections 5.2.2.2, .8 and .10
        renewing = min(found.get("stale-while-revalidate", renewing), max(ttl, renewing))
        rescuing = min(found.get("stale-if-error", rescuing), max(ttl, rescuing))
    else:
        renewing = rescuing = 0.0
    return Lifetime(fresh, fresh + renewing, fresh + rescuing) if fresh + renewing + rescuing > 0 else None


def age(values: Sequence[str]) -> float:
    """The seconds that an Age field tells (section 5.1); 0 where it is missing or no number."""
    return max([_seconds(value) for value in values], default=0)


def _directives(values: Sequence[str]) -> dict[str, int]:
    """Names in lower case, each with the smallest number it came with; 0 where that is none."""
    found: dict[str, int] = {}
    for value in values:
        for part in value.split(","):
            name, _, argument = part.strip().lower().partition("=")
            seconds = _seconds(argument)
            found[name] = min(seconds, found.get(name, seconds))
    return found


def _seconds(text: str) -> int:
    match = _SECONDS.match(text.strip())
    return int(match[1]) if match else 0
