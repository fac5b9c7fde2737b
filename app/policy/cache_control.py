"""The Cache-Control directives of a request (RFC 9111, section 5.2.1) that a gateway's cache heeds. Pure."""

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


def parse(values: Sequence[str]) -> CacheControl:
    """The directives of all Cache-Control fields; unknown ones are passed over, as the RFC asks (section 5.2.3).

    Of several `max-age` the smallest counts, and one that is no number counts as 0: the careful reading.
    """
    found = [part.strip().lower().partition("=") for value in values for part in value.split(",")]
    names = {name for name, _, _ in found}
    ages = [_seconds(value) for name, _, value in found if name == "max-age"]
    return CacheControl(
        no_store="no-store" in names,
        no_cache="no-cache" in names,
        only_if_cached="only-if-cached" in names,
        max_age=min(ages, default=None),
    )


def _seconds(text: str) -> int:
    match = _SECONDS.match(text.strip())
    return int(match[1]) if match else 0
