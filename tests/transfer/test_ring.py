"""A ring's slots as this process reads and zeroes them: past the interpreter lock, so never past the slot."""

import os
from collections.abc import Iterator

import pytest

from smpd.links.ring import Ring

SLOT = 64 << 10


@pytest.fixture
def ring() -> Iterator[Ring]:
    """Three slots full of what is not zero."""
    ring = Ring.create("test", 3, SLOT)
    for index in range(3):
        with ring.slot(index) as view:
            view[:] = b"\xa5" * SLOT
    yield ring
    if not ring.closed:
        ring.close()


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, SLOT - 1, SLOT, None])
def test_so_many_bytes_are_zeroed_and_no_more(ring: Ring, length: int | None) -> None:
    """The slots before and behind stay as they are."""
    ring.wipe(1, length)
    wiped = SLOT if length is None else length
    expected = b"\xa5" * SLOT + bytes(wiped) + b"\xa5" * (2 * SLOT - wiped)
    assert os.pread(ring.fd, 3 * SLOT, 0) == expected


@pytest.mark.parametrize(("index", "length"), [(2, SLOT + 1), (0, -1), (3, 1), (-1, 1)])
def test_nothing_outside_a_slot_is_zeroed(ring: Ring, index: int, length: int) -> None:
    """What is no part of a slot is refused, and nothing is written."""
    with pytest.raises((ValueError, IndexError)):
        ring.wipe(index, length)
    assert os.pread(ring.fd, 3 * SLOT, 0) == b"\xa5" * 3 * SLOT


def test_a_closed_ring_is_not_written_to(ring: Ring) -> None:
    """Its memory is another's by then."""
    ring.close()
    with pytest.raises(ValueError, match="released"):
        ring.wipe(0, 1)


def test_a_ring_that_was_zeroed_can_be_closed(ring: Ring) -> None:
    """Nothing of zeroing holds on to the memory."""
    ring.wipe(0)
    ring.close()
    assert ring._map.closed
