"""What a request costs in a gateway: Tidegate and what a user would pick instead, before one constant upstream.

Each candidate runs on one core, load and upstream on another; all are up, one is asked at a time, and they take turns,
round by round, so that a drift of the machine's speed meets all of them. Processor time is the kernel's accounting of
the candidate's whole process tree. Requests are chats of 300 bytes, answers have 600; connections are kept. Tidegate
does its whole work, audit durable on disk; `cache hit` is the same with one text that comes again.

    python benchmarks/gateway.py [--seconds 5] [--rounds 3] [--clients 64] [--peers var/peers] [--only NAME...]

The peers are fetched into `--peers` the first time, some minutes and about a gigabyte. What is found is printed, and
written to benchmarks/results/ with `--write`.
"""

import argparse
import datetime as dt
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gateways.candidates import KEY, Candidate, candidates, upstream
from gateways.load import BODY, PATH, Generator, Load
from gateways.peers import Peers
from gateways.processes import cpu_seconds, resident, running

HALF_CLIENTS = 100
"""Clients at half of a candidate's peak."""

COLUMNS = (
    "candidate",
    "CPU us a request",
    "times vllm-router",
    "requests/s",
    "p50 of one, ms",
    "added",
    "p99 at half, ms",
    "RSS MiB",
    "start s",
    "errors",
)


@dataclass(frozen=True)
class Round:
    """One candidate's turn: microseconds of processor time for a request, and what clients saw."""

    cpu: float
    load: Load
    one: Load


@dataclass(frozen=True)
class Up:
    """A candidate that answers: its process, and the seconds it took until it did."""

    candidate: Candidate
    pid: int
    seconds: float


def until_up(candidate: Candidate, began: float) -> float:
    """Seconds from the start until the first answer; raises TimeoutError after two minutes."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{candidate.port}{PATH}", json.dumps(BODY).encode(), headers, method="POST"
    )
    while time.monotonic() - began < 120:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                if answer.status == 200:
                    return time.monotonic() - began
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.02)
    raise TimeoutError(f"{candidate.name} gives no answer; its log lies beside its configuration")


def one_round(up: Up, generator: Generator, clients: int, seconds: float) -> Round:
    alone = generator.flat_out(up.candidate, 1, max(1.0, seconds / 3))
    before = cpu_seconds(up.pid)
    load = generator.flat_out(up.candidate, clients, seconds)
    return Round(1e6 * (cpu_seconds(up.pid) - before) / max(load.requests, 1), load, alone)


def table(ups: list[Up], rounds: dict[str, list[Round]], half: dict[str, Load]) -> str:
    """The report; ratios are medians of the rounds' own, as candidates take turns within a round."""
    base = rounds["vllm-router"] if "vllm-router" in rounds else next(iter(rounds.values()))
    direct = statistics.median(each.one.p50 for each in rounds["direct"])
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(['---'] * len(COLUMNS))} |"]
    for up in ups:
        name = up.candidate.name
        seen = rounds[name]
        times = statistics.median(one.cpu / other.cpu for one, other in zip(seen, base, strict=True))
        one = statistics.median(each.one.p50 for each in seen)
        cells = [
            name,
            f"{statistics.median(each.cpu for each in seen):.0f}",
            f"{times:.2f}",
            f"{statistics.median(each.load.rate for each in seen):,.0f}",
            f"{one:.2f}",
            f"{one - direct:.2f}",
            f"{half[name].p99:.1f}" if name in half else "",
            f"{resident(up.pid):.0f}",
            f"{up.seconds:.1f}",
            str(sum(each.load.errors + each.one.errors for each in seen)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> str:
    """Processor, cores and kernel, in words."""
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}"


def compare(options: argparse.Namespace, directory: Path) -> str:
    peers = Peers(options.peers)
    peers.install()
    chosen = [one for one in candidates(peers, directory) if not options.only or one.name in options.only]
    several = (os.cpu_count() or 1) > 1
    core, other = (0, 1) if several else (None, None)
    generator = Generator(peers, directory, other)
    rounds: dict[str, list[Round]] = defaultdict(list)
    half: dict[str, Load] = {}
    ups = []
    with ExitStack() as stack:
        for candidate in [upstream(peers, directory), *chosen]:
            print(f"==> starting {candidate.name}", file=sys.stderr)
            began = time.monotonic()
            where = other if candidate.name == "direct" else core
            log = directory / f"{candidate.port}.log"
            pid = stack.enter_context(running(candidate.command, log, core=where, environ=candidate.environ))
            ups.append(Up(candidate, pid, until_up(candidate, began)))
        for turn in range(options.rounds):
            for up in ups:
                print(f"==> round {turn + 1}/{options.rounds}: {up.candidate.name}", file=sys.stderr)
                rounds[up.candidate.name].append(one_round(up, generator, options.clients, options.seconds))
        for up in ups:
            peak = statistics.median(each.load.rate for each in rounds[up.candidate.name])
            print(f"==> {up.candidate.name} at half of {peak:,.0f} requests/s", file=sys.stderr)
            half[up.candidate.name] = generator.paced(up.candidate, HALF_CLIENTS, peak / 2, max(2.0, options.seconds))
        return table(ups, rounds, half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load for each candidate in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--peers", type=Path, default=Path("var/peers"), help="folder for what is compared with")
    parser.add_argument("--only", nargs="+", help="candidates to run, by name")
    parser.add_argument("--write", action="store_true", help="write the table to benchmarks/results/")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report = f"{machine()}; {options.clients} clients, {options.rounds} rounds of {options.seconds:.0f} s\n\n"
        report += compare(options, Path(directory))
    print(report)
    if options.write:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        day = dt.datetime.now(dt.UTC).date().isoformat()
        (results / f"{day}-gateway.md").write_text(f"# benchmarks/gateway.py\n\n{report}\n")


if __name__ == "__main__":
    main()
