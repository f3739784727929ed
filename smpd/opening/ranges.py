"""Opening one range, or one small object: out of shared memory, checked, and onwards. Blocking, made for threads.

A fetch process keeps its ring mapped while we read it, and it may be hostile. So each segment is first copied to
private memory, and only that copy is hashed, opened and spooled: what was checked is what is used, whatever the other
side does meanwhile.
"""

import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from smp_proto.errors import IntegrityError
from smp_proto.sealed.envelope import CheckedEnvelope, OpenedEnvelope, Trust, open_envelope
from smp_proto.sealed.keys import Identity
from smp_proto.sealed.layout import HEADER_BYTES, SEGMENT_BYTES, TRAILER_BYTES, Layout, Trailer
from smp_proto.sealed.payload import content_digest, leaf
from smpd.links.ring import Ring, read_exact

LEAF_BYTES = 32
# Fills the view with bytes from an offset on; the same place may read otherwise the next time.
Reader = Callable[[memoryview, int], None]
# Takes bytes that belong to an offset of the object; blocking.
Writer = Callable[[memoryview, int], None]


class _Buffers(threading.local):
    """Per thread: a segment of ciphertext, and room for plaintext that nobody wants (``get`` only checks)."""

    def __init__(self) -> None:
        # At a page's border, as direct writes want it.
        self.sealed = memoryview(mmap.mmap(-1, SEGMENT_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.plain = memoryview(bytearray(SEGMENT_BYTES))


_buffers = _Buffers()
_ZEROS = bytes(SEGMENT_BYTES)


class Opener:
    """Opens the ranges of one object, several at once.

    Args:
        envelope: the checked envelope.
        range_bytes: the size of a range, a whole number of segments.
    """

    def __init__(self, envelope: OpenedEnvelope, range_bytes: int) -> None:
        self.envelope = envelope
        self.range_bytes = range_bytes
        self._payload = envelope.payload()

    def close(self) -> None:
        """Wipe the keys."""
        self.envelope.file_key.wipe()
        self._payload.wipe()

    @property
    def layout(self) -> Layout:
        """Where everything lies."""
        return self.envelope.layout

    @property
    def range_count(self) -> int:
        """How many ranges it has."""
        return self.layout.range_count(self.range_bytes)

    def range_span(self, index: int) -> tuple[int, int]:
        """Where range ``index`` lies in the object."""
        return self.layout.range_span(index, self.range_bytes)

    def plain_span(self, index: int) -> tuple[int, int]:
        """Which plaintext bytes range ``index`` holds."""
        segments = self.layout.range_segments(index, self.range_bytes)
        return self.layout.plain_span(segments[0])[0], self.layout.plain_span(segments[-1])[1]

    def open_range(self, index: int, read: Reader, plain: memoryview | None, spool: Writer | None) -> bytes:
        """Check and open a range; blocking, made for threads.

        Args:
            index: the range's number.
            read: gives bytes of the range.
            plain: where its plaintext goes, in order; None to check it only.
            spool: takes the ciphertext, a segment at a time.

        Returns:
            The leaves of its segments, joined.

        Raises:
            IntegrityError: ``corrupt``; ``plain`` is zero where the bad segment would have been, and nothing of
                that segment was spooled.
            OSError: the spool could not be written.
        """
        leaves = bytearray()
        filled = 0
        start = self.range_span(index)[0]
        for k in self.layout.range_segments(index, self.range_bytes):
            first, end = self.layout.leaf_span(k)
            sealed = _buffers.sealed[: end - first]
            read(sealed, first - start)
            if k == 0 and bytes(sealed[:HEADER_BYTES]) != self.envelope.signed.header:
                raise IntegrityError("corrupt", "the payload header is not the one the sender signed")
            into = _buffers.plain if plain is None else plain[filled:]
            opened = self._payload.open_segment(k, sealed[self.layout.segment_span(k)[0] - first :], into)
            filled += opened
            leaves += leaf(sealed)
            if plain is None:
                _buffers.plain[:opened] = _ZEROS[:opened]
            if spool is not None:
                spool(sealed, first)
        return bytes(leaves)

    def check_content(self, leaves: dict[int, bytes]) -> None:
        """Compare the leaves of all ranges with what the sender signed.

        Raises:
            IntegrityError: ``truncated`` when a range is missing, ``corrupt`` when the digest differs.
        """
        joined = b"".join(leaves.get(index, b"") for index in range(self.range_count))
        if len(joined) != self.layout.segments * LEAF_BYTES:
            raise IntegrityError("truncated", "not every segment of the object arrived")
        if content_digest([joined]) != self.envelope.signed.content_digest:
            raise IntegrityError("corrupt", "the content is not what the sender signed")


def private_copies(ring: Ring, slot: int, length: int) -> Iterator[tuple[int, memoryview]]:
    """Copy the front of a slot to private memory, a piece at a time: ``(start, piece)``.

    The piece is this thread's buffer: used before the next is asked for, and zeroed at the end.
    """
    try:
        for start in range(0, length, SEGMENT_BYTES):
            piece = _buffers.plain[: min(SEGMENT_BYTES, length - start)]
            ring.read(slot, start, piece)
            yield start, piece
    finally:
        used = min(SEGMENT_BYTES, length)
        _buffers.plain[:used] = _ZEROS[:used]


def from_descriptor(fd: int, at: int) -> Reader:
    """Reads what starts at byte ``at`` of a ring or a file."""
    return lambda into, offset: read_exact(fd, into, at + offset)


def from_ring(ring: Ring, slot: int, at: int = 0) -> Reader:
    """Reads what starts at byte ``at`` of a slot."""
    return lambda into, offset: ring.read(slot, at + offset, into)


def from_memory(data: bytes | bytearray) -> Reader:
    """Reads private memory."""

    def read(into: memoryview, offset: int) -> None:
        into[:] = data[offset : offset + len(into)]

    return read


def open_whole(
    read: Reader,
    size: int,
    identities: Sequence[Identity],
    trust: Trust,
    plain: memoryview | None,
    spool: int | None,
    range_bytes: int,
    accept: Callable[[CheckedEnvelope], None] | None = None,
) -> OpenedEnvelope:
    """Check and open an object that is there as a whole, at most ``range_bytes`` long; blocking.

    Args:
        read: gives bytes of the object.
        size: of the object.
        plain: where its plaintext goes, in order; None to check it only.
        spool: descriptor of a file that takes the object.
        accept: looks at the checked envelope and raises where the object is not to be taken.

    Returns:
        The checked envelope; its file key is wiped.

    Raises:
        IntegrityError: as :func:`open_envelope`, :meth:`Opener.open_range` and :meth:`Opener.check_content`; what
            ``plain`` holds is then zero.
        OSError: the spool could not be written.
    """
    end = bytearray(min(size, TRAILER_BYTES))
    read(memoryview(end), size - len(end))
    trailer = Trailer.parse(end, size)
    sealed = bytearray(trailer.envelope_bytes)
    read(memoryview(sealed), trailer.payload_bytes)
    envelope = open_envelope(bytes(sealed), trailer, identities, trust)
    try:
        if accept:
            accept(envelope)
        opener = Opener(envelope, range_bytes)
        keep = None if spool is None else partial(write_exact, spool)
        opener.check_content({0: opener.open_range(0, read, plain, keep)})
    except IntegrityError:
        if plain is not None:
            wanted = min(len(plain), envelope.layout.plain_bytes)
            plain[:wanted] = bytes(wanted)
        raise
    finally:
        envelope.file_key.wipe()
    if spool is not None:
        write_exact(spool, memoryview(sealed + end), trailer.payload_bytes)
    return envelope


def write_exact(fd: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count
