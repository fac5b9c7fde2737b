"""Limits of a tenant: requests before the body, tokens and concurrency after it, told in every answer's headers."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from app.config import Limits, Rate, Tenant
from app.errors import RateLimited
from app.exchange import Exchange
from app.policy.rate import Allowance
from app.stores.base import LimitStore
from app.telemetry.metrics import Metrics


class Limiter:
    """Charges a tenant's limits. Every charge is kept per tenant, whichever of its keys was used."""

    def __init__(self, store: LimitStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    def request(self, exchange: Exchange, tenant: Tenant) -> None:
        """Charge one request; raises `RateLimited`."""
        self._charge(exchange, tenant, "requests", tenant.limits.requests, 1)

    def tokens(self, exchange: Exchange, tenant: Tenant, estimate: int) -> None:
        """Charge the tokens that a request is expected to use; raises `RateLimited`."""
        self._charge(exchange, tenant, "tokens", tenant.limits.tokens, estimate)

    def settle(self, tenant: Tenant, estimate: int, used: int) -> None:
        """Give back what a request was charged beyond what it used, or charge what it used beyond that."""
        if tenant.limits.tokens is not None and used != estimate:
            self._store.refund(f"{tenant.id}/tokens", estimate - used)

    @contextmanager
    def running(self, tenant: Tenant) -> Iterator[None]:
        """Hold one of the tenant's places for concurrent requests; raises `RateLimited` where all are taken."""
        limit = tenant.limits.concurrency
        if limit is None:
            yield
            return
        if not self._store.acquire(tenant.id, limit):
            self._metrics.limited("concurrency")
            raise RateLimited("concurrency", n=limit, retry_after=timedelta(seconds=1))
        try:
            yield
        finally:
            self._store.release(tenant.id)

    def _charge(self, exchange: Exchange, tenant: Tenant, name: str, rate: Rate | None, cost: int) -> None:
        if rate is None:
            return
        allowance = self._store.charge(f"{tenant.id}/{name}", rate, cost, time.monotonic())
        exchange.headers.update(limit_headers(name, rate, allowance))
        exchange.headers["RateLimit-Policy"] = _policies(tenant.limits)
        told = exchange.headers.get("RateLimit")
        own = f'"{name}";r={allowance.remaining};t={math.ceil(allowance.reset_after)}'
        exchange.headers["RateLimit"] = f"{told}, {own}" if told else own
        if allowance.allowed:
            return
        self._metrics.limited(name)
        if allowance.retry_after is None:
            raise RateLimited("never", n=cost, limit=rate.burst)
        detail = None if name == "requests" else name
        raise RateLimited(detail, retry_after=timedelta(seconds=allowance.retry_after))


def limit_headers(name: str, rate: Rate, allowance: Allowance) -> dict[str, str]:
    """OpenAI's headers for one limit; the reset is a duration such as 1m30s or 20ms."""
    return {
        f"x-ratelimit-limit-{name}": str(rate.amount),
        f"x-ratelimit-remaining-{name}": str(allowance.remaining),
        f"x-ratelimit-reset-{name}": _span(allowance.reset_after),
    }


def _policies(limits: Limits) -> str:
    """RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers): quota and window in seconds of each limit."""
    rates = (("requests", limits.requests), ("tokens", limits.tokens))
    return ", ".join(f'"{name}";q={rate.amount};w={rate.seconds}' for name, rate in rates if rate)


def _span(seconds: float) -> str:
    if seconds < 1:
        return f"{math.ceil(max(seconds, 0.0) * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"
