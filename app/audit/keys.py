"""The private keys of the audit trail, by log: of pseudonyms, of signatures, of data subjects."""

from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.stores import key_file
from app.stores.base import StoreError
from app.stores.subject_keys import SubjectKeys


class KeyStore(Protocol):
    """Where keys lie. Blocking; each key is made when it is first asked for; any method may raise `StoreError`."""

    def has_pseudonym_key(self, log: str) -> bool:
        """Whether the log's pseudonyms have a key already."""

    def pseudonym_key(self, log: str) -> bytes:
        """The HMAC-SHA256 key of the log's pseudonyms, 32 bytes; it never changes."""

    def has_signing_key(self, log: str) -> bool:
        """Whether the log's checkpoints have a key already."""

    def signing_key(self, log: str) -> Ed25519PrivateKey:
        """The key that signs the log's checkpoints and floors."""

    def subject_keys(self, log: str, readonly: bool = False) -> SubjectKeys:
        """The keys of the log's data subjects; the caller closes them."""

    def rotate(self, log: str) -> None:
        """A new signing key, and a new wrapping key with every subject's key wrapped anew.

        Wherever it breaks off, all keys stay usable; called again, it rotates both.
        """


class FileKeys:
    """Keys in files of one directory, mode 0600, made when first needed; the directory is made with mode 0700."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def has_pseudonym_key(self, log: str) -> bool:
        return key_file.exists(self._file(log, "key"))

    def pseudonym_key(self, log: str) -> bytes:
        file = self._file(log, "key")
        if not key_file.exists(file) and key_file.exists(self._file(log, "subjects.db")):
            raise StoreError(
                f"key {file}: missing, and nobody in {log} can be found without it; restore it from a backup"
            )
        return key_file.obtain(file)

    def has_signing_key(self, log: str) -> bool:
        return key_file.exists(self._file(log, "ed25519"))

    def signing_key(self, log: str) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(key_file.obtain(self._file(log, "ed25519")))

    def subject_keys(self, log: str, readonly: bool = False) -> SubjectKeys:
        return SubjectKeys(self._file(log, "subjects.db"), self._file(log, "wrap"), log, readonly=readonly)

    def rotate(self, log: str) -> None:
        if any(key_file.exists(self._file(log, ending)) for ending in ("wrap", "subjects.db")):
            subjects = self.subject_keys(log)
            try:
                subjects.rotate()
            finally:
                subjects.close()
        key_file.replace(self._file(log, "ed25519"))

    def _file(self, log: str, ending: str) -> Path:
        return self._directory / f"{log}.{ending}"
