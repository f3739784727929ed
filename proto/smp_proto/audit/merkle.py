"""The Merkle tree of RFC 6962 section 2.1 (SHA-256), its two kinds of proof, and a tree that only grows.

Building a proof takes all leaf hashes; growing a tree and checking a proof take O(log n) memory.
"""

import hashlib
from collections.abc import Iterable, Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """Hash of one leaf: SHA-256(0x00 ‖ leaf)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A growing tree. It keeps the roots of its perfect subtrees, one for each set bit of its size."""

    def __init__(self, hashes: Iterable[bytes] = ()) -> None:
        self.size = 0
        self._roots: list[bytes] = []
        for each in hashes:
            self.append(each)

    @classmethod
    def of(cls, size: int, roots: Iterable[bytes]) -> "Tree":
        """The tree that had this ``size`` and these :attr:`roots`.

        Raises:
            ValueError: no tree of this size has so many roots.
        """
        tree = cls()
        tree.size, tree._roots = size, list(roots)
        if size < 0 or len(tree._roots) != size.bit_count() or any(len(root) != HASH_BYTES for root in tree._roots):
            raise ValueError(f"a tree of {size} leaves has not these {len(tree._roots)} roots")
        return tree

    @property
    def roots(self) -> tuple[bytes, ...]:
        """The roots of the perfect subtrees, the largest first; with the size they are all there is of the tree."""
        return tuple(self._roots)

    def append(self, hashed_leaf: bytes) -> None:
        """Add a leaf, given as its :func:`leaf_hash`."""
        node, rest = hashed_leaf, self.size
        while rest & 1:
            node = node_hash(self._roots.pop(), node)
            rest >>= 1
        self._roots.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The Merkle tree hash of all leaves so far."""
        if not self._roots:
            return EMPTY_ROOT
        root = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            root = node_hash(left, root)
        return root


def root_of(hashes: Iterable[bytes]) -> bytes:
    """The Merkle tree hash over leaf hashes."""
    return Tree(hashes).root()


def _split(size: int) -> int:
    """The largest power of two smaller than ``size`` (which is at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_path(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """PATH(index, D[n]) of RFC 6962 section 2.1.1: the siblings from the leaf up to the root.

    Raises:
        IndexError: there is no such leaf.
    """
    if not 0 <= index < len(hashes):
        raise IndexError(f"no leaf {index} in a tree of {len(hashes)}")
    path, low, high = [], 0, len(hashes)
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(root_of(hashes[middle:high]))
            high = middle
        else:
            path.append(root_of(hashes[low:middle]))
            low = middle
    return path[::-1]


def consistency_path(hashes: Sequence[bytes], first: int) -> list[bytes]:
    """PROOF(first, D[n]) of RFC 6962 section 2.1.2: that the first ``first`` leaves are a prefix of all.

    Raises:
        IndexError: ``first`` is more than the number of leaves.
    """
    if not 0 <= first <= len(hashes):
        raise IndexError(f"no tree of {first} within one of {len(hashes)}")
    if first == 0:
        return []
    path, low, high = [], 0, len(hashes)
    while first != high:
        middle = low + _split(high - low)
        if first <= middle:
            path.append(root_of(hashes[middle:high]))
            high = middle
        else:
            path.append(root_of(hashes[low:middle]))
            low = middle
    if low:  # the verifier knows the old root only when the old tree is one whole subtree from the left
        path.append(root_of(hashes[low:high]))
    return path[::-1]


def verify_inclusion(hashed_leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether a leaf is at ``index`` in a tree of ``size`` leaves and ``root`` (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size or any(len(each) != HASH_BYTES for each in (hashed_leaf, *path)):
        return False
    node, at, last = hashed_leaf, index, size - 1
    for sibling in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            node = node_hash(sibling, node)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and node == root


def verify_consistency(first: int, second: int, first_root: bytes, second_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether the tree of ``first`` leaves is a prefix of that of ``second`` (RFC 9162 section 2.1.4.2)."""
    if not 0 <= first <= second or any(len(each) != HASH_BYTES for each in (first_root, *path)):
        return False
    if first == second:
        return not path and first_root == second_root
    if first == 0:
        return not path and first_root == EMPTY_ROOT
    nodes = [first_root, *path] if first & (first - 1) == 0 else list(path)
    if not path:
        return False
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            old, new = node_hash(node, old), node_hash(node, new)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, node)
        at, last = at >> 1, last >> 1
    return last == 0 and old == first_root and new == second_root
