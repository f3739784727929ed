"""How an object is cut into ranges, and what is known of its segments: against lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.sealed.layout import HEADER_BYTES, SEGMENT_BYTES, TAG_BYTES, Layout
from smpd.opening.ranges import LEAF_BYTES, Leaves
from smpd.transfer.cutting import Cutting
from smpd.transfer.lanes import RANGES_AHEAD


def layout_of(segments: int) -> Layout:
    return Layout(segments * (SEGMENT_BYTES - TAG_BYTES) - HEADER_BYTES)


def leaves_of(segments: range) -> bytes:
    return b"".join(k.to_bytes(LEAF_BYTES, "big") for k in segments)


def known(segments: int, which: list[bool]) -> Leaves:
    found = Leaves(segments)
    for k in range(segments):
        if which[k]:
            found.put(k, leaves_of(range(k, k + 1)))
    return found


@given(st.data())
def test_every_segment_once(data: st.DataObject) -> None:
    """Ranges cover the object in order, fit the slot and what is asked for, and are known whole or not at all."""
    segments, most = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 9))
    which = data.draw(st.lists(st.booleans(), min_size=segments, max_size=segments))
    sizes: list[int] = []

    def now() -> int:
        sizes.append(data.draw(st.integers(0, 12 * SEGMENT_BYTES)))
        return sizes[-1]

    cutting = Cutting(layout_of(segments), most * SEGMENT_BYTES, now)
    found = list(cutting.all(known(segments, which)))
    assert [k for each in found for k in each] == list(range(segments))
    if segments <= most:
        assert cutting.single
        assert (len(found), sizes) == (1, [])
        return
    assert len(sizes) == len(found)
    for each, size in zip(found, sizes, strict=True):
        assert 1 <= len(each) <= min(most, max(1, size // SEGMENT_BYTES))
        assert len({which[k] for k in each}) == 1


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, RANGES_AHEAD), st.lists(st.integers(1, 9), min_size=80))
def test_the_first_ones_are_decided_once(segments: int, most: int, ahead: int, sizes: list[int]) -> None:
    """Whoever asks for them first, and again: they are the same, whatever the size is by then."""
    rest = iter(sizes * 3)
    cutting = Cutting(layout_of(segments), most * SEGMENT_BYTES, lambda: next(rest) * SEGMENT_BYTES)
    begun = [cutting.first(index) for index in range(ahead)]
    twice = [list(cutting.all())[:RANGES_AHEAD] for _ in range(2)]
    assert twice[0] == twice[1]
    assert [each for each in begun if each is not None] == twice[0][:ahead]
    assert [cutting.first(index) for index in range(len(twice[0]))] == twice[0]


@given(st.integers(1, 30), st.data())
def test_leaves(segments: int, data: st.DataObject) -> None:
    """What was noted is found again, joined, and nothing else is."""
    found, model = Leaves(segments), dict[int, bytes]()
    for _ in range(data.draw(st.integers(0, 6))):
        first = data.draw(st.integers(0, segments - 1))
        run = range(first, data.draw(st.integers(first, segments)))
        found.put(first, leaves_of(run))
        model |= {k: leaves_of(range(k, k + 1)) for k in run}
    first = data.draw(st.integers(0, segments - 1))
    run = range(first, data.draw(st.integers(first + 1, segments)))
    expected = b"".join(model[k] for k in run) if all(k in model for k in run) else None
    assert found.of(run) == expected
    alike = found.alike(first, len(run))
    assert 1 <= alike <= len(run)
    assert {k in model for k in run[:alike]} == {first in model}
    assert alike == len(run) or (run[alike] in model) != (first in model)


def test_leaves_of_an_object_without_end() -> None:
    """What an object says of its length costs no memory; only what came of it does."""
    found = Leaves(1 << 32)
    found.put(0, leaves_of(range(2)))
    assert (found.alike(0, 8), found.alike(2, 8), found.alike((1 << 32) - 3, 8)) == (2, 8, 3)
    assert found.of(range(1 << 32)) is None


@pytest.mark.parametrize(("first", "length"), [(0, 31), (0, 33), (0, 4 * 32), (3, 32), (-1, 32), (-4, 32), (1, 3 * 32)])
def test_leaves_that_do_not_fit(first: int, length: int) -> None:
    """No part of a leaf, and none of a segment that the object does not have."""
    with pytest.raises(ValueError, match="do not fit"):
        Leaves(3).put(first, bytes(length))
    assert Leaves(3).of(range(3)) is None
