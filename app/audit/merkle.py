"""The Merkle tree over a log's records: hashes, roots, proofs, and their verification. Pure: it stores nothing.

The tree is that of RFC 6962, section 2.1, with SHA-256: leaf `n` (from 0) is the log's record `n + 1`. A tree of any
size is made of perfect subtrees, whose hashes never change once they are full. Proofs are therefore built from a
`Subtree`, a function that gives the hash of any perfect subtree, and a log that grows keeps a `Frontier` alone.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

HASH_SIZE = 32
MAX_SIZE = (1 << 63) - 1
"""Leaves that a tree may have: what SQLite can number, and a bound for the work on sizes that a stranger sends."""

EMPTY_ROOT = hashlib.sha256().digest()

Subtree = Callable[[int, int], bytes]
"""`(level, index)` to the hash of the perfect subtree over leaves `[index << level, (index + 1) << level)`."""


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf that holds `data`."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of the node above two subtrees."""
    return hashlib.sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """All that a tree of `size` leaves needs in order to grow: the hashes of its perfect subtrees, largest first.

    There is one for each bit that is set in `size`. Raises ValueError where there are more or fewer.
    """

    size: int
    hashes: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE or len(self.hashes) != self.size.bit_count():
            raise ValueError(f"{len(self.hashes)} subtrees make no tree of {self.size} leaves")

    def root(self) -> bytes:
        """Root hash of the tree."""
        return _joined(self.hashes)

    def appended(self, leaves: Iterable[bytes]) -> "Frontier":
        """The frontier after these leaf hashes: one hash a leaf, level by level, which is the fast way in Python."""
        row = list(leaves)
        size = self.size + len(row)
        sha256 = hashlib.sha256
        left, waiting, complete = list(self.hashes), self.size, []
        while row:
            if waiting & 1:
                row.insert(0, left.pop())
            if len(row) & 1:
                complete.append(row.pop())
            nodes = iter(row)
            row = [sha256(b"\1" + one + other).digest() for one, other in zip(nodes, nodes, strict=True)]
            waiting >>= 1
        return Frontier(size, (*left, *reversed(complete)))


def frontier(size: int, subtree: Subtree) -> Frontier:
    """The frontier of the first `size` leaves. Raises ValueError for a size that no tree has."""
    _require(0 <= size <= MAX_SIZE, f"no tree has {size} leaves")
    return Frontier(size, tuple(subtree(level, index) for level, index in _perfect(0, size)))


def inclusion_proof(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """Audit path of leaf `index` in the tree of the first `size` leaves, from the leaf up (RFC 6962, section 2.1.1).

    Raises ValueError where the tree has no such leaf.
    """
    _require(0 <= index < size <= MAX_SIZE, f"no leaf {index} in a tree of {size}")
    return _path(0, index, size, subtree)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the proof shows that leaf `index` of the tree of `size` leaves with this root has the hash `leaf`.

    Takes whatever a stranger sends: a wrong type, length or number is False, never an error.
    Size and root have to come together, from a checkpoint: a proof alone does not show how large the tree is.
    """
    if not (_are_sizes(index, size) and index < size and _are_hashes([leaf, root]) and _are_hashes(proof)):
        return False
    steps = list(_siblings(0, index, size))
    if len(steps) != len(proof):
        return False
    found = leaf
    for (_, sibling), its_hash in zip(steps, proof, strict=True):
        found = node_hash(found, its_hash) if sibling & 1 else node_hash(its_hash, found)
    return found == root


def consistency_proof(old: int, new: int, subtree: Subtree) -> list[bytes]:
    """Proof that the tree of the first `new` leaves extends that of the first `old` (RFC 6962, section 2.1.2).

    Empty where `old` is 0 or `new`: nothing has to be shown. Raises ValueError unless 0 <= old <= new.
    """
    _require(0 <= old <= new <= MAX_SIZE, f"a tree of {new} leaves extends none of {old}")
    if old in {0, new}:
        return []
    level, index = _last_perfect(old)
    path = _path(level, index, new, subtree)
    return path if index == 0 else [subtree(level, index), *path]


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the new tree begins with the leaves of the old one (RFC 9162, section 2.1.4.2).

    An empty tree is the beginning of every tree; its root has to be `EMPTY_ROOT`. As `verify_inclusion`, never raises.
    """
    if not (_are_sizes(old_size, new_size) and _are_hashes([old_root, new_root]) and _are_hashes(proof)):
        return False
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT and (new_size > 0 or new_root == EMPTY_ROOT)
    if old_size >= new_size:
        return not proof and (old_size, old_root) == (new_size, new_root)
    level, index = _last_perfect(old_size)
    steps = list(_siblings(level, index, new_size))
    hashes = [old_root, *proof] if index == 0 else list(proof)
    if len(hashes) != len(steps) + 1:
        return False
    old = new = hashes[0]
    for (_, sibling), its_hash in zip(steps, hashes[1:], strict=True):
        if sibling & 1:
            new = node_hash(new, its_hash)
        else:
            old, new = node_hash(its_hash, old), node_hash(its_hash, new)
    return (old, new) == (old_root, new_root)


def _path(level: int, index: int, size: int, subtree: Subtree) -> list[bytes]:
    """Hashes that lead from a perfect subtree to the root of the tree of `size` leaves."""
    path = []
    for height, sibling in _siblings(level, index, size):
        end = min((sibling + 1) << height, size)
        path.append(_joined([subtree(*part) for part in _perfect(sibling << height, end)]))
    return path


def _siblings(level: int, index: int, size: int) -> Iterator[tuple[int, int]]:
    """Nodes beside the way from a subtree up to the root: an even index stands left of the way, an odd one right."""
    while (size - 1) >> level:
        sibling = index ^ 1
        if sibling << level < size:  # at the right edge a node may have none, and goes up as it is
            yield level, sibling
        level, index = level + 1, index >> 1


def _perfect(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The perfect subtrees that leaves `[start, end)` are made of, largest first; `start` is a multiple of its size."""
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def _last_perfect(size: int) -> tuple[int, int]:
    """The smallest, and so the last, of the perfect subtrees that a tree is made of."""
    level = (size & -size).bit_length() - 1
    return level, (size >> level) - 1


def _joined(hashes: Sequence[bytes]) -> bytes:
    """Root over perfect subtrees that stand side by side, largest first."""
    if not hashes:
        return EMPTY_ROOT
    *others, root = hashes
    for left in reversed(others):
        root = node_hash(left, root)
    return root


def _are_sizes(*values: object) -> bool:
    return all(type(value) is int and 0 <= value <= MAX_SIZE for value in values)


def _are_hashes(values: object) -> bool:
    return isinstance(values, list | tuple) and all(type(each) is bytes and len(each) == HASH_SIZE for each in values)


def _require(sound: bool, problem: str) -> None:
    if not sound:
        raise ValueError(problem)
