"""The frame codec."""

import contextlib
import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smp_proto.errors import DaemonError
from smp_proto.wire import (
    BODY_MAX_BYTES,
    FDS_MAX,
    HEADER_BYTES,
    STREAM_MAX,
    Frame,
    FrameDecoder,
    FrameType,
    encode_frame,
)

STREAMS = st.integers(1, STREAM_MAX)


@st.composite
def frames(draw) -> Frame:
    kind = draw(st.sampled_from(FrameType))
    if kind is FrameType.CANCEL:
        return Frame(kind, draw(STREAMS), b"", 0)
    stream = 0 if kind is FrameType.HELLO else draw(STREAMS)
    return Frame(kind, stream, draw(st.binary(max_size=300)), draw(st.integers(0, FDS_MAX)))


def decode(decoder: FrameDecoder, data: bytes) -> list[Frame]:
    decoder.feed(data)
    return list(decoder.frames())


@given(st.lists(frames(), max_size=6), st.lists(st.integers(0, 2000), max_size=20))
def test_any_split_gives_the_same_frames(sent, cuts):
    """However the bytes are cut, the frames come out as they went in, and nothing is left over."""
    data = b"".join(encode_frame(*frame) for frame in sent)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    decoder = FrameDecoder()
    got = [frame for start, end in itertools.pairwise(edges) for frame in decode(decoder, data[start:end])]
    assert got == sent
    assert not decoder.partial


@given(st.lists(frames(), min_size=1, max_size=3))
def test_byte_by_byte(sent):
    """Fed one byte at a time, each frame appears with its last byte and not before."""
    decoder = FrameDecoder()
    for frame in sent:
        data = encode_frame(*frame)
        for index, byte in enumerate(data):
            found = decode(decoder, bytes([byte]))
            assert found == ([frame] if index == len(data) - 1 else [])
            assert decoder.partial == (not found)


@given(st.lists(st.binary(max_size=64), max_size=12))
@example([b"\0\0\0\0\0\0\0\1\5\0" * 2])
def test_fuzz(chunks):
    """Any bytes give frames or a protocol error, and what is kept never exceeds one frame."""
    decoder = FrameDecoder()
    with contextlib.suppress(DaemonError):
        for chunk in chunks:
            for frame in decode(decoder, chunk):
                assert decode(FrameDecoder(), encode_frame(*frame)) == [frame]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ((BODY_MAX_BYTES + 1).to_bytes(4, "big") + b"\0\0\0\1\2\0", "announces 1048577 bytes"),
        (b"\xff\xff\xff\xff\0\0\0\1\2\0", "announces 4294967295 bytes"),
        (b"\0\0\0\0\0\0\0\1\0\0", "unknown frame type 0"),
        (b"\0\0\0\0\0\0\0\1\6\0", "unknown frame type 6"),
        (b"\0\0\0\0\0\0\0\1\2\x41", "announces 65 descriptors"),
        (b"\0\0\0\0\0\0\0\1\1\0", "HELLO on stream 1"),
        (b"\0\0\0\0\0\0\0\0\2\0", "REQUEST on stream 0"),
        (b"\0\0\0\1\0\0\0\1\5\0", "CANCEL carries nothing"),
        (b"\0\0\0\0\0\0\0\1\5\1", "CANCEL carries nothing"),
    ],
)
def test_a_bad_header_is_refused_before_any_body(header, words):
    """The header alone is enough to refuse, again and again: the decoder never gets past it."""
    decoder = FrameDecoder()
    for _ in range(2):
        with pytest.raises(DaemonError, match=words) as caught:
            decode(decoder, header)
        assert caught.value.code == "protocol"


def test_largest_body():
    """The cap itself is allowed."""
    frame = Frame(FrameType.DATA, 1, bytes(BODY_MAX_BYTES), FDS_MAX)
    assert decode(FrameDecoder(), encode_frame(*frame)) == [frame]
    assert len(encode_frame(*frame)) == HEADER_BYTES + BODY_MAX_BYTES


@pytest.mark.parametrize(
    "frame",
    [
        Frame(FrameType.DATA, 1, bytes(BODY_MAX_BYTES + 1)),
        Frame(FrameType.DATA, 1, b"", FDS_MAX + 1),
        Frame(FrameType.DATA, 1, b"", -1),
        Frame(FrameType.DATA, STREAM_MAX + 1, b""),
        Frame(FrameType.DATA, -1, b""),
        Frame(FrameType.DATA, 0, b""),
        Frame(FrameType.HELLO, 1, b""),
        Frame(FrameType.CANCEL, 1, b"x"),
    ],
)
def test_what_would_be_refused_is_not_encoded(frame):
    """The encoder refuses what the decoder would."""
    with pytest.raises(DaemonError):
        encode_frame(*frame)
