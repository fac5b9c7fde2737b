"""The Merkle tree of one log: how it grows, bundle by bundle, and its subtrees as the store keeps them."""

from collections.abc import Iterable
from dataclasses import dataclass

from app.audit.merkle import Frontier
from app.stores.base import BUNDLE, AuditStore, StoreError

_BUNDLE_LEVEL = BUNDLE.bit_length() - 1
EMPTY = Frontier(0, ())


class Gap(StoreError):
    """The log no longer holds the hashes that are asked for."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A tree by its right edge: `bundles` has the roots of complete bundles for leaves, `rest` those after."""

    bundles: Frontier
    rest: Frontier

    @property
    def size(self) -> int:
        """Leaves of the whole tree."""
        return self.bundles.size * BUNDLE + self.rest.size

    def root(self) -> bytes:
        return Frontier(self.size, self.bundles.hashes + self.rest.hashes).root()

    def appended(self, leaves: Iterable[bytes]) -> tuple["Edge", list[tuple[int, bytes]]]:
        """The tree with more leaves, and the bundles that they complete: number and root."""
        bundles, rest, waiting, completed = self.bundles, self.rest, list(leaves), []
        while len(waiting) >= (room := BUNDLE - rest.size):
            (root,) = rest.appended(waiting[:room]).hashes
            completed.append((bundles.size, root))
            bundles, rest, waiting = bundles.appended([root]), EMPTY, waiting[room:]
        return Edge(bundles, rest.appended(waiting)), completed


@dataclass(frozen=True, slots=True)
class LogTree:
    """The tree as a log keeps it: roots of bundles, and leaves of the records that are there."""

    store: AuditStore

    def subtree(self, level: int, index: int) -> bytes:
        """Hash of the perfect subtree over the leaves [index << level, (index + 1) << level).

        Raises `Gap` where retention has left less than that: a part of a deleted bundle.
        """
        if level >= _BUNDLE_LEVEL:
            count = 1 << level - _BUNDLE_LEVEL
            found = self.store.bundle_roots(index * count, count)
        else:
            count = 1 << level
            found = self.store.leaves(index * count + 1, (index + 1) * count)
        if len(found) != count:
            raise Gap(f"it no longer holds the hashes from record {(index << level) + 1} on")
        (root,) = EMPTY.appended(found).hashes
        return root

    def edge(self, size: int) -> Edge:
        """The right edge at a size. Raises `Gap`."""
        complete, rest = divmod(size, BUNDLE)
        leaves = self.store.leaves(complete * BUNDLE + 1, size)
        roots = self.store.bundle_roots(0, complete)
        if len(roots) != complete or len(leaves) != rest:
            raise Gap(f"it lacks hashes of its first {size} records")
        return Edge(EMPTY.appended(roots), EMPTY.appended(leaves))
