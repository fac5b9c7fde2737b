"""The proof that a record is in a log: its place, the way from its leaf to a root, and the note that is signed over it.

Whoever holds the log's public keys can check it without the log (RFC 6962, section 2.1.1). No personal field is in it
unless the record was opened before.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.audit import checkpoint
from app.audit.checkpoint import Checkpoint, NoteError, VerifierKey, claimed
from app.audit.merkle import HASH_SIZE, inclusion_proof, leaf_hash, verify_inclusion
from app.audit.record import Record, canonical
from app.audit.seal import closed
from app.audit.tree import LogTree
from app.stores.base import AuditStore


class ProofError(ValueError):
    """What is shown proves nothing; the message says why."""


@dataclass(frozen=True, slots=True)
class Proof:
    """`record` is leaf `seq - 1` of the tree that the signed `note` is about; `hashes` lead there, from the leaf up."""

    record: Record
    hashes: tuple[bytes, ...]
    note: str

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": "proof",
            "record": self.record,
            "leaf_index": self.record["seq"] - 1,
            "tree_size": claimed(self.note).size,
            "leaf_hash": _text(leaf_hash(canonical(closed(self.record)))),
            "proof": [_text(each) for each in self.hashes],
            "checkpoint": self.note,
        }

    @classmethod
    def parse(cls, content: Any) -> "Proof":
        """The proof that `as_json` wrote; raises `ProofError` for another form."""
        match content:
            case {
                "kind": "proof",
                "record": {"id": str(), "log": str(), "seq": int(seq), "personal": str() | None} as record,
                "leaf_index": int(index),
                "proof": list(hashes),
                "checkpoint": str(note),
            } if index == seq - 1:
                return cls(record, tuple(_hash(each) for each in hashes), note)
        raise ProofError("it is no proof as `tidegate audit prove --json` prints one")

    def checked(self, keys: Sequence[VerifierKey]) -> Checkpoint:
        """The checkpoint that the record is shown to be in; raises `ProofError` unless one of the keys signed it."""
        try:
            signed = Checkpoint.parse(checkpoint.opened(self.note, keys))
            leaf = leaf_hash(canonical(closed(self.record)))
        except NoteError as error:
            raise ProofError(f"its checkpoint is not sound: {error}") from error
        except TypeError as error:
            raise ProofError(f"its record has no canonical form: {error}") from error
        if signed.origin not in {key.name for key in keys} or not signed.origin.endswith(f"/{self.record['log']}"):
            raise ProofError(f"its checkpoint is one of {signed.origin}, its record of {self.record['log']}")
        if not verify_inclusion(leaf, self.record["seq"] - 1, signed.size, self.hashes, signed.root):
            raise ProofError(f"record {self.record['seq']} is not in the log of {signed.size} records that it shows")
        return signed


def prove(store: AuditStore, record: Mapping[str, Any]) -> Proof:
    """The proof of a record, as stored or opened, against the log's newest checkpoint.

    Raises `ProofError` where that does not cover it yet, `StoreError` where hashes are missing.
    """
    note = store.head()
    try:
        size = claimed(note).size if note else 0
    except NoteError as error:
        raise ProofError(f"the log's newest checkpoint is not sound: {error}") from error
    seq = record["seq"]
    if seq > size:
        raise ProofError(f"record {seq} is not covered by a checkpoint yet, the newest covers {size}: try again later")
    return Proof(dict(record), tuple(inclusion_proof(seq - 1, size, LogTree(store).subtree)), note or "")


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _hash(text: Any) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        found = b""
    if len(found) != HASH_SIZE:
        raise ProofError("its hashes are not base64 of 32 bytes each")
    return found
