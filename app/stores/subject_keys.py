"""The keys of data subjects in SQLite: a random key each, wrapped, until an erasure destroys it.

A row is nonce || AES-256-GCM of the subject's key under the log's wrapping key, bound to log and pseudonym (NIST SP
800-38D; 96-bit random nonces). The database knows the id of the wrapping key that its rows are under, so that a
rotation is one commit: before it the old key's file counts, after it the new one's, wherever the machine stops.
"""

import hmac
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson
from cachetools import LRUCache
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.stores import files, key_file
from app.stores.base import StoreError
from app.stores.database import Database

_VERSION = 1
_SCHEMA = (
    "CREATE TABLE subjects (pseudonym TEXT PRIMARY KEY, wrapped BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE wrapping (only INTEGER PRIMARY KEY CHECK (only = 1), key_id BLOB NOT NULL)",
    f"PRAGMA user_version = {_VERSION}",
)
_READ = """
SELECT pseudonym, wrapped, key_id FROM wrapping, subjects WHERE pseudonym IN (SELECT value FROM json_each(?))
"""
_NEXT_ROWS = "SELECT pseudonym, wrapped FROM subjects WHERE pseudonym > ? ORDER BY pseudonym LIMIT ?"
_WHAT = "subject keys"
_NONCE_SIZE = 12
_BATCH = 1000
_REMEMBERED = 10_000


class DamagedKey(StoreError):
    """One subject's key does not unwrap; the others' do."""


class _Wrapping:
    """A wrapping key: its id, by which a database names it, and what it does."""

    __slots__ = ("_cipher", "_log", "id")

    def __init__(self, key: bytes, log: str) -> None:
        self.id = hmac.digest(key, b"tidegate wrapping key", "sha256")[:8]
        self._cipher = AESGCM(key)
        self._log = log

    def wrap(self, pseudonym: str, key: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, key, self._bound_to(pseudonym))

    def unwrap(self, pseudonym: str, wrapped: bytes) -> bytes:
        """Raises `InvalidTag` or ValueError for what `wrap` has not made."""
        return self._cipher.decrypt(wrapped[:_NONCE_SIZE], wrapped[_NONCE_SIZE:], self._bound_to(pseudonym))

    def _bound_to(self, pseudonym: str) -> bytes:
        return f"{self._log}\n{pseudonym}".encode()


class SubjectKeys:
    """The keys of one log's subjects by pseudonym. Blocking; one thread at a time; any method may raise `StoreError`.

    `wrapping` is the file of the key that wraps them, made together with the database at `path`. One process writes;
    any number may read at the same time, `readonly`, which changes nothing, and finds no key where there is no
    database. `patience` is how many seconds to wait for another process's lock.
    """

    def __init__(self, path: Path, wrapping: Path, log: str, *, readonly: bool = False, patience: float = 1.0) -> None:
        self._path = path
        self._file = wrapping
        self._next = wrapping.with_name(f"{wrapping.name}.next")
        self._log = log
        self._readonly = readonly
        self._patience = patience
        self._wrapping: _Wrapping | None = None
        self._remembered: LRUCache[str, bytes] = LRUCache(_REMEMBERED)
        self._seen = 0
        self._closed = False
        if not readonly:
            self._make()
        self._db = self._open()

    def get(self, pseudonym: str) -> bytes | None:
        """The subject's key, 32 bytes; None where it has none, or none any more."""
        return self._read([pseudonym]).get(pseudonym)

    def obtain(self, pseudonyms: Iterable[str]) -> dict[str, bytes]:
        """The keys of all subjects named; those that have none get one, all in one durable commit."""
        wanted = list(dict.fromkeys(pseudonyms))
        keys = self._read(wanted)
        new = [each for each in wanted if each not in keys]
        if new:
            with self._writing() as db, db.transaction():
                wrapping = self._current(db)
                rows = ((each, wrapping.wrap(each, secrets.token_bytes(key_file.KEY_SIZE))) for each in new)
                db.connection.executemany("INSERT INTO subjects VALUES (?, ?) ON CONFLICT DO NOTHING", rows)
            keys |= self._read(new)
        return keys

    def destroy(self, pseudonyms: Sequence[str]) -> int:
        """Destroy subjects' keys in one durable commit; how many there were. `scrub` takes the last of their bytes."""
        for pseudonym in pseudonyms:
            self._remembered.pop(pseudonym, None)
        with self._writing() as db, db.transaction() as connection:
            return connection.executemany(
                "DELETE FROM subjects WHERE pseudonym = ?", [(each,) for each in pseudonyms]
            ).rowcount

    def scrub(self) -> bool:
        """Empty the write-ahead log, which still holds pages as they were; False where a reader is in the way."""
        with self._writing() as db:
            return db.truncate()

    def rotate(self) -> None:
        """Wrap every key anew under a new wrapping key, whose file takes the old one's place."""
        with self._writing() as db:
            with db.transaction() as connection:
                self._settle(db)
                old = self._current(db)
                new = _Wrapping(key_file.obtain(self._next), self._log)
                self._rewrap(db, old, new)
                connection.execute("UPDATE wrapping SET key_id = ?", (new.id,))
            with db.transaction():
                self._settle(db)
            if not db.truncate():
                raise db.error("another process is reading them; try again")

    def close(self) -> None:
        """Let go of the file; idempotent and silent."""
        self._closed = True
        self._remembered.clear()
        if self._db:
            self._db.close()

    def _make(self) -> None:
        """Lay the database's file first: so a wrapping key without one says that the database was lost."""
        if key_file.exists(self._file) and not key_file.exists(self._path):
            raise StoreError(
                f"{_WHAT} {self._path}: missing, though {self._file.name} is there; restore it from a backup"
                f" (or delete {self._file.name} too: sealed records then stay closed for good)"
            )
        try:
            key_file.make_directory(self._path.parent)
            files.make(self._path)
        except OSError as error:
            raise StoreError(f"{_WHAT} {self._path}: {error.strerror}") from error

    def _open(self) -> Database | None:
        """The database; None where a reader finds none yet."""
        if self._readonly and not key_file.exists(self._path):
            return None
        db = Database(_WHAT, self._path, readonly=self._readonly, patience=self._patience)
        try:
            with db.named():
                ready = self._prepared(db)
        except BaseException:
            db.close()
            raise
        if not ready:
            db.close()
        return db if ready else None

    def _prepared(self, db: Database) -> bool:
        """Whether there are tables; a reader may find that another process has yet to lay them."""
        if not self._readonly:
            with db.transaction():
                self._lay(db)
            db.watch()
        if db.version not in {0, _VERSION}:
            raise db.error(f"schema version {db.version} is not {_VERSION}")
        return db.version == _VERSION

    def _lay(self, db: Database) -> None:
        """Tables and wrapping key where there are none yet; the end of a rotation that broke off."""
        if db.version == 0:
            wrapping = _Wrapping(key_file.obtain(self._file), self._log)
            for statement in _SCHEMA:
                db.connection.execute(statement)
            db.connection.execute("INSERT INTO wrapping VALUES (1, ?)", (wrapping.id,))
        elif db.version == _VERSION:
            self._settle(db)
            self._current(db)  # without it nothing could be read or made: say so now, not at the first request

    def _settle(self, db: Database) -> None:
        """After a rotation's commit put its key into place, before it throw that key away; within a transaction."""
        if not self._next.exists():
            return
        key_file.sweep(self._file)
        if self._key_id(db) == self._in(self._file).id:
            self._next.unlink()
        elif self._key_id(db) == self._in(self._next).id:
            self._next.replace(self._file)
        else:
            raise self._other_key(db)
        files.sync_directory(self._file.parent)

    def _rewrap(self, db: Database, old: _Wrapping, new: _Wrapping) -> None:
        last = ""
        while rows := db.connection.execute(_NEXT_ROWS, (last, _BATCH)).fetchall():
            fresh = [(new.wrap(each, self._unwrapped(old, each, wrapped)), each) for each, wrapped in rows]
            db.connection.executemany("UPDATE subjects SET wrapped = ? WHERE pseudonym = ?", fresh)
            last = rows[-1][0]

    def _read(self, pseudonyms: list[str]) -> dict[str, bytes]:
        """Keys of those that have one. What another connection changed, a key destroyed above all, is forgotten."""
        if self._db is None and not self._closed:
            self._db = self._open()
        if self._db is None:
            return {}
        with self._db.named():
            (version,) = self._db.connection.execute("PRAGMA data_version").fetchone()
            if version != self._seen:
                self._remembered.clear()
                self._seen = version
            keys = {each: key for each in pseudonyms if (key := self._remembered.get(each))}
            missing = [each for each in pseudonyms if each not in keys]
            if missing:
                rows = self._db.connection.execute(_READ, (orjson.dumps(missing).decode(),)).fetchall()
                for pseudonym, wrapped, key_id in rows:
                    keys[pseudonym] = self._unwrapped(self._named_by(self._db, key_id), pseudonym, wrapped)
                self._remembered.update((each, keys[each]) for each in missing if each in keys)
        return keys

    def _unwrapped(self, wrapping: _Wrapping, pseudonym: str, wrapped: bytes) -> bytes:
        try:
            return wrapping.unwrap(pseudonym, wrapped)
        except (InvalidTag, ValueError, TypeError):
            raise DamagedKey(f"{_WHAT} {self._path}: a subject's key is damaged; restore the file") from None

    def _current(self, db: Database) -> _Wrapping:
        return self._named_by(db, self._key_id(db))

    def _key_id(self, db: Database) -> bytes:
        row = db.connection.execute("SELECT key_id FROM wrapping").fetchone()
        if row is None:
            raise self._other_key(db)
        key_id: bytes = row[0]
        return key_id

    def _named_by(self, db: Database, key_id: bytes) -> _Wrapping:
        """The wrapping key with that id; looked for first where a rotation elsewhere would move it away from."""
        if self._wrapping is None or self._wrapping.id != key_id:
            with suppress(StoreError):
                self._wrapping = self._in(self._next)
        if self._wrapping is None or self._wrapping.id != key_id:
            self._wrapping = self._in(self._file)
        if self._wrapping.id != key_id:
            raise self._other_key(db)
        return self._wrapping

    def _in(self, file: Path) -> _Wrapping:
        return _Wrapping(key_file.read(file), self._log)

    def _other_key(self, db: Database) -> StoreError:
        return db.error(f"wrapped under another key than {self._file}; restore both from one backup")

    @contextmanager
    def _writing(self) -> Iterator[Database]:
        if self._readonly or self._db is None:
            raise StoreError(f"{_WHAT} {self._path}: open for reading only")
        with self._db.named():
            yield self._db
