"""A SQLite file of a store: durable at every commit, its owner's alone, never written once it has lost its name."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.stores.base import StoreError

_STATEMENTS = 64
"""Prepared statements to keep: an insertion has one for each number of rows."""


class Database:
    """A connection to the file at `path`, called `what` in errors, which must be there.

    Blocking, and used by one thread at a time. `readonly` changes nothing; `patience` is how many seconds to wait for
    another process's lock. Raises `StoreError`, as does everything inside `named`.
    """

    def __init__(self, what: str, path: Path, *, readonly: bool, patience: float) -> None:
        self._what = what
        self._path = path
        self._names = (str(path), f"{path}-wal")
        self._readonly = readonly
        self._patience = patience
        with self.named():
            self.connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?{_mode(path) if readonly else 'mode=rw'}",
                uri=True,
                timeout=patience,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=_STATEMENTS,
            )
        try:
            with self.named():
                self._prepare()
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """The schema's version that the file says it has; 0 where it has none yet."""
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def watch(self) -> None:
        """From now on refuse to write once the file or its write-ahead log no longer bears its name."""
        self.connection.execute("SELECT 1 FROM sqlite_schema").fetchone()  # the first read opens the write-ahead log
        self._files = self._identities()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One durable commit of what is executed inside."""
        self._require_names()
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # some errors have rolled back already
                self.connection.execute("ROLLBACK")
            raise

    def commit(self, statement: str, values: Sequence[Any]) -> None:
        """One durable commit of one statement, in a single call that lets go of the interpreter's lock only once."""
        self._require_names()
        self.connection.execute(statement, values)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside is of one moment."""
        self.connection.execute("BEGIN")
        try:
            yield
        finally:
            with suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")

    def truncate(self) -> bool:
        """Empty the write-ahead log, which holds pages as they were; False where a reader is in the way."""
        self.connection.execute("PRAGMA busy_timeout = 0")  # whoever reads may do so for minutes
        try:
            (busy, _, _) = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self.connection.execute(f"PRAGMA busy_timeout = {int(self._patience * 1000)}")
        return not busy

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors of the file inside become `StoreError`s that name it."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self.error(str(error)) from error

    def error(self, what: str) -> StoreError:
        return StoreError(f"{self._what} {self._path}: {what}")

    def close(self) -> None:
        """Let go of the file; idempotent and silent."""
        with suppress(sqlite3.Error):
            self.connection.close()

    def _require_names(self) -> None:
        """What lands in files without their names would be gone at the next start."""
        if self._files != self._identities():
            raise self.error("the file has been replaced")

    def _prepare(self) -> None:
        if self._readonly:
            return
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")  # in WAL mode: every commit waits for its fsync
        self.connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, not only unlinked
        self.connection.execute("PRAGMA temp_store = MEMORY")  # what is sorted leaves nothing in other files
        self._files = self._identities()

    def _identities(self) -> tuple[tuple[int, int], ...]:
        if self._readonly:
            return ()
        found = []
        for name in self._names:
            with suppress(FileNotFoundError):
                status = os.stat(name)  # noqa: PTH116 - at every commit: a Path costs five times as much
                found.append((status.st_dev, status.st_ino))
        return tuple(found)


def _mode(path: Path) -> str:
    """How to read a file: where nobody can write, as on a medium for archives, SQLite cannot lay its side files."""
    log = path.with_name(f"{path.name}-wal")
    settled = not log.exists() or log.stat().st_size == 0
    return "mode=ro&immutable=1" if settled and not os.access(path.parent, os.W_OK) else "mode=ro"
