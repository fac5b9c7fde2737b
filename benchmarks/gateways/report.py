"""What was measured, as tables: every candidate, and Tidegate beside what it promises."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gateways.load import Load
from gateways.peers import LITELLM

OURS, HIT, DIRECT, ROUTER = "tidegate", "tidegate, cache hit", "direct", "vllm-router"


@dataclass(frozen=True)
class Round:
    """One candidate's turn: microseconds of processor time for a request, and what clients saw."""

    cpu: float
    load: Load
    one: Load


@dataclass(frozen=True)
class Result:
    """All of a candidate: seconds until its first answer, MiB before and after load, its turns, half of its peak."""

    start: float
    idle: float
    after: float
    rounds: Sequence[Round]
    half: Load

    @property
    def p50_of_one(self) -> float:
        return statistics.median(each.one.p50 for each in self.rounds)


@dataclass(frozen=True)
class Promise:
    """A figure and its bound; `found` is None where the candidate to compare with could not be had."""

    what: str
    found: float | None
    bound: float
    unit: str = ""

    def row(self) -> str:
        if self.found is None:
            return f"| {self.what} | not measured | {self.bound:g}{self.unit} | |"
        met = "yes" if self.found <= self.bound else "NO"
        return f"| {self.what} | {self.found:.3g}{self.unit} | {self.bound:g}{self.unit} | {met} |"


Results = Mapping[str, Result]


def times(results: Results, name: str, other: str) -> float | None:
    """Processor time a request over that of another: the median of the rounds' own ratios, as they take turns."""
    if name not in results or other not in results:
        return None
    pairs = zip(results[name].rounds, results[other].rounds, strict=True)
    return statistics.median(one.cpu / max(two.cpu, 1e-3) for one, two in pairs)


def comparison(results: Results) -> str:
    """A row for each candidate."""
    base = ROUTER if ROUTER in results else next(iter(results))
    columns = ("candidate", "CPU us a request", f"times {base}", "requests/s", "p50 ms", "p99 ms", "p50 of one, ms",
               "added", "p99 at half, ms", "(requests/s)", "RSS idle, MiB", "after", "start s", "errors")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join(['---'] * len(columns))} |"]
    lines += [f"| {name} | {' | '.join(_cells(results, name, base))} |" for name in results]
    return "\n".join(lines)


def _cells(results: Results, name: str, base: str) -> Iterator[str]:
    one = results[name]
    yield f"{statistics.median(each.cpu for each in one.rounds):.0f}"
    yield f"{times(results, name, base):.2f}"
    yield f"{statistics.median(each.load.rate for each in one.rounds):,.0f}"
    yield f"{statistics.median(each.load.p50 for each in one.rounds):.1f}"
    yield f"{statistics.median(each.load.p99 for each in one.rounds):.1f}"
    yield f"{one.p50_of_one:.2f}"
    yield f"{one.p50_of_one - results[DIRECT].p50_of_one:.2f}"
    yield f"{one.half.p99:.1f}"
    yield f"{one.half.rate:,.0f}"
    yield f"{one.idle:.0f}"
    yield f"{one.after:.0f}"
    yield f"{one.start:.2f}"
    yield str(one.half.errors + sum(each.load.errors + each.one.errors for each in one.rounds))


def promises(results: Results, floor: Load | None) -> str:
    """Tidegate's figures beside their bounds; `floor` is the upstream asked at the rate at which Tidegate was."""
    lines = ["| promise | found | at most | met |", "| --- | --- | --- | --- |"]
    lines += [promise.row() for promise in _promises(results)]
    if floor:
        lines += ["", f"Asked directly at that same rate, the upstream's own p99 was {floor.p99:.1f} ms."]
    return "\n".join(lines)


def _promises(results: Results) -> Iterator[Promise]:
    yield Promise("CPU a request, whole path, times vllm-router", times(results, OURS, ROUTER), 2.0)
    yield Promise("CPU a request, cache hit, times vllm-router", times(results, HIT, ROUTER), 1.3)
    for name, package in LITELLM.items():
        release = package.rpartition("==")[2]
        yield Promise(f"CPU a request, whole path, times LiteLLM {release}", times(results, OURS, name), 1 / 50)
    ours = results.get(OURS)
    if ours is not None:
        yield Promise("added p50 at one client", ours.p50_of_one - results[DIRECT].p50_of_one, 1.0, " ms")
        yield Promise("p99, 100 clients, half of peak", ours.half.p99, 10.0, " ms")
        yield Promise("from start to first answer", ours.start, 1.0, " s")
        yield Promise("RSS idle", ours.idle, 120.0, " MiB")
