"""How exact a limit is, and what it costs: 10,000 requests offered in a minute to a gateway that allows 600.

The bound is that of GCRA: in w seconds no more than the burst and what comes back in w. The gateway sees the first and
the last request at some moment between when each was sent and when it was answered, so w is known to that; both ends
of the bound are told. Requests come evenly, or as fast as they are answered (`--rush`), from 32 connections.

    python benchmarks/limits.py [--offered 10000] [--seconds 60] [--limit 600/minute] [--burst N] [--rush] [--only]

Behind that: processor time of charging one request and its tokens, headers included, by how many limits apply, and what
a million keys take in memory.
"""

import argparse
import asyncio
import json
import tempfile
import time
import timeit
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from driving.gateway import AUTHORIZATION, MODEL, Gateway, started
from driving.http import Connection, listening
from gateways.processes import heed_sigterm

from app.access import Principal
from app.config import Rate, Tenant
from app.exchange import Exchange
from app.fields import Fields
from app.limiting import Limiter
from app.policy.quota import Claim, Limit, account
from app.stores.memory import MemoryLimits
from app.telemetry.metrics import Metrics
from app.telemetry.observed import CacheStats
from app.types import Call, Head

CLIENTS = 32
WELL = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@dataclass
class Offer:
    """What was sent and answered, in seconds of the monotonic clock."""

    sent: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def shortest(self) -> float:
        """From the first to the last request, at least."""
        return self.sent[-1] - self.answered[0]

    @property
    def longest(self) -> float:
        """From the first to the last request, at most."""
        return self.answered[-1] - self.sent[0]


async def offered(gateway: Gateway, options: argparse.Namespace) -> Offer:
    """The requests of a run, each a text of its own, so that none is answered from the cache."""
    offer, numbers = Offer(), iter(range(options.offered))
    connections = [await Connection.to(gateway.port) for _ in range(CLIENTS)]
    await _ask(connections[0], next(numbers), offer)  # by itself, so that it is known well when it was charged
    begun = offer.sent[0]

    async def client(connection: Connection) -> None:
        for number in numbers:
            if not options.rush:
                due = begun + number * options.seconds / options.offered
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await _ask(connection, number, offer)
        connection.close()

    await asyncio.gather(*map(client, connections))
    return offer


async def _ask(connection: Connection, number: int, offer: Offer) -> None:
    body = {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": str(number)}]}
    offer.sent.append(time.monotonic())
    answer = await connection.post("/v1/chat/completions", json.dumps(body).encode(), AUTHORIZATION)
    offer.answered.append(time.monotonic())
    offer.statuses[answer.status] = offer.statuses.get(answer.status, 0) + 1


async def exactness(options: argparse.Namespace) -> bool:
    rate = Rate.model_validate(options.limit)
    burst = options.burst or rate.burst
    limit = {"amount": rate.amount, "seconds": rate.seconds, "burst": burst}
    upstream, port = await listening(lambda _: WELL)
    with tempfile.TemporaryDirectory() as directory:
        async with started(Path(directory), port, {"requests": limit}) as gateway:
            offer = await offered(gateway, options)
    upstream.close()
    admitted, per_second = offer.statuses.get(200, 0), rate.amount / rate.seconds
    low, high = (burst + per_second * seconds for seconds in (offer.shortest, offer.longest))
    others = {status: count for status, count in offer.statuses.items() if status not in (200, 429)}
    least = low - 1 if burst > 1 else 0  # a burst of 1 keeps nothing of what comes back between two requests
    within = least <= admitted <= high + 1 and not others
    print(
        f"{options.limit}, burst {burst}: {len(offer.sent)} offered in {offer.longest:.3f} s, {admitted} admitted; "
        f"the bound is {low:.2f} to {high:.2f}{'' if within else ': NOT WITHIN ONE'}"
        + (f"; other answers {others}" if others else "")
    )
    return within


def costs() -> None:
    """Microseconds of one request's charges, as the pipeline makes them."""
    own = {"requests": "1000000/second", "tokens": "1000000000/second", "concurrency": 1000}
    few: dict[str, Any] = {"tenant alone": own, "tenant and key": {**own, "per_key": own}}
    for name, limits in {**few, "tenant, key and model": {**own, "per_key": own, "models": {"m": own}}}.items():
        work = _charging(Tenant.model_validate({"id": "t", "limits": limits}))
        best = min(timeit.repeat(work, number=20_000, repeat=7)) / 20_000
        print(f"{name}: {1e6 * best:.1f} us for a request's charges, reserved, settled and told")


def _charging(tenant: Tenant) -> Callable[[], None]:
    limiter = Limiter(MemoryLimits(), Metrics(list, lambda: CacheStats(0, 0, 0)))
    head = Head("POST", "/v1/chat/completions", Fields([]), None)
    exchange = Exchange(head, "id", None, "openai", "en", datetime.now(UTC))
    exchange.principal = principal = Principal(tenant, "0" * 8, account(tenant, "0" * 64))
    call = Call("openai", head.path, "m", b"", (), b"", cacheable=True, stream=False, tokens=75)

    def work() -> None:
        limiter.admit(exchange, principal)
        hold = limiter.reserve(exchange, call)
        hold.enter()
        hold.settle(120)
        hold.leave()
        assert exchange.bill is not None
        exchange.bill.headers()

    return work


def memory(keys: int = 1_000_000) -> None:
    """What that many keys take that come within a second, none of which has recovered."""
    store, rate = MemoryLimits(), Rate.model_validate("600/minute")
    tracemalloc.start()
    for number in range(keys):
        store.charge([Claim(Limit(f"tenant/key/{number:064x}/requests", "requests", rate, "600"), 1)], number / keys)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{keys} keys within a second: {len(store)} kept, {held / 2**20:.1f} MiB")


def main() -> None:
    heed_sigterm()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offered", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="over which they are offered")
    parser.add_argument("--limit", default="600/minute")
    parser.add_argument("--burst", type=int, help="the whole amount unless given")
    parser.add_argument("--rush", action="store_true", help="offer them as fast as they are answered")
    parser.add_argument("--only", action="store_true", help="without what it costs")
    options = parser.parse_args()
    if not options.only:
        costs()
        memory()
    if not uvloop.run(exactness(options)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
