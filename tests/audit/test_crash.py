"""Real processes that die or run out of disk while they append: what was acknowledged is there, nothing stays open."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.audit.check.findings import Result
from app.audit.check.verify import verify
from app.audit.writer import Trail
from tests.mounts import run_mounted

POINTS = int(os.environ.get("FAULT_POINTS", "10"))
"""How many processes are killed in the middle of a write; `make faults` kills 200."""
ROOT = Path(__file__).resolve().parents[2]
LOGS = ("eu-west", "gateway")

_PRELUDE = """
import asyncio, itertools, resource, sys
from datetime import UTC, datetime
from pathlib import Path
import structlog
from app.audit import record
from app.audit.writer import Trail
from app.config import AuditSettings
from app.errors import AuditUnavailable

audit = AuditSettings(path=Path(sys.argv[1]), commit_deadline=10.0)
life = sys.argv[2]

def decision(number):
    return record.decision(id=f"d{life}-{number}", time=datetime.now(UTC), request_id=f"r{life}-{number}",
                           outcome="permitted", tenant="demo", key_id="0", region="eu-west")

def completion(decided):
    return record.completion(id="c" + decided["id"], time=datetime.now(UTC), decision=decided, outcome="served",
                             status=200)

def tell(text):
    sys.stdout.write(text + chr(10))
    sys.stdout.flush()

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
"""

_APPENDS = (
    _PRELUDE
    + """
async def request(trail, numbers):
    for number in numbers:
        decided = decision(number)
        await trail.append("eu-west", [decided], 10)
        await trail.append("eu-west", [completion(decided)], 10)
        tell(decided["id"])

async def main():
    trail = Trail(audit, ["eu-west", "gateway"])
    await trail.start()
    numbers = itertools.count()
    await asyncio.gather(*(request(trail, numbers) for _ in range(8)))

asyncio.run(main())
"""
)

_FILLS_THE_DISK = (
    _PRELUDE
    + """
async def main():
    trail = Trail(audit, ["eu-west", "gateway"])
    await trail.start()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    refused = None
    for number in range(2000):
        decided = decision(number)
        try:
            await trail.append("eu-west", [decided, completion(decided)], 10)
        except AuditUnavailable:
            refused = number
            break
        tell(decided["id"])
    assert refused is not None, "the disk never filled"
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    for number in range(3000, 3400):
        decided = decision(number)
        try:
            await trail.append("eu-west", [decided, completion(decided)], 10)
        except AuditUnavailable:
            await asyncio.sleep(0.025)
        else:
            tell(decided["id"])
            break
    await trail.close()

asyncio.run(main())
"""
)


_ON_A_SMALL_DISK = (
    _PRELUDE
    + """
import os
from app.audit.check.verify import verify

ballast = audit.path.parent / "ballast"

async def main():
    ballast.write_bytes(bytes(1_500_000))
    trail = Trail(audit, ["eu-west", "gateway"])
    await trail.start()
    refused = False
    for number in range(3000):
        decided = decision(number) | {"subject": f"{number:064x}"}
        try:
            await trail.append("eu-west", [decided, completion(decided)], 10)
        except AuditUnavailable:
            refused = True
            break
        tell(decided["id"])
    assert refused, "the disk never filled"
    ballast.unlink()
    for number in range(5000, 5400):
        decided = decision(number)
        try:
            await trail.append("eu-west", [decided, completion(decided)], 10)
        except AuditUnavailable:
            await asyncio.sleep(0.025)
        else:
            tell(decided["id"])
            break
    await trail.close()
    tell(f"verified {verify(audit.path).result.name}")
    store = SqliteAuditStore(audit.path / "eu-west.db", readonly=True)
    for row in store.rows(1, 10**9):
        written = json.loads(row.canonical)
        if written["kind"] == "completion":
            tell(f"{written['outcome']} {written['decision_id']}")

import json
from app.stores.sqlite import SqliteAuditStore
asyncio.run(main())
"""
)


def spawn(code, audit, life):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(audit.path), str(life)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


async def restarted(audit):
    trail = Trail(audit, LOGS)
    with capture_logs():
        await trail.start()
    await trail.close()


@pytest.mark.timeout(120 + 5 * POINTS)
async def test_killed_at_any_point_every_answer_given_has_its_pair(audit, ends):
    draw = random.Random(20261122)
    acknowledged = set()
    for life in range(POINTS):
        with spawn(_APPENDS, audit, life) as child:
            for _ in range(draw.randint(1, 120)):
                acknowledged.add(child.stdout.readline().strip())
            child.kill()
            acknowledged.update(child.stdout.read().split("\n")[:-1])
        await restarted(audit)
        outcomes = ends()
        assert {outcomes.get(each) for each in acknowledged} == {"served"}
        assert set(outcomes.values()) <= {"served", "lost"}
    assert len(acknowledged) >= POINTS
    report = verify(audit.path)
    assert report.result is Result.INTACT, report


async def test_a_full_disk_refuses_loses_nothing_and_heals(audit, ends):
    with spawn(_FILLS_THE_DISK, audit, 0) as child:
        acknowledged = child.stdout.read().split()
        assert child.wait(60) == 0
    outcomes = ends()
    assert {outcomes.get(each) for each in acknowledged} == {"served"}
    assert any(int(each.removeprefix("d0-")) >= 3000 for each in acknowledged)
    await restarted(audit)
    assert set(ends().values()) == {"served"}


def test_a_disk_without_room_refuses_loses_nothing_and_heals(tmp_path):
    """ENOSPC for real: a small file system of its own, which only this process tree sees."""
    disk = tmp_path / "disk"
    disk.mkdir()
    ran = run_mounted(f"mount -t tmpfs -o size=3m tmpfs {disk}", _ON_A_SMALL_DISK, f"{disk}/audit", "0")
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.split("\n")
    acknowledged = {line for line in said if line.startswith("d0-")}
    ends = dict(reversed(line.split(" ")) for line in said if line.startswith(("served ", "lost ")))
    assert "verified INTACT" in said
    assert {ends.get(each) for each in acknowledged} == {"served"}
    assert any(int(each.removeprefix("d0-")) >= 5000 for each in acknowledged)


@pytest.mark.usefixtures("trail")
def test_another_process_cannot_take_the_directory(audit):
    ran = subprocess.run(
        [sys.executable, "-c", _APPENDS, str(audit.path), "0"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0
    assert f"audit directory {audit.path} is in use by another gateway" in ran.stderr.splitlines()[-1]
