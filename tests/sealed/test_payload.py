"""Segments against Tink's own streaming AEAD, and what happens to a segment that is not what was sealed."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import tink
from sealed.forge import payload
from tink import secret_key_access, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, tink_pb2

from smp_proto.errors import IntegrityError
from smp_proto.sealed.filekey import FileKey
from smp_proto.sealed.layout import HEADER_BYTES, SEGMENT_BYTES, TAG_BYTES, Layout
from smp_proto.sealed.payload import PayloadOpener, PayloadSealer, content_digest, leaf

S = SEGMENT_BYTES
OBJECT_ID = bytes(range(16))
FILE_KEY = FileKey(bytearray(range(32)))
SIZES = sorted(
    {0, 1, 15, 16, 17, 39, 40, 41}
    | {S + d for d in (-58, -57, -56, -55, -54, -41, -40, -39, -17, -16, -15, -1, 0, 1)}
    | {2 * S + d for d in (-73, -72, -71, -56, -16, -1, 0, 1)}
    | {3 * S - 88, 3 * S - 87}
)


@pytest.fixture(scope="module")
def aead() -> streaming_aead.StreamingAead:
    """Tink's template AES256_GCM_HKDF_1MB with our payload key in it."""
    streaming_aead.register()
    template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
    key_format = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKeyFormat.FromString(template.value)
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(
        params=key_format.params, key_value=bytes(FILE_KEY.payload_key())
    )
    keyset = tink_pb2.Keyset(primary_key_id=1)
    entry = keyset.key.add(key_id=1, status=tink_pb2.ENABLED, output_prefix_type=tink_pb2.RAW)
    entry.key_data.type_url = template.type_url
    entry.key_data.value = key.SerializeToString()
    entry.key_data.key_material_type = tink_pb2.KeyData.SYMMETRIC
    handle = tink.proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


class Kept(io.BytesIO):
    """Tink closes what it writes to; the bytes stay here."""

    def close(self) -> None:
        self.kept = self.getvalue()
        super().close()


def opened(data: bytes, layout: Layout, object_id: bytes = OBJECT_ID) -> bytes:
    opener = PayloadOpener(FILE_KEY.payload_key(), data[:HEADER_BYTES], object_id, layout)
    out = bytearray(S)
    parts = []
    for k in range(layout.segments):
        size = opener.open_segment(k, data[slice(*layout.segment_span(k))], out)
        parts.append(bytes(out[:size]))
    return b"".join(parts)


@pytest.mark.parametrize("size", SIZES)
def test_tink_opens_ours(aead: streaming_aead.StreamingAead, size: int) -> None:
    """Tink reads what we sealed, to the byte, at every boundary."""
    plain = os.urandom(size)
    sealed, _ = payload(FILE_KEY, OBJECT_ID, plain)
    assert Layout(size).payload_bytes == len(sealed)
    with aead.new_decrypting_stream(io.BytesIO(sealed), OBJECT_ID) as stream:
        assert plain == stream.read()


@pytest.mark.parametrize("size", SIZES)
def test_we_open_tinks(aead: streaming_aead.StreamingAead, size: int) -> None:
    """We read what Tink sealed; where it ends in an empty segment, which it may, the length is refused."""
    plain, sink = os.urandom(size), Kept()
    with aead.new_encrypting_stream(sink, OBJECT_ID) as stream:
        stream.write(plain)
    layout = Layout(size)
    if len(sink.kept) == layout.payload_bytes:
        assert plain == opened(sink.kept, layout)
        assert layout == Layout.from_payload_bytes(len(sink.kept))
    else:
        assert len(sink.kept) == layout.payload_bytes + TAG_BYTES
        with pytest.raises(IntegrityError):
            Layout.from_payload_bytes(len(sink.kept))


@pytest.mark.parametrize(("size", "k"), [(1, 0), (S + 5, 0), (S + 5, 1)])
@pytest.mark.parametrize("where", ["first", "last", "tag"])
def test_nothing_of_a_bad_segment_comes_out(size: int, k: int, where: str) -> None:
    """A flipped bit raises with the segment number; the output is zero where written, untouched elsewhere."""
    sealed, _ = payload(FILE_KEY, OBJECT_ID, b"\xaa" * size)
    layout = Layout(size)
    segment = bytearray(sealed[slice(*layout.segment_span(k))])
    segment[{"first": 0, "last": -TAG_BYTES - 1, "tag": -1}[where]] ^= 1
    out = bytearray(b"\xee" * (S + 100))
    opener = PayloadOpener(FILE_KEY.payload_key(), sealed[:HEADER_BYTES], OBJECT_ID, layout)
    with pytest.raises(IntegrityError) as caught:
        opener.open_segment(k, segment, memoryview(out)[10:-10])
    assert ("corrupt", {"segment": k}) == (caught.value.code, caught.value.details)
    held = len(segment) - TAG_BYTES
    assert bytearray(b"\xee" * 10 + bytes(held) + b"\xee" * (S + 90 - held)) == out


@pytest.mark.parametrize("change", ["swap", "double", "other object", "other id", "last flag", "other header"])
def test_segments_keep_their_place(change: str) -> None:
    """A good segment is refused at any other place, in any other object, and when more or less follows it."""
    size = 2 * S + 100
    sealed, _ = payload(FILE_KEY, OBJECT_ID, os.urandom(size))
    other, _ = payload(FILE_KEY, OBJECT_ID, os.urandom(size))
    layout, object_id, header = Layout(size), OBJECT_ID, sealed[:HEADER_BYTES]
    first, second = sealed[slice(*layout.segment_span(1))], sealed[slice(*layout.segment_span(2))]
    k, data = {
        "swap": (0, first[: S - HEADER_BYTES]),
        "double": (2, first[: len(second)]),
        "other object": (1, other[slice(*layout.segment_span(1))]),
        "other id": (1, first),
        "last flag": (1, first),
        "other header": (1, first),
    }[change]
    if change == "other id":
        object_id = bytes(16)
    if change == "last flag":
        layout = Layout(layout.plain_span(1)[1])
    if change == "other header":
        header = header[:-1] + bytes([header[-1] ^ 1])
    out = bytearray(b"\xee" * S)
    with pytest.raises(IntegrityError) as caught:
        PayloadOpener(FILE_KEY.payload_key(), header, object_id, layout).open_segment(k, data, out)
    assert caught.value.code == "corrupt"
    held = len(data) - TAG_BYTES
    assert bytes(held) == out[:held]


def test_lengths_are_checked_before_anything_is_opened() -> None:
    """A segment of another length is ``truncated``; an output without room is our own mistake."""
    sealed, _ = payload(FILE_KEY, OBJECT_ID, b"abc")
    opener = PayloadOpener(FILE_KEY.payload_key(), sealed[:HEADER_BYTES], OBJECT_ID, Layout(3))
    segment = sealed[HEADER_BYTES:]
    for bad in (segment[:-1], segment + b"\0", b""):
        with pytest.raises(IntegrityError) as caught:
            opener.open_segment(0, bad, bytearray(3))
        assert caught.value.code == "truncated"
    with pytest.raises(ValueError, match="3 bytes"):
        opener.open_segment(0, segment, bytearray(2))


def test_malformed_header() -> None:
    """A header of another type or length is refused."""
    for header in (b"", bytes(HEADER_BYTES), b"\x28" + bytes(HEADER_BYTES)):
        with pytest.raises(IntegrityError):
            PayloadOpener(FILE_KEY.payload_key(), header, OBJECT_ID, Layout(0))


def test_one_opener_in_many_threads() -> None:
    """Segments opened at the same time from several threads come out right, good and bad ones mixed."""
    size = 8 * S
    plain = os.urandom(size)
    sealed, _ = payload(FILE_KEY, OBJECT_ID, plain)
    layout = Layout(size)
    opener = PayloadOpener(FILE_KEY.payload_key(), sealed[:HEADER_BYTES], OBJECT_ID, layout)

    def open_one(number: int) -> bool:
        k, bad = number % layout.segments, number % 5 == 0
        segment, out = bytearray(sealed[slice(*layout.segment_span(k))]), bytearray(S)
        segment[7] ^= bad
        try:
            held = opener.open_segment(k, segment, out)
        except IntegrityError:
            return bad and not any(out)
        start, end = layout.plain_span(k)
        return not bad and plain[start:end] == out[:held]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(open_one, range(90)))


def test_no_nonce_serves_twice() -> None:
    """Segments are sealed once, in order, full but for the last, and nothing follows that."""
    full, out = S - TAG_BYTES, bytearray(S)
    sealer = PayloadSealer(FILE_KEY.payload_key(), OBJECT_ID)
    with pytest.raises(ValueError, match="not the next"):
        sealer.seal_segment(1, bytes(full), out, last=False)
    sealer.seal_segment(0, bytes(full - HEADER_BYTES), out, last=False)
    for k, plain, last in [(0, full - HEADER_BYTES, False), (2, full, False)]:
        with pytest.raises(ValueError, match="not the next"):
            sealer.seal_segment(k, bytes(plain), out, last=last)
    for plain, last in [(full - 1, False), (full + 1, False), (full + 1, True), (0, True)]:
        with pytest.raises(ValueError, match="cannot hold"):
            sealer.seal_segment(1, bytes(plain), out, last=last)
    with pytest.raises(ValueError, match="needs"):
        sealer.seal_segment(1, bytes(full), out[:-1], last=False)
    sealer.seal_segment(1, b"x", out, last=True)
    with pytest.raises(ValueError, match="not the next"):
        sealer.seal_segment(2, b"x", out, last=True)


def test_leaves() -> None:
    """Leaves cover all payload bytes, and their order counts."""
    sealed, digest = payload(FILE_KEY, OBJECT_ID, bytes(S))
    layout = Layout(S)
    leaves = [leaf(sealed[slice(*layout.leaf_span(k))]) for k in range(layout.segments)]
    assert digest == content_digest(leaves)
    assert digest != content_digest(reversed(leaves))
    assert layout.leaf_span(0)[0] == 0
