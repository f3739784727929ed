"""The short form of R9 and R10: no damaged object passes, and no byte of a bad segment comes out."""

import random

import pytest
from sealed.forge import identity
from sealed.helpers import reader, seal

from smp_proto.errors import IntegrityError
from smp_proto.sealed.layout import SEGMENT_BYTES, TRAILER_BYTES, Layout

S = SEGMENT_BYTES
ALICE, BOB = identity("alice"), identity("bob")
PLAIN = random.Random(1).randbytes(2 * S + 1000)
NAMES = [("one", PLAIN[: S // 2]), ("two", b""), ("three", PLAIN[S // 2 :])]
OBJECT = seal(NAMES, ALICE, [BOB])
OTHER = seal(NAMES, ALICE, [BOB])
LAYOUT = Layout(len(PLAIN))
C = LAYOUT.payload_bytes
REGIONS = {
    "header": (0, 40),
    "segment 0": LAYOUT.segment_span(0),
    "segment 1": LAYOUT.segment_span(1),
    "segment 2": LAYOUT.segment_span(2),
    "tag 1": (2 * S - 16, 2 * S),
    "envelope": (C, len(OBJECT) - TRAILER_BYTES),
    "trailer": (len(OBJECT) - TRAILER_BYTES, len(OBJECT)),
}
SEED = 20261120


def released(data: bytes) -> int:
    """How many bytes the reader gave out before refusing; all of them must be the right ones.

    Raises:
        AssertionError: the object was not refused, or something else than the plaintext came out.
    """
    got = bytearray()
    with pytest.raises(IntegrityError), reader(data, [BOB], [ALICE]) as opened:
        opened.extract(lambda entry, offset, view: got.extend(view))
    assert got == PLAIN[: len(got)]
    return len(got)


@pytest.mark.parametrize("region", REGIONS)
def test_flipped_bits(region: str) -> None:
    """A flipped bit anywhere is refused; only whole segments before it come out (R9)."""
    start, end = REGIONS[region]
    draw = random.Random(f"{SEED} {region}")
    for _ in range(25 if region in ("envelope", "trailer") else 6):
        data, at = bytearray(OBJECT), draw.randrange(start, end)
        data[at] ^= 1 << draw.randrange(8)
        k = at // S
        allowed = 0 if at < 40 or at >= C else LAYOUT.plain_span(k)[0]
        assert released(bytes(data)) == allowed, f"byte {at}"


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("delta", [-1, 0, 1])
@pytest.mark.parametrize("end", ["cut", "patched"])
def test_truncations(k: int, delta: int, end: str) -> None:
    """An object cut at any segment's border, or with its end put back on, is refused (R10)."""
    border = LAYOUT.segment_span(k)[1] + delta
    data = OBJECT[:border] if end == "cut" else OBJECT[:border] + OBJECT[C:]
    if data != OBJECT:
        assert released(data) == 0


def segment(data: bytes, k: int) -> bytes:
    return data[k * S : min(C, (k + 1) * S)]


@pytest.mark.parametrize(
    ("order", "before"),
    [
        ([(0, 0), (1, 0), (2, 0)], None),
        ([(1, 0), (0, 0), (2, 0)], 0),
        ([(0, 0), (0, 0), (2, 0)], 1),
        ([(0, 0), (1, 1), (2, 0)], 1),
        ([(0, 0), (1, 0), (2, 1)], 2),
        ([(0, 1), (1, 0), (2, 0)], 0),
        ([(0, 1), (1, 1), (2, 1)], 0),
        ([(0, 0), (2, 0)], 0),
        ([(0, 0), (1, 0), (1, 0), (2, 0)], 0),
    ],
)
def test_segments_moved(order: list[tuple[int, int]], before: int | None) -> None:
    """Segments swapped, doubled, dropped or of another object: refused at the first wrong one (R10)."""
    data = b"".join(segment((OBJECT, OTHER)[which], k) for k, which in order) + OBJECT[C:]
    if before is None:
        assert data == OBJECT
    else:
        assert released(data) == LAYOUT.plain_span(before)[0]


def test_a_forger_with_the_file_key() -> None:
    """Someone who has the file key can make good tags; what was signed still refuses the object."""
    with reader(OBJECT, [BOB], [ALICE]) as opened:
        cipher, header = opened._payload._cipher, opened.signed.header
    forged = bytearray(OBJECT)
    start, end = LAYOUT.segment_span(2)
    nonce = header[33:] + b"\0\0\0\2\1"
    forged[start:end] = cipher.encrypt(nonce, bytes(end - start - 16), None)
    got = bytearray()
    with reader(bytes(forged), [BOB], [ALICE]) as opened, pytest.raises(IntegrityError):
        opened.extract(lambda entry, offset, view: got.extend(view))


def test_appended_and_nothing() -> None:
    """Bytes after the end, the envelope alone, and an empty object are refused."""
    for data in (OBJECT + b"\0", OBJECT[C:], b"", OBJECT + OBJECT):
        assert released(data) == 0
