"""Verification of real files: what is intact is found intact, and every way to alter them is told for what it is."""

import asyncio
import random
import shutil
import tracemalloc
from datetime import UTC, datetime

import pytest

from app.audit import record
from app.audit.check.findings import MAX_FINDINGS, Result
from app.audit.check.saved import Saved
from app.audit.check.verify import verify
from app.audit.checkpoint import Checkpoint, cosigned, opened, sign
from app.audit.keys import FileKeys
from app.audit.place import Place
from app.audit.rights.officer import Actor, event, hold_event
from app.audit.tree import LogTree
from app.config import AuditSettings
from app.stores.base import Hold, StoreError
from app.stores.sqlite import SqliteAuditStore
from tests.audit import trails
from tests.audit.trails import LOGS, TAMPERINGS, Damaged, pair


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return trails.build(tmp_path_factory.mktemp("trail"))


@pytest.fixture
def copy(built, tmp_path):
    return built.copy(tmp_path)


def damaged(directory, log="eu-west", earlier=""):
    return Damaged(directory, log, random.Random(1), earlier)


def saved(built, *logs):
    return [Saved.read(built.saved[log]) for log in logs]


def of(report, log="eu-west"):
    return next(each for each in report.logs if each.log == log)


def told(report, log="eu-west"):
    return [(each.result, each.seq, each.what) for each in of(report, log).findings]


def test_what_was_written_is_intact(built):
    report = verify(built.directory, saved(built, *LOGS))
    assert report.result is Result.INTACT
    assert [(log.log, log.records, log.first, log.last, log.checkpoint) for log in report.logs] == [
        ("eu-west", 600, 1, 600, 600),
        ("gateway", 600, 1, 600, 600),
        ("us-east", 601, 301, 901, 901),
    ]
    assert not any(log.findings for log in report.logs)
    assert [log.open_decisions for log in report.logs] == [0, 2, 2]
    assert of(report, "us-east").remarks == ("retention has deleted the records up to 300",)
    assert report.records == 1801


@pytest.mark.parametrize("log", ["eu-west", "us-east"])
@pytest.mark.parametrize("tampering", TAMPERINGS, ids=lambda each: each.__name__)
def test_every_tampering_shows_against_a_saved_checkpoint(built, copy, tampering, log):
    tampering(damaged(copy, log, built.earlier[log]))
    report = verify(copy, saved(built, log))
    assert report.result is Result.TAMPERED
    assert all(of(report, other).result is Result.INTACT for other in LOGS if other != log)


WITHOUT_A_CHECKPOINT = {
    trails.flip_a_bit_of_a_record: Result.TAMPERED,
    trails.alter_a_record: Result.TAMPERED,
    trails.alter_a_record_and_its_hash: Result.TAMPERED,
    trails.alter_a_record_and_every_hash: Result.TAMPERED,
    trails.alter_a_column: Result.TAMPERED,
    trails.drop_a_record: Result.TAMPERED,
    trails.drop_a_record_and_close_the_gap: Result.TAMPERED,
    trails.reorder_two_records: Result.TAMPERED,
    trails.swap_the_texts_of_two_records: Result.TAMPERED,
    trails.remove_the_newest: Result.TAMPERED,
    trails.alter_the_checkpoint: Result.TAMPERED,
    trails.alter_a_bundle: Result.TAMPERED,
    trails.feign_retention: Result.TAMPERED,
    trails.deny_retention: Result.TAMPERED,
    trails.replace_by_another_log: Result.TAMPERED,
    trails.replace_the_keys: Result.TAMPERED,
    trails.truncate_the_file: Result.INCOMPLETE,
    trails.remove_the_log: Result.INCOMPLETE,
    trails.drop_a_legal_hold: Result.TAMPERED,
    trails.narrow_a_legal_hold: Result.TAMPERED,
    trails.renew_a_released_hold: Result.TAMPERED,
    trails.reopen_a_decision: Result.TAMPERED,
    trails.remove_the_checkpoint: Result.INCOMPLETE,
    trails.roll_the_checkpoint_back: Result.INCOMPLETE,
    trails.remove_the_newest_and_their_checkpoint: Result.INCOMPLETE,
    # As it was then, and as if it had never been: nothing in here can tell.
    trails.remove_the_newest_and_roll_the_checkpoint_back: Result.INTACT,
    trails.remove_the_log_and_its_keys: Result.INTACT,
}


@pytest.mark.parametrize("tampering", WITHOUT_A_CHECKPOINT, ids=lambda each: each.__name__)
def test_what_the_directory_alone_can_tell(built, copy, tampering):
    tampering(damaged(copy, earlier=built.earlier["eu-west"]))
    assert verify(copy).result is WITHOUT_A_CHECKPOINT[tampering]


def test_the_first_bad_record_is_named_with_its_id_and_the_others_are_counted(copy):
    log = damaged(copy)
    log.run("UPDATE records SET tenant = 'x' WHERE seq > 40 AND seq < 100")
    report = of(verify(copy))
    first = report.findings[0]
    with log.sql() as db:
        (identity,) = db.execute("SELECT json_extract(record, '$.id') FROM records WHERE seq = 41").fetchone()
    assert (first.seq, first.id, first.what) == (41, identity, "is found by another tenant than it has")
    assert len(report.findings) == MAX_FINDINGS
    assert report.untold == 59 - MAX_FINDINGS
    assert report.records == 600


def test_an_altered_record_is_told_alone_and_what_follows_still_compared(built, copy):
    log = damaged(copy)
    log.run("UPDATE records SET record = ? WHERE seq = 300", log.altered(300).decode())
    log.run("DELETE FROM records WHERE seq BETWEEN 10 AND 12")
    assert told(verify(copy, saved(built, "eu-west"))) == [
        (Result.TAMPERED, 10, "is missing, with all up to 12"),
        (Result.TAMPERED, 300, "is not what its leaf hash was made of"),
    ]


def test_between_two_checkpoints_only_what_lies_there_can_be_the_bad_one(built, copy):
    log = damaged(copy)
    log.put(450, log.altered(450))
    log.rebuild()
    older = Saved("older", built.earlier["eu-west"], Checkpoint.parse(opened_text(built.earlier["eu-west"])))
    found = told(verify(copy, [older]))
    assert [(seq, what) for _, seq, what in found] == [
        (401, "it, or one up to 600, is not the one that the log's newest checkpoint covers")
    ]


def opened_text(note):
    return note.rpartition("\n\n")[0] + "\n"


def test_whole_bundles_that_are_missing_leave_the_rest_comparable(built, copy):
    damaged(copy).run("DELETE FROM records WHERE seq BETWEEN 100 AND 520")
    assert told(verify(copy, saved(built, "eu-west"))) == [(Result.TAMPERED, 100, "is missing, with all up to 520")]


def test_missing_newest_records_are_named_by_the_checkpoint_that_covers_them(built, copy):
    trails.remove_the_newest_and_roll_the_checkpoint_back(damaged(copy, earlier=built.earlier["eu-west"]))
    found = told(verify(copy, saved(built, "eu-west")))
    assert found[0][:2] == (Result.TAMPERED, 401)
    assert "is missing, with all up to 600, though" in found[0][2]
    assert "saved-eu-west.note" in found[0][2]
    assert "checkpoints have been removed" in found[1][2]


def test_a_gateways_own_key_does_not_help_against_a_saved_checkpoint(built, copy):
    """Whoever holds the signing key can rewrite a log so that it is sound in itself, but not what others have kept."""
    log = damaged(copy)
    log.put(500, log.altered(500))
    log.rebuild()
    place, keys = Place(copy, "eu-west", "edge"), FileKeys(built.directory.parent / "keys")
    store = SqliteAuditStore(log.file)
    root = LogTree(store).edge(600).root()
    store.set_head(
        sign(Checkpoint(place.origin, 600, root, None).text(), place.origin, keys.signing_key("eu-west")), {}
    )
    store.close()
    assert verify(copy).result is Result.INTACT
    assert told(verify(copy, saved(built, "eu-west")))[0][:2] == (Result.TAMPERED, 1)


def test_an_uncovered_tail_is_incomplete_unless_its_writer_is_at_work(built, copy):
    trails.roll_the_checkpoint_back(damaged(copy, earlier=built.earlier["eu-west"]))
    expected = (Result.INCOMPLETE, 401, "is not covered by a checkpoint yet, nor any up to 600")
    assert told(verify(copy)) == [expected]
    live = verify(copy, live=["eu-west"])
    assert live.result is Result.INTACT
    assert of(live).remarks == ("the records after 400 are newer than the newest checkpoint",)


def test_what_a_witness_keeps_counts_as_saved(built, copy):
    trails.remove_the_newest_and_their_checkpoint(damaged(copy))
    kept = copy / "us-east" / "witness" / "edge" / "eu-west.note"
    kept.parent.mkdir(parents=True)
    own = Place(copy, "us-east", "edge")
    keys = FileKeys(built.directory.parent / "keys")
    kept.write_text(cosigned(built.saved["eu-west"].read_text(), own.origin, keys.signing_key("us-east"), 1))
    report = verify(copy)
    assert (report.result, str(kept) in told(report)[0][2]) == (Result.TAMPERED, True)


def test_notes_about_logs_elsewhere_say_nothing_and_unreadable_ones_are_told(built, copy):
    kept = copy / "witness" / "eu-central"
    kept.mkdir(parents=True)
    (copy / "us-east.db").unlink()
    (copy / "us-east.pub").unlink()
    shutil.copy(built.saved["us-east"], kept / "us-east.note")
    assert verify(copy).result is Result.INTACT
    (kept / "gateway.note").write_text("rubbish")
    report = verify(copy)
    assert report.result is Result.INCOMPLETE
    assert "holds no checkpoint" in told(report, "witness/eu-central/gateway")[0][2]


def test_logs_of_regional_gateways_lie_one_level_below(built, copy):
    shutil.copytree(built.directory, copy / "eu-west")
    report = verify(copy)
    assert [log.log for log in report.logs] == [*sorted(LOGS), *(f"eu-west/{log}" for log in sorted(LOGS))]
    damaged(copy / "eu-west").run("DELETE FROM records WHERE seq = 5")
    report = verify(copy)
    assert (of(report).result, of(report, "eu-west/eu-west").result) == (Result.INTACT, Result.TAMPERED)


def test_a_checkpoint_of_a_log_that_is_not_there_is_a_log_that_is_missing(built, copy):
    (copy / "eu-west.db").unlink()
    (copy / "eu-west.pub").unlink()
    report = verify(copy, saved(built, "eu-west"))
    assert "covers 600 records of tidegate/edge/eu-west, which is not here" in told(report)[0][2]
    assert report.result is Result.TAMPERED


def test_without_its_public_keys_a_log_is_compared_all_the_same(built, copy):
    (copy / "eu-west.pub").unlink()
    report = verify(copy, saved(built, "eu-west"))
    assert told(report) == [(Result.INCOMPLETE, None, "eu-west.pub is missing: nothing that is signed can be verified")]
    damaged(copy).run("DELETE FROM records WHERE seq = 600")
    assert verify(copy, saved(built, "eu-west")).result is Result.TAMPERED


def test_a_saved_checkpoint_that_retention_has_overtaken_is_no_fault(tmp_path):
    """One whose hashes are left is compared all the same."""
    settings, draw = AuditSettings(path=tmp_path / "audit", commit_deadline=30.0), random.Random(1)
    notes = {}

    async def fill():
        async with trails.opened(settings, "eu-west") as trail:
            for size in (40, 256, 300, 340):
                pairs = (size - max(notes, default=0)) // 2
                old = datetime(2020, 1, 1, tzinfo=UTC)
                await trail.append("eu-west", [one for n in range(pairs) for one in pair(n, old, draw, "eu-west")], 30)
                notes[size] = await trail.checkpoint("eu-west")
        async with trails.opened(settings, "eu-west"):
            pass

    asyncio.run(fill())
    kept = [Saved(f"note {size}", note, Checkpoint.parse(opened_text(note))) for size, note in notes.items()]
    report = of(verify(settings.path, kept))
    assert (report.result, report.first, report.records) == (Result.INTACT, 341, 1)
    assert report.remarks == (
        "retention has deleted the records up to 340",
        "note 40 covers 40 records, too few to recompute since then",
    )
    keys = FileKeys(settings.key_directory)
    origin = kept[0].checkpoint.origin
    other = sign(Checkpoint(origin, 256, bytes(32), None).text(), origin, keys.signing_key("eu-west"))
    forked = Saved("fork", other, Checkpoint.parse(opened_text(other)))
    assert told(verify(settings.path, [forked])) == [
        (Result.TAMPERED, 1, "it, or one up to 256, is not the one that fork covers")
    ]


def test_old_checkpoints_hold_after_a_rotation_of_keys_and_an_erasure(tmp_path):
    settings, draw = AuditSettings(path=tmp_path / "audit", commit_deadline=30.0), random.Random(1)
    notes = []
    records = [each for n in range(0, 30, 3) for each in pair(n, trails.NOW, draw, "eu-west")]
    subject = records[0]["subject"]

    async def live():
        async with trails.opened(settings, "eu-west") as trail:
            await trail.append("eu-west", records, 30)
            notes.append(await trail.checkpoint("eu-west"))
        FileKeys(settings.key_directory).rotate("eu-west")
        async with trails.opened(settings, "eu-west") as trail:
            now = datetime.now(UTC)
            event = record.event(kind="erasure", id=record.new_id(now, 1), time=now, outcome="erased", detail={})
            assert await trail.erase("eu-west", subject, event) == 2
            notes.append(await trail.checkpoint("eu-west"))

    asyncio.run(live())
    kept = [Saved("note", note, Checkpoint.parse(opened_text(note))) for note in notes]
    report = of(verify(settings.path, kept))
    assert (report.result, report.records, report.checkpoint) == (Result.INTACT, 21, 21)
    assert len((settings.path / "eu-west.pub").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match="no known key"):
        opened(notes[1], Place(settings.path, "eu-west", "edge").verifiers()[:1])


def test_open_decisions_are_counted(tmp_path):
    settings, draw = AuditSettings(path=tmp_path / "audit", commit_deadline=30.0), random.Random(1)

    async def decide():
        async with trails.opened(settings, "eu-west") as trail:
            for number in range(3):
                await trail.append("eu-west", pair(number, trails.NOW, draw, "eu-west")[: 1 + number % 2], 30)

    asyncio.run(decide())
    report = of(verify(settings.path))
    assert (report.result, report.records, report.open_decisions) == (Result.INTACT, 4, 2)


@pytest.mark.parametrize("log", LOGS)
def test_holds_and_open_decisions_that_are_gone_are_named_with_their_records(copy, log):
    file = damaged(copy, log)
    file.run("DELETE FROM holds")
    file.run("DELETE FROM pending")
    placed = file.told_of("kind = 'hold' AND outcome = 'placed'")[1:]
    waiting = file.told_of(
        "kind = 'decision' AND json_extract(record, '$.id') NOT IN"
        " (SELECT json_extract(record, '$.decision_id') FROM records WHERE kind = 'completion')"
    )
    findings = of(verify(copy), log).findings
    assert len(waiting) == (0 if log == "eu-west" else 2)
    assert [(each.seq, each.id) for each in findings] == [*placed, *waiting]
    assert [each.what for each in findings] == [
        "places legal hold hold-1, which no record releases, and which is not in force",
        "places legal hold hold-2, which no record releases, and which is not in force",
        *["has no completion, and is not among the decisions that wait for one"] * len(waiting),
    ]


@pytest.mark.parametrize(("log", "result"), [("eu-west", Result.TAMPERED), ("us-east", Result.INTACT)])
def test_a_hold_that_no_record_places_is_told_where_retention_has_deleted_none(copy, log, result):
    damaged(copy, log).run("INSERT INTO holds VALUES ('new', '2026', '', NULL, NULL, NULL, NULL)")
    report = verify(copy)
    assert report.result is result
    expected = [(Result.TAMPERED, None, "legal hold new is in force, and no record places it")]
    assert told(report, log) == (expected if result is Result.TAMPERED else [])


def test_an_altered_record_makes_no_finding_about_holds_or_open_decisions(copy):
    log = damaged(copy)
    log.run("DELETE FROM holds")
    log.run("DELETE FROM pending")
    log.run("UPDATE records SET record = ? WHERE seq = 500", log.altered(500).decode())
    assert told(verify(copy)) == [(Result.TAMPERED, 500, "is not what its leaf hash was made of")]


@pytest.mark.parametrize("table", ["holds", "pending"])
def test_tables_of_holds_and_open_decisions_that_cannot_be_read_are_told(copy, table):
    damaged(copy).run(f"DROP TABLE {table}")
    ((result, seq, what),) = told(verify(copy))
    assert (result, seq) == (Result.INCOMPLETE, None)
    assert what.startswith("the legal holds in force and the open decisions cannot be read: ")
    assert what.endswith(f"no such table: {table}")


async def test_a_hold_on_a_person_and_its_release_are_followed(tmp_path):
    settings, draw = AuditSettings(path=tmp_path / "audit", commit_deadline=30.0), random.Random(1)
    records = pair(0, trails.NOW, draw, "eu-west")
    hold = Hold("person", record.timestamp(trails.NOW), "case 17", "demo", records[0]["subject"])
    async with trails.opened(settings, "eu-west") as trail:
        await trail.append("eu-west", records, 30)
        await trail.hold("eu-west", hold, hold_event(hold, "placed", Actor(), hold.subject))
    assert verify(settings.path).result is Result.INTACT
    damaged(settings.path).run("UPDATE holds SET subject = ?", "0" * 64)
    assert [seq for _, seq, _ in told(verify(settings.path))] == [3]
    damaged(settings.path).run("UPDATE holds SET subject = ?", hold.subject)
    async with trails.opened(settings, "eu-west") as trail:
        assert await trail.release("eu-west", hold.id, hold_event(hold, "released", Actor(), hold.subject))
        assert await trail.erase("eu-west", hold.subject, event("erasure", "erased", {"tenant": "demo"}, Actor())) == 4
    assert verify(settings.path).result is Result.INTACT


async def test_a_log_that_is_being_written_is_never_found_altered(tmp_path):
    settings, draw = AuditSettings(path=tmp_path / "audit", commit_deadline=30.0), random.Random(1)
    async with trails.opened(settings, "eu-west") as trail:

        async def write():
            for number in range(400):
                await trail.append("eu-west", pair(number, trails.NOW, draw, "eu-west"), 30)

        writing = asyncio.create_task(write())
        seen = set()
        for _ in range(400):
            report = await asyncio.to_thread(verify, settings.path, live=["eu-west"])
            assert report.result is Result.INTACT, report.as_json()
            seen.add(report.records)
            if writing.done():
                break
        await writing
    assert len(seen) > 1
    assert verify(settings.path).result is Result.INTACT


NONSENSE = [
    "UPDATE head SET note = x'00ff'",
    "UPDATE head SET note = ''",
    "DROP TABLE head",
    "INSERT INTO floor VALUES (1, 'many', 'note', x'')",
    "INSERT INTO floor VALUES (1, -5, 'note', x'')",
    "INSERT INTO floor VALUES (1, 1 << 62, 'note', x'')",
    "INSERT INTO floor VALUES (1, 0, 'note', 'text')",
    "UPDATE records SET record = '' WHERE seq = 7",
    "UPDATE records SET record = '[]' WHERE seq = 7",
    "UPDATE records SET record = '{}' WHERE seq = 7",
    "UPDATE records SET record = '{\"seq\": 36893488147419103232}' WHERE seq = 7",
    "UPDATE records SET record = x'ff00' WHERE seq = 7",
    "UPDATE records SET record = 5 WHERE seq = 7",
    "UPDATE records SET leaf = 'text' WHERE seq = 7",
    "UPDATE records SET leaf = x'' WHERE seq = 7",
    "UPDATE records SET tenant = CAST(x'ff' AS TEXT) WHERE seq = 7",
    "UPDATE records SET seq = 1 << 62 WHERE seq = 600",
    "UPDATE records SET seq = -1 WHERE seq = 600",
    "UPDATE bundles SET root = 'text' WHERE bundle = 0",
    "INSERT INTO bundles VALUES (2, x'00')",
    "DROP TABLE records",
    "DROP TABLE bundles",
    "PRAGMA user_version = 7",
]


@pytest.mark.parametrize("statement", NONSENSE)
def test_nonsense_in_the_tables_ends_no_verification(built, copy, statement):
    damaged(copy).run(statement)
    assert verify(copy).result is not Result.INTACT
    report = verify(copy, saved(built, "eu-west"))
    assert report.result is Result.TAMPERED
    assert of(report, "gateway").result is Result.INTACT


@pytest.mark.parametrize("content", [b"", b"rubbish\n", b"a+00000000+AAAA\n", b"\xff\xfe"])
def test_public_keys_that_are_none_are_unreadable(copy, content):
    (copy / "eu-west.pub").write_bytes(content)
    assert of(verify(copy)).result is Result.INCOMPLETE


def test_a_damaged_page_leaves_what_lies_before_it_verified(copy):
    log = damaged(copy)
    begin, size = log.page_of(log.stored(500))
    log.overwrite(begin, bytes(size))
    report = of(verify(copy))
    (finding,) = report.findings
    assert (finding.result, finding.seq) == (Result.INCOMPLETE, report.records + 1)
    assert 480 < finding.seq <= 500
    assert finding.what.startswith("cannot be read, nor any after it: ")


def test_memory_does_not_grow_with_the_log(built, tmp_path):
    def peak(directory):
        verify(directory)  # loads what is loaded once
        tracemalloc.start()
        try:
            verify(directory)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    longer = trails.build(tmp_path, pairs=2000).directory
    assert peak(longer) < peak(built.directory) + 200_000


def test_progress_is_told_up_to_the_end_of_each_log(built):
    seen = {}
    verify(built.directory, observe=lambda log, seq, last: seen.setdefault(log, []).append((seq, last)))
    assert seen["eu-west"] == [(256, 600), (512, 600), (600, 600), (600, 600)]
    assert [steps[-1] for steps in seen.values()] == [(600, 600), (600, 600), (901, 901)]


def test_a_verification_can_be_broken_off(built):
    class Left(Exception):
        pass

    def leave(*_):
        raise Left

    with pytest.raises(Left):
        verify(built.directory, observe=leave)


def test_a_reader_of_the_wrong_file_is_told(tmp_path):
    (tmp_path / "eu-west.db").write_bytes(b"SQLite format 3\0" + bytes(5000))
    with pytest.raises(StoreError):
        SqliteAuditStore(tmp_path / "eu-west.db", readonly=True)
    assert told(verify(tmp_path))[1][:2] == (Result.INCOMPLETE, 1)
