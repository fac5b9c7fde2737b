"""Pseudonyms of data subjects: HMAC-SHA256 of tenant and caller's id under a key that each region has of its own."""

import asyncio
import hmac
import re
from collections.abc import Iterable, Sequence
from datetime import timedelta

from app.audit.keys import KeyStore
from app.errors import AuditUnavailable
from app.stores.base import StoreError

_PSEUDONYM = re.compile(r"^[0-9a-f]{64}$")


def is_pseudonym(value: str) -> bool:
    """Whether a value has the form of a pseudonym: 64 lower-case hex digits."""
    return bool(_PSEUDONYM.match(value))


def holds_id(text: str | None, subject_id: str) -> bool:
    """Whether a text holds a person's id, in whatever case; white space around the id is not part of it."""
    wanted = subject_id.strip().casefold()
    return bool(text and wanted and wanted in text.casefold())


class Pseudonyms:
    """Makes pseudonyms; a log's key is read, or made, when it is first needed."""

    def __init__(self, keys: KeyStore) -> None:
        self._store = keys
        self._keys: dict[str, bytes] = {}

    async def of(self, log: str, tenant: str | None, subject_id: str | None) -> str | None:
        """The pseudonym of a tenant's X-Subject-Id in a log; None where no id was sent, or nobody is known to send it.

        `AuditUnavailable` where the key can be neither read nor made: what cannot be recorded must not be forwarded.
        """
        if not tenant or not subject_id:
            return None
        key = self._keys.get(log)
        if key is None:
            try:
                key = await asyncio.to_thread(self._load, log)
            except StoreError as error:
                raise AuditUnavailable(retry_after=timedelta(seconds=1)) from error
        return _pseudonym(key, tenant, subject_id)

    def known(self, logs: Iterable[str], tenants: Sequence[str], subject_id: str) -> frozenset[str]:
        """Pseudonyms of an id at any of those tenants, in those logs that have a key already; makes none.

        Reads files, so not for the event loop; raises `StoreError`.
        """
        present = [log for log in logs if log in self._keys or self._store.has_pseudonym_key(log)]
        keys = [self._load(log) for log in present]
        return frozenset(_pseudonym(key, tenant, subject_id) for key in keys for tenant in tenants)

    def _load(self, log: str) -> bytes:
        key = self._keys.get(log) or self._store.pseudonym_key(log)
        self._keys[log] = key
        return key


def _pseudonym(key: bytes, tenant: str, subject_id: str) -> str:
    return hmac.digest(key, f"{tenant}\0{_text(subject_id)}".encode(), "sha256").hex()


def _text(value: str) -> str:
    """An id as text: a header arrives as Latin-1 (RFC 9110, section 5.5), whatever its bytes meant; most mean UTF-8."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
