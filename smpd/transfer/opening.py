"""Opening one range in a thread: out of shared memory, checked, and onwards.

A fetch process keeps its ring mapped while we read it, and it may be hostile. So each segment is first copied to
private memory by ``preadv`` (which also releases the interpreter lock), and only that copy is hashed, opened and
spooled: what was checked is what is used, whatever the other side does meanwhile.
"""

import os
import threading
from collections.abc import Iterator

from smp_proto.errors import IntegrityError
from smp_proto.sealed.envelope import OpenedEnvelope
from smp_proto.sealed.layout import HEADER_BYTES, SEGMENT_BYTES, Layout
from smp_proto.sealed.payload import content_digest, leaf
from smpd.transfer.pool import read_exact

LEAF_BYTES = 32


class _Buffers(threading.local):
    """Per thread: a segment of ciphertext, and room for plaintext that nobody wants (``get`` only checks)."""

    def __init__(self) -> None:
        self.sealed = memoryview(bytearray(SEGMENT_BYTES))
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

    @property
    def layout(self) -> Layout:
        """Where everything lies."""
        return self.envelope.layout

    def plain_span(self, index: int) -> tuple[int, int]:
        """Which plaintext bytes range ``index`` holds."""
        segments = self.layout.range_segments(index, self.range_bytes)
        return self.layout.plain_span(segments[0])[0], self.layout.plain_span(segments[-1])[1]

    def open_range(self, index: int, source: int, at: int, plain: memoryview | None, spool: int | None) -> bytes:
        """Check and open a range; blocking, made for threads.

        Args:
            index: the range's number.
            source: descriptor of a ring or a spool file.
            at: where in it the range starts.
            plain: where its plaintext goes, in order; None to check it only.
            spool: descriptor of a spool file that takes the ciphertext at its place in the object.

        Returns:
            The leaves of its segments, joined.

        Raises:
            IntegrityError: ``corrupt``; ``plain`` is zero where the bad segment would have been, and nothing of
                that segment was spooled.
            OSError: the spool could not be written.
        """
        leaves = bytearray()
        filled = 0
        start = self.layout.range_span(index, self.range_bytes)[0]
        for k in self.layout.range_segments(index, self.range_bytes):
            first, end = self.layout.leaf_span(k)
            sealed = _buffers.sealed[: end - first]
            read_exact(source, sealed, at + first - start)
            if k == 0 and bytes(sealed[:HEADER_BYTES]) != self.envelope.signed.header:
                raise IntegrityError("corrupt", "the payload header is not the one the sender signed")
            into = _buffers.plain if plain is None else plain[filled:]
            filled += self._payload.open_segment(k, sealed[self.layout.segment_span(k)[0] - first :], into)
            leaves += leaf(sealed)
            if plain is None:
                _buffers.plain[:] = _ZEROS
            if spool is not None:
                write_exact(spool, sealed, first)
        return bytes(leaves)

    def check_content(self, leaves: dict[int, bytes]) -> None:
        """Compare the leaves of all ranges with what the sender signed.

        Raises:
            IntegrityError: ``truncated`` when a range is missing, ``corrupt`` when the digest differs.
        """
        count = self.layout.range_count(self.range_bytes)
        joined = b"".join(leaves.get(index, b"") for index in range(count))
        if len(joined) != self.layout.segments * LEAF_BYTES:
            raise IntegrityError("truncated", "not every segment of the object arrived")
        if content_digest([joined]) != self.envelope.signed.content_digest:
            raise IntegrityError("corrupt", "the content is not what the sender signed")


def private_copies(fd: int, offset: int, length: int) -> Iterator[tuple[int, memoryview]]:
    """Copy bytes of a ring to private memory, a piece at a time: ``(start, piece)``.

    The piece is this thread's buffer: used before the next is asked for, and zeroed at the end.
    """
    try:
        for start in range(0, length, SEGMENT_BYTES):
            piece = _buffers.plain[: min(SEGMENT_BYTES, length - start)]
            read_exact(fd, piece, offset + start)
            yield start, piece
    finally:
        _buffers.plain[:] = _ZEROS


def write_exact(fd: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count
