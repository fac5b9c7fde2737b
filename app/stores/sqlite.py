"""Audit logs in SQLite: one file a log, in WAL mode, where a commit returns once it is on the disk."""

import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import orjson

from app.stores import forgetting, keeping, paging
from app.stores.base import BUNDLE, AuditEntry, AuditQuery, Change, Erase, Floor, Hold, Release, StoredRow, StoreError
from app.stores.database import Database
from app.stores.files import make
from app.stores.paging import COLUMNS

VERSION: Final = 3
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY,
    time TEXT NOT NULL,
    kind TEXT NOT NULL,
    request_id TEXT,
    tenant TEXT,
    subject TEXT,
    subject_country TEXT,
    region TEXT,
    outcome TEXT,
    reason TEXT,
    record TEXT NOT NULL,
    leaf BLOB NOT NULL,
    bundle INTEGER GENERATED ALWAYS AS ((seq - 1) / {BUNDLE}) VIRTUAL
);
CREATE INDEX IF NOT EXISTS records_time ON records (time);
CREATE INDEX IF NOT EXISTS records_tenant ON records (tenant, time);
-- By bundle first: ids are random, and would otherwise touch as many pages of the index as a commit has records.
CREATE INDEX IF NOT EXISTS records_request ON records (bundle, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS records_subject ON records (subject) WHERE subject IS NOT NULL;
-- Decisions whose completion was still to come at the newest checkpoint: a start reads the log from there on.
CREATE TABLE IF NOT EXISTS pending (decision TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
-- Subtree roots of complete bundles; they outlive their records, so that proofs of later records still hold.
CREATE TABLE IF NOT EXISTS bundles (bundle INTEGER PRIMARY KEY, root BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS head (only INTEGER PRIMARY KEY CHECK (only = 1), note TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS floor (
    only INTEGER PRIMARY KEY CHECK (only = 1), floor INTEGER NOT NULL, note TEXT NOT NULL, leaves BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS holds (
    id TEXT PRIMARY KEY, placed TEXT NOT NULL, note TEXT NOT NULL, tenant TEXT, subject TEXT, since TEXT, until TEXT
) WITHOUT ROWID;
-- Whose names are being taken out, of the records up to the number beside, part by part: see `forgetting`.
CREATE TABLE IF NOT EXISTS erasing (subject TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
-- Has a row where copies of names that have been taken out may be left in the indexes.
CREATE TABLE IF NOT EXISTS rebuild (due INTEGER PRIMARY KEY CHECK (due = 1));
PRAGMA user_version = {VERSION};
COMMIT;
"""
_HASH_SIZE = 32
_FIELDS = itemgetter(*COLUMNS)
_INSERT: Final = f"INSERT INTO records (seq, {', '.join(COLUMNS)}, record, leaf) VALUES "  # noqa: S608 - column names of this file
_ONE: Final = f"(?{', ?' * (len(COLUMNS) + 2)})"
_ROWS_AT_ONCE = 32
"""Rows of one INSERT, which is one step of SQLite: the interpreter's lock is let go of once for all of them.

Each number of rows is a prepared statement of its own, kept with its memory: 1.5 MiB for all up to 32, 20 up to 128.
"""
_ROW = f"seq, {', '.join(COLUMNS)}, CAST(record AS BLOB), leaf"


class SqliteAuditStore:
    """One log in one file, readable and writable by its owner only.

    `must_exist` refuses to make a file where one has been before; `readonly` neither makes nor changes one. `patience`
    is how many seconds to wait for another process's lock.
    """

    def __init__(self, path: Path, *, must_exist: bool = False, readonly: bool = False, patience: float = 1.0) -> None:
        if not readonly and not must_exist:
            _make(path)
        self._file = Database("audit log", path, readonly=readonly, patience=patience)
        self._db = self._file.connection
        try:
            with self._file.named():
                self._lay(readonly=readonly, first=not must_exist)
        except BaseException:
            self.close()
            raise

    def append(
        self, entries: Sequence[AuditEntry], bundles: Sequence[tuple[int, bytes]], change: Change | None = None
    ) -> None:
        with self._file.named():
            if bundles or change or len(entries) > _ROWS_AT_ONCE:
                with self._file.transaction():
                    for first in range(0, len(entries), _ROWS_AT_ONCE):
                        self._db.execute(*_insertion(entries[first : first + _ROWS_AT_ONCE]))
                    self._db.executemany("INSERT INTO bundles VALUES (?, ?)", bundles)
                    if change:
                        self._change(change)
            else:
                self._file.commit(*_insertion(entries))

    def _change(self, change: Change) -> None:
        match change:
            case Erase(subject):
                forgetting.begin(self._db, subject)
            case Hold():
                self._db.execute(
                    "INSERT INTO holds VALUES (:id, :placed, :note, :tenant, :subject, :since, :until)", asdict(change)
                )
            case Release(hold):
                self._db.execute("DELETE FROM holds WHERE id = ?", (hold,))
            case Floor(seq, note, leaves):
                self._db.execute("DELETE FROM records WHERE seq <= ?", (seq,))
                self._db.execute("INSERT OR REPLACE INTO floor VALUES (1, ?, ?, ?)", (seq, note, b"".join(leaves)))
                forgetting.rebuild_later(self._db)

    def last_seq(self) -> int:
        with self._file.named():
            (newest,) = self._db.execute("SELECT coalesce(max(seq), 0) FROM records").fetchone()
            (floor,) = self._db.execute("SELECT coalesce(max(floor), 0) FROM floor").fetchone()
        return max(int(newest), int(floor))

    def get(self, seq: int) -> bytes | None:
        with self._file.named():
            row = self._db.execute("SELECT CAST(record AS BLOB) FROM records WHERE seq = ?", (seq,)).fetchone()
        return row[0] if row else None

    def find(self, time: str, record_id: str) -> StoredRow | None:
        text = f"SELECT {_ROW} FROM records WHERE time = ? AND json_extract(record, '$.id') = ?"  # noqa: S608 - as above
        with self._file.named():
            row = self._db.execute(text, (time, record_id)).fetchone()
        return _stored(row) if row else None

    def rows(self, first: int, last: int) -> Iterator[StoredRow]:
        text = f"SELECT {_ROW} FROM records WHERE seq BETWEEN ? AND ? ORDER BY seq"  # noqa: S608 - as above
        with self._file.named():
            for row in self._db.execute(text, (first, last)):
                yield _stored(row)

    def open_decisions(self) -> list[StoredRow]:
        text = f"SELECT {_ROW} FROM pending JOIN records USING (seq) ORDER BY seq"  # noqa: S608 - as above
        with self._file.named():
            return [_stored(row) for row in self._db.execute(text)]

    def page(self, query: AuditQuery) -> list[tuple[str, int, bytes, str | None]]:
        with self._file.named():
            return paging.page(self._db, query)

    def stretch(self, query: AuditQuery, count: int) -> tuple[str, int] | None:
        with self._file.named():
            return paging.stretch(self._db, query, count)

    def head(self) -> str | None:
        with self._file.named():
            row = self._db.execute("SELECT note FROM head").fetchone()
        return row[0] if row else None

    def set_head(self, note: str, pending: Mapping[str, int]) -> None:
        open_now = orjson.dumps(pending).decode()
        with self._file.named(), self._file.transaction():
            self._db.execute("INSERT OR REPLACE INTO head VALUES (1, ?)", (note,))
            self._db.execute("DELETE FROM pending WHERE decision NOT IN (SELECT key FROM json_each(?))", (open_now,))
            self._db.execute("INSERT OR IGNORE INTO pending SELECT key, value FROM json_each(?)", (open_now,))

    def floor(self) -> Floor | None:
        with self._file.named():
            row = self._db.execute("SELECT floor, note, leaves FROM floor").fetchone()
        if row is None:
            return None
        seq, note, leaves = row
        return Floor(seq, note, tuple(leaves[i : i + _HASH_SIZE] for i in range(0, len(leaves), _HASH_SIZE)))

    def bundle_roots(self, first: int, count: int) -> list[bytes]:
        text = "SELECT root FROM bundles WHERE bundle >= ? AND bundle < ? ORDER BY bundle"
        with self._file.named():
            return [root for (root,) in self._db.execute(text, (first, first + count))]

    def leaves(self, first: int, last: int) -> list[bytes]:
        found: list[bytes] = []
        floor = self.floor()
        if floor and first <= floor.seq:
            begin = floor.seq // BUNDLE * BUNDLE + 1
            found += floor.leaves[max(first - begin, 0) : max(last - begin + 1, 0)]
        text = "SELECT leaf FROM records WHERE seq BETWEEN ? AND ? ORDER BY seq"
        with self._file.named():
            return found + [leaf for (leaf,) in self._db.execute(text, (first, last))]

    def holds(self) -> list[Hold]:
        with self._file.named():
            return keeping.holds(self._db)

    def held(self, subject: str) -> list[str]:
        with self._file.named():
            return keeping.held(self._db, subject)

    def count(self, subject: str) -> int:
        with self._file.named():
            return forgetting.count(self._db, subject)

    def forget(self) -> bool:
        with self._file.named():
            if not forgetting.is_due(self._db):
                return False
            with self._file.transaction():
                forgetting.go_on(self._db)
        return True

    def last_of(self, floor: int) -> list[str]:
        with self._file.named():
            return keeping.last_of(self._db, floor)

    def expirable(self, before: str, limit: int) -> int:
        with self._file.named():
            return keeping.expirable(self._db, before, limit)

    def foreign(self) -> list[str]:
        """What stands in the file's schema and is none of ours, or not as we lay it: `trigger NAME`."""
        with self._file.named(), closing(sqlite3.connect(":memory:")) as ours:
            ours.executescript(_SCHEMA)
            return sorted({f"{kind} {name}" for kind, name, *_ in _objects(self._db) - _objects(ours)})

    def scrub(self) -> bool:
        with self._file.named():
            return self._file.truncate()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside is of one moment."""
        with self._file.named(), self._file.snapshot():
            yield

    def close(self) -> None:
        self._file.close()

    def _lay(self, *, readonly: bool, first: bool) -> None:
        version = self._file.version
        if version not in (0, VERSION) or (readonly and version == 0):
            raise self._file.error(f"schema version {version} is not {VERSION}")
        if version == 0:
            self._db.executescript(_SCHEMA)
        self._file.watch()
        if first and not readonly:  # not where a log heals: that has to be quick, and the disk may be full
            with self._file.transaction():
                forgetting.rebuild(self._db, sys.maxsize)


def _insertion(entries: Sequence[AuditEntry]) -> tuple[str, list[Any]]:
    """The statement for so many rows, and their values."""
    values: list[Any] = []
    for seq, record, canonical, leaf in entries:
        values += (seq, *_FIELDS(record), canonical.decode(), leaf)
    return _INSERT + ", ".join([_ONE] * len(entries)), values


def _make(path: Path) -> None:
    try:
        make(path)
    except OSError as error:
        raise StoreError(f"audit log {path}: {error}") from error


def _objects(db: sqlite3.Connection) -> set[tuple[str, str, str, str]]:
    """Every table, index, trigger and view: its kind and name, its table's, and what made it."""
    rows = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema")
    return {(str(kind), str(name), str(of), " ".join(str(sql).split())) for kind, name, of, sql in rows}


def _stored(row: tuple[Any, ...]) -> StoredRow:
    seq, *columns, canonical, leaf = row
    return StoredRow(seq, dict(zip(COLUMNS, columns, strict=True)), canonical, leaf)
