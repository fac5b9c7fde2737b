"""Opens stored records for whoever may read them: fills their sealed personal fields in where the key still exists."""

from contextlib import suppress
from types import TracebackType
from typing import Self

import orjson

from app.audit import seal
from app.audit.keys import KeyStore
from app.audit.record import Record
from app.stores.subject_keys import DamagedKey, SubjectKeys


class Opener:
    """Opens records of any log, as a context that lets go of the key files. Raises `StoreError`."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._subjects: dict[str, SubjectKeys] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for subjects in self._subjects.values():
            subjects.close()

    def opened(self, log: str, canonical: bytes, subject: str | None) -> Record:
        """The record with its personal fields; they stay null where its subject (pseudonym) has been erased."""
        stored: Record = orjson.loads(canonical)
        if stored.get("personal") is None or subject is None:
            return stored
        # Another key than the record's is there since an erasure that broke off destroyed that one.
        with suppress(seal.SealError, DamagedKey):
            if key := self._of(log).get(subject):
                return seal.opened(stored, key, log)
        return stored

    def _of(self, log: str) -> SubjectKeys:
        if log not in self._subjects:
            self._subjects[log] = self._keys.subject_keys(log, readonly=True)
        return self._subjects[log]
