"""Checkpoints of a log and the signed notes that carry them: written, signed, opened, cosigned. Pure.

The formats are those of C2SP: signed notes with Ed25519 keys (https://c2sp.org/signed-note), checkpoints
(https://c2sp.org/tlog-checkpoint) and witnesses' cosignatures, version 1 (https://c2sp.org/tlog-cosignature).
Notes come from strangers as well: each is bounded, and whatever is not exactly of its form is a `NoteError`.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.audit.merkle import HASH_SIZE, MAX_SIZE

MAX_NOTE_BYTES = 64 * 1024
MAX_SIGNATURES = 16

_MAX_NAME = 1024
_PUBLIC_BYTES = 32
_ID_BYTES = 4
_SECONDS_BYTES = 8
_MAX_SECONDS = (1 << 63) - 1
_ED25519, _COSIGNATURE = b"\x01", b"\x04"
_TIME = "time "
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})")
_SIGNATURE = re.compile(r"\N{EM DASH} ([^ ]+) ([^ ]+)")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_VERIFIER_KEY = re.compile(r"(?P<name>[^+]+)\+(?P<id>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/]{44})")


class NoteError(ValueError):
    """A note, checkpoint or key that is malformed, or not signed as it has to be; the message says which."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A name and the Ed25519 public key (32 bytes) that signs under it. Raises NoteError for what cannot be one."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.public) != _PUBLIC_BYTES:
            raise NoteError(f"an Ed25519 public key has {_PUBLIC_BYTES} bytes, not {len(self.public)}")

    @property
    def key_id(self) -> bytes:
        """The four bytes that a signature by this key begins with."""
        return _key_id(self.name, _ED25519, self.public)

    def line(self) -> str:
        """The key as text, without a newline: `name+id+base64(0x01 || public)`."""
        return f"{self.name}+{self.key_id.hex()}+{_base64(_ED25519 + self.public)}"

    @classmethod
    def parse(cls, line: str) -> "VerifierKey":
        """The key that `line()` wrote. Raises NoteError for another form or type, or an id that is not the key's."""
        found = _VERIFIER_KEY.fullmatch(line)
        if not found:
            raise NoteError("a verifier key reads NAME+ID+KEY")
        encoded = _decoded(found["key"])
        if encoded[:1] != _ED25519:
            raise NoteError(f"verifier key of an unknown type: {encoded[0]}")
        key = cls(found["name"], encoded[1:])
        if key.key_id.hex() != found["id"]:
            raise NoteError(f"verifier key {key.name!r}: its id is not that of the key")
        return key


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log says of itself: the root (32 bytes) of the tree of its first `size` records.

    `time` is RFC 3339, the moment of signing; None where there is none. Raises NoteError for values that have no text.
    """

    origin: str
    size: int
    root: bytes
    time: str | None

    def __post_init__(self) -> None:
        if not self.origin:
            raise NoteError("a checkpoint needs an origin")
        if "\n" in self.origin:
            raise NoteError("an origin is one line")
        _check_text(self.origin)
        if not 0 <= self.size <= MAX_SIZE:
            raise NoteError("a checkpoint's size is out of range")
        if len(self.root) != HASH_SIZE:
            raise NoteError(f"a checkpoint's root has {HASH_SIZE} bytes, not {len(self.root)}")
        if self.time is not None:
            _check_time(self.time)

    def text(self) -> str:
        """The text to sign: origin, size, root and time, a line each."""
        time = "" if self.time is None else f"{_TIME}{self.time}\n"
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n{time}"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """The checkpoint in the text of an opened note. Raises NoteError.

        Extension lines other than `time` are opaque, and left out. Whose checkpoint it is, the signature does not say:
        the caller compares `origin`.
        """
        *lines, rest = text.split("\n")
        if rest or len(lines) < 3 or not all(lines):  # noqa: PLR2004 - origin, size, root
            raise NoteError("a checkpoint has three or more lines, none empty, each ended by a newline")
        origin, size, root, *extensions = lines
        if not _SIZE.fullmatch(size):
            raise NoteError("a checkpoint's size is a decimal number without leading zeros")
        times = [line.removeprefix(_TIME) for line in extensions if line.startswith(_TIME)]
        if len(times) > 1:
            raise NoteError("a checkpoint has one time")
        return cls(origin, int(size), _decoded(root), times[0] if times else None)


def claimed(note: str) -> Checkpoint:
    """The checkpoint in a note, whoever signed it: nothing to rely on. Raises NoteError."""
    return Checkpoint.parse(note.rpartition("\n\n")[0] + "\n")


@dataclass(frozen=True, slots=True)
class _Signature:
    name: str
    key_id: bytes
    signature: bytes

    def line(self) -> str:
        return f"\N{EM DASH} {self.name} {_base64(self.key_id + self.signature)}\n"


def sign(text: str, name: str, key: Ed25519PrivateKey) -> str:
    """The text as a note signed by `key` under `name`. Raises NoteError for a text or a name that no note has."""
    _check_name(name)
    if not text.endswith("\n"):
        raise NoteError("a note's text ends in a newline")
    signature = _Signature(name, _key_id(name, _ED25519, _public(key)), key.sign(_check_text(text)))
    return _note(text, [signature])


def opened(note: str, keys: Sequence[VerifierKey]) -> str:
    """The text of a note that one of the keys signed.

    Raises NoteError where none did, where a signature of a known key is wrong, and for a malformed note. Signatures of
    unknown keys count for nothing.
    """
    text, signatures = _parsed(note)
    message, verified = text.encode(), False
    for each in signatures:
        known = [key for key in keys if (key.name, key.key_id) == (each.name, each.key_id)]
        if known and not any(_is_signed(key.public, each.signature, message) for key in known):
            raise NoteError(f"the signature by {each.name} is wrong")
        verified = verified or bool(known)
    if not verified:
        raise NoteError("no known key has signed the note")
    return text


def cosigned(note: str, name: str, key: Ed25519PrivateKey, seconds: int) -> str:
    """The note with a cosignature by `key`, in place of an earlier one by it; `seconds` since 1970, UTC.

    It states that this is the largest tree of the log that the cosigner has seen, consistent with all before: to have
    opened the note and verified that is the caller's part. Raises NoteError unless the note is a checkpoint.
    """
    _check_name(name)
    if not 0 <= seconds <= _MAX_SECONDS:
        raise NoteError("a cosignature's time is out of range")
    text, signatures = _parsed(note)
    Checkpoint.parse(text)
    key_id = _key_id(name, _COSIGNATURE, _public(key))
    signature = seconds.to_bytes(_SECONDS_BYTES, "big") + key.sign(_cosigned_message(text, seconds))
    others = [each for each in signatures if (each.name, each.key_id) != (name, key_id)]
    return _note(text, [*others, _Signature(name, key_id, signature)])


def cosigned_at(note: str, key: VerifierKey) -> int:
    """When `key` cosigned the note, in seconds since 1970: the latest time where it did several times.

    Raises NoteError where it did not, where a cosignature of it is wrong, and for a malformed note.
    """
    text, signatures = _parsed(note)
    key_id = _key_id(key.name, _COSIGNATURE, key.public)
    times = []
    for each in signatures:
        if (each.name, each.key_id) != (key.name, key_id):
            continue
        seconds = int.from_bytes(each.signature[:_SECONDS_BYTES], "big")
        message = _cosigned_message(text, seconds)
        if seconds > _MAX_SECONDS or not _is_signed(key.public, each.signature[_SECONDS_BYTES:], message):
            raise NoteError(f"the cosignature by {key.name} is wrong")
        times.append(seconds)
    if not times:
        raise NoteError(f"{key.name} has not cosigned the note")
    return max(times)


def _cosigned_message(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def _key_id(name: str, kind: bytes, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + kind + public).digest()[:_ID_BYTES]


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _note(text: str, signatures: Iterable[_Signature]) -> str:
    """The note as it is sent, which has to be one that can be read back."""
    note = f"{text}\n{''.join(each.line() for each in signatures)}"
    _parsed(note)
    return note


def _parsed(note: str) -> tuple[str, list[_Signature]]:
    """Text and signatures, none of them verified. The last empty line divides them."""
    _check_text(note)
    text, division, signatures = note.rpartition("\n\n")
    *lines, rest = signatures.split("\n")
    if not division or rest or not lines:
        raise NoteError("a note is a text, an empty line and signatures, each ended by a newline")
    if len(lines) > MAX_SIGNATURES:
        raise NoteError(f"a note has at most {MAX_SIGNATURES} signatures")
    return text + "\n", [_signature(line) for line in lines]


def _signature(line: str) -> _Signature:
    found = _SIGNATURE.fullmatch(line)
    if not found:
        raise NoteError("a signature reads: em dash, name, base64")
    name, encoded = found.groups()
    _check_name(name)
    signature = _decoded(encoded)
    if len(signature) <= _ID_BYTES:
        raise NoteError(f"the signature by {name!r} is empty")
    return _Signature(name, signature[:_ID_BYTES], signature[_ID_BYTES:])


def _check_name(name: str) -> None:
    if not 0 < len(name) <= _MAX_NAME or "+" in name or any(each.isspace() for each in name):
        raise NoteError("a key's name is not empty and has neither spaces nor plus signs")
    _check_text(name)


def _check_text(text: str) -> bytes:
    """The UTF-8 of what may stand in a note: bounded, without control characters but the newline."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise NoteError("a note is valid Unicode") from error
    if len(encoded) > MAX_NOTE_BYTES:
        raise NoteError(f"a note has at most {MAX_NOTE_BYTES} bytes")
    if _CONTROL.search(text):
        raise NoteError("a note has no control characters")
    return encoded


def _check_time(time: str) -> None:
    if not _MOMENT.fullmatch(time):
        raise NoteError("a checkpoint's time is RFC 3339")
    try:
        datetime.fromisoformat(time)
    except ValueError as error:
        raise NoteError("a checkpoint's time is no moment") from error


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str) -> bytes:
    """Bytes of canonical base64 (RFC 4648, section 4): the one text that encodes them, so that no two notes are one."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise NoteError("not base64") from error
    if _base64(data) != text:
        raise NoteError("not canonical base64")
    return data
