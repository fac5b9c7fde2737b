"""How long a gateway without workers takes to be ready, what memory it has then, and what after many requests.

    python benchmarks/startup.py [--runs 9] [--requests 1000000] [--peers FOLDER]

From the start of the process to the first 200 of /readyz, asked every 5 ms; processor time is of the same span, and
says more on a busy machine. `settled` is four seconds later, when what FastAPI serves is loaded as well. The first
start makes keys and audit logs, so it is told apart. `--requests` sends so many chats, each another text, and prints
memory as it goes: it needs nginx and wrk, which `benchmarks/gateway.py` fetches.

Two cores, AMD EPYC, others at work on them, before and after in turns: 0.72 s of processor time and 93 MiB before
FastAPI was built late, YAML read once, and parsers, tables and certificate authorities read when used; 0.40 s and
73 MiB since, settled 87 MiB. Sources that are not compiled (PYTHONDONTWRITEBYTECODE in a checkout) cost 0.1 to 0.2 s.
"""

import argparse
import compileall
import http.client
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gateways.candidates import Candidate, tidegate, upstream
from gateways.load import Generator
from gateways.peers import Peers, cache
from gateways.processes import cpu_seconds, heed_sigterm, resident, running, until

ROOT = Path(__file__).resolve().parents[1]
PORT = 18_312
SETTLED = 4.0
PART = 10.0
"""Seconds of load between two looks at the memory."""


@dataclass(frozen=True)
class Start:
    """Seconds until it was ready, seconds of processor time in that span, MiB then and once it has settled."""

    ready: float
    cpu: float
    rss: float
    settled: float


def is_ready() -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def start(directory: Path) -> Start:
    began = time.monotonic()
    with running(tidegate(directory, PORT), directory / "log") as pid:
        ready = until(is_ready, began, 0.005)
        cpu, rss = cpu_seconds(pid), resident(pid)
        time.sleep(SETTLED)
        return Start(ready, cpu, rss, resident(pid))


def told(name: str, starts: list[Start]) -> str:
    ready = sorted(each.ready for each in starts)
    cells = [
        f"{statistics.median(ready):.2f} ({ready[0]:.2f} to {ready[-1]:.2f})",
        f"{statistics.median(each.cpu for each in starts):.2f}",
        f"{statistics.median(each.rss for each in starts):.0f}",
        f"{statistics.median(each.settled for each in starts):.0f}",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def endure(peers: Peers, directory: Path, wanted: int) -> None:
    generator, constant, done = Generator(peers, directory, None), upstream(peers, directory), 0
    gateway = Candidate("tidegate", PORT, tidegate(directory, PORT), "")
    with (
        running(constant.command, directory / "upstream.log", environ=constant.environ),
        running(gateway.command, directory / "log") as pid,
    ):
        until(is_ready, time.monotonic())
        print("\n| requests | RSS, MiB | errors |\n| --- | --- | --- |")
        while done < wanted:
            load = generator.flat_out(gateway, 64, PART)
            done += load.requests
            print(f"| {done:,} | {resident(pid):.0f} | {load.errors} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--requests", type=int, default=0, help="to send afterwards, while memory is watched")
    parser.add_argument("--peers", type=Path, default=cache(), help="folder that gateway.py fetched nginx and wrk into")
    options = parser.parse_args()
    for room in ("app", "regions"):  # as an installation does; without it every start may compile them
        compileall.compile_dir(ROOT / room, quiet=2)
    with tempfile.TemporaryDirectory() as directory:
        first, *others = (start(Path(directory)) for _ in range(options.runs + 1))
        print("| start | ready s | processor s | RSS ready, MiB | settled |\n| --- | --- | --- | --- | --- |")
        print(told("first", [first]))
        print(told(f"{options.runs} later, medians", others))
        if options.requests:
            endure(Peers(options.peers), Path(directory), options.requests)


if __name__ == "__main__":
    heed_sigterm()
    if sys.platform != "linux":
        sys.exit("reads /proc, so it runs on Linux only")
    main()
