"""What every audit store must do, against the real SQLite file."""

import sqlite3
import stat

import pytest

from app.audit import record
from app.stores.base import AuditEntry, AuditQuery, StoreError
from app.stores.sqlite import SqliteAuditStore


def text_time(second):
    return f"2026-11-22T10:00:{second:02d}.000000Z"


def decision_of(seq, second=0, **fields):
    return _entry(seq, {"kind": "decision", "id": f"d{seq}", "time": text_time(second), **fields})


def completion_of(seq, decision, second=0, **fields):
    return _entry(
        seq, {"kind": "completion", "id": f"c{seq}", "decision_id": decision, "time": text_time(second), **fields}
    )


def _entry(seq, fields):
    numbered = {"request_id": "r", "tenant": "demo", "outcome": "permitted", "subject": None, **fields, "seq": seq}
    return AuditEntry(seq, numbered, record.canonical(numbered))


def seqs(store, **query):
    return [seq for _, seq, _ in store.page(AuditQuery(**{"bound": 10**6, "limit": 1000, **query}))]


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
    store.append(entries)
    again = SqliteAuditStore(path, readonly=True)
    assert [again.get(1), again.get(2), again.get(3)] == [entries[0].canonical, entries[1].canonical, None]
    assert again.last_seq() == 2
    again.close()


def test_commits_wait_for_the_disk_and_the_file_is_its_owners_alone(store, path):
    store.append([decision_of(1)])
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    modes = {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == {0o600}


def test_an_append_lands_whole_or_not_at_all(store):
    store.append([decision_of(1)])
    with pytest.raises(StoreError, match=r"eu-west\.db"):
        store.append([decision_of(2), decision_of(1)])
    assert seqs(store) == [1]
    assert [each["id"] for each in store.open_decisions()] == ["d1"]


def test_open_decisions_are_those_without_a_completion(store):
    store.append([decision_of(1), decision_of(2), completion_of(3, "d2")])
    store.append([decision_of(4)])
    assert [each["id"] for each in store.open_decisions()] == ["d1", "d4"]
    store.append([completion_of(5, "d1")])
    assert [each["id"] for each in store.open_decisions()] == ["d4"]


def test_pages_ascend_by_time_then_number_within_their_bound(store):
    store.append([decision_of(1, 5), decision_of(2, 3), decision_of(3, 5), decision_of(4, 1)])
    assert seqs(store) == [4, 2, 1, 3]
    assert seqs(store, bound=3) == [2, 1, 3]
    assert seqs(store, limit=2) == [4, 2]
    assert seqs(store, after=(text_time(5), 1)) == [3]
    assert seqs(store, after=(text_time(3), 0)) == [2, 1, 3]
    assert seqs(store, since=text_time(3), until=text_time(5)) == [2]


def test_filters_match_exactly_and_are_data_not_sql(store):
    store.append([decision_of(1, tenant="a"), decision_of(2, tenant="b"), decision_of(3, subject="x")])
    assert seqs(store, equal={"tenant": "a"}) == [1]
    assert seqs(store, equal={"tenant": "a' OR 1=1 --"}) == []
    assert seqs(store, subjects=frozenset({"x", "y"})) == [3]
    assert seqs(store, subjects=frozenset()) == []
    with pytest.raises(ValueError, match="no column"):
        store.page(AuditQuery(bound=9, limit=9, equal={"1=1 OR seq": "1"}))


def test_expiry_takes_the_oldest_run_and_leaves_what_is_younger(store):
    store.append([decision_of(1, 1), completion_of(2, "d1", 2), decision_of(3, 3), completion_of(4, "d3", 8)])
    assert store.expire(text_time(1), 100) == 0
    assert store.expire(text_time(5), 100) == 2
    assert seqs(store) == [3, 4]


def test_expiry_leaves_a_decision_whose_completion_is_missing_or_must_stay(store):
    store.append([decision_of(1, 1), decision_of(2, 1), completion_of(3, "d2", 2)])
    assert store.expire(text_time(9), 100) == 0
    store.append([completion_of(4, "d1", 9)])
    assert store.expire(text_time(9), 100) == 0
    assert store.expire(text_time(10), 2) == 2
    assert store.expire(text_time(10), 2) == 2


def test_numbers_do_not_begin_anew_after_everything_expired(store, path):
    store.append([decision_of(1), completion_of(2, "d1")])
    assert store.expire(text_time(9), 100) == 2
    store.close()
    again = SqliteAuditStore(path)
    assert (again.last_seq(), seqs(again)) == (2, [])
    again.close()


def test_deleted_records_are_overwritten_in_the_file(store, path):
    store.append([decision_of(1, request_id="a-secret-id"), completion_of(2, "d1")])
    store.expire(text_time(9), 100)
    store.close()  # folds the write-ahead log into the file
    assert b"a-secret-id" not in path.read_bytes()


@pytest.mark.parametrize("victim", ["eu-west.db", "eu-west.db-wal"])
def test_a_file_that_lost_its_name_takes_no_more_records(store, path, victim):
    store.append([decision_of(1)])
    path.with_name(victim).rename(path.with_name("away"))
    with pytest.raises(StoreError):
        store.append([decision_of(2)])
    path.with_name(victim).touch()
    with pytest.raises(StoreError, match="replaced"):
        store.append([decision_of(2)])


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
        reader.append([decision_of(1)])
    reader.close()
    assert store.last_seq() == 0
