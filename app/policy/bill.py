"""What one request has been charged so far, and what the head of its answer tells of the limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from app.policy.quota import Claim
from app.policy.rate import Allowance

Charge = tuple[Claim, Allowance]
"""Units of a limit that a request was charged, and how that limit stood then; where refused, none were."""

_HEADERS: Final = {
    kind: tuple(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset"))
    for kind in ("requests", "tokens")
}


@dataclass(slots=True)
class Bill:
    """Of each kind of limit, all that apply."""

    policy: str
    requests: Sequence[Charge] = ()
    tokens: Sequence[Charge] = ()

    def headers(self) -> dict[str, str]:
        """Of each kind the tightest limit, the one that has refused before all: in OpenAI's headers and the IETF's."""
        told: dict[str, str] = {}
        if self.policy:
            told["ratelimit-policy"] = self.policy
        if self.requests:
            told["ratelimit"] = _told("requests", self.requests, told)
        if self.tokens:
            own = _told("tokens", self.tokens, told)
            told["ratelimit"] = f"{told['ratelimit']}, {own}" if self.requests else own
        return told


def _told(kind: str, charges: Sequence[Charge], headers: dict[str, str]) -> str:
    """How the limits of a kind stand, for RateLimit; OpenAI's headers of it go to `headers`."""
    (limit, _), allowance = charges[0] if len(charges) == 1 else max(charges, key=_tightness)
    remaining, reset = allowance.remaining, allowance.reset_after
    amount_name, remaining_name, reset_name = _HEADERS[kind]
    headers[amount_name] = limit.amount
    headers[remaining_name] = str(remaining)
    headers[reset_name] = span(reset)
    return f'"{limit.name}";r={remaining};t={ceil(reset)}'


def _tightness(charge: Charge) -> tuple[bool, float, int]:
    """Of those that are spent alike, as unused ones are but for rounding, the smallest."""
    (limit, _), allowance = charge
    return not allowance.allowed, round(allowance.spent, 9), -limit.rate.burst


def span(seconds: float) -> str:
    """A duration as OpenAI writes it, such as 1m30s or 20ms."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    minutes, rest = divmod(ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"
