"""Which region answers soonest while regions fail: our ranking against nearest-first, round-robin and Envoy's rule.

100 regions, one in each of the most populous countries, serve requests from all over the world for about a quarter of
an hour in which regions die, lose half their backends, or go slow while still healthy. Every policy meets the same
requests, faults and service times, and drives the real `fleet.registry` (probes, breakers, choice within a region) and
`policy.retry` on a simulated clock; only the order of regions differs: ours is `policy.routing.route`.

    python benchmarks/routing.py [--requests 1000000] [--callers people|land] [--seed 1] [--rate 1100]

Modelled: distance (each pair of country and region has its own detour over the great circle, of which no policy knows),
callers spread over their country while policies see its middle only, backends with four slots and a bounded queue that
say `overloaded` when it is full, refused connections, requests lost with their backend, probes each 5 s, cold backends
after a return, and laws: a tenth of the countries permits every region, four tenths the 30 nearest, half the 5 nearest.
Slow regions take 5 to 20 times as long; half of them answer probes as slowly (their hosts are slow), half do not (their
accelerators are).

Not modelled: networks that lose or delay packets, connections that hang, answers of 5xx, several gateways that each see
their own requests only, the way between gateway and region (which probes measure too), models of different cost, daily
rhythm, and Envoy's panic mode, which sends requests to backends that are known to be dead.

Columns: time until the answer, failed requests counted as endless; requests that failed; attempts outside the permitted
set; attempts, in percent of the requests, at a region that was dead or slow although another permitted one would have
been sooner (misrouted); and what a request costs this program, of which the gateway pays the part that ranks.
"""

import argparse
import random
import sys
import time
from typing import Final

import numpy as np
from simulated.run import Clock, Maker, Policy, Ranked, Run, plan
from simulated.world import POINTS, SERVICE_S, SPREAD, World, build

from app.fleet.backend import BackendState
from app.fleet.registry import Registry
from app.policy.routing import home_key, route


def ours(world: World, registry: Registry, _: Clock) -> Policy:
    def choose(country: int, draw: float) -> Ranked:
        able, place = world.permitted[country], world.places[country]
        found = route(able, registry.states(able), place, homes=registry.homes, draw=draw)
        if found.home is not None:
            registry.settled(home_key(place, able), found.home)
        return found.order

    return choose


def nearest_first(world: World, _: Registry, __: Clock) -> Policy:
    return lambda country, _: world.nearest[country]


def round_robin(world: World, _: Registry, __: Clock) -> Policy:
    turns = [0] * len(world.permitted)

    def choose(country: int, _: float) -> Ranked:
        turns[country] += 1
        at = turns[country] % len(world.permitted[country])
        return world.permitted[country][at:] + world.permitted[country][:at]

    return choose


def envoy(world: World, registry: Registry, clock: Clock) -> Policy:
    """Priorities by distance; each takes 1.4 times its healthy share of what is left (overprovisioning factor)."""
    backends: dict[str, list[BackendState]] = {}
    for backend in registry.backends:
        backends.setdefault(backend.region, []).append(backend)
    breaker = world.settings.resilience.breaker

    def health(region: str, now: float) -> float:
        every = backends[region]
        return sum(one.alive and one.condition.breaker.permits(now, breaker) for one in every) / len(every)

    def choose(country: int, draw: float) -> Ranked:
        order = world.nearest[country]
        left, now = 1.0, clock()
        for place, region in enumerate(order):
            taken = min(left, 1.4 * health(region, now))
            if draw < 1 - left + taken:
                return [region, *order[:place], *order[place + 1 :]]
            left -= taken
        return order

    return choose


POLICIES: Final[dict[str, Maker]] = {
    "tidegate": ours,
    "nearest first": nearest_first,
    "round robin": round_robin,
    "envoy": envoy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--callers", choices=["people", "land"], default="people")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1100.0, help="requests a second, all over the world")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    options = parser.parse_args()
    chance = np.random.default_rng(options.seed)
    world = build(options.callers, options.rate, chance)
    times = np.cumsum(chance.exponential(1 / options.rate, options.requests))
    callers = chance.integers(0, POINTS, options.requests).tolist()
    draws = chance.random(options.requests).tolist()
    work = (SERVICE_S * np.exp(SPREAD * chance.standard_normal(options.requests))).tolist()
    faults = plan(float(times[-1]), random.Random(options.seed))
    print(f"{'':14}{'p50':>10}{'p99':>10}{'p99.9':>10}{'failed':>10}{'outside':>10}{'misrouted':>11}{'us each':>10}")
    for name in options.policies:
        print(f"{name} ...", file=sys.stderr)
        began = time.perf_counter()
        run = Run(world, POLICIES[name], options.seed, options.requests)
        run.schedule(faults, float(times[-1]))
        for number, when in enumerate(times.tolist()):
            run.until(when)
            run.arrive(number, callers[number], draws[number], work[number])
        run.until(float(times[-1]) + 600)
        spent = (time.perf_counter() - began) / options.requests * 1e6
        print(f"{name:14}{row(run)}{spent:10.0f}", flush=True)


def row(run: Run) -> str:
    """The figures of one run, in the columns of the table."""
    total = len(run.seconds)
    times = "".join(f"{np.percentile(run.seconds, q, method='higher') * 1000:7.0f} ms" for q in (50, 99, 99.9))
    failed = float(np.isinf(run.seconds).mean()) * 100
    return f"{times}{failed:9.3f}%{run.outside:10d}{run.misrouted / total * 100:10.3f}%"


if __name__ == "__main__":
    main()
