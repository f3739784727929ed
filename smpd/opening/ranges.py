"""Opening segments, or a small object: out of shared memory, checked, and onwards. Blocking, made for threads.

A fetch process keeps its ring mapped while we read it, and it may be hostile. So each segment is first copied to
private memory, and only that copy is hashed, opened and spooled: what was checked is what is used, whatever the other
side does meanwhile.
"""

import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
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


class Leaves:
    """The leaves of an object's segments, as far as they are known: 33 bytes for each up to the last one that is.

    Args:
        segments: how many the object has.
    """

    def __init__(self, segments: int) -> None:
        self._segments = segments
        self._leaves = bytearray()
        self._known = bytearray()

    def put(self, first: int, leaves: bytes) -> None:
        """Note those of the segments from ``first`` on.

        Raises:
            ValueError: they are no whole number, or of segments that the object does not have.
        """
        count, odd = divmod(len(leaves), LEAF_BYTES)
        end = first + count
        if odd or not 0 <= first <= end <= self._segments:
            raise ValueError(f"{len(leaves)} bytes of leaves from segment {first} on do not fit this object")
        if (more := end - len(self._known)) > 0:
            self._known.extend(bytes(more))
            self._leaves.extend(bytes(more * LEAF_BYTES))
        self._leaves[first * LEAF_BYTES : end * LEAF_BYTES] = leaves
        self._known[first:end] = b"\1" * count

    def of(self, segments: range) -> bytes | None:
        """Those of consecutive segments, joined; None where one is not known."""
        first, end = segments.start, segments.stop
        if end > len(self._known) or self._known.find(0, first, end) >= 0:
            return None
        return bytes(self._leaves[first * LEAF_BYTES : end * LEAF_BYTES])

    def alike(self, first: int, most: int) -> int:
        """How many segments from ``first`` on, ``most`` of them looked at, are known, or else are not."""
        end = min(first + most, self._segments)
        known = first < len(self._known) and self._known[first] == 1
        other = self._known.find(not known, first, end)
        if other < 0:
            other = min(end, len(self._known)) if known else end
        return other - first


class Opener:
    """Opens the segments of one object, several runs of them at once.

    Args:
        envelope: the checked envelope.
    """

    def __init__(self, envelope: OpenedEnvelope) -> None:
        self.envelope = envelope
        self._payload = envelope.payload()

    def forget_entries(self) -> None:
        """Let go of the entries, which may take hundreds of MiB, once nobody asks for them any more."""
        self.envelope = replace(self.envelope, entries=())

    def close(self) -> None:
        """Wipe the keys."""
        self.envelope.file_key.wipe()
        self._payload.wipe()

    @property
    def layout(self) -> Layout:
        """Where everything lies."""
        return self.envelope.layout

    def open(self, segments: range, read: Reader, plain: memoryview | None, spool: Writer | None) -> bytes:
        """Check and open consecutive segments; blocking, made for threads.

        Args:
            segments: which.
            read: gives their bytes.
            plain: where their plaintext goes, in order; None to check them only.
            spool: takes the ciphertext, a segment at a time.

        Returns:
            Their leaves, joined.

        Raises:
            IntegrityError: ``corrupt``; ``plain`` is zero where the bad segment would have been, and nothing of
                that segment was spooled.
            OSError: the spool could not be written.
        """
        leaves = bytearray()
        filled = 0
        start = self.layout.span(segments)[0]
        for k in segments:
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

    def leaves(self, segments: range, read: Reader) -> bytes:
        """The leaves of consecutive segments that nobody needs opened, joined: who knows them compares; blocking."""
        found = bytearray()
        start = self.layout.span(segments)[0]
        for k in segments:
            first, end = self.layout.leaf_span(k)
            sealed = _buffers.sealed[: end - first]
            read(sealed, first - start)
            found += leaf(sealed)
        return bytes(found)

    def check_content(self, leaves: bytes | None) -> None:
        """Compare the leaves of all segments with what the sender signed.

        Args:
            leaves: joined; None where one is missing.

        Raises:
            IntegrityError: ``truncated`` when one is missing, ``corrupt`` when the digest differs.
        """
        if leaves is None or len(leaves) != self.layout.segments * LEAF_BYTES:
            raise IntegrityError("truncated", "not every segment of the object arrived")
        if content_digest([leaves]) != self.envelope.signed.content_digest:
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
    accept: Callable[[CheckedEnvelope], None] | None = None,
) -> OpenedEnvelope:
    """Check and open an object that is there as a whole; blocking.

    Args:
        read: gives bytes of the object.
        size: of the object.
        plain: where its plaintext goes, in order; None to check it only.
        spool: descriptor of a file that takes the object.
        accept: looks at the checked envelope and raises where the object is not to be taken.

    Returns:
        The checked envelope, its entries as :meth:`CheckedEnvelope.packed` has them; its file key is wiped.

    Raises:
        IntegrityError: as :func:`open_envelope`, :meth:`Opener.open` and :meth:`Opener.check_content`; what
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
        opener = Opener(envelope)
        keep = None if spool is None else partial(write_exact, spool)
        opener.check_content(opener.open(range(opener.layout.segments), read, plain, keep))
    except IntegrityError:
        if plain is not None:
            wanted = min(len(plain), envelope.layout.plain_bytes)
            plain[:wanted] = bytes(wanted)
        raise
    finally:
        envelope.file_key.wipe()
    if spool is not None:
        write_exact(spool, memoryview(sealed + end), trailer.payload_bytes)
    return envelope.packed()


def write_exact(fd: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count
