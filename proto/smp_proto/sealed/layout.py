"""Where everything lies in a sealed object: pure arithmetic, usable without a key or a byte of data.

::

    0 ... 40          header
    40 ... C          segments; segment k is bytes [max(40, k*S), min(C, (k+1)*S)), its 16-byte tag last
    C ... C+E         envelope
    last 24           trailer

Offsets are bytes from the start of the object unless called plain. Spans are half-open ``(start, end)``.
"""

import struct
from dataclasses import dataclass, field

from smp_proto.errors import IntegrityError

SEGMENT_BYTES = 1 << 20
TAG_BYTES = 16
HEADER_BYTES = 40
TRAILER_BYTES = 24
ENVELOPE_MAX_BYTES = 64 << 20
SEGMENTS_MAX = 1 << 32  # the segment number is a u32 of the nonce

MAGIC = b"SMP1"
VERSION = 1
_TRAILER = struct.Struct(">QQHH4s")


@dataclass(frozen=True, slots=True)
class Layout:
    """The segments of one payload.

    Args:
        plain_bytes: plaintext length of all segments together.
        segment_bytes: S, the distance from one segment's start to the next.

    Attributes:
        segments: how many; at least one, which is empty only when there is no plaintext at all.
        payload_bytes: C: header, ciphertext and tags.

    Raises:
        ValueError: a length is negative, S has no room for plaintext, or there are over 2**32 segments.
    """

    plain_bytes: int
    segment_bytes: int = SEGMENT_BYTES
    # Worked out once: they are asked for twenty times for each object.
    segments: int = field(init=False, repr=False, compare=False)
    payload_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.plain_bytes < 0 or self.segment_bytes <= HEADER_BYTES + TAG_BYTES:
            raise ValueError("a layout needs a length of at least 0 and segments of over 56 bytes")
        after_first = self.plain_bytes - (self.segment_bytes - HEADER_BYTES - TAG_BYTES)
        segments = 1 + max(0, -(-after_first // (self.segment_bytes - TAG_BYTES)))
        object.__setattr__(self, "segments", segments)
        object.__setattr__(self, "payload_bytes", HEADER_BYTES + self.plain_bytes + TAG_BYTES * segments)
        if self.segments > SEGMENTS_MAX:
            raise ValueError(f"{self.plain_bytes} bytes need more than 2**32 segments")

    @classmethod
    def from_payload_bytes(cls, payload_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> "Layout":
        """The layout whose payload, header included, is exactly so long.

        Raises:
            IntegrityError: ``corrupt``; no plaintext has a payload of this length.
        """
        segments = -(-payload_bytes // segment_bytes)
        plain = payload_bytes - HEADER_BYTES - TAG_BYTES * segments
        try:
            layout = cls(plain, segment_bytes)
        except ValueError:
            layout = None
        if layout is None or layout.payload_bytes != payload_bytes:
            raise IntegrityError("corrupt", f"no payload is {payload_bytes} bytes long: a segment would be cut")
        return layout

    def segment_span(self, k: int) -> tuple[int, int]:
        """Where the ciphertext and tag of segment ``k`` lie."""
        self._check(k, self.segments)
        start, end = k * self.segment_bytes, (k + 1) * self.segment_bytes
        return max(HEADER_BYTES, start), min(self.payload_bytes, end)

    def leaf_span(self, k: int) -> tuple[int, int]:
        """What leaf ``k`` is the hash of: the segment, and for segment 0 the header before it."""
        return k * self.segment_bytes, self.segment_span(k)[1]

    def plain_span(self, k: int) -> tuple[int, int]:
        """Which plaintext bytes segment ``k`` holds."""
        start, end = self.segment_span(k)
        first = max(0, k * (self.segment_bytes - TAG_BYTES) - HEADER_BYTES)
        return first, first + end - start - TAG_BYTES

    def segment_of(self, plain_offset: int) -> int:
        """The segment that holds a plaintext byte."""
        self._check(plain_offset, self.plain_bytes)
        return (plain_offset + HEADER_BYTES) // (self.segment_bytes - TAG_BYTES)

    def span(self, segments: range) -> tuple[int, int]:
        """Where consecutive segments lie, the header with the first one; as long as the leaves of them together."""
        return self.leaf_span(segments[0])[0], self.segment_span(segments[-1])[1]

    def plain_length(self, segments: range) -> int:
        """How many bytes of plaintext consecutive segments hold."""
        return self.plain_span(segments[-1])[1] - self.plain_span(segments[0])[0]

    @staticmethod
    def _check(index: int, count: int) -> None:
        if not 0 <= index < count:
            raise IndexError(f"{index} is not in 0..{count - 1}")


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last 24 bytes: C as u64, E as u64, version u16, flags u16, magic ``SMP1``; big-endian."""

    payload_bytes: int
    envelope_bytes: int
    version: int = VERSION
    flags: int = 0

    @property
    def object_bytes(self) -> int:
        """Length of the whole object."""
        return self.payload_bytes + self.envelope_bytes + TRAILER_BYTES

    def pack(self) -> bytes:
        """The 24 bytes."""
        return _TRAILER.pack(self.payload_bytes, self.envelope_bytes, self.version, self.flags, MAGIC)

    @classmethod
    def parse(cls, tail: bytes | bytearray | memoryview, object_bytes: int) -> "Trailer":
        """Read the trailer from the end of an object.

        Args:
            tail: the last bytes of the object, 24 or more.
            object_bytes: the object's length as storage gives it.

        Raises:
            IntegrityError: ``not_sealed`` without the magic, ``unsupported`` for another version or any flag,
                ``truncated`` when the lengths do not add up to ``object_bytes``, ``corrupt`` for lengths that
                no object can have.
        """
        if len(tail) < TRAILER_BYTES or bytes(tail[-4:]) != MAGIC:
            hint = "it is plaintext, another format, or cut off; its sender makes one with: smpctl seal"
            raise IntegrityError("not_sealed", "the object does not end as a sealed object does", hint=hint)
        payload, envelope, version, flags, _ = _TRAILER.unpack(tail[-TRAILER_BYTES:])
        if version != VERSION or flags:
            hint = "a newer release may read it"
            raise IntegrityError("unsupported", f"sealed object version {version}, flags {flags:#x}", hint=hint)
        trailer = cls(payload, envelope, version, flags)
        if trailer.object_bytes != object_bytes:
            message = f"the object is {object_bytes} bytes long but says {trailer.object_bytes}"
            raise IntegrityError("truncated", message, hint="upload it again from its source")
        if not 0 < envelope <= ENVELOPE_MAX_BYTES:
            raise IntegrityError("corrupt", f"an envelope of {envelope} bytes is out of bounds")
        Layout.from_payload_bytes(payload)
        return trailer
