"""Whether a log's newest checkpoint extends the one witnessed before: what its gateway sends, read and judged. Pure.

It sends the body of an add-checkpoint request (https://c2sp.org/tlog-witness): the size asked about, the proof of
consistency from there (RFC 6962, section 2.1.2), and the checkpoint as a signed note.
"""

import base64
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from app.audit.checkpoint import MAX_SIGNATURES, Checkpoint, NoteError, VerifierKey, opened
from app.audit.merkle import EMPTY_ROOT, HASH_SIZE, verify_consistency

KEYS_HEADER: Final = "Tidegate-Verifier-Keys"
"""Where an answer lists the keys that its checkpoint is verified with, newest last."""
_MAX_PROOF = 63


class Conflict(Exception):
    """A signed checkpoint that does not extend the one witnessed: the message says how, `note` and `key` prove it."""

    def __init__(self, how: str, note: str, key: VerifierKey) -> None:
        super().__init__(how)
        self.note = note
        self.key = key


@dataclass(frozen=True, slots=True)
class Extension:
    """A checkpoint, nothing verified yet, and the proof that leads to it; empty where none came."""

    note: str
    proof: tuple[bytes, ...] = ()

    @classmethod
    def parse(cls, body: str, old: int) -> "Extension":
        """What was sent to whoever knows the tree of `old` records. Raises NoteError."""
        head, division, note = body.partition("\n\n")
        size, *proof = head.split("\n")
        if not division or size != f"old {old}":
            raise NoteError(f"it does not begin with 'old {old}' and a proof")
        if len(proof) > _MAX_PROOF:
            raise NoteError(f"a proof has at most {_MAX_PROOF} hashes")
        return cls(note, tuple(_hash(line) for line in proof))


def listed(keys: Sequence[VerifierKey]) -> str:
    """A log's keys, newest last, as `KEYS_HEADER` has them: no more than can have signed one note."""
    return ", ".join(key.line() for key in keys[-MAX_SIGNATURES:])


def verifier_keys(text: str, origin: str) -> list[VerifierKey]:
    """The keys of a log as `listed` wrote them, newest last. Raises NoteError for what is no such list."""
    keys = [VerifierKey.parse(line) for line in text.split(", ")[-MAX_SIGNATURES:]] if text else []
    if others := {key.name for key in keys} - {origin}:
        raise NoteError(f"it comes with a key of {min(others)}, not of {origin}")
    return keys


def signed(note: str, origin: str, keys: Sequence[VerifierKey]) -> tuple[Checkpoint, VerifierKey]:
    """The checkpoint of that origin in a note, and the first of the keys that signed it. Raises NoteError."""
    checkpoint = Checkpoint.parse(opened(note, keys))
    if checkpoint.origin != origin:
        raise NoteError(f"it is a checkpoint of {checkpoint.origin}, not of {origin}")
    for key in keys:
        with suppress(NoteError):
            opened(note, [key])
            return checkpoint, key
    raise NoteError("no known key has signed the note")


def nothing_of(origin: str) -> Checkpoint:
    """What is known of a log that was never witnessed: every tree extends the empty one."""
    return Checkpoint(origin, 0, EMPTY_ROOT, None)


def require_extension(seen: Checkpoint, extension: Extension, new: Checkpoint, key: VerifierKey) -> None:
    """Raises `Conflict` unless the new tree, signed by `key`, is proven to begin with the one seen."""
    if verify_consistency(seen.size, seen.root, new.size, new.root, extension.proof):
        return
    if new.size < seen.size:
        how = f"it covers {new.size} records where {seen.size} were witnessed: the newest are gone"
    elif new.size == seen.size:
        how = f"its {new.size} records are others than those witnessed"
    else:
        how = f"its {new.size} records are not shown to begin with the {seen.size} witnessed"
    raise Conflict(how, extension.note, key)


def _hash(line: str) -> bytes:
    try:
        found = base64.b64decode(line, validate=True)
    except ValueError as error:
        raise NoteError("its proof is not base64") from error
    if len(found) != HASH_SIZE:
        raise NoteError(f"its proof has hashes of other than {HASH_SIZE} bytes")
    return found
