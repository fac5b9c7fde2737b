"""The ledger over real files: what it seals, what it signs, what it refuses to go on from."""

import asyncio
import itertools
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from structlog.testing import capture_logs

from app.audit import checkpoint, record, seal
from app.audit.check.findings import Result
from app.audit.check.verify import verify
from app.audit.checkpoint import Checkpoint
from app.audit.keys import FileKeys
from app.audit.ledger import Held
from app.audit.log import new_id
from app.audit.merkle import consistency_proof, leaf_hash, verify_consistency, verify_inclusion
from app.audit.merkle import inclusion_proof as prove
from app.audit.place import Place
from app.audit.reader import Filters, Reader
from app.audit.tree import LogTree
from app.audit.writer import Trail, TrailError
from app.stores.base import BUNDLE, Hold
from app.stores.sqlite import SqliteAuditStore

LOGS = ("eu-west", "gateway")
WHO = "ab" * 32


@pytest.fixture
def place(audit):
    return Place(audit.path, "eu-west", "edge")


@pytest.fixture
def lines(audit):
    """The log's rows from its file, oldest first."""

    def read(log="eu-west"):
        store = SqliteAuditStore(audit.path / f"{log}.db", readonly=True)
        try:
            return list(store.rows(1, 10**9))
        finally:
            store.close()

    return read


def event(kind="erasure", **detail):
    now = datetime.now(UTC)
    return record.event(kind=kind, id=new_id(now), time=now, outcome="done", detail=detail)


def signed(note, place):
    return Checkpoint.parse(checkpoint.opened(note, place.verifiers()))


async def test_a_checkpoint_covers_every_record_and_each_can_be_proved(trail, pair, place):
    for _ in range(BUNDLE // 2 + 20):
        await trail.append("eu-west", pair(), 10)
    newest = signed(await trail.checkpoint("eu-west"), place)
    assert (newest.size, newest.origin) == (BUNDLE + 40, "tidegate/edge/eu-west")
    store = SqliteAuditStore(place.file, readonly=True)
    tree = LogTree(store)
    for index in (0, 7, BUNDLE - 1, BUNDLE, newest.size - 1):
        leaf = leaf_hash(store.get(index + 1))
        assert verify_inclusion(leaf, index, newest.size, prove(index, newest.size, tree.subtree), newest.root)
    store.close()


async def test_a_log_signs_within_a_second_or_so_without_being_asked_and_when_it_closes(audit, pair, place):
    trail = Trail(audit, LOGS)
    await trail.start()
    await trail.append("eu-west", pair(), 10)
    await trail.append("eu-west", pair(), 10)
    await trail.close()
    store = SqliteAuditStore(place.file, readonly=True)
    assert signed(store.head(), place).size == 4
    store.close()


async def test_the_name_of_a_subject_is_stored_only_sealed(trail, audit, pair, lines):
    decision, ended = pair(subject=WHO, request_id="their-order-17", trace_id="f" * 32)
    await trail.append("eu-west", [decision], 10)
    await trail.append("eu-west", [ended], 10)
    for row in lines():
        stored = orjson.loads(row.canonical)
        assert (stored["subject"], stored["request_id"], stored["trace_id"]) == (None, None, None)
        assert (row.columns["subject"], row.columns["request_id"]) == (WHO, "their-order-17")
        assert row.leaf == leaf_hash(row.canonical)
        key = FileKeys(audit.key_directory).subject_keys("eu-west", readonly=True)
        opened = seal.opened(stored, key.get(WHO), "eu-west")
        key.close()
        assert (opened["subject"], opened["request_id"], opened["trace_id"]) == (WHO, "their-order-17", "f" * 32)


async def test_erasing_leaves_the_proofs_and_takes_the_names(trail, audit, pair, place, lines):
    for who in (WHO, "cd" * 32):
        decision, ended = pair(subject=who, request_id=f"order-of-{who[:2]}")
        await trail.append("eu-west", [decision, ended], 10)
    before = signed(await trail.checkpoint("eu-west"), place)
    assert await trail.erase("eu-west", WHO, event()) == 2
    assert await trail.erase("eu-west", WHO, event()) == 0
    after = signed(await trail.checkpoint("eu-west"), place)
    store = SqliteAuditStore(place.file, readonly=True)
    tree = LogTree(store)
    assert tree.edge(before.size).root() == before.root
    assert tree.edge(after.size).root() == after.root
    store.close()
    rows = lines()
    assert [row.columns["subject"] for row in rows] == [None, None, "cd" * 32, "cd" * 32, None]
    erasure = orjson.loads(rows[-1].canonical)
    assert (erasure["kind"], erasure["detail"]["records"], erasure["subject"]) == ("erasure", 2, None)
    await trail.close()
    for path in [*audit.path.iterdir(), *audit.key_directory.iterdir()]:
        assert WHO.encode() not in path.read_bytes(), path
        assert b"order-of-ab" not in path.read_bytes(), path


async def test_a_request_under_way_when_its_subject_is_erased_ends_without_the_name(trail, audit, pair, lines):
    decision, ended = pair(subject=WHO, request_id="their-order-17")
    await trail.append("eu-west", [decision], 10)
    await trail.erase("eu-west", WHO, event())
    await trail.append("eu-west", [ended], 10)
    assert [row.columns["kind"] for row in lines()] == ["decision", "erasure", "completion"]
    subjects = FileKeys(audit.key_directory).subject_keys("eu-west", readonly=True)
    assert subjects.get(WHO) is None
    subjects.close()
    last = lines()[-1]
    assert (last.columns["subject"], last.columns["request_id"]) == (None, None)
    assert orjson.loads(last.canonical)["personal"] is None


async def test_one_who_comes_back_after_an_erasure_has_a_new_key(trail, audit, pair):
    keys = []
    for _ in range(2):
        await trail.append("eu-west", pair(subject=WHO), 10)
        subjects = FileKeys(audit.key_directory).subject_keys("eu-west", readonly=True)
        keys.append(subjects.get(WHO))
        subjects.close()
        await trail.erase("eu-west", WHO, event())
    assert None not in keys
    assert keys[0] != keys[1]


async def test_a_hold_beats_an_erasure_until_it_is_released(trail, pair, lines):
    await trail.append("eu-west", pair(subject=WHO), 10)
    hold = Hold("h1", record.timestamp(datetime.now(UTC)), "case 7", tenant="demo")
    await trail.hold("eu-west", hold, event("hold"))
    with pytest.raises(Held) as held:
        await trail.erase("eu-west", WHO, event())
    assert held.value.holds == ("h1",)
    assert lines()[0].columns["subject"] == WHO
    assert not await trail.release("eu-west", "h2", event("hold"))
    assert await trail.release("eu-west", "h1", event("hold"))
    assert await trail.erase("eu-west", WHO, event()) == 2


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE records SET record = replace(record, 'served', 'failed') WHERE seq = 2",
        "DELETE FROM records WHERE seq = 4",
        "DELETE FROM records WHERE seq = 1",
        "UPDATE records SET leaf = zeroblob(32) WHERE seq = 3",
        "UPDATE head SET note = replace(note, '\n4\n', '\n3\n')",
        "UPDATE bundles SET root = zeroblob(32)",
    ],
)
async def test_a_log_that_was_tampered_with_is_not_gone_on_from(audit, pair, harm):
    first = Trail(audit, LOGS)
    await first.start()
    count = BUNDLE // 2 + 1 if "bundles" in harm else 2
    for _ in range(count):
        await first.append("eu-west", pair(), 10)
    await first.close()
    db = sqlite3.connect(audit.path / "eu-west.db")
    assert db.execute(harm).rowcount == 1
    db.commit()
    db.close()
    again = Trail(audit, LOGS)
    with capture_logs(), pytest.raises(TrailError, match=r"eu-west\.db"):
        await again.start()


async def test_what_a_crash_left_unsigned_is_signed_at_the_next_start(audit, pair, place):
    trail = Trail(audit, LOGS)
    await trail.start()
    await trail.append("eu-west", pair(), 10)
    await trail.close()
    db = sqlite3.connect(place.file)
    db.execute("DELETE FROM head")
    db.commit()
    db.close()
    again = Trail(audit, LOGS)
    await again.start()
    await again.close()
    store = SqliteAuditStore(place.file, readonly=True)
    assert signed(store.head(), place).size == 2
    store.close()


async def test_retention_leaves_a_signed_floor_and_proofs_above_it(audit, pair, place, lines):
    settings = audit.model_copy(update={"retention": 3600.0})
    trail = Trail(audit, LOGS)
    await trail.start()
    old = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(BUNDLE // 2 + 3):
        decision, ended = pair(time=old, subject="ee" * 32)
        await trail.append("eu-west", [decision, {**ended, "time": decision["time"]}], 10)
    await trail.append("eu-west", pair(subject=WHO), 10)
    before = signed(await trail.checkpoint("eu-west"), place)
    await trail.close()
    again = Trail(settings, LOGS)
    with capture_logs():
        await again.start()
        after = signed(await again.checkpoint("eu-west"), place)
        while after.size == before.size:
            after = signed(await again.checkpoint("eu-west"), place)
        await again.close()
    store = SqliteAuditStore(place.file, readonly=True)
    floor = store.floor()
    gone = BUNDLE + 6
    assert (floor.seq, lines()[0].seq) == (gone, gone + 1)
    note = signed(floor.note, place)
    tree = LogTree(store)
    assert (note.origin, note.size) == (place.floor_origin, gone)
    assert tree.edge(gone).root() == note.root
    assert tree.edge(before.size).root() == before.root
    proof = prove(gone, after.size, tree.subtree)
    assert verify_inclusion(lines()[0].leaf, gone, after.size, proof, after.root)
    store.close()
    assert lines()[-1].columns["kind"] == "retention"
    subjects = FileKeys(audit.key_directory).subject_keys("eu-west", readonly=True)
    assert (subjects.get("ee" * 32), subjects.get(WHO) is None) == (None, False)  # the key goes with the last record
    subjects.close()


async def test_a_clock_that_goes_back_costs_no_record_and_no_proof(audit, pair):
    trail = Trail(audit, LOGS)
    await trail.start()
    now = datetime.now(UTC)
    for hours in (0, -3, 5, -24 * 365 * 60, -1):
        decision, ended = pair(time=now + timedelta(hours=hours))
        await trail.append("eu-west", [decision, {**ended, "time": decision["time"]}], 10)
    await trail.close()
    assert verify(audit.path).result is Result.INTACT
    reader = Reader(audit, LOGS, lambda: ["demo"])
    seen, cursor = [], None
    for _ in range(20):
        page = await reader.page(Filters(), cursor, 1)
        seen += [(each["time"], each["seq"]) for each in page.records]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == sorted(seen)
    assert {seq for _, seq in seen} == set(range(1, 11))


async def test_two_checkpoints_of_one_log_are_consistent(trail, pair, place):
    notes = []
    for _ in range(3):
        for _ in range(BUNDLE // 2 - 7):
            await trail.append("eu-west", pair(), 10)
        notes.append(signed(await trail.checkpoint("eu-west"), place))
    store = SqliteAuditStore(place.file, readonly=True)
    for old, new in itertools.pairwise(notes):
        proof = consistency_proof(old.size, new.size, LogTree(store).subtree)
        assert verify_consistency(old.size, old.root, new.size, new.root, proof)
    store.close()


async def test_a_key_that_was_rotated_still_opens_what_it_signed(audit, pair, place):
    notes = []
    for _ in range(2):
        trail = Trail(audit, LOGS)
        await trail.start()
        await trail.append("eu-west", pair(subject=WHO), 10)
        notes.append(await trail.checkpoint("eu-west"))
        await trail.close()
        for log in LOGS:
            FileKeys(audit.key_directory).rotate(log)
    assert len(place.verifiers()) == 2
    assert [signed(note, place).size for note in notes] == [2, 4]


@pytest.mark.parametrize(("ending", "what"), [("ed25519", "signing key is missing"), ("key", r"eu-west\.key: missing")])
async def test_a_key_that_was_lost_is_not_made_anew_in_silence(audit, pair, ending, what):
    first = Trail(audit, LOGS)
    await first.start()
    await first.append("eu-west", pair(subject=WHO), 10)
    await first.close()
    lost = (audit.key_directory / f"eu-west.{ending}").read_bytes()
    (audit.key_directory / f"eu-west.{ending}").unlink()
    again = Trail(audit, LOGS)
    with capture_logs(), pytest.raises(TrailError, match=what):
        await again.start()
    (audit.key_directory / f"eu-west.{ending}").write_bytes(lost)
    restored = Trail(audit, LOGS)
    await restored.start()
    await restored.close()


async def test_a_damaged_key_costs_its_own_subject_alone(audit, pair, lines):
    first = Trail(audit, LOGS)
    await first.start()
    await first.append("eu-west", pair(subject=WHO), 10)
    await first.close()
    db = sqlite3.connect(audit.key_directory / "eu-west.subjects.db")
    assert db.execute("UPDATE subjects SET wrapped = zeroblob(length(wrapped))").rowcount == 1
    db.commit()
    db.close()
    again = Trail(audit, LOGS)
    await again.start()
    told = await asyncio.gather(
        *(again.append("eu-west", pair(subject=who), 10) for who in ("cd" * 32, WHO, None, "ef" * 32)),
        return_exceptions=True,
    )
    assert [type(each).__name__ for each in told] == ["NoneType", "AuditUnavailable", "NoneType", "NoneType"]
    assert again.trusted
    await again.close()
    assert [row.columns["subject"] for row in lines()][2::2] == ["cd" * 32, None, "ef" * 32]


_ERASES_AND_DIES = """
import asyncio, os, sys
from datetime import UTC, datetime
from pathlib import Path
from app.audit import record
from app.audit.log import new_id
from app.audit.writer import Trail
from app.config import AuditSettings

async def main():
    trail = Trail(AuditSettings(path=Path(sys.argv[1]), commit_deadline=10.0), ["eu-west", "gateway"])
    await trail.start()
    now = datetime.now(UTC)
    event = record.event(kind="erasure", id=new_id(now), time=now, outcome="erased", detail={})
    assert await trail.erase("eu-west", sys.argv[2], event) == 2
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_what_a_dying_process_had_still_to_overwrite_is_overwritten_at_the_next_start(audit, pair):
    first = Trail(audit, LOGS)
    await first.start()
    await first.append("eu-west", pair(subject=WHO), 10)
    await first.close()
    reader = SqliteAuditStore(audit.path / "eu-west.db", readonly=True)
    with reader.snapshot():  # keeps the write-ahead log from being emptied
        assert reader.last_seq() == 2
        ran = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _ERASES_AND_DIES, str(audit.path), WHO],
            cwd=Path(__file__).parents[2],
            timeout=60,
            check=False,
        )
    reader.close()
    assert ran.returncode == -signal.SIGKILL

    def traces():
        files = [*audit.path.iterdir(), *audit.key_directory.iterdir()]
        return [file.name for file in files if WHO.encode() in file.read_bytes()]

    again = Trail(audit, LOGS)
    await again.start()
    for _ in range(100):
        if not traces():
            break
        await asyncio.sleep(0.05)
    found = traces()
    await again.close()
    assert found == []
