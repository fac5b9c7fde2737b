"""One routing policy through a simulated quarter of an hour: requests, faulty backends, probes and retries."""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from app.fleet.backend import BackendState
from app.fleet.registry import Registry
from app.policy.retry import delay
from app.types import PermittedRegion
from simulated.world import MODEL, REGIONS, SERVICE_S, SLOTS, World

QUEUE: Final = 20 * SLOTS
"""Requests that may wait at a backend before it says `overloaded`."""
PROBE_S: Final = 0.003
PROBE_EVERY_S: Final = 5.0
Ranked = Sequence[PermittedRegion]
Policy = Callable[[int, float], Ranked]
"""Regions to try, best first, for a caller's country and a draw in [0, 1)."""
Clock = Callable[[], float]
Maker = Callable[[World, Registry, Clock], Policy]


@dataclass(eq=False)
class Machine:
    """The truth about one backend: when its slots are free, whether it lives, and how slow it is."""

    up: bool = True
    slow: float = 1.0
    probes_slow: bool = True
    back: float = -math.inf
    free: list[float] = field(default_factory=lambda: [0.0] * SLOTS)
    waiting: int = 0

    def factor(self, now: float) -> float:
        """How many times as long as usual a request takes; a machine that has just come back is cold."""
        return self.slow * (1 + 3 * math.exp(-(now - self.back) / 10))


@dataclass(order=True)
class Event:
    at: float
    number: int
    act: Callable[[float], None] = field(compare=False)


@dataclass
class Fault:
    """One entry of the fault plan: between `start` and `end` these machines are dead, or slow by `factor`."""

    start: float
    end: float
    region: int
    part: float
    factor: float | None
    probes_slow: bool


def plan(duration: float, chance: random.Random) -> list[Fault]:
    """For each 100 s: three regions die, two lose half their backends, five go slow. Each region has one at a time."""
    kinds = [(1.0, False)] * 3 + [(0.5, False)] * 2 + [(1.0, True)] * 5
    faults: list[Fault] = []
    for step in range(max(1, round(duration / 100))):
        for part, slow in kinds:
            start = 100 * step + chance.uniform(5, 95)
            end = start + chance.uniform(30, 150)
            busy = {fault.region for fault in faults if fault.end + 60 > start}
            region = chance.choice([each for each in range(REGIONS) if each not in busy])
            faults.append(
                Fault(start, end, region, part, chance.uniform(5, 20) if slow else None, chance.random() < 0.5)
            )
    return faults


@dataclass
class Request:
    number: int
    caller: int
    began: float
    ranked: Ranked
    work: float
    tried: set[BackendState] = field(default_factory=set)
    attempts: int = 0


class Run:
    """One policy through the whole plan."""

    def __init__(self, world: World, policy: Maker, seed: int, requests: int) -> None:
        self.now = 0.0
        self.world = world
        self.registry = Registry(world.settings, {}, self.clock)
        self.choose = policy(world, self.registry, self.clock)
        self.machines = {backend: Machine() for backend in self.registry.backends}
        self.by_region: list[list[Machine]] = [[] for _ in range(REGIONS)]
        for backend, machine in self.machines.items():
            self.by_region[world.index[backend.region]].append(machine)
        self.events: list[Event] = []
        self.flying: dict[int, tuple[BackendState, Request]] = {}
        self.count = 0
        self.chance = random.Random(seed)
        self.seconds = np.full(requests, np.inf)
        self.outside = self.misrouted = 0

    def clock(self) -> float:
        return self.now

    def at(self, when: float, act: Callable[[float], None]) -> int:
        self.count += 1
        heapq.heappush(self.events, Event(when, self.count, act))
        return self.count

    def schedule(self, faults: list[Fault], duration: float) -> None:
        """Every fault, and a probe of each backend each 5 s."""
        for fault in faults:
            machines = self.by_region[fault.region]
            hit = machines[: max(1, round(len(machines) * fault.part))]
            self.at(fault.start, lambda _, fault=fault, hit=hit: self._begin(fault, hit))
            self.at(fault.end, lambda now, hit=hit: self._end(now, hit))
        for backend in self.registry.backends:
            self.at(
                self.chance.random() * PROBE_EVERY_S, lambda now, backend=backend: self._probe(backend, now, duration)
            )

    def until(self, when: float) -> None:
        while self.events and self.events[0].at <= when:
            event = heapq.heappop(self.events)
            self.now = event.at
            event.act(event.at)
        self.now = when

    def arrive(self, number: int, caller: int, draw: float, work: float) -> None:
        request = Request(number, caller, self.now, self.choose(self.world.country[caller], draw), work)
        self._attempt(request)

    def _attempt(self, request: Request) -> None:
        """One attempt, as `app.forwarding` makes it: the best region with an untried backend, else the best again."""
        request.attempts += 1
        backend = self._next(request)
        if backend is None:
            return
        request.tried.add(backend)
        self._judge(request, backend.region)
        machine = self.machines[backend]
        rtt = self.world.rtt[request.caller][self.world.index[backend.region]]
        self.registry.started(backend)
        if not machine.up:
            self.at(self.now + rtt, lambda _: self._refused(request, backend))
        elif machine.waiting >= QUEUE + SLOTS:
            self.at(self.now + rtt, lambda _: self._over(request, backend, failed=False))
        else:
            self._serve(request, backend, machine, rtt)

    def _next(self, request: Request) -> BackendState | None:
        for exclude in (request.tried, frozenset[BackendState]()):
            for region in request.ranked:
                backend = self.registry.pick(region, MODEL, "openai", self.chance.random(), exclude)
                if backend is not None:
                    return backend
        return None

    def _serve(self, request: Request, backend: BackendState, machine: Machine, rtt: float) -> None:
        start = max(self.now + rtt / 2, heapq.heappop(machine.free))
        end = start + request.work * machine.factor(start)
        heapq.heappush(machine.free, end)
        machine.waiting += 1
        began = self.now
        number = self.at(end + rtt / 2, lambda now: self._answered(number, began, now))
        self.flying[number] = (backend, request)

    def _answered(self, number: int, began: float, now: float) -> None:
        if number not in self.flying:
            return  # it was lost with its backend
        backend, request = self.flying.pop(number)
        self.machines[backend].waiting -= 1
        self.registry.finished(backend, failed=False, seconds=now - began, kind=MODEL)
        self.seconds[request.number] = now - request.began

    def _refused(self, request: Request, backend: BackendState) -> None:
        self.registry.refused(backend)
        self._over(request, backend, failed=True)

    def _over(self, request: Request, backend: BackendState, *, failed: bool) -> None:
        self.registry.finished(backend, failed=failed, seconds=None)
        retry = self.world.settings.resilience.retry
        if request.attempts < retry.attempts:
            pause = delay(request.attempts, retry, self.chance.random())
            self.at(self.now + pause, lambda _: self._attempt(request))

    def _begin(self, fault: Fault, machines: list[Machine]) -> None:
        for machine in machines:
            if fault.factor is not None:
                machine.slow, machine.probes_slow = fault.factor, fault.probes_slow
            else:
                machine.up = False
        dead = {id(machine) for machine in machines if not machine.up}
        lost = [number for number, (backend, _) in self.flying.items() if id(self.machines[backend]) in dead]
        for number in lost:
            backend, request = self.flying.pop(number)
            self._over(request, backend, failed=True)

    def _end(self, now: float, machines: list[Machine]) -> None:
        for machine in machines:
            if not machine.up:
                machine.up, machine.back, machine.free, machine.waiting = True, now, [now] * SLOTS, 0
            machine.slow = 1.0

    def _probe(self, backend: BackendState, now: float, duration: float) -> None:
        machine = self.machines[backend]
        seconds = PROBE_S * (machine.factor(now) if machine.probes_slow else 1.0)
        self.registry.probed(backend, machine.up, seconds)
        if now < duration:
            self.at(
                now + PROBE_EVERY_S * self.chance.uniform(0.9, 1.1), lambda then: self._probe(backend, then, duration)
            )

    def _judge(self, request: Request, region: str) -> None:
        """Counts an attempt outside the permitted set, and one at a bad region where another would be sooner."""
        permitted = self.world.permitted[self.world.country[request.caller]]
        self.outside += region not in permitted
        here = self._idle(request.caller, self.world.index[region], bad=True)
        if here is not None:
            others = (self._idle(request.caller, self.world.index[one], bad=False) for one in permitted)
            self.misrouted += any(other is not None and other < here for other in others)

    def _idle(self, caller: int, region: int, *, bad: bool) -> float | None:
        """Seconds that a request would take there, were nobody else in it; None where the region is not (`bad`)."""
        machines = self.by_region[region]
        alive = [machine.slow for machine in machines if machine.up]
        slow = min(alive, default=math.inf)
        return None if bad != (slow > 1) else self.world.rtt[caller][region] + SERVICE_S * slow
