"""Proofs that a log has only grown, over a log that is larger than the subtrees which are kept."""

import random
import sqlite3
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.audit import checkpoint
from app.audit.checkpoint import Checkpoint
from app.audit.growth import Heads, OutOfReach
from app.audit.merkle import Frontier, leaf_hash, verify_consistency
from app.audit.tree import EMPTY, Edge
from app.stores.base import StoreError
from app.stores.sqlite import SqliteAuditStore

SIZE = 20_000
"""Leaves: four subtrees of the size from which on they are kept, some smaller ones, and a bundle that is not full."""


@pytest.fixture(scope="module")
def leaves():
    return [leaf_hash(str(number).encode()) for number in range(SIZE)]


@pytest.fixture(scope="module")
def heads(tmp_path_factory, leaves):
    """A log of nothing but leaves, and its checkpoint."""
    directory = tmp_path_factory.mktemp("audit")
    store = SqliteAuditStore(directory / "eu-west.db")
    tree, bundles = Edge(EMPTY, EMPTY).appended(leaves)
    text = Checkpoint("tidegate/edge/eu-west", SIZE, tree.root(), None).text()
    store.set_head(checkpoint.sign(text, "tidegate/edge/eu-west", Ed25519PrivateKey.generate()), {})
    store.close()
    db = sqlite3.connect(directory / "eu-west.db")
    with db:
        db.executemany("INSERT INTO bundles VALUES (?, ?)", bundles)
        rows = [(seq, leaf) for seq, leaf in enumerate(leaves, 1)]
        db.executemany("INSERT INTO records (seq, time, kind, record, leaf) VALUES (?, '', '', '', ?)", rows)
    db.close()
    return Heads(directory, 1.0)


def test_every_size_leads_to_the_newest(heads, leaves):
    root = Frontier(0, ()).appended(leaves).root()
    draw = random.Random(7)
    sizes = [1, 255, 256, 4096, 8192, 16_384, SIZE - 1, SIZE, *(draw.randrange(1, SIZE) for _ in range(200))]
    for size in sizes:
        growth = heads.growth("eu-west", size)
        old = Frontier(0, ()).appended(leaves[:size]).root()
        assert verify_consistency(size, old, SIZE, root, growth.path), size
        assert (growth.old, growth.note) == (size, heads.newest("eu-west"))
        assert size == SIZE or not verify_consistency(size, leaf_hash(old), SIZE, root, growth.path)


def test_nothing_leads_from_a_tree_that_never_was(heads):
    with pytest.raises(OutOfReach) as refused:
        heads.growth("eu-west", SIZE + 1)
    assert (refused.value.size, refused.value.first) == (SIZE, None)


def test_several_threads_ask_at_once(heads):
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(heads.growth("eu-west", size) for size in range(1, SIZE, 1999)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 * len(range(1, SIZE, 1999))
    assert len({(growth.old, *growth.path) for growth in found}) == len(range(1, SIZE, 1999))


def test_a_log_without_a_checkpoint_or_a_file(tmp_path):
    heads = Heads(tmp_path, 1.0)
    with pytest.raises(StoreError, match="eu-west"):
        heads.newest("eu-west")
    SqliteAuditStore(tmp_path / "eu-west.db").close()
    with pytest.raises(StoreError, match="no checkpoint yet"):
        heads.growth("eu-west", 0)
