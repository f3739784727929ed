"""The tree against the vectors of Certificate Transparency, and its proofs against each other."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.audit.merkle import (
    EMPTY_ROOT,
    Tree,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

# The eight leaves, roots and proofs of CT's reference tests (transparency-dev/merkle, proof/verify_test.go).
LEAVES = [
    bytes.fromhex(each)
    for each in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(each)
    for each in (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
A = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
B = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
C = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
D = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
E = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
F = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
G = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
INCLUSION = [  # index, size, path
    (0, 1, []),
    (0, 8, [F, A, B]),
    (5, 8, [E, C, D]),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (1, 5, ["6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d", A, E]),
]
CONSISTENCY = [  # first, second, path
    (1, 1, []),
    (1, 8, [F, A, B]),
    (6, 8, [G, C, D]),
    (2, 5, [A, E]),
    (6, 7, [G, "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f", D]),
]
HASHES = [leaf_hash(each) for each in LEAVES]
OTHER = hashlib.sha256(b"something else").digest()

sizes = st.integers(1, 70)


def hashes_of(size: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(size)]


def reference_root(hashes: list[bytes]) -> bytes:
    """MTH as RFC 6962 section 2.1 writes it down: recursive, nothing kept."""
    if len(hashes) < 2:
        return hashes[0] if hashes else hashlib.sha256(b"").digest()
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return node_hash(reference_root(hashes[:split]), reference_root(hashes[split:]))


def test_roots_of_the_reference_leaves() -> None:
    """The growing tree has the published root at each size."""
    tree = Tree()
    assert EMPTY_ROOT == tree.root() == hashlib.sha256(b"").digest()
    for size, leaf in enumerate(LEAVES):
        tree.append(leaf_hash(leaf))
        assert ROOTS[size] == tree.root()
    assert len(LEAVES) == tree.size


@pytest.mark.parametrize(("index", "size", "path"), INCLUSION)
def test_inclusion_vectors(index: int, size: int, path: list[str]) -> None:
    """Published inclusion proofs come out the same and verify."""
    expected = [bytes.fromhex(each) for each in path]
    assert expected == inclusion_path(HASHES[:size], index)
    assert verify_inclusion(HASHES[index], index, size, expected, ROOTS[size - 1])


@pytest.mark.parametrize(("first", "second", "path"), CONSISTENCY)
def test_consistency_vectors(first: int, second: int, path: list[str]) -> None:
    """Published consistency proofs come out the same and verify."""
    expected = [bytes.fromhex(each) for each in path]
    assert expected == consistency_path(HASHES[:second], first)
    assert verify_consistency(first, second, ROOTS[first - 1], ROOTS[second - 1], expected)


@pytest.mark.parametrize(("index", "size", "path"), INCLUSION)
def test_corrupt_inclusion_proofs_fail(index: int, size: int, path: list[str]) -> None:
    """Every corruption that the reference tests try on an inclusion proof is refused."""
    good, leaf, root = [bytes.fromhex(each) for each in path], HASHES[index], ROOTS[size - 1]
    probes = [(other, size, leaf, good, root) for other in (index - 1, index + 1, index ^ 2)]
    probes += [(index, other, leaf, good, root) for other in (size * 2, size // 2, 0)]
    probes += [(index, size, b"WrongLeaf", good, root), (index, size, OTHER, good, root)]
    probes += [(index, size, leaf, good, other) for other in (EMPTY_ROOT, OTHER, b"")]
    for extra in (b"", root, OTHER):
        probes += [(index, size, leaf, [*good, extra], root), (index, size, leaf, [extra, *good], root)]
    for at, node in enumerate(good):
        flipped = bytes([node[0] ^ 8]) + node[1:]
        probes.append((index, size, leaf, [*good[:at], flipped, *good[at + 1 :]], root))
        probes.append((index, size, leaf, good[:at] + good[at + 1 :], root))
    for at, total, hashed, path_, root_ in probes:
        assert not verify_inclusion(hashed, at, total, path_, root_), (at, total, path_)


@pytest.mark.parametrize(("first", "second", "path"), CONSISTENCY[1:])
def test_corrupt_consistency_proofs_fail(first: int, second: int, path: list[str]) -> None:
    """Every corruption that the reference tests try on a consistency proof is refused."""
    good, old, new = [bytes.fromhex(each) for each in path], ROOTS[first - 1], ROOTS[second - 1]
    probes = [(other, second, old, new, good) for other in (first - 1, first + 1, first ^ 2)]
    probes += [(first, other, old, new, good) for other in (second * 2, second // 2)]
    probes += [(first, second, b"WrongRoot", new, good), (first, second, old, b"WrongRoot", good)]
    probes += [(first, second, new, old, good), (first, second, old, new, [])]
    for extra in (b"", old, new, good[0]):
        probes += [(first, second, old, new, [*good, extra]), (first, second, old, new, [extra, *good])]
    for at, node in enumerate(good):
        flipped = bytes([node[0] ^ 16]) + node[1:]
        probes.append((first, second, old, new, [*good[:at], flipped, *good[at + 1 :]]))
        probes.append((first, second, old, new, good[:at] + good[at + 1 :]))
    for one, two, root1, root2, path_ in probes:
        assert not verify_consistency(one, two, root1, root2, path_), (one, two, path_)


def test_consistency_of_trivial_sizes() -> None:
    """An empty tree precedes every tree, a tree precedes itself, and no tree precedes a smaller one."""
    assert verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    assert verify_consistency(0, 3, EMPTY_ROOT, ROOTS[2], [])
    assert verify_consistency(3, 3, ROOTS[2], ROOTS[2], [])
    assert not verify_consistency(0, 3, OTHER, ROOTS[2], [])
    assert not verify_consistency(0, 3, EMPTY_ROOT, ROOTS[2], [OTHER])
    assert not verify_consistency(3, 3, ROOTS[2], OTHER, [])
    assert not verify_consistency(2, 1, ROOTS[1], ROOTS[0], [])
    assert not verify_consistency(1, 2, ROOTS[0], ROOTS[1], [])


def test_no_proof_of_what_is_not_there() -> None:
    """Asking for a proof outside the tree is an IndexError."""
    for index in (-1, 8):
        with pytest.raises(IndexError):
            inclusion_path(HASHES, index)
    with pytest.raises(IndexError):
        consistency_path(HASHES, 9)


@given(sizes)
def test_root_is_the_recursive_one(size: int) -> None:
    """The growing tree and the recursive definition agree."""
    assert reference_root(hashes_of(size)) == root_of(hashes_of(size))


@given(sizes, st.data())
def test_any_inclusion_proof_verifies_for_its_leaf_only(size: int, data: st.DataObject) -> None:
    """A proof holds for its own leaf, index and size, and for no other index or size."""
    index = data.draw(st.integers(0, size - 1))
    hashes = hashes_of(size)
    path, root = inclusion_path(hashes, index), root_of(hashes)
    holds = [at for at in range(size) if verify_inclusion(hashes[index], at, size, path, root)]
    assert [index] == holds
    assert not verify_inclusion(OTHER, index, size, path, root)


@given(sizes, st.data())
def test_any_consistency_proof_verifies_for_its_prefix_only(size: int, data: st.DataObject) -> None:
    """A proof holds for the true prefix and for no changed one."""
    first = data.draw(st.integers(1, size))
    hashes = hashes_of(size)
    path, root = consistency_path(hashes, first), root_of(hashes)
    assert verify_consistency(first, size, root_of(hashes[:first]), root, path)
    at = data.draw(st.integers(0, first - 1))
    forked = [*hashes[:at], OTHER, *hashes[at + 1 : first]]
    assert not verify_consistency(first, size, root_of(forked), root, path)
