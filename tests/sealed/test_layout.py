"""The arithmetic, against laying the bytes out one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.errors import IntegrityError, SmpError
from smp_proto.sealed.layout import (
    ENVELOPE_MAX_BYTES,
    HEADER_BYTES,
    SEGMENT_BYTES,
    TAG_BYTES,
    Layout,
    Trailer,
)

CODES = {"not_sealed", "unsupported", "truncated", "corrupt"}
SMALL = st.integers(57, 90)
PLAIN = st.integers(0, 400)


def laid_out(plain_bytes: int, segment_bytes: int) -> list[list[int]]:
    """Plaintext byte numbers by segment, filled one by one as section 3 of the page says."""
    segments: list[list[int]] = [[]]
    for i in range(plain_bytes):
        room = segment_bytes - TAG_BYTES - (HEADER_BYTES if len(segments) == 1 else 0)
        if len(segments[-1]) == room:
            segments.append([])
        segments[-1].append(i)
    return segments


@given(PLAIN, SMALL)
def test_segments_against_brute_force(plain_bytes: int, segment_bytes: int) -> None:
    """Counts, spans and the inverse agree with a payload built byte by byte."""
    layout, segments = Layout(plain_bytes, segment_bytes), laid_out(plain_bytes, segment_bytes)
    assert len(segments) == layout.segments
    position = HEADER_BYTES
    for k, held in enumerate(segments):
        end = position + len(held) + TAG_BYTES
        assert (position, end) == layout.segment_span(k)
        assert (0 if k == 0 else position, end) == layout.leaf_span(k)
        first, last = layout.plain_span(k)
        assert held == list(range(first, last))
        assert all(layout.segment_of(i) == k for i in held)
        position = end
    assert position == layout.payload_bytes


@given(st.integers(-5, 700), SMALL)
def test_payload_length_decides_the_layout(payload_bytes: int, segment_bytes: int) -> None:
    """A length leads back to its layout exactly when some plaintext has it."""
    lengths = {Layout(p, segment_bytes).payload_bytes: p for p in range(700)}
    if payload_bytes in lengths:
        assert Layout(lengths[payload_bytes], segment_bytes) == Layout.from_payload_bytes(payload_bytes, segment_bytes)
    else:
        with pytest.raises(IntegrityError) as caught:
            Layout.from_payload_bytes(payload_bytes, segment_bytes)
        assert caught.value.code == "corrupt"


@given(PLAIN, SMALL, st.data())
def test_spans_of_segments(plain_bytes: int, segment_bytes: int, data: st.DataObject) -> None:
    """Runs of segments, however cut, cover the payload once and hold all of the plaintext."""
    layout = Layout(plain_bytes, segment_bytes)
    position = plain = at = 0
    while at < layout.segments:
        segments = range(at, data.draw(st.integers(at + 1, layout.segments)))
        start, end = layout.span(segments)
        assert start == position
        assert end - start == sum(map(len, (range(*layout.leaf_span(k)) for k in segments)))
        plain += layout.plain_length(segments)
        position, at = end, segments.stop
    assert (position, plain) == (layout.payload_bytes, plain_bytes)


@pytest.mark.parametrize("index", [-1, 3])
def test_what_is_not_there(index: int) -> None:
    """Numbers outside the object are refused, negative ones too."""
    layout = Layout(100, 57)
    for call in (layout.segment_span, layout.plain_span, layout.leaf_span):
        with pytest.raises(IndexError):
            call(index if index < 0 else layout.segments)
    with pytest.raises(IndexError):
        layout.segment_of(index if index < 0 else 100)
    with pytest.raises(IndexError):
        layout.span(range(index if index < 0 else layout.segments, layout.segments + 1))


def test_bounds() -> None:
    """The segment number is 32 bits; lengths are not negative; a segment has room."""
    most = (1 << 32) * (SEGMENT_BYTES - TAG_BYTES) - HEADER_BYTES
    assert Layout(most).segments == 1 << 32
    for plain, size in [(most + 1, SEGMENT_BYTES), (-1, SEGMENT_BYTES), (0, 56)]:
        with pytest.raises(ValueError, match="segments"):
            Layout(plain, size)


@given(st.integers(0, 1 << 24), st.integers(1, ENVELOPE_MAX_BYTES), st.binary(max_size=8))
def test_trailer_round_trip(plain_bytes: int, envelope_bytes: int, before: bytes) -> None:
    """What was packed is parsed, also from a longer suffix."""
    trailer = Trailer(Layout(plain_bytes).payload_bytes, envelope_bytes)
    assert trailer == Trailer.parse(before + trailer.pack(), trailer.object_bytes)


@pytest.mark.parametrize("envelope_bytes", [0, ENVELOPE_MAX_BYTES + 1])
def test_trailer_bounds_the_envelope(envelope_bytes: int) -> None:
    """An envelope of no bytes, or of more than a reader should hold, is refused before it is read."""
    trailer = Trailer(Layout(0).payload_bytes, envelope_bytes)
    with pytest.raises(IntegrityError) as caught:
        Trailer.parse(trailer.pack(), trailer.object_bytes)
    assert caught.value.code == "corrupt"


@given(st.binary(max_size=40), st.booleans(), st.integers(0, 1 << 65))
def test_trailer_fuzz(data: bytes, magic: bool, object_bytes: int) -> None:
    """Any bytes give a trailer or one of our errors, and a trailer's lengths add up."""
    tail = data + b"\0\1\0\0SMP1" if magic else data
    try:
        parsed = Trailer.parse(tail, object_bytes).object_bytes
    except SmpError as error:
        parsed = None
        code = error.code
    assert parsed == object_bytes if parsed is not None else code in CODES
