"""The size of ranges, against lines of which each lane has its share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.sealed.layout import SEGMENT_BYTES
from smpd.transfer.sizing import FIRST_BYTES, Sizing

MIB = 1 << 20
SLOT = 8 * MIB


def after(sizing: Sizing, ranges: int, *, latency_s: float, lane: float) -> int:
    """The size once so many ranges came over a lane of so many bytes a second."""
    for _ in range(ranges):
        size = sizing.range_bytes
        sizing.came(latency_s + size / lane, size)
    return sizing.range_bytes


@pytest.mark.parametrize(
    ("latency_s", "lane", "low", "high"),
    [
        (0.0005, 250e6, 8, 8),  # loopback, a LAN
        (0.1, 20e6, 8, 8),  # a bucket far away
        (0.3, 30e6, 8, 8),  # a satellite
        (0.05, 5e6, 4, 5),
        (0.05, 2e6, 1, 2),
        (0.05, 100e3, 1, 1),  # a surgery's line, and eight lanes of it
    ],
)
def test_what_a_lane_brings_in_a_second(latency_s: float, lane: float, low: int, high: int) -> None:
    """It gets there within some ranges, from the size it begins with and from either end."""
    fresh, quick, slow = Sizing(SLOT), Sizing(SLOT), Sizing(SLOT)
    after(quick, 9, latency_s=0.0, lane=1e9)
    after(slow, 9, latency_s=0.0, lane=1e4)
    for each in (fresh, quick, slow):
        assert low * MIB <= after(each, 24, latency_s=latency_s, lane=lane) <= high * MIB


@pytest.mark.parametrize(
    ("latency_s", "lane", "low", "high"),
    [
        (1.0, 5e6, 4, 5),
        (2.0, 1e6, 1, 2),
        (2.0, 5e6, 8, 8),  # it was a segment, of which five sixths were waiting
        (5.0, 1e6, 4, 5),
        (0.0, 100e3, 1, 1),  # the end of an object takes 2.6 s, which is no latency
    ],
)
def test_where_answers_begin_late_ranges_last_as_long(latency_s: float, lane: float, low: int, high: int) -> None:
    """A lane is busy for half of the time, where a slot has room for that; the end of an object tells of it."""
    for told_before in (True, False):
        sizing = Sizing(SLOT)
        if not told_before:
            after(sizing, 9, latency_s=latency_s, lane=lane)
        sizing.answered(latency_s + (256 << 10) / lane)
        assert low * MIB <= after(sizing, 30, latency_s=latency_s, lane=lane) <= high * MIB


def test_a_login_is_no_latency_for_long() -> None:
    """What one short request waited for, others did not; meanwhile ranges are four times what they may be at most."""
    sizing = Sizing(SLOT)
    sizing.answered(3.0)
    assert after(sizing, 20, latency_s=0.01, lane=500e3) <= 4 * 3 * 0.5 * MIB
    sizing.answered(0.5)
    assert after(sizing, 20, latency_s=0.01, lane=500e3) == MIB


def test_a_quick_line_has_whole_slots_after_one_range() -> None:
    """The first of them says so."""
    sizing = Sizing(SLOT)
    assert sizing.range_bytes == FIRST_BYTES
    assert after(sizing, 1, latency_s=0.001, lane=300e6) == SLOT


def test_some_slow_ones_are_chance() -> None:
    """One that took long among many does not make the others small."""
    sizing = Sizing(SLOT)
    after(sizing, 20, latency_s=0.001, lane=300e6)
    sizing.came(20.0, SLOT)
    assert sizing.range_bytes == SLOT


def test_the_rest_of_an_object_says_nothing() -> None:
    """A short range takes its latency, whatever the line."""
    sizing = Sizing(SLOT)
    after(sizing, 9, latency_s=0.001, lane=300e6)
    for _ in range(50):
        sizing.came(0.2, 1000)
    assert sizing.range_bytes == SLOT


def test_what_is_cut_off_is_smaller_the_next_time() -> None:
    """Half for each that was lost, down to a segment; one segment more for each that came through."""
    sizing = Sizing(SLOT)
    after(sizing, 9, latency_s=0.001, lane=300e6)
    sizes = []
    for _ in range(5):
        sizing.lost()
        sizes.append(sizing.range_bytes // MIB)
    assert sizes == [4, 2, 1, 1, 1]
    assert [after(sizing, 1, latency_s=0.001, lane=300e6) // MIB for _ in range(8)] == [2, 3, 4, 5, 6, 7, 8, 8]


@given(
    st.integers(SEGMENT_BYTES, 64 * MIB),
    st.lists(st.one_of(st.none(), st.floats(0, 1e5), st.tuples(st.floats(0, 1e5), st.integers(0, 64 * MIB)))),
)
def test_always_whole_segments_that_fit(most: int, told: list[tuple[float, int] | float | None]) -> None:
    """Whatever comes, and however long it took."""
    sizing = Sizing(most)
    for each in told:
        if each is None:
            sizing.lost()
        elif isinstance(each, float):
            sizing.answered(each)
        else:
            sizing.came(*each)
        assert SEGMENT_BYTES <= sizing.range_bytes <= most
        assert sizing.range_bytes % SEGMENT_BYTES == 0
