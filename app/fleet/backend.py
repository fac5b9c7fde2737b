"""One server of a region: what a configuration says of it, and how it is doing, which outlives that configuration."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Literal

from app.config import Backend
from app.policy.breaker import Breaker
from app.policy.pace import Pace, Usual

Health = Literal["up", "down", "unknown"]

_SERVES: Final = {"openai": ("openai",), "kserve": ("kserve",), "tidegate": ("openai", "kserve")}


@dataclass(slots=True, eq=False)
class Condition:
    """How one server is doing. Only registries write to it; it outlives the configuration that first named the server.

    `good` and `bad` count probes in a row. `latency_ms` averages probes, which ask the same small thing of every
    backend; the time of requests depends on what they ask and says nothing across regions. It is kept in `request_ms`
    to choose among the backends of one region, and compared with the `usual` time of each kind of request in `pace`,
    which knows of slowness that probes do not meet. `probed` is the time of the last probe in seconds.
    """

    health: Health = "unknown"
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    latency_ms: float | None = None
    request_ms: float | None = None
    pace: Pace = field(default_factory=Pace)
    usual: dict[Hashable, Usual] = field(default_factory=dict)
    probed: float | None = None
    good: int = 0
    bad: int = 0
    answered: bool = False
    """Whether it has ever answered a probe well."""
    back: float | None = None
    """When (seconds) it last came back after it had been down or its breaker open; None: it has not been away."""


@dataclass(frozen=True, slots=True, eq=False)
class BackendState:
    """One server of a region as one configuration knows it, and how it is doing."""

    region: str
    config: Backend
    url: str
    condition: Condition

    @property
    def health(self) -> Health:
        return self.condition.health

    @property
    def alive(self) -> bool:
        """Whether probes speak for it.

        Before the first probe, a server that stands on its own counts as alive: it ran before this gateway did, which
        need not turn requests away after each restart. A managed worker does not: it is being started just now.
        """
        return self.health == "up" or (self.health == "unknown" and not self.config.managed)

    def serves(self, model: str, wire: Literal["openai", "kserve"]) -> bool:
        return model in self.config.models and wire in _SERVES[self.config.protocol]


def known_or_new(region: str, config: Backend, url: str, known: list[BackendState]) -> BackendState:
    """The backend that is known, and taken from `known`; else a new one, which keeps the condition of its server."""
    same = [one for one in known if (one.region, one.url, one.config.protocol) == (region, url, config.protocol)]
    found = next((one for one in same if one.config == config), same[0] if same else None)
    if found is None:
        return BackendState(region, config, url, Condition())
    known.remove(found)
    return found if found.config == config else BackendState(region, config, url, found.condition)
