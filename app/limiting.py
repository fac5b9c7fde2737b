"""Limits: requests before the body, tokens and concurrency after it, given back where they turn out not to be used.

What one limit refuses is charged to none, also where others had been charged before.
"""

import time
from collections.abc import Sequence
from datetime import timedelta

from app.access import Principal
from app.errors import RateLimited
from app.exchange import Exchange
from app.policy.bill import Bill, Charge
from app.policy.quota import Claim, Place, Terms
from app.stores.base import LimitStore
from app.telemetry.metrics import Metrics
from app.types import Call

_NO_TERMS = Terms(requests=(), tokens=(), places=(), policy="")
_WHEN_FULL = timedelta(seconds=1)
"""When to come back where too many requests run: nobody knows when one of them ends."""


class Hold:
    """What a request holds of the limits until it ends: tokens that it may use, and its place among those that run.

    `leave` is due once, whatever happens; where a stream takes the hold along, it falls to the stream.
    """

    __slots__ = ("_bill", "_metrics", "_open", "_places", "_store", "_terms", "handed_on")

    def __init__(self, store: LimitStore, metrics: Metrics, bill: Bill, terms: Terms) -> None:
        self._store = store
        self._metrics = metrics
        self._bill = bill
        self._terms = terms
        self._places: Sequence[Place] = ()
        self._open = True
        self.handed_on = False

    def enter(self) -> None:
        """Take a place among the requests that run; raises `RateLimited`, with nothing charged, where all are taken."""
        places = self._terms.places
        if not places:
            return
        full = self._store.acquire(places)
        if full is None:
            self._places = places
            return
        self.settle(0)
        self._bill.requests = _settled(self._store, self._bill.requests, 0)
        self._metrics.limited(full.name)
        raise RateLimited("concurrency", n=full.most, retry_after=_WHEN_FULL)

    def settle(self, used: int) -> None:
        """Charge what was used in place of what was expected. The first word on it counts."""
        if self._open:
            self._open = False
            self._bill.tokens = _settled(self._store, self._bill.tokens, used)

    def leave(self) -> None:
        """Give the place up, and the tokens back whole where nothing was said of their use."""
        self.settle(0)
        places, self._places = self._places, ()
        if places:
            self._store.release(places)


class Limiter:
    """Charges the limits of tenants, keys and models; every key of a tenant counts towards the tenant's."""

    def __init__(self, store: LimitStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    def admit(self, exchange: Exchange, principal: Principal) -> None:
        """Charge one request to tenant and key; raises `RateLimited`."""
        account = principal.account
        exchange.bill = bill = Bill(account.terms.policy)
        if account.arrival:
            bill.requests, refused = self._charge(account.arrival)
            if refused:
                raise self._refusal(bill.requests)

    def reserve(self, exchange: Exchange, call: Call) -> Hold:
        """Charge the request to its model, and the tokens that it may use; raises `RateLimited`, nothing charged."""
        bill, principal = exchange.bill, exchange.principal
        assert bill is not None and principal is not None  # noqa: S101, PT018 - admit has set them
        terms = principal.account.of(call.model)
        bill.policy = terms.policy
        if terms.tokens or terms.requests:
            self._reserve(bill, terms, call.tokens)
        return Hold(self._store, self._metrics, bill, terms)

    def unbounded(self) -> Hold:
        """The hold of a request that is nobody's."""
        return Hold(self._store, self._metrics, Bill(""), _NO_TERMS)

    def _reserve(self, bill: Bill, terms: Terms, tokens: int) -> None:
        own = terms.requests
        claims = [Claim(limit, tokens) for limit in terms.tokens]
        charges, refused = self._charge([*own, *claims] if own else claims)
        before = bill.requests
        bill.tokens = charges[len(own) :] if own else charges
        if refused:
            before = _settled(self._store, before, 0)
        if own or refused:
            bill.requests = [*before, *charges[: len(own)]]
        if refused:
            raise self._refusal(charges)

    def _charge(self, claims: Sequence[Claim]) -> tuple[Sequence[Charge], bool]:
        """What the claims came to, and whether one of them, and so all, were refused."""
        allowances = self._store.charge(claims, time.monotonic())
        refused = False
        for allowance in allowances:
            if not allowance.allowed:
                refused = True
        return list(zip(claims, allowances, strict=True)), refused

    def _refusal(self, charges: Sequence[Charge]) -> RateLimited:
        """The error for the limit that takes longest to have room."""
        refused = [charge for charge in charges if not charge[1].allowed]
        (limit, cost), allowance = max(refused, key=_wait)
        self._metrics.limited(limit.name)
        if allowance.retry_after is None:
            return RateLimited("never", n=cost, limit=limit.rate.burst)
        detail = "tokens" if limit.name.endswith("tokens") else None
        return RateLimited(detail, retry_after=timedelta(seconds=allowance.retry_after))


def _wait(charge: Charge) -> float:
    wait = charge[1].retry_after
    return float("inf") if wait is None else wait


def _settled(store: LimitStore, charges: Sequence[Charge], used: int) -> Sequence[Charge]:
    now = time.monotonic()
    return [
        (Claim(limit, used), store.settle(limit, allowance, cost - used, now) if cost != used else allowance)
        for (limit, cost), allowance in charges
    ]
