"""Audit logs in SQLite: one file a log, in WAL mode, where a commit returns once it is on the disk."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from app.stores.base import AuditEntry, AuditQuery, StoreError

_VERSION = 1
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
    record TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS records_time ON records (time);
CREATE INDEX IF NOT EXISTS records_tenant ON records (tenant, time);
CREATE INDEX IF NOT EXISTS records_request ON records (request_id);
CREATE INDEX IF NOT EXISTS records_subject ON records (subject) WHERE subject IS NOT NULL;
-- Decisions whose completion is still to come, kept in the same commits, so that a start need not read the whole log.
CREATE TABLE IF NOT EXISTS pending (decision TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
-- The first number that retention has left, so that numbers never begin anew.
CREATE TABLE IF NOT EXISTS retained (only INTEGER PRIMARY KEY CHECK (only = 1), floor INTEGER NOT NULL);
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_COLUMNS = ("time", "kind", "request_id", "tenant", "subject", "subject_country", "region", "outcome", "reason")
_INSERT = f"INSERT INTO records (seq, {', '.join(_COLUMNS)}, record) VALUES (?{', ?' * (len(_COLUMNS) + 1)})"  # noqa: S608 - column names of this file
_COMPLETED_BEFORE = """
SELECT 1 FROM records
WHERE request_id = ? AND kind = 'completion' AND json_extract(record, '$.decision_id') = ? AND time < ?
"""


class SqliteAuditStore:
    """One log in one file, readable and writable by its owner only.

    `must_exist` refuses to make a file where one has been before; `readonly` neither makes nor changes one. `patience`
    is how many seconds to wait for another process's lock.
    """

    def __init__(self, path: Path, *, must_exist: bool = False, readonly: bool = False, patience: float = 1.0) -> None:
        self._path = path
        self._readonly = readonly
        with self._named():
            if not readonly and not must_exist:
                _make(path)
            mode = "ro" if readonly else "rw"
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=patience,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def append(self, entries: Sequence[AuditEntry]) -> None:
        decisions = {entry.record["id"]: entry.seq for entry in entries if entry.record["kind"] == "decision"}
        completed = {entry.record["decision_id"] for entry in entries if entry.record["kind"] == "completion"}
        rows = [
            (entry.seq, *(entry.record.get(column) for column in _COLUMNS), entry.canonical.decode())
            for entry in entries
        ]
        with self._named():
            self._check_files()
            with self._transaction():
                self._db.executemany(_INSERT, rows)
                self._db.executemany(
                    "INSERT INTO pending VALUES (?, ?)",
                    [(each, seq) for each, seq in decisions.items() if each not in completed],
                )
                self._db.executemany(
                    "DELETE FROM pending WHERE decision = ?", [(each,) for each in completed - decisions.keys()]
                )

    def last_seq(self) -> int:
        with self._named():
            (newest,) = self._db.execute("SELECT coalesce(max(seq), 0) FROM records").fetchone()
            floor = self._db.execute("SELECT floor FROM retained").fetchone()
        return max(int(newest), int(floor[0]) - 1 if floor else 0)

    def get(self, seq: int) -> bytes | None:
        with self._named():
            row = self._db.execute("SELECT CAST(record AS BLOB) FROM records WHERE seq = ?", (seq,)).fetchone()
        return row[0] if row else None

    def open_decisions(self) -> list[dict[str, Any]]:
        with self._named():
            rows = self._db.execute("SELECT record FROM pending JOIN records USING (seq) ORDER BY seq").fetchall()
            return [orjson.loads(record) for (record,) in rows]

    def page(self, query: AuditQuery) -> list[tuple[str, int, bytes]]:
        clauses = ["seq <= :bound"]
        values: dict[str, Any] = {"bound": query.bound, "limit": query.limit}
        for column, value in query.equal.items():
            if column not in _COLUMNS:
                raise ValueError(f"{column!r} is no column to filter by")
            clauses.append(f"{column} = :{column}")
            values[column] = value
        if query.since is not None:
            clauses.append("time >= :since")
            values["since"] = query.since
        if query.until is not None:
            clauses.append("time < :until")
            values["until"] = query.until
        if query.subjects is not None:
            clauses.append("subject IN (SELECT value FROM json_each(:subjects))")
            values["subjects"] = orjson.dumps(sorted(query.subjects)).decode()
        if query.after is not None:
            clauses.append("time >= :after_time AND (time > :after_time OR seq > :after_seq)")
            values["after_time"], values["after_seq"] = query.after
        # Nothing of the caller's is in the text: columns are checked against a constant, values are bound.
        text = f"""
            SELECT time, seq, CAST(record AS BLOB) FROM records
            WHERE {" AND ".join(clauses)} ORDER BY time, seq LIMIT :limit
        """  # noqa: S608 - see above
        with self._named():
            return self._db.execute(text, values).fetchall()

    def expire(self, before: str, limit: int) -> int:
        with self._named():
            self._check_files()
            cut, count = self._expired(before, limit)
            if count:
                with self._transaction():
                    self._db.execute("DELETE FROM records WHERE seq <= ?", (cut,))
                    self._db.execute("INSERT OR REPLACE INTO retained VALUES (1, ?)", (cut + 1,))
        return count

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._db.close()

    def _expired(self, before: str, limit: int) -> tuple[int, int]:
        rows: list[tuple[int, str, str, str, str, str | None]] = []
        text = """
            SELECT seq, time, kind, request_id, json_extract(record, '$.id'), json_extract(record, '$.decision_id')
            FROM records ORDER BY seq LIMIT ?
        """
        for row in self._db.execute(text, (limit,)):
            if row[1] >= before:
                break
            rows.append(row)
        completed = {row[5] for row in rows}
        cut = count = 0
        for seq, _, kind, request, identity, _ in rows:
            if kind == "decision" and identity not in completed:
                found = self._db.execute(_COMPLETED_BEFORE, (request, identity, before)).fetchone()
                if found is None:
                    break
            cut, count = seq, count + 1
        return cut, count

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION) or (self._readonly and version == 0):
            raise StoreError(f"audit log {self._path}: schema version {version} is not {_VERSION}")
        if self._readonly:
            return
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # in WAL mode: every commit waits for its fsync
        self._db.execute("PRAGMA secure_delete = ON")  # what retention deletes is overwritten, not only unlinked
        if version == 0:
            self._db.executescript(_SCHEMA)
        self._db.execute("SELECT 1 FROM pending").fetchone()  # the first read opens the WAL, which is watched as well
        self._files = self._identities()

    def _identities(self) -> tuple[tuple[int, int], ...]:
        stats = (self._path.stat(), self._path.with_name(f"{self._path.name}-wal").stat())
        return tuple((each.st_dev, each.st_ino) for each in stats)

    def _check_files(self) -> None:
        """Refuse to write to files that no longer bear their names: what lands in them is gone at the next start."""
        if not self._readonly and self._identities() != self._files:
            raise StoreError(f"audit log {self._path}: the file has been replaced")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # some errors have rolled back already
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, orjson.JSONDecodeError) as error:
            raise StoreError(f"audit log {self._path}: {error}") from error


def _make(path: Path) -> None:
    """An empty file of mode 0600 where there is none (SQLite copies the mode to its side files), its name durable."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
