"""The trail over real files: durable in groups, one completion for each decision, closed to writing when in doubt."""

import asyncio
import sqlite3
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from app.audit import intake
from app.audit.writer import Trail, TrailError
from app.errors import AuditUnavailable
from app.stores.base import StoreError
from app.stores.sqlite import SqliteAuditStore

LOGS = ("eu-west", "gateway")


class Faulty:
    """A real store whose next commits can be made to hang, to fail, or to land and report failure all the same."""

    def __init__(self):
        self.mode = "sound"
        self.gate = threading.Event()
        self.entered = threading.Event()

    def __call__(self, path, must_exist):
        store = SqliteAuditStore(path, must_exist=must_exist)
        if path.stem == "eu-west":
            sound = store.append

            def append(*written):
                self.entered.set()
                if self.mode == "hang":
                    assert self.gate.wait(30)
                if self.mode == "fail":
                    raise StoreError("EIO")
                sound(*written)
                if self.mode == "late":
                    raise StoreError("EIO after landing")

            store.append = append
        return store


@pytest.fixture
def faulty():
    return Faulty()


@pytest.fixture
async def frail(audit, faulty):
    """A trail over the faulty store; it is mended before the trail closes."""
    opened = Trail(audit, LOGS, open_store=faulty)
    await opened.start()
    yield opened
    faulty.mode = "sound"
    faulty.gate.set()
    await opened.close()


async def test_what_append_returned_for_is_in_the_file(trail, pair, stored):
    decision, ended = pair()
    await trail.append("eu-west", [decision], 10)
    assert [each["id"] for each in stored()] == ["d1"]
    await trail.append("eu-west", [ended], 10)
    assert [(each["seq"], each["log"], each["id"]) for each in stored()] == [(1, "eu-west", "d1"), (2, "eu-west", "c1")]


async def test_directory_and_files_are_the_owners_alone(trail, audit, pair):
    await trail.append("eu-west", pair(), 10)
    assert stat.S_IMODE(audit.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in audit.path.iterdir()} == {0o600}


async def test_concurrent_appenders_share_commits_and_lose_nothing(audit, pair, ends):
    commits = []
    trail = Trail(audit, LOGS, observe=lambda *commit: commits.append(commit))
    await trail.start()

    async def request():
        for _ in range(10):
            decision, ended = pair()
            await trail.append("eu-west", [decision], 10)
            await trail.append("eu-west", [ended], 10)

    await asyncio.gather(*(request() for _ in range(32)))
    await trail.close()
    assert len(ends()) == 320
    assert set(ends().values()) == {"served"}
    assert sum(records for _, records, _ in commits) == 640
    assert len(commits) <= 320
    assert max(records for _, records, _ in commits) <= intake.GROUP
    assert {log for log, _, _ in commits} == {"eu-west"}


async def test_a_decision_and_its_completion_passed_together_commit_together(audit, pair):
    commits = []
    trail = Trail(audit, LOGS, observe=lambda *commit: commits.append(commit))
    await trail.start()
    await trail.append("eu-west", pair(), 10)
    await trail.close()
    assert [records for _, records, _ in commits] == [2]


async def test_the_gateways_own_log_takes_no_pseudonym(trail, pair):
    with pytest.raises(ValueError, match="pseudonym"):
        await trail.append("gateway", pair(subject="0" * 64), 10)


async def test_a_completion_without_an_open_decision_is_refused(trail, pair, ends):
    decision, ended = pair()
    with pytest.raises(AuditUnavailable):
        await trail.append("eu-west", [ended], 10)
    await trail.append("eu-west", [decision, ended], 10)
    with pytest.raises(AuditUnavailable):
        await trail.append("eu-west", [ended], 10)
    assert ends() == {"d1": "served"}


async def test_a_record_without_canonical_form_fails_alone(trail, pair, ends):
    broken, _ = pair()
    sound = pair()
    refused, _ = await asyncio.gather(
        trail.append("eu-west", [broken | {"model": object()}], 10),
        trail.append("eu-west", sound, 10),
        return_exceptions=True,
    )
    assert isinstance(refused, TypeError)
    assert ends() == {"d2": "served"}


async def test_no_time_left_writes_nothing(trail, pair, ends):
    with pytest.raises(AuditUnavailable):
        await trail.append("eu-west", pair(), 0)
    await trail.append("eu-west", pair(), 10)
    assert ends() == {"d2": "served"}


async def test_a_second_gateway_on_the_directory_is_refused_and_a_later_one_is_not(trail, audit):
    second = Trail(audit, LOGS)
    with pytest.raises(TrailError, match="in use by another gateway") as refusal:
        await second.start()
    assert str(audit.path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    await second.close()
    await trail.close()
    third = Trail(audit, LOGS)
    await third.start()
    await third.close()


async def test_a_log_that_cannot_be_opened_stops_the_start_and_frees_the_directory(audit):
    audit.path.mkdir(parents=True)
    (audit.path / "eu-west.db").write_bytes(b"rubbish " * 1000)
    trail = Trail(audit, LOGS)
    with pytest.raises(TrailError, match=r"eu-west\.db"):
        await trail.start()
    (audit.path / "eu-west.db").unlink()
    again = Trail(audit, LOGS)
    await again.start()
    await again.close()


async def test_a_start_completes_what_was_left_open(audit, pair, ends, stored):
    first = Trail(audit, LOGS)
    await first.start()
    (decision, _), whole = pair(), pair()
    await first.append("eu-west", [decision], 10)
    await first.append("eu-west", whole, 10)
    await first.close()
    assert ends() == {"d1": None, "d2": "served"}
    second = Trail(audit, LOGS)
    with capture_logs():
        await second.start()
    await second.close()
    assert ends() == {"d1": "lost", "d2": "served"}
    assert stored()[-1]["body_may_have_arrived"] is True


async def test_a_failed_write_closes_the_log_until_it_heals(frail, faulty, pair, ends, healed):
    decision, ended = pair()
    await frail.append("eu-west", [decision], 10)
    faulty.mode = "fail"
    with capture_logs():
        for records in ([ended], pair()):
            with pytest.raises(AuditUnavailable):
                await frail.append("eu-west", records, 10)
        await frail.append("gateway", pair(), 10)  # the other logs do not suffer
        faulty.mode = "sound"
        await healed(frail)
    outcomes = ends()
    assert outcomes["d1"] == "lost"
    assert "d2" not in outcomes


async def test_a_write_that_landed_but_reported_failure_leaves_no_decision_open(frail, faulty, pair, ends, healed):
    faulty.mode = "late"
    (decision, _), whole = pair(), pair()
    with capture_logs():
        refused = await asyncio.gather(
            frail.append("eu-west", [decision], 10), frail.append("eu-west", whole, 10), return_exceptions=True
        )
        assert {type(each) for each in refused} == {AuditUnavailable}
        faulty.mode = "sound"
        await healed(frail)
    assert ends().pop("d1") == "lost"
    assert None not in ends().values()


async def test_a_hung_disk_costs_each_appender_its_deadline_and_no_more(frail, faulty, pair, ends, healed):
    faulty.mode = "hang"
    (first, _), (second, _) = pair(), pair()
    with pytest.raises(AuditUnavailable):
        await frail.append("eu-west", [first], 0.05)  # in the disk's hands when its appender leaves
    with pytest.raises(AuditUnavailable):
        await frail.append("eu-west", [second], 0.05)  # still in the queue: taken back
    faulty.mode = "sound"
    faulty.gate.set()
    with capture_logs():
        await healed(frail)
        await frail.close()
    outcomes = ends()
    assert outcomes["d1"] == "lost"
    assert "d2" not in outcomes


async def test_a_full_queue_refuses_at_once(frail, faulty, pair, ends):
    faulty.mode = "hang"
    held = asyncio.create_task(frail.append("eu-west", pair(), 30))
    assert await asyncio.to_thread(faulty.entered.wait, 30)
    waiting = [asyncio.create_task(frail.append("eu-west", pair(), 30)) for _ in range(intake.QUEUE // 2)]
    await asyncio.sleep(0)
    with pytest.raises(AuditUnavailable):
        await frail.append("eu-west", pair(), 30)
    faulty.mode = "sound"
    faulty.gate.set()
    await asyncio.gather(held, *waiting)
    assert len(ends()) == 1 + intake.QUEUE // 2


async def test_a_cancelled_appender_leaves_no_decision_open(frail, faulty, pair, ends):
    faulty.mode = "hang"
    faulty.entered.clear()
    task = asyncio.create_task(frail.append("eu-west", pair()[:1], 30))
    assert await asyncio.to_thread(faulty.entered.wait, 30)
    task.cancel()
    with pytest.raises(AuditUnavailable):
        await task
    faulty.mode = "sound"
    faulty.gate.set()
    with capture_logs():
        await frail.close()
    assert ends() == {"d1": "lost"}


async def test_a_cancelled_appender_hears_of_it_once_its_decision_is_durable(frail, faulty, pair, ends):
    decision, ended = pair()
    faulty.mode = "hang"
    faulty.entered.clear()
    task = asyncio.create_task(frail.append("eu-west", [decision], 30))
    assert await asyncio.to_thread(faulty.entered.wait, 30)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    faulty.mode = "sound"
    faulty.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await frail.append("eu-west", [ended], 30)
    assert ends() == {"d1": "served"}


async def test_a_lock_held_elsewhere_ends_in_refusal_and_is_outlived(audit, pair, ends, healed):
    trail = Trail(audit.model_copy(update={"commit_deadline": 0.1}), LOGS)
    await trail.start()
    decision, ended = pair()
    await trail.append("eu-west", [decision], 10)
    other = sqlite3.connect(audit.path / "eu-west.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with capture_logs():
        with pytest.raises(AuditUnavailable):
            await trail.append("eu-west", [ended], 10)
        other.execute("ROLLBACK")
        other.close()
        await healed(trail)
        await trail.close()
    assert ends()["d1"] in {"lost", "served"}  # a late commit may still land
    assert None not in ends().values()


async def test_a_file_moved_away_is_noticed_and_trusted_again_when_it_is_back(trail, audit, pair, ends, healed):
    await trail.append("eu-west", pair(), 10)
    away = audit.path / "away"
    (audit.path / "eu-west.db").rename(away)
    with capture_logs() as logs:
        for _ in range(5):
            with pytest.raises(AuditUnavailable):
                await trail.append("eu-west", pair(), 10)
            await asyncio.sleep(0.03)
        assert not (audit.path / "eu-west.db").exists()
        away.rename(audit.path / "eu-west.db")
        await healed(trail)
    assert "audit log not trusted" in {each["event"] for each in logs}
    assert ends()["d1"] == "served"
    assert "d2" not in ends()


async def test_a_file_replaced_by_an_empty_log_is_not_trusted(trail, audit, pair):
    await trail.append("eu-west", pair(), 10)
    (audit.path / "eu-west.db").unlink()
    SqliteAuditStore(audit.path / "eu-west.db").close()
    with capture_logs():
        for _ in range(5):
            with pytest.raises(AuditUnavailable):
                await trail.append("eu-west", pair(), 10)
            await asyncio.sleep(0.03)


async def test_retention_deletes_from_the_beginning_and_numbers_go_on(audit, pair, stored):
    old = datetime.now(UTC) - timedelta(days=2)
    first = Trail(audit, LOGS)
    await first.start()
    for _ in range(3):
        decision, ended = pair(time=old)
        await first.append("eu-west", [decision, {**ended, "time": decision["time"]}], 10)
    await first.append("eu-west", pair(), 10)
    await first.close()
    second = Trail(audit.model_copy(update={"retention": 86400.0}), LOGS)
    with capture_logs():
        await second.start()
        for _ in range(400):
            if len(stored()) == 3:
                break
            await asyncio.sleep(0.025)
        await second.append("eu-west", pair(), 10)
        await second.close()
    kept = stored()
    assert [each["seq"] for each in kept] == [7, 8, 9, 10, 11]
    assert (kept[2]["kind"], kept[2]["detail"]["records"], kept[2]["detail"]["floor"]) == ("retention", 6, 6)


async def test_closing_writes_what_waits(audit, pair, ends):
    trail = Trail(audit, LOGS)
    await trail.start()
    tasks = [asyncio.create_task(trail.append("eu-west", pair(), 10)) for _ in range(300)]
    await asyncio.sleep(0)
    await trail.close()
    await asyncio.gather(*tasks)
    assert len(ends()) == 300
    with pytest.raises(AuditUnavailable):
        await trail.append("eu-west", pair(), 10)
