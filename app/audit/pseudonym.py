"""Pseudonyms of data subjects: HMAC-SHA256 of the caller's id under a key that each region has of its own.

The keys lie beside the audit directory, never in it, so that a copy of the trail gives nobody the means to test ids.
"""

import asyncio
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from app.config import AuditSettings
from app.errors import AuditUnavailable
from app.stores.base import StoreError

_KEY_BYTES = 32
_PSEUDONYM = re.compile(r"^[0-9a-f]{64}$")


def is_pseudonym(value: str) -> bool:
    """Whether a value has the form of a pseudonym: 64 lower-case hex digits."""
    return bool(_PSEUDONYM.match(value))


class Pseudonyms:
    """Makes pseudonyms; a region's key is read, or made, when it is first needed."""

    def __init__(self, settings: AuditSettings) -> None:
        self._directory = settings.key_directory
        self._keys: dict[str, bytes] = {}

    async def of(self, region: str, subject_id: str | None) -> str | None:
        """The pseudonym of X-Subject-Id in the region's log; None where no id was sent.

        `AuditUnavailable` where the key can be neither read nor made: what cannot be recorded must not be forwarded.
        """
        if not subject_id:
            return None
        key = self._keys.get(region)
        if key is None:
            try:
                key = await asyncio.to_thread(self._load, region)
            except StoreError as error:
                raise AuditUnavailable(retry_after=timedelta(seconds=1)) from error
        return _pseudonym(key, subject_id)

    def known(self, regions: Sequence[str], subject_id: str) -> frozenset[str]:
        """Pseudonyms of an id in those regions that have a key already; makes none.

        Reads files, so not for the event loop; raises `StoreError`.
        """
        present = [region for region in regions if region in self._keys or self._file(region).exists()]
        return frozenset(_pseudonym(self._load(region), subject_id) for region in present)

    def _file(self, region: str) -> Path:
        return self._directory / f"{region}.key"

    def _load(self, region: str) -> bytes:
        file = self._file(region)
        try:
            if not file.exists():
                _make(file)
            key = file.read_bytes()
        except OSError as error:
            raise StoreError(f"pseudonym key {file}: {error.strerror}") from error
        if len(key) != _KEY_BYTES:
            raise StoreError(f"pseudonym key {file}: not a key of {_KEY_BYTES} bytes")
        self._keys[region] = key
        return key


def _pseudonym(key: bytes, subject_id: str) -> str:
    return hmac.digest(key, _text(subject_id).encode(), "sha256").hex()


def _text(value: str) -> str:
    """An id as text: a header arrives as Latin-1 (RFC 9110, section 5.5), whatever its bytes meant; most mean UTF-8."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _make(file: Path) -> None:
    """Make a key so that the file appears whole or not at all, and the first of several makers wins."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(_KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(draft, file)
        except FileExistsError:
            return
    finally:
        draft.unlink()
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
