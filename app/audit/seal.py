"""Sealing of a record's personal fields under its subject's key, so that destroying the key forgets them. Pure.

AES-256-GCM (NIST SP 800-38D), bound to the log and the record's id, so that no sealed text passes in another record.
"""

import base64
import binascii
from collections.abc import Mapping

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.audit.record import Record, canonical

PERSONAL = ("subject", "request_id", "trace_id")
NONCE_SIZE = 12
_KEY_SIZE = 32


class SealError(ValueError):
    """Sealed fields do not open: another key than theirs, or an altered text."""


def sealed(record: Mapping[str, object], key: bytes, nonce: bytes, log: str) -> Record:
    """The record as it is stored: personal fields null, `personal` their sealed text.

    `key` has 32 bytes; `nonce` 12 random ones, used once.
    """
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"a nonce has {NONCE_SIZE} bytes")
    plain = canonical({name: record[name] for name in PERSONAL})
    text = nonce + _cipher(key).encrypt(nonce, plain, _bound_to(record, log))
    return {**record, **dict.fromkeys(PERSONAL), "personal": base64.b64encode(text).decode()}


def opened(record: Mapping[str, object], key: bytes, log: str) -> Record:
    """The record with its personal fields filled in again; `personal` stays. Raises `SealError`.

    A record whose `personal` is null has nothing sealed and comes back as it is.
    """
    if record["personal"] is None:
        return dict(record)
    cipher = _cipher(key)
    try:
        text = base64.b64decode(str(record["personal"]), validate=True)
        plain = cipher.decrypt(text[:NONCE_SIZE], text[NONCE_SIZE:], _bound_to(record, log))
        fields = orjson.loads(plain)
    except (InvalidTag, binascii.Error, ValueError):
        raise SealError(f"record {record['id']}: its personal fields do not open with this key") from None
    return {**record, **{name: fields[name] for name in PERSONAL}}


def closed(record: Mapping[str, object]) -> Record:
    """A record, opened or not, as it is stored: its canonical bytes are those that the log holds."""
    return dict(record) if record["personal"] is None else {**record, **dict.fromkeys(PERSONAL)}


def _cipher(key: bytes) -> AESGCM:
    if len(key) != _KEY_SIZE:
        raise ValueError(f"a key has {_KEY_SIZE} bytes")
    return AESGCM(key)


def _bound_to(record: Mapping[str, object], log: str) -> bytes:
    return f"{log}\n{record['id']}".encode()
