"""What every audit store must do, against the real SQLite file."""

import random
import sqlite3
import stat

import orjson
import pytest

from app.audit import record
from app.audit.merkle import leaf_hash
from app.stores.base import BUNDLE, AuditEntry, AuditQuery, Erase, Floor, Hold, Release, StoreError
from app.stores.sqlite import COLUMNS, SqliteAuditStore
from tests.mounts import run_mounted


def text_time(second):
    return f"2026-11-22T10:00:{second:02d}.000000Z"


def decision_of(seq, second=0, **fields):
    return _entry(seq, {"kind": "decision", "id": f"d{seq}", "time": text_time(second), **fields})


def completion_of(seq, decision, second=0, **fields):
    return _entry(
        seq, {"kind": "completion", "id": f"c{seq}", "decision_id": decision, "time": text_time(second), **fields}
    )


def _entry(seq, fields):
    indexed = dict.fromkeys(COLUMNS) | {"request_id": "r", "tenant": "demo", "outcome": "permitted"}
    numbered = indexed | fields | {"seq": seq}
    canonical = record.canonical(numbered)
    return AuditEntry(seq, numbered, canonical, leaf_hash(canonical))


def expire(store, before, limit=100):
    """Delete what may go, as the ledger does it; returns the number of the newest record gone."""
    last = store.expirable(before, limit)
    if last:
        store.append([], [], Floor(last, "note", tuple(store.leaves(last // BUNDLE * BUNDLE + 1, last))))
    return last


def seqs(store, **query):
    return [seq for _, seq, *_ in store.page(AuditQuery(**{"bound": 10**6, "limit": 1000, **query}))]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "eu-west.db"


@pytest.fixture
def store(path):
    opened = SqliteAuditStore(path)
    yield opened
    opened.close()


def test_what_was_appended_is_read_back_as_the_same_bytes(store, path):
    entries = [decision_of(1, request_id="ü\n\x7f\u2028"), completion_of(2, "d1")]
    store.append(entries, [])
    again = SqliteAuditStore(path, readonly=True)
    assert [again.get(1), again.get(2), again.get(3)] == [entries[0].canonical, entries[1].canonical, None]
    assert again.last_seq() == 2
    again.close()


def test_commits_wait_for_the_disk_and_the_file_is_its_owners_alone(store, path):
    store.append([decision_of(1)], [])
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    modes = {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == {0o600}


def test_an_append_lands_whole_or_not_at_all(store):
    store.append([decision_of(1)], [])
    with pytest.raises(StoreError, match=r"eu-west\.db"):
        store.append([decision_of(2), decision_of(1)], [])
    with pytest.raises(StoreError, match=r"eu-west\.db"):
        store.append([decision_of(2), decision_of(1)], [(0, bytes(32))])
    assert seqs(store) == [1]
    assert store.bundle_roots(0, 1) == []


def test_open_decisions_are_those_of_the_newest_checkpoint(store):
    store.append([decision_of(1), decision_of(2), completion_of(3, "d2"), decision_of(4)], [])
    assert store.open_decisions() == []
    store.set_head("four", {"d4": 4, "d1": 1})
    assert [orjson.loads(each.canonical)["id"] for each in store.open_decisions()] == ["d1", "d4"]
    store.append([completion_of(5, "d1"), decision_of(6)], [])
    store.set_head("six", {"d4": 4, "d6": 6})
    assert [orjson.loads(each.canonical)["id"] for each in store.open_decisions()] == ["d4", "d6"]


def test_more_rows_than_one_statement_takes_land_in_one_commit(store):
    with pytest.raises(StoreError):
        store.append([*(decision_of(seq) for seq in range(1, 301)), decision_of(1)], [])
    assert seqs(store, limit=1000) == []
    store.append([decision_of(seq) for seq in range(1, 301)], [])
    assert seqs(store, limit=1000, bound=1000) == list(range(1, 301))


def test_a_request_is_found_in_whichever_bundle_its_records_lie(store):
    store.append(
        [decision_of(seq, request_id=f"r{seq % 299}") for seq in range(1, 601)], [(0, bytes(32)), (1, bytes(32))]
    )
    for request, found in (("r1", [1, 300, 599]), ("r2", [2, 301, 600]), ("r258", [258, 557]), ("none", [])):
        assert seqs(store, bound=1000, equal={"request_id": request}) == found
    assert seqs(store, bound=400, equal={"request_id": "r1", "kind": "decision"}) == [1, 300]


def test_pages_ascend_by_time_then_number_within_their_bound(store):
    store.append([decision_of(1, 5), decision_of(2, 3), decision_of(3, 5), decision_of(4, 1)], [])
    assert seqs(store) == [4, 2, 1, 3]
    assert seqs(store, bound=3) == [2, 1, 3]
    assert seqs(store, limit=2) == [4, 2]
    assert seqs(store, after=(text_time(5), 1)) == [3]
    assert seqs(store, after=(text_time(3), 0)) == [2, 1, 3]
    assert seqs(store, since=text_time(3), until=text_time(5)) == [2]


def test_filters_match_exactly_and_are_data_not_sql(store):
    store.append([decision_of(1, tenant="a"), decision_of(2, tenant="b"), decision_of(3, subject="x")], [])
    assert seqs(store, equal={"tenant": "a"}) == [1]
    assert seqs(store, equal={"tenant": "a' OR 1=1 --"}) == []
    assert seqs(store, subjects=frozenset({"x", "y"})) == [3]
    assert seqs(store, subjects=frozenset()) == []
    with pytest.raises(ValueError, match="no column"):
        store.page(AuditQuery(bound=9, limit=9, equal={"1=1 OR seq": "1"}))


def test_expiry_takes_the_oldest_run_and_leaves_what_is_younger(store):
    store.append([decision_of(1, 1), completion_of(2, "d1", 2), decision_of(3, 3), completion_of(4, "d3", 8)], [])
    assert expire(store, text_time(1)) == 0
    assert expire(store, text_time(5)) == 2
    assert seqs(store) == [3, 4]


def test_expiry_leaves_a_decision_whose_completion_is_missing_or_must_stay(store):
    store.append([decision_of(1, 1), decision_of(2, 1), completion_of(3, "d2", 2)], [])
    assert expire(store, text_time(9)) == 0
    store.append([completion_of(4, "d1", 9)], [])
    assert expire(store, text_time(9)) == 0
    assert expire(store, text_time(10), 2) == 2
    assert expire(store, text_time(10), 2) == 4


def test_numbers_do_not_begin_anew_after_everything_expired(store, path):
    store.append([decision_of(1), completion_of(2, "d1")], [])
    assert expire(store, text_time(9)) == 2
    store.close()
    again = SqliteAuditStore(path)
    assert (again.last_seq(), seqs(again)) == (2, [])
    again.close()


def test_deleted_records_are_overwritten_in_the_file(store, path):
    store.append([decision_of(1, request_id="a-secret-id"), completion_of(2, "d1")], [])
    expire(store, text_time(9))
    store.close()  # folds the write-ahead log into the file
    assert b"a-secret-id" not in path.read_bytes()


@pytest.mark.parametrize("victim", ["eu-west.db", "eu-west.db-wal"])
def test_a_file_that_lost_its_name_takes_no_more_records(store, path, victim):
    store.append([decision_of(1)], [])
    path.with_name(victim).rename(path.with_name("away"))
    with pytest.raises(StoreError):
        store.append([decision_of(2)], [])
    path.with_name(victim).touch()
    with pytest.raises(StoreError, match="replaced"):
        store.append([decision_of(2)], [])


def test_a_store_that_must_exist_is_not_made(path):
    for options in ({"must_exist": True}, {"readonly": True}):
        with pytest.raises(StoreError, match=r"eu-west\.db"):
            SqliteAuditStore(path, **options)
    assert not path.exists()


def test_neither_rubbish_nor_a_later_schema_is_taken_for_a_log(path, store):
    store.close()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 99")
    later.close()
    with pytest.raises(StoreError, match="99"):
        SqliteAuditStore(path)
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(StoreError, match=r"eu-west\.db"):
        SqliteAuditStore(path)


def test_a_readonly_store_cannot_write(store, path):
    reader = SqliteAuditStore(path, readonly=True)
    with pytest.raises(StoreError, match="readonly"):
        reader.append([decision_of(1)], [])
    reader.close()
    assert store.last_seq() == 0


def test_a_failed_change_takes_its_records_with_it(store):
    store.append([decision_of(1)], [(0, b"r" * 32)])
    with pytest.raises(StoreError):
        store.append([decision_of(2)], [(0, b"x" * 32)], Erase("p"))
    assert (seqs(store), store.bundle_roots(0, 9)) == ([1], [b"r" * 32])


def test_erasing_empties_the_index_of_that_subject_alone(store):
    store.append([decision_of(1, subject="secret-p"), decision_of(2, subject="other"), decision_of(3)], [])
    assert store.count("secret-p") == 1
    store.append([decision_of(4)], [], Erase("secret-p"))
    assert store.scrub()
    assert [row.columns["subject"] for row in store.rows(1, 9)] == [None, "other", None, None]
    assert [row.columns["request_id"] for row in store.rows(1, 9)] == [None, "r", "r", "r"]
    assert store.count("secret-p") == 0
    # The stored bytes are the ledger's to seal; what is asked of the store is that its index forgets.
    assert store.page(AuditQuery(bound=9, limit=9, subjects=frozenset({"secret-p"}))) == []


def test_scrubbing_waits_for_a_reader_and_then_leaves_nothing_in_the_side_file(store, path):
    store.append([decision_of(1, request_id="a-secret-id"), completion_of(2, "d1", request_id="x")], [])
    reader = SqliteAuditStore(path, readonly=True)
    with reader.snapshot():
        assert reader.last_seq() == 2
        expire(store, text_time(9))
        assert not store.scrub()
    assert store.scrub()
    assert all(b"a-secret-id" not in each.read_bytes() for each in path.parent.iterdir())
    reader.close()


def test_what_retention_deletes_keeps_the_leaves_of_its_open_bundle(store):
    entries = [entry for n in range(1, 301, 2) for entry in (decision_of(n, 1), completion_of(n + 1, f"d{n}", 1))]
    store.append(entries, [(0, b"r" * 32)])
    assert expire(store, text_time(5), 290) == 290
    floor = store.floor()
    assert (floor.seq, len(floor.leaves)) == (290, 290 - BUNDLE)
    assert store.leaves(BUNDLE + 1, 300) == [entry.leaf for entry in entries[BUNDLE:]]
    assert store.leaves(280, 285) == [entry.leaf for entry in entries[279:285]]
    assert store.leaves(1, 2) == []
    assert store.last_seq() == 300


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"tenant": "b"}, 2),
        ({"subject": "p"}, 4),
        ({"since": text_time(3), "until": text_time(4)}, 3),
        ({"tenant": "b", "subject": "p"}, None),
        ({}, 1),
    ],
)
def test_a_hold_keeps_what_it_matches_from_retention(store, fields, kept):
    rows = [completion_of(1, "x", 1), completion_of(2, "x", 2, tenant="b"), completion_of(3, "x", 3)]
    store.append([*rows, completion_of(4, "x", 4, subject="p")], [])
    store.append([], [], Hold("h1", text_time(0), "why", **fields))
    assert store.expirable(text_time(9), 100) == (4 if kept is None else kept - 1)
    assert [hold.id for hold in store.holds()] == ["h1"]
    store.append([], [], Release("h1"))
    assert store.holds() == []
    assert store.expirable(text_time(9), 100) == 4


def test_a_hold_names_itself_to_whoever_would_erase(store):
    store.append([completion_of(1, "x", 1, tenant="b", subject="p")], [])
    store.append([], [], Hold("by-tenant", text_time(0), "why", tenant="b"))
    store.append([], [], Hold("by-subject", text_time(0), "why", subject="q"))
    assert store.held("p") == ["by-tenant"]
    assert store.held("q") == ["by-subject"]
    assert store.held("nobody") == []


def test_a_record_is_found_by_time_and_id(store):
    store.append([decision_of(1, 1), decision_of(2, 1), decision_of(3, 2)], [])
    assert store.find(text_time(1), "d2").seq == 2
    assert store.find(text_time(2), "d2") is None
    assert store.find(text_time(1), "d9") is None


def test_the_newest_checkpoint_replaces_the_one_before(store):
    assert store.head() is None
    store.set_head("one", {})
    store.set_head("two", {})
    assert store.head() == "two"


def test_a_log_on_a_medium_that_nobody_can_write_is_read(tmp_path):
    path = tmp_path / "eu-west.db"
    written = SqliteAuditStore(path)
    written.append([decision_of(1)], [])
    written.close()
    code = f"""
from pathlib import Path
from app.stores.sqlite import SqliteAuditStore
print(SqliteAuditStore(Path({str(path)!r}), readonly=True).last_seq())
"""
    ran = run_mounted(f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}", code)
    assert (ran.stdout, ran.stderr) == ("1\n", "")


@pytest.mark.parametrize("size", ["small", "large"])
def test_copies_of_a_name_in_the_unused_space_of_an_index_go_at_once_or_at_the_next_start(path, size):
    """SQLite leaves them where entries move between pages, as they do when random ids come in and go."""
    draw = random.Random(21)  # one of those that leave copies behind
    people = [draw.randbytes(32).hex() for _ in range(40)]
    store = SqliteAuditStore(path)
    rows = []
    for n in range(1, 1500):
        who = draw.choice(people)
        row = completion_of(n, "x", subject=who, request_id=f"{draw.random()} of {who}")
        rows.append(row._replace(canonical=b"{}"))
    for first in range(0, len(rows), 7):
        store.append(rows[first : first + 7], [])
    if size == "small":
        for who in people[:20]:
            store.append([], [], Erase(who))
        store.close()
    else:  # as an erasure leaves a log that is too large to be cleaned at once
        for who in people[:20]:
            store._db.execute("UPDATE records SET subject = NULL, request_id = NULL WHERE subject = ?", (who,))
        store._db.execute("INSERT INTO rebuild VALUES (1)")
        store.close()
        assert any(who.encode() in path.read_bytes() for who in people[:20])
        SqliteAuditStore(path).close()
    assert [who for who in people[:20] if who.encode() in path.read_bytes()] == []
    assert all(who.encode() in path.read_bytes() for who in people[20:])
