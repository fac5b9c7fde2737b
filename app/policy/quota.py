"""Which limits apply to a request: those of its tenant, of its key, and of its model, each with a state of its own.

All of them are named by the configuration, so no caller can make another: a model that no limit names has none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Final, NamedTuple

from app.config import Quota, Rate, Tenant

SCOPES: Final = ("", "key-", "model-")
"""What the names of a tenant's, a key's and a model's limits begin with."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One rate: `key` is under what its use is kept, `name` what headers and metrics call it."""

    key: str
    name: str
    rate: Rate
    amount: str
    """The rate's, as headers have it."""


class Claim(NamedTuple):
    """So many units of a limit."""

    limit: Limit
    cost: int


class Place(NamedTuple):
    """A bound on what runs at the same time."""

    key: str
    name: str
    most: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What applies to a request whose model is known: `requests` is due then, beyond what was when it came."""

    requests: tuple[Claim, ...]
    tokens: tuple[Limit, ...]
    places: tuple[Place, ...]
    policy: str
    """RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers): quota and window in seconds of each limit."""


@dataclass(frozen=True, slots=True)
class Account:
    """The limits of one key of a tenant: `arrival` is due as soon as a request is here, the rest with its model."""

    arrival: tuple[Claim, ...]
    terms: Terms
    """Those of models without limits of their own."""
    models: Mapping[str, Terms]

    def of(self, model: str) -> Terms:
        """What applies to requests for a model."""
        return self.models.get(model, self.terms)


@dataclass(frozen=True, slots=True)
class _Scope:
    requests: tuple[Limit, ...]
    tokens: tuple[Limit, ...]
    places: tuple[Place, ...]


def account(tenant: Tenant, key: str) -> Account:
    """The account of the key with this digest."""
    limits = tenant.limits
    common = [
        _scope(limits, tenant.id, SCOPES[0]),
        _scope(limits.per_key, f"{tenant.id}/key/{key}", SCOPES[1]),
    ]
    models = {
        name: _terms(common, [_scope(quota, f"{tenant.id}/model/{name}", SCOPES[2])])
        for name, quota in limits.models.items()
    }
    arrival = tuple(Claim(limit, 1) for scope in common for limit in scope.requests)
    return Account(arrival, _terms(common, []), MappingProxyType(models))


def _scope(quota: Quota, key: str, prefix: str) -> _Scope:
    def limit(kind: str, rate: Rate | None) -> tuple[Limit, ...]:
        return () if rate is None else (Limit(f"{key}/{kind}", f"{prefix}{kind}", rate, str(rate.amount)),)

    most = quota.concurrency
    places = () if most is None else (Place(key, f"{prefix}concurrency", most),)
    return _Scope(limit("requests", quota.requests), limit("tokens", quota.tokens), places)


def _terms(common: Sequence[_Scope], own: Sequence[_Scope]) -> Terms:
    every = [*common, *own]
    tokens = tuple(chain.from_iterable(scope.tokens for scope in every))
    return Terms(
        requests=tuple(Claim(limit, 1) for scope in own for limit in scope.requests),
        tokens=tokens,
        places=tuple(chain.from_iterable(scope.places for scope in every)),
        policy=", ".join(_policies([*(limit for scope in every for limit in scope.requests), *tokens])),
    )


def _policies(limits: Sequence[Limit]) -> Iterator[str]:
    return (f'"{limit.name}";q={limit.rate.amount};w={limit.rate.seconds}' for limit in limits)
