"""How many records a second the audit trail makes durable, and how long each waits, beside two simpler ways.

    .venv/bin/python benchmarks/audit.py [--records 6000] [--rounds 5] [--directory DIR]

All three get the same records (a decision and its completion in turn, as a request writes them) from the same number of
concurrent writers, each of which appends its next record, made beforehand, when its last one is durable:

- `trail`: what the gateway does: groups share a commit (SQLite, WAL, synchronous=FULL, with its indexes), and every
  record is hashed into the Merkle tree, which is signed every second. `sealed` is the same with a subject in every
  record, whose name is sealed.
- `commit each`: SQLite as well (WAL, synchronous=FULL), one table without any index, a commit for each record.
- `fsync each`: a file, a line and an fsync for each record.

Two cores, a disk that commits in 0.2 ms, medians: at 32 writers 18,800 records/s, 3.8 times `commit each`; at 128
25,900/s, 5.5 times. Where a commit takes longer the ratio is that of the group's size: 11 to 26. At 32 writers a record
costs 53 us: SQLite 15 and the disk 8 (a lone insert and its commit: 200), numbering, hashing and tree 16, the
appender's own side 12. Kept, together 26 % faster at 32 writers and 34 % at 128: one INSERT for a group in one call,
open decisions with the checkpoint instead of in each commit, request ids indexed by bundle (a random id touches a
page of its own otherwise), one timer an appender instead of a task's timeout. Without gain: committing one half of the
writers while the other is served (25 % slower: twice the commits), a shorter switch interval of the interpreter,
waiting for the last group's writers, larger pages, rarer WAL checkpoints, a memory map.

The ways take turns in every round; the figures are medians of the rounds, and the ratio is taken within each round.
"""

import argparse
import asyncio
import itertools
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from app.audit.log import new_id
from app.audit.record import Record, canonical, completion, decision
from app.audit.writer import Trail
from app.config import AuditSettings

WRITERS = (1, 8, 32, 128)
LOG = "eu-west"

Append = Callable[[Record], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run: durable records a second, and the waits of the median and the slowest hundredth in milliseconds."""

    rate: float
    p50: float
    p99: float


def records(subject: str | None) -> Iterator[Record]:
    """Decisions with three candidates, each followed by its completion; about 1.3 KB in the mean."""
    candidates = [
        {"region": region, "permitted": region == LOG, "reason": "ALLOW_INTRA", "rule": "eu-intra-eea", "law": "GDPR"}
        for region in (LOG, "us-east", "ap-southeast")
    ]
    while True:
        now = datetime.now(UTC)
        made = decision(
            id=new_id(now),
            time=now,
            request_id=os.urandom(16).hex(),
            outcome="permitted",
            tenant="demo",
            key_id="0011aabb",
            region=LOG,
            subject=subject,
            subject_country="DE",
            model="minilm",
            policy_digest="ab" * 32,
        )
        made |= {"jurisdictions": ["EU"], "candidates": candidates}
        yield made
        yield completion(id=new_id(now), time=now, decision=made, outcome="served", status=200)


async def drive(append: Append, writers: int, total: int, subject: str | None = None) -> Figures:
    waits: list[float] = []

    async def write(own: list[Record]) -> None:
        for record in own:
            started = time.perf_counter()
            await append(record)
            waits.append(time.perf_counter() - started)

    each = max(1, total // writers // 2) * 2
    ready = [list(itertools.islice(records(subject), each)) for _ in range(writers)]
    started = time.perf_counter()
    await asyncio.gather(*map(write, ready))
    seconds = time.perf_counter() - started
    waits.sort()
    return Figures(len(waits) / seconds, waits[len(waits) // 2] * 1000, waits[int(len(waits) * 0.99)] * 1000)


async def trail(directory: Path, writers: int, total: int, subject: str | None = None) -> Figures:
    settings = AuditSettings(path=directory / "audit", commit_deadline=60.0)
    opened = Trail(settings, [LOG, "gateway"])
    await opened.start()
    try:
        return await drive(lambda record: opened.append(LOG, [record], 60.0), writers, total, subject)
    finally:
        await opened.close()


async def sealed(directory: Path, writers: int, total: int) -> Figures:
    return await trail(directory, writers, total, subject="ab" * 32)


async def commit_each(directory: Path, writers: int, total: int) -> Figures:
    with ThreadPoolExecutor(1) as thread:
        loop = asyncio.get_running_loop()
        db = sqlite3.connect(directory / "plain.db", isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, record BLOB NOT NULL)")

        def insert(record: Record) -> None:
            db.execute("INSERT INTO records (record) VALUES (?)", (canonical(record),))

        try:
            return await drive(lambda record: loop.run_in_executor(thread, insert, record), writers, total)
        finally:
            db.close()


async def fsync_each(directory: Path, writers: int, total: int) -> Figures:
    with ThreadPoolExecutor(1) as thread, (directory / "plain.ndjson").open("ab", buffering=0) as file:
        loop = asyncio.get_running_loop()

        def write(record: Record) -> None:
            file.write(canonical(record) + b"\n")
            os.fsync(file.fileno())

        return await drive(lambda record: loop.run_in_executor(thread, write, record), writers, total)


WAYS = {"trail": trail, "sealed": sealed, "commit each": commit_each, "fsync each": fsync_each}


@contextmanager
def fresh(parent: Path | None) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--records", type=int, default=6000, help="of each run with 32 writers; fewer writers get fewer"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="on the disk to measure; else the one for temporary files")
    options = parser.parse_args()
    print(f"{'writers':>7}  {'way':<12} {'records/s':>10} {'p50 ms':>8} {'p99 ms':>8}  trail is so many times as fast")
    for writers in WRITERS:
        total = min(options.records, options.records * writers // 32 + 200)
        found: dict[str, list[Figures]] = {name: [] for name in WAYS}
        for _ in range(options.rounds):
            for name, way in WAYS.items():
                with fresh(options.directory) as directory:
                    found[name].append(uvloop.run(way(directory, writers, total)))
        for name, runs in found.items():
            ratio = statistics.median(ours.rate / other.rate for ours, other in zip(found["trail"], runs, strict=True))
            rate, p50, p99 = (statistics.median(getattr(run, field) for run in runs) for field in Figures.__slots__)
            print(f"{writers:>7}  {name:<12} {rate:>10,.0f} {p50:>8.2f} {p99:>8.2f}  {ratio:.1f}", flush=True)


if __name__ == "__main__":
    main()
