"""What the auditor has under way: a check that is given up ends, an export that is given up makes room."""

import asyncio
import threading

import pytest

from app.audit.auditor import Auditor, _Left, _until
from app.audit.check.findings import Result
from app.audit.check.verify import verify
from app.audit.reader import Filters, Reader
from app.errors import AuditUnavailable, Overloaded

LOGS = ("eu-west", "us-east", "gateway")


@pytest.fixture
def auditor(audit, trail):
    return Auditor(audit, Reader(audit, LOGS, lambda: ["demo"]), trail)


async def filled(trail, pair, pairs):
    for _ in range(pairs // 60):
        await trail.append("eu-west", [each for _ in range(60) for each in pair(region="eu-west")], 10)


async def test_a_check_ends_with_the_next_bundle_once_its_caller_has_left(audit, trail, pair):
    await filled(trail, pair, 300)
    left = threading.Event()
    seen = []

    def observe(log, seq, last):
        seen.append((log, seq))
        left.set()
        _until(left)(log, seq, last)

    with pytest.raises(_Left):
        await asyncio.to_thread(verify, audit.path, [], observe)
    assert seen == [("eu-west", 256)]


async def test_a_check_that_is_given_up_makes_room_for_the_next(trail, pair, auditor):
    await filled(trail, pair, 1200)
    given_up = asyncio.create_task(auditor.verify())
    while not auditor._checking:  # noqa: ASYNC110 - its first step tells
        await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await auditor.verify()
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    async with asyncio.timeout(20):
        while auditor._checking:  # noqa: ASYNC110 - a thread tells
            await asyncio.sleep(0.01)
    report = await auditor.verify()
    assert (report.result, report.records >= 2400) == (Result.INTACT, True)


async def test_what_a_writer_no_longer_trusts_is_checked_all_the_same(audit, trail, pair, auditor):
    """Above all then: the log is checked from its file alone."""
    await filled(trail, pair, 60)
    (audit.path / "eu-west.db").unlink()
    with pytest.raises(AuditUnavailable):
        await trail.append("eu-west", pair(), 10)
    with pytest.raises(AuditUnavailable):
        await trail.checkpoint("eu-west")
    report = await auditor.verify()
    found = {each.log: each.result for each in report.logs}
    assert found["eu-west"] != Result.INTACT
    assert found["us-east"] == found["gateway"] == Result.INTACT


async def test_exports_make_room_when_they_are_closed_wherever_they_are(trail, pair, auditor):
    await filled(trail, pair, 300)
    exports = [await auditor.export(Filters()) for _ in range(4)]
    with pytest.raises(Overloaded):
        await auditor.export(Filters())
    async for _ in exports[0]:
        break
    taking = asyncio.create_task(anext(exports[1]))
    await asyncio.sleep(0)
    for each in exports:
        each.close()
        each.close()
    await asyncio.gather(taking, return_exceptions=True)
    parts = await auditor.export(Filters())
    assert b"".join([part async for part in parts]).count(b'"kind":"decision"') == 300
    parts.close()
