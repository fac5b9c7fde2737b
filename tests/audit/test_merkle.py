"""The tree of RFC 6962: its published vectors, its own recursive definitions, another implementation, and forgeries."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from app.audit.merkle import (
    EMPTY_ROOT,
    MAX_SIZE,
    Frontier,
    consistency_proof,
    frontier,
    inclusion_proof,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

MANY = 260  # past a power of two, where the shape of the tree changes most
DATA = [str(number).encode() for number in range(MANY)]
LEAVES = [leaf_hash(data) for data in DATA]

# The test tree of Certificate Transparency (transparency-dev/merkle, testonly/constants.go and proof/verify_test.go).
KNOWN_DATA = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
KNOWN_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAF_1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
LEAF_4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
LEAF_6 = "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f"
NODE_2_4 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
NODE_4_6 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
NODE_6_8 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
NODE_4_8 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
KNOWN_INCLUSION = {
    (0, 1): [],
    (0, 8): [LEAF_1, NODE_2_4, NODE_4_8],
    (5, 8): [LEAF_4, NODE_6_8, KNOWN_ROOTS[4]],
    (2, 3): [KNOWN_ROOTS[2]],
    (1, 5): [KNOWN_ROOTS[1], NODE_2_4, LEAF_4],
}
KNOWN_CONSISTENCY = {
    (1, 1): [],
    (1, 8): [LEAF_1, NODE_2_4, NODE_4_8],
    (6, 8): [NODE_4_6, NODE_6_8, KNOWN_ROOTS[4]],
    (2, 5): [NODE_2_4, LEAF_4],
    (6, 7): [NODE_4_6, LEAF_6, KNOWN_ROOTS[4]],
}


# --- RFC 6962, section 2.1, as it defines them


def split(count):
    return 1 << (count - 1).bit_length() - 1


def tree_hash(leaves):
    if len(leaves) < 2:
        return leaves[0] if leaves else EMPTY_ROOT
    half = split(len(leaves))
    return node_hash(tree_hash(leaves[:half]), tree_hash(leaves[half:]))


def audit_path(index, leaves):
    if len(leaves) == 1:
        return []
    half = split(len(leaves))
    if index < half:
        return [*audit_path(index, leaves[:half]), tree_hash(leaves[half:])]
    return [*audit_path(index - half, leaves[half:]), tree_hash(leaves[:half])]


def subproof(old, leaves, complete):
    if old == len(leaves):
        return [] if complete else [tree_hash(leaves)]
    half = split(len(leaves))
    if old <= half:
        return [*subproof(old, leaves[:half], complete), tree_hash(leaves[half:])]
    return [*subproof(old - half, leaves[half:], complete=False), tree_hash(leaves[:half])]


def way(index, size):
    """On which side each hash of an audit path stands."""
    if size == 1:
        return ""
    half = split(size)
    return way(index, half) + "R" if index < half else way(index - half, size - half) + "L"


def stored(leaves):
    """A `Subtree` over these leaves; asked for one that they do not fill, it fails."""
    rows = [list(leaves)]
    while len(rows[-1]) > 1:
        row = rows[-1]
        rows.append([node_hash(row[at], row[at + 1]) for at in range(0, len(row) - 1, 2)])

    def subtree(level, index):
        assert index >= 0
        return rows[level][index]

    return subtree


STORED = stored(LEAVES)
ROOTS = [frontier(size, STORED).root() for size in range(MANY + 1)]

sizes = st.integers(1, MANY)
places = sizes.flatmap(lambda size: st.tuples(st.integers(0, size - 1), st.just(size)))
growths = sizes.flatmap(lambda new: st.tuples(st.integers(1, new), st.just(new)))


def unhex(hashes):
    return [bytes.fromhex(each) for each in hashes]


# --- hashes and roots


def test_the_known_tree() -> None:
    leaves = [leaf_hash(data) for data in unhex(KNOWN_DATA)]
    roots = [Frontier(0, ()).appended(leaves[:size]).root() for size in range(9)]
    assert roots == unhex(KNOWN_ROOTS)
    for (index, size), proof in KNOWN_INCLUSION.items():
        assert inclusion_proof(index, size, stored(leaves)) == unhex(proof)
        assert verify_inclusion(leaves[index], index, size, unhex(proof), roots[size])
    for (old, new), proof in KNOWN_CONSISTENCY.items():
        assert consistency_proof(old, new, stored(leaves)) == unhex(proof)
        assert verify_consistency(old, roots[old], new, roots[new], unhex(proof))


def test_a_leaf_is_never_a_node() -> None:
    assert leaf_hash(LEAVES[0] + LEAVES[1]) != node_hash(LEAVES[0], LEAVES[1])


def test_roots_are_those_of_the_definition() -> None:
    assert [tree_hash(LEAVES[:size]) for size in range(MANY + 1)] == ROOTS


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, MANY), max_size=12))
def test_a_tree_that_grew_in_parts_equals_one_built_at_once(cuts) -> None:
    edges = [0, *sorted(cuts), MANY]
    grown = Frontier(0, ())
    for start, end in pairwise(edges):
        before = grown
        grown = grown.appended(leaf for leaf in LEAVES[start:end])
        assert before == frontier(start, STORED)
        assert grown == frontier(end, STORED) == frontier(end, stored(LEAVES[:end]))
        assert grown.root() == ROOTS[end]


def test_a_tree_grows_by_single_leaves() -> None:
    grown = Frontier(0, ())
    for size, leaf in enumerate(LEAVES, 1):
        grown = grown.appended([leaf])
        assert (grown.size, grown.root()) == (size, ROOTS[size])
    assert grown.appended([]) == grown


def test_a_frontier_has_one_hash_for_each_perfect_subtree() -> None:
    for size, hashes in ((0, (LEAVES[0],)), (1, ()), (3, (LEAVES[0],)), (4, (LEAVES[0],) * 2), (-1, (LEAVES[0],))):
        with pytest.raises(ValueError, match="make no tree"):
            Frontier(size, hashes)
    with pytest.raises(ValueError, match="make no tree"):
        Frontier(MAX_SIZE, (LEAVES[0],) * 63).appended(LEAVES[:1])


# --- proofs


def test_every_inclusion_is_proved() -> None:
    for size in range(1, MANY + 1):
        for index in range(size):
            proof = inclusion_proof(index, size, STORED)
            assert verify_inclusion(LEAVES[index], index, size, proof, ROOTS[size]), (index, size)


def test_every_growth_is_proved() -> None:
    for new in range(MANY + 1):
        for old in range(new + 1):
            proof = consistency_proof(old, new, STORED)
            assert verify_consistency(old, ROOTS[old], new, ROOTS[new], proof), (old, new)


@settings(deadline=None)
@given(place=places)
def test_audit_paths_are_those_of_the_definition_and_ask_for_no_leaf_beyond_the_tree(place) -> None:
    index, size = place
    assert inclusion_proof(index, size, stored(LEAVES[:size])) == audit_path(index, LEAVES[:size])


@settings(deadline=None)
@given(growth=growths)
def test_consistency_proofs_are_those_of_the_definition_and_ask_for_no_leaf_beyond_the_tree(growth) -> None:
    old, new = growth
    assert consistency_proof(old, new, stored(LEAVES[:new])) == subproof(old, LEAVES[:new], complete=True)


@pytest.fixture(scope="module")
def oracle():
    tree = InmemoryTree(algorithm="sha256")
    tree.append_entries(DATA)
    return tree


@settings(deadline=None)
@given(place=places)
def test_another_implementation_makes_the_same_audit_paths(oracle, place) -> None:
    index, size = place
    assert oracle.get_root(size) == ROOTS[size]
    assert oracle.prove_inclusion(index + 1, size).path == [LEAVES[index], *inclusion_proof(index, size, STORED)]


@settings(deadline=None)
@given(growth=growths)
def test_another_implementation_finds_the_same_roots_consistent(oracle, growth) -> None:
    """Its proofs are its own, finer than those of the RFC; the trees between which they hold are the same."""
    old, new = growth
    oracle.prove_consistency(old, new).verify(ROOTS[old], ROOTS[new])


def test_the_largest_tree_has_short_proofs() -> None:
    rows = [LEAVES[0]]
    while len(rows) < 63:
        rows.append(node_hash(rows[-1], rows[-1]))

    def alike(level, _index):
        return rows[level]

    root = frontier(MAX_SIZE, alike).root()
    for index in (0, MAX_SIZE // 3, MAX_SIZE - 1):
        proof = inclusion_proof(index, MAX_SIZE, alike)
        assert len(proof) <= 63
        assert verify_inclusion(LEAVES[0], index, MAX_SIZE, proof, root)
    proof = consistency_proof(MAX_SIZE - 1, MAX_SIZE, alike)
    assert len(proof) <= 64
    assert verify_consistency(MAX_SIZE - 1, frontier(MAX_SIZE - 1, alike).root(), MAX_SIZE, root, proof)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 5), (5, 5), (0, -1), (0, MAX_SIZE + 1)])
def test_a_leaf_outside_the_tree_has_no_proof(index, size) -> None:
    with pytest.raises(ValueError, match="no leaf"):
        inclusion_proof(index, size, STORED)


@pytest.mark.parametrize(("old", "new"), [(2, 1), (-1, 5), (-2, -1), (1, MAX_SIZE + 1)])
def test_a_tree_that_shrinks_has_no_proof(old, new) -> None:
    with pytest.raises(ValueError, match="extends none"):
        consistency_proof(old, new, STORED)


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1])
def test_a_tree_has_a_possible_size(size) -> None:
    with pytest.raises(ValueError, match="no tree"):
        frontier(size, STORED)


# --- forgeries


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


bits = st.integers(0, 255)


@settings(deadline=None)
@given(place=places, bit=bits)
def test_an_altered_bit_breaks_an_inclusion(place, bit) -> None:
    index, size = place
    leaf, proof, root = LEAVES[index], inclusion_proof(index, size, STORED), ROOTS[size]
    assert not verify_inclusion(flipped(leaf, bit), index, size, proof, root)
    assert not verify_inclusion(leaf, index, size, proof, flipped(root, bit))
    for at, each in enumerate(proof):
        altered = [*proof[:at], flipped(each, bit), *proof[at + 1 :]]
        assert not verify_inclusion(leaf, index, size, altered, root)


@settings(deadline=None)
@given(growth=growths, bit=bits)
def test_an_altered_bit_breaks_a_consistency(growth, bit) -> None:
    old, new = growth
    proof = consistency_proof(old, new, STORED)
    assert not verify_consistency(old, flipped(ROOTS[old], bit), new, ROOTS[new], proof)
    assert not verify_consistency(old, ROOTS[old], new, flipped(ROOTS[new], bit), proof)
    for at, each in enumerate(proof):
        altered = [*proof[:at], flipped(each, bit), *proof[at + 1 :]]
        assert not verify_consistency(old, ROOTS[old], new, ROOTS[new], altered)


@settings(deadline=None)
@given(place=places)
def test_a_proof_counts_for_its_own_leaf_and_place(place) -> None:
    index, size = place
    proof = inclusion_proof(index, size, STORED)
    for other in {-1, *range(size + 1)} - {index}:
        assert not verify_inclusion(LEAVES[index], other, size, proof, ROOTS[size])
    for other in {*range(size)} - {index}:
        assert not verify_inclusion(LEAVES[other], index, size, proof, ROOTS[size])
        assert not verify_inclusion(LEAVES[other], other, size, proof, ROOTS[size])


@settings(deadline=None)
@given(place=places)
def test_a_proof_counts_for_its_own_tree(place) -> None:
    """Where the way up is the same, the size is not the proof's to show: it comes with the root, from a checkpoint."""
    index, size = place
    leaf, proof = LEAVES[index], inclusion_proof(index, size, STORED)
    for other in {-1, *range(2 * size + 2)}:
        if other <= index or way(index, other) != way(index, size):
            assert not verify_inclusion(leaf, index, other, proof, ROOTS[size])
    for other in {*range(MANY + 1)} - {size}:
        assert not verify_inclusion(leaf, index, other, proof, ROOTS[other])


@settings(deadline=None)
@given(place=places, at=st.integers(0, 9), extra=st.sampled_from([LEAVES[0], ROOTS[3], EMPTY_ROOT]))
def test_a_path_too_long_or_too_short_proves_no_inclusion(place, at, extra) -> None:
    index, size = place
    leaf, proof, root = LEAVES[index], inclusion_proof(index, size, STORED), ROOTS[size]
    assert not verify_inclusion(leaf, index, size, [*proof[:at], extra, *proof[at:]], root)
    assert not verify_inclusion(leaf, index, size, proof * 2, root) or not proof
    for missing in range(len(proof)):
        assert not verify_inclusion(leaf, index, size, [*proof[:missing], *proof[missing + 1 :]], root)


@settings(deadline=None)
@given(growth=growths, at=st.integers(0, 9))
def test_a_proof_too_long_or_too_short_shows_no_consistency(growth, at) -> None:
    old, new = growth
    proof = consistency_proof(old, new, STORED)
    for extra in (ROOTS[old], ROOTS[new], LEAVES[0]):
        assert not verify_consistency(old, ROOTS[old], new, ROOTS[new], [*proof[:at], extra, *proof[at:]])
    for missing in range(len(proof)):
        shorter = [*proof[:missing], *proof[missing + 1 :]]
        assert not verify_consistency(old, ROOTS[old], new, ROOTS[new], shorter)


@settings(deadline=None)
@given(growth=growths)
def test_a_consistency_holds_between_its_own_trees(growth) -> None:
    old, new = growth
    proof = consistency_proof(old, new, STORED)
    for other in {*range(1, MANY + 1)} - {old}:
        assert not verify_consistency(other, ROOTS[other], new, ROOTS[new], proof)
    for other in {*range(MANY + 1)} - {new}:
        assert not verify_consistency(old, ROOTS[old], other, ROOTS[other], proof)
    assert old == new or not verify_consistency(new, ROOTS[new], old, ROOTS[old], proof)


@settings(deadline=None)
@given(growth=growths, data=st.data())
def test_a_rewritten_past_is_not_consistent(growth, data) -> None:
    old, new = growth
    changed = data.draw(st.integers(0, old - 1))
    leaves = [*LEAVES[:changed], leaf_hash(b"rewritten"), *LEAVES[changed + 1 : new]]
    forked = stored(leaves)
    proof = consistency_proof(old, new, forked)
    root = frontier(new, forked).root()
    assert verify_consistency(old, frontier(old, forked).root(), new, root, proof)
    assert not verify_consistency(old, ROOTS[old], new, root, proof)
    assert not verify_consistency(old, ROOTS[old], new, root, consistency_proof(old, new, STORED))


def test_an_inner_node_is_no_leaf() -> None:
    """The way from the node over leaves 0 and 1 is the end of that from leaf 0."""
    node, proof = STORED(1, 0), inclusion_proof(0, 4, STORED)
    assert node_hash(node, proof[1]) == ROOTS[4]
    assert not verify_inclusion(node, 0, 4, proof[1:], ROOTS[4])


def test_an_empty_tree_begins_every_tree_and_holds_nothing() -> None:
    assert verify_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    assert verify_consistency(0, EMPTY_ROOT, 9, ROOTS[9], [])
    assert not verify_consistency(0, ROOTS[1], 9, ROOTS[9], [])
    assert not verify_consistency(0, EMPTY_ROOT, 0, ROOTS[1], [])
    assert not verify_consistency(0, ROOTS[1], 0, ROOTS[1], [])
    assert not verify_consistency(0, EMPTY_ROOT, 9, ROOTS[9], [EMPTY_ROOT])
    assert not verify_inclusion(EMPTY_ROOT, 0, 0, [], EMPTY_ROOT)


numbers = st.integers() | st.integers(0, 9) | st.just(1 << 4096) | st.floats() | st.booleans() | st.none() | st.text()
hashes = st.binary(max_size=40) | st.sampled_from([*LEAVES[:4], *ROOTS[:4]]) | st.text(max_size=3) | st.none()
proofs = st.lists(hashes | st.integers(), max_size=70) | st.none() | st.binary() | st.text() | st.integers()
proofs |= st.dictionaries(st.integers(), hashes)


@settings(deadline=None)
@given(number=numbers, other=numbers, one=hashes, another=hashes, proof=proofs)
def test_whatever_a_stranger_sends_is_no_proof_and_no_error(number, other, one, another, proof) -> None:
    assert type(verify_inclusion(one, number, other, proof, another)) is bool
    assert type(verify_consistency(number, one, other, another, proof)) is bool


@pytest.mark.parametrize("size", [1.0, "1", True, None, -1, MAX_SIZE + 1])
def test_only_whole_numbers_in_range_are_sizes(size) -> None:
    assert verify_inclusion(LEAVES[0], 0, 1, [], LEAVES[0])
    assert not verify_inclusion(LEAVES[0], 0, size, [], LEAVES[0])
    assert not verify_consistency(size, LEAVES[0], size, LEAVES[0], [])


@pytest.mark.parametrize("proof", [None, "", b"", {}, 0, [LEAVES[0].hex()], [bytearray(LEAVES[0])], [LEAVES[0][:31]]])
def test_only_a_list_of_hashes_is_a_proof(proof) -> None:
    assert not verify_inclusion(LEAVES[0], 0, 1, proof, LEAVES[0])
    assert not verify_consistency(1, ROOTS[1], 1, ROOTS[1], proof)
    assert not verify_consistency(0, EMPTY_ROOT, 1, ROOTS[1], proof)
