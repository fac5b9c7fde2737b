"""What a request costs in a gateway: Tidegate and what a user would pick instead, before one constant upstream.

Each candidate runs on one core, load and upstream on another; all are up, one is asked at a time, and they take turns,
round by round, so that a drift of the machine's speed meets all of them. Processor time is the kernel's accounting of
the candidate's whole process tree. Requests are chats of 300 bytes, answers have 600; connections are kept. Tidegate
does its whole work, audit durable on disk; `cache hit` is the same with one text that comes again. A candidate's turn
is one client, then `--clients` of them, as fast as answers come; when all turns are over, 100 clients at half of its
peak, each of which waits by chance between an answer and its next request. wrk makes both kinds of load: it is not of
our making, comes with Debian, and takes about 10 us a request; row `direct` has what it sees without a gateway. wrk2,
which sends by the clock, is in no package; clients that wait by chance need none, as they do not come in step.

    python benchmarks/gateway.py [--brief] [--seconds 5] [--rounds 5] [--clients 64] [--peers FOLDER] [--only NAME...]

The peers are fetched the first time, some minutes and about 1.5 GB, into `--peers`, else into the user's cache. The
report is printed, and written to benchmarks/results/ unless the run is `--brief` (about two minutes) or `--only`
some candidates.
"""

import argparse
import compileall
import datetime as dt
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gateways import machine, report, stages
from gateways.candidates import KEY, Candidate, candidates, upstream
from gateways.load import BODY, PATH, Generator, Load
from gateways.peers import Peers, cache
from gateways.processes import cpu_seconds, heed_sigterm, resident, running, until
from gateways.report import Result, Round

ROOT = Path(__file__).resolve().parents[1]
HALF_CLIENTS = 100
"""Clients at half of a candidate's peak."""
SETTLED = 3.0
"""Seconds after the last start before memory is read and load begins."""


@dataclass(frozen=True)
class Up:
    """A candidate that answers: its process, the seconds it took until it did, and MiB before any load."""

    candidate: Candidate
    pid: int
    seconds: float


class Comparison:
    """One run over all candidates; `directory` is for their configurations, logs and audit."""

    def __init__(self, options: argparse.Namespace, peers: Peers, directory: Path) -> None:
        self._options = options
        self._peers = peers
        self._directory = directory
        several = (os.cpu_count() or 1) > 1
        self._core, self._other = (0, 1) if several else (None, None)
        self._generator = Generator(peers, directory, self._other)

    def run(self) -> str:
        """The report."""
        only = self._options.only
        chosen = [one for one in candidates(self._peers, self._directory) if not only or one.name in only]
        with ExitStack() as stack:
            ups = [self._start(stack, one) for one in [upstream(self._peers, self._directory), *chosen]]
            time.sleep(SETTLED)
            idle = {up.candidate.name: resident(up.pid) for up in ups}
            rounds = self._rounds(ups)
            half = {up.candidate.name: self._half(up, rounds[up.candidate.name]) for up in ups}
            results = {
                name: Result(up.seconds, idle[name], resident(up.pid), rounds[name], half[name])
                for up in ups
                for name in [up.candidate.name]
            }
            parts = [report.comparison(results), report.promises(results, self._floor(ups[0], half)), self._stages(ups)]
        return "\n\n".join(filter(None, parts))

    def _start(self, stack: ExitStack, candidate: Candidate) -> Up:
        print(f"==> starting {candidate.name}", file=sys.stderr)
        began = time.monotonic()
        core = self._other if candidate.name == report.DIRECT else self._core
        log = self._directory / f"{candidate.port}.log"
        pid = stack.enter_context(running(candidate.command, log, core=core, environ=candidate.environ))
        try:
            return Up(candidate, pid, until(lambda: answers(candidate), began))
        except TimeoutError:
            sys.exit(f"{candidate.name} gives no answer; it says:\n{log.read_text()[-2000:]}")

    def _rounds(self, ups: Sequence[Up]) -> dict[str, list[Round]]:
        rounds: dict[str, list[Round]] = defaultdict(list)
        for turn in range(self._options.rounds):
            for up in ups:
                print(f"==> round {turn + 1}/{self._options.rounds}: {up.candidate.name}", file=sys.stderr)
                rounds[up.candidate.name].append(self._round(up))
        return rounds

    def _round(self, up: Up) -> Round:
        one = self._generator.flat_out(up.candidate, 1, max(1.0, self._options.seconds / 3))
        before = cpu_seconds(up.pid)
        load = self._generator.flat_out(up.candidate, self._options.clients, self._options.seconds)
        return Round(1e6 * (cpu_seconds(up.pid) - before) / max(load.requests, 1), load, one)

    def _half(self, up: Up, rounds: Sequence[Round]) -> Load:
        peak = statistics.median(each.load.rate for each in rounds)
        print(f"==> {up.candidate.name} at half of {peak:,.0f} requests/s", file=sys.stderr)
        took = statistics.median(each.one.p50 for each in rounds)
        return self._generator.paced(up.candidate, HALF_CLIENTS, peak / 2, max(2.0, self._options.seconds), took)

    def _floor(self, direct: Up, half: dict[str, Load]) -> Load | None:
        ours = half.get(report.OURS)
        return ours and self._generator.paced(
            direct.candidate, HALF_CLIENTS, ours.rate, max(2.0, self._options.seconds)
        )

    def _stages(self, ups: Sequence[Up]) -> str:
        ours = [up.candidate for up in ups if up.candidate.name in (report.OURS, report.HIT)]
        return stages.table({one.name: stages.sample(one, 300) for one in ours}) if ours else ""


def answers(candidate: Candidate) -> bool:
    """Whether a request is answered 200."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    url = f"http://127.0.0.1:{candidate.port}{PATH}"
    request = urllib.request.Request(url, json.dumps(BODY).encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status == 200


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brief", action="store_true", help="two rounds of 2 s, and no file is written")
    parser.add_argument("--seconds", type=float, help="of load for each candidate in a round")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--peers", type=Path, default=cache(), help="folder for what is compared with")
    parser.add_argument("--only", nargs="+", help="candidates to run, by name")
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, help="write to benchmarks/results/")
    found = parser.parse_args()
    found.seconds = found.seconds or (2.0 if found.brief else 5.0)
    found.rounds = found.rounds or (2 if found.brief else 5)
    return found


def main() -> None:
    chosen = options()
    peers = Peers(chosen.peers)
    peers.install()
    for room in ("app", "regions"):  # as an installation does; without it a start would compile them
        compileall.compile_dir(ROOT / room, quiet=2)
    # Beside the peers, so on a disk: a temporary folder may lie in memory, where no commit waits.
    with tempfile.TemporaryDirectory(dir=peers.folder, prefix="run-") as directory:
        head = f"{machine.described(Path(directory))}; {chosen.clients} clients, {chosen.rounds} rounds of "
        text = f"{head}{chosen.seconds:.0f} s\n\n{Comparison(chosen, peers, Path(directory)).run()}\n"
    print(text)
    if chosen.write if chosen.write is not None else not (chosen.brief or chosen.only):
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        day = dt.datetime.now(dt.UTC).date().isoformat()
        (results / f"{day}-{machine.slug()}.md").write_text(f"# benchmarks/gateway.py\n\n{text}")


if __name__ == "__main__":
    heed_sigterm()
    main()
