"""What is kept of an object that is refused: its ciphertext, as far as it was fetched, at its place in a file.

Only what ends as a sealed object does is kept: anything else may be plaintext, which does not belong on a disk. Of
a remote in mode ``streaming`` nothing is kept either.
"""

import contextlib
import ctypes
import os
from collections.abc import Collection, Mapping

from smp_proto import durable
from smp_proto.control import ObjectInfo
from smp_proto.errors import IntegrityError, ResourceError
from smp_proto.sealed.envelope import Envelope
from smp_proto.sealed.layout import SEGMENT_BYTES, TRAILER_BYTES, Trailer
from smpd.host.space import Space, disk_errors
from smpd.opening.ranges import LEAF_BYTES, Reader, from_memory, write_exact

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)
_libc = ctypes.CDLL(None, use_errno=True)


class Evidence:
    """What is known of an object while it is fetched, and what of it is in a file, in case it is refused.

    Args:
        path: the file, which may be the job's spool file; empty where nothing may be kept.
        space: of the disk it is on.

    A disk that fails costs the evidence, not the refusal: no method raises.
    """

    def __init__(self, path: str = "", space: Space | None = None) -> None:
        self.path = path
        self._space = space
        self.info: ObjectInfo | None = None
        self.sender = self.object_id = b""
        self._end = b""
        self._lost = ""
        self._spans: list[tuple[int, int]] = []

    def ends_sealed(self, end: bytes, trailer: Trailer) -> None:
        """Note that it ends as a sealed object does: its last bytes, from the envelope on at least."""
        self._end = end
        start = len(end) - TRAILER_BYTES - trailer.envelope_bytes
        with contextlib.suppress(IntegrityError):
            signed = Envelope.parse(end[start:-TRAILER_BYTES]).signed
            self.sender, self.object_id = signed.sender, signed.object_id

    def has(self, start: int, end: int) -> None:
        """Note that these bytes are in the file."""
        self._spans.append((start, end))

    def has_marked(self, marks: Mapping[int, bytes]) -> None:
        """Note that these segments are in the file: leaves, by the segment that they begin with."""
        size = self.info.size if self.info else 0
        for first, leaves in marks.items():
            start = first * SEGMENT_BYTES
            if start < size:
                self.has(start, min(start + len(leaves) // LEAF_BYTES * SEGMENT_BYTES, size))

    def keep(self, read: Reader, start: int, length: int) -> None:
        """Write bytes of the object to their place in the file; blocking.

        Args:
            read: gives them, from 0 on.
            start: where they belong.
            length: how many.
        """
        if not (self.path and self._space and self._end and self.info and length):
            return
        try:
            with disk_errors("the quarantine"), self._space.claim(length, "the quarantine"):
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    for at in range(0, length, SEGMENT_BYTES):
                        piece = memoryview(bytearray(min(SEGMENT_BYTES, length - at)))
                        read(piece, at)
                        write_exact(fd, piece, start + at)
                finally:
                    os.close(fd)
        except ResourceError as error:
            self._lost = error.message
        else:
            self.has(start, start + length)

    def finish(self) -> tuple[int, bool, str]:
        """Free what of the file holds nothing, and sync it; blocking.

        Returns:
            How many bytes of the object are in the file, whether that is all of it, and why there are none.
        """
        if not self.path:
            return 0, False, "nothing of this remote is kept on a disk"
        if not self._end or self.info is None:
            return 0, False, "it does not end as a sealed object does, so it may be plaintext"
        self.keep(from_memory(self._end), self.info.size - len(self._end), len(self._end))
        spans = _union(self._spans)
        if not spans:
            return 0, False, self._lost
        try:
            with disk_errors("the quarantine"):
                _sparse(self.path, spans, self.info.size)
        except ResourceError as error:
            return 0, False, error.message
        return sum(end - start for start, end in spans), spans == [(0, self.info.size)], ""


def keep_whole(evidence: Evidence, read: Reader, size: int) -> None:
    """Keep an object that is there as a whole and was refused; blocking."""
    end = bytearray(min(size, TRAILER_BYTES))
    read(memoryview(end), size - len(end))
    with contextlib.suppress(IntegrityError):
        trailer = Trailer.parse(end, size)
        envelope = bytearray(trailer.envelope_bytes)
        read(memoryview(envelope), trailer.payload_bytes)
        evidence.ends_sealed(bytes(envelope + end), trailer)
        evidence.keep(read, 0, size)


def _union(spans: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _sparse(path: str, spans: list[tuple[int, int]], size: int) -> None:
    """Give a file its length, and free the blocks of what lies between the spans."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.ftruncate(fd, size)
        at = 0
        for start, end in [*spans, (size, size)]:
            if start > at:
                # Where a file system has no holes, the blocks stay allocated.
                _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_long(at), ctypes.c_long(start - at))
            at = end
        durable.sync(fd)
    finally:
        os.close(fd)
