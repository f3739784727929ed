"""A sealed object as a source: its envelope checked first, then its ranges, several at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import anyio

from smp_proto.control import ObjectInfo
from smp_proto.errors import IntegrityError, SmpError
from smp_proto.sealed.envelope import Trust, open_envelope
from smp_proto.sealed.keys import Identity
from smp_proto.sealed.layout import TRAILER_BYTES, Trailer
from smpd.transfer.lanes import Lane
from smpd.transfer.opening import Opener
from smpd.transfer.pool import RemotePool
from smpd.transfer.spool import Spool, disk_errors

# One request covers the trailer and, for all but huge bundles, the envelope.
_TAIL_BYTES = 256 << 10


class PlainSide(Protocol):
    """Where plaintext goes, in order: the plain ring of a compute process."""

    async def take(self) -> int:
        """Wait for a free slot."""

    def view(self, slot: int) -> memoryview:
        """The slot's memory."""

    async def deliver(self, slot: int, offset: int, length: int) -> None:
        """Plaintext bytes ``[offset, offset + length)`` are in the slot, which now belongs to the receiver."""


@dataclass(slots=True)
class Source:
    """A sealed object whose envelope has been checked.

    ``tail`` is the envelope and the trailer as they are stored. Close wipes the file key.
    """

    path: str
    info: ObjectInfo
    trailer: Trailer
    tail: bytes
    opener: Opener

    def close(self) -> None:
        """Wipe the file key."""
        self.opener.envelope.file_key.wipe()


async def open_source(pool: RemotePool, info: ObjectInfo, identities: list[Identity], trust: Trust) -> Source:
    """Read and check the end of a remote object.

    Raises:
        IntegrityError: not sealed, cut, changed, for someone else, or by someone unknown.
        SmpError: the remote's.
    """
    size = info.size
    first = max(0, size - _TAIL_BYTES)
    tail = await pool.fetch_bytes(info.path, info.pin, first, size)
    trailer = Trailer.parse(tail[-TRAILER_BYTES:], size)
    if trailer.payload_bytes < first:
        tail = await pool.fetch_bytes(info.path, info.pin, trailer.payload_bytes, first) + tail
    else:
        tail = tail[trailer.payload_bytes - first :]
    data = bytes(tail[:-TRAILER_BYTES])
    opened = await anyio.to_thread.run_sync(open_envelope, data, trailer, identities, trust)
    opener = Opener(opened, pool.settings.slot_bytes)
    return Source(info.path, info, trailer, bytes(tail), opener)


def naming(error: SmpError, name: str) -> SmpError:
    """The same error with the object's name in front, once."""
    if name in error.message:
        return error
    body = error.body()
    body.message = f"{name}: {error.message}"
    if isinstance(error, IntegrityError) and not body.hint:
        body.hint = "nothing of it was delivered; ask the sender to upload it again"
    return SmpError.from_body(body)


class Tally(Protocol):
    """Counts what moves."""

    def fetched(self, count: int) -> None:
        """Bytes asked of the remote."""

    def resumed(self, count: int) -> None:
        """Bytes that were in the spool already."""

    def advanced(self, count: int) -> None:
        """Bytes of the object that are done."""


class RangeStream:
    """Brings all ranges of an object through the pipeline once.

    Args:
        pool: whose lanes limit how much is under way; also where what is missing is fetched.
        source: the object.
        spool: takes the ciphertext, and gives what it has.
        have: the ranges in the spool with the leaves their journal entry holds, None where it has no entry because the
            whole file was made here.
        plain: takes the plaintext, in order; None to check only.
        tally: counts.
    """

    def __init__(
        self,
        pool: RemotePool,
        source: Source,
        *,
        spool: Spool | None,
        have: Mapping[int, bytes | None],
        plain: PlainSide | None,
        tally: Tally,
    ) -> None:
        self._pool = pool
        self._source = source
        self._spool = spool
        self._have = have
        self._plain = plain
        self._tally = tally
        self._leaves: dict[int, bytes] = {}
        self._turns: dict[int, anyio.Event] = {}
        self._alone = False  # an object of one range is synced whole at its end, or fetched anew

    async def run(self) -> None:
        """Fetch, check, spool and deliver every range, then check the whole.

        Raises:
            IntegrityError: the object is not what its sender signed.
            SmpError: the remote's, the spool's, or the receiver's.
        """
        opener = self._source.opener
        count = opener.layout.range_count(opener.range_bytes)
        self._alone = count == 1
        self._turn(0).set()
        async with anyio.create_task_group() as group:
            for index in range(count):
                slot = await self._plain.take() if self._plain else None
                lane = await self._pool.take()
                group.start_soon(self._one, index, lane, slot)
        opener.check_content(self._leaves)

    async def _one(self, index: int, lane: Lane, slot: int | None) -> None:
        opener = self._source.opener
        start, end = opener.layout.range_span(index, opener.range_bytes)
        plain = self._plain.view(slot) if self._plain and slot is not None else None
        try:
            leaves = await self._from_spool(index, start, plain)
            spooled = leaves is not None
            if leaves is None:
                leaves = await self._from_remote(index, lane, start, end, plain)
            self._leaves[index] = leaves
            if self._plain and slot is not None:
                await self._turn(index).wait()
                first, last = opener.plain_span(index)
                await self._plain.deliver(slot, first, last - first)
                self._turn(index + 1).set()
                del self._turns[index]
            if self._spool and not spooled and not self._alone:
                await self._spool.add(index, leaves)
            self._tally.advanced(end - start)
        finally:
            if plain is not None:
                plain.release()
            self._pool.give(lane)

    async def _from_spool(self, index: int, start: int, plain: memoryview | None) -> bytes | None:
        if self._spool is None or index not in self._have:
            return None
        expected = self._have[index]
        opener, fd = self._source.opener, self._spool.fd
        try:
            leaves = await anyio.to_thread.run_sync(opener.open_range, index, fd, start, plain, None)
        except IntegrityError:
            if expected is None:
                raise
            return None  # the disk changed it; the remote still has it
        if expected is not None and leaves != expected:
            return None
        start, end = opener.layout.range_span(index, opener.range_bytes)
        self._tally.resumed(end - start)
        return leaves

    async def _from_remote(self, index: int, lane: Lane, start: int, end: int, plain: memoryview | None) -> bytes:
        source, spool = self._source, self._spool
        asked = await self._pool.read(lane, source.path, source.info.pin, start, end - start)
        self._tally.fetched(asked)
        ring = self._pool.ring(lane)
        at, spool_fd = ring.offset(lane.slot), spool.fd if spool else None

        def work() -> bytes:
            with disk_errors("the spool"):
                return source.opener.open_range(index, ring.fd, at, plain, spool_fd)

        return await anyio.to_thread.run_sync(work)

    def _turn(self, index: int) -> anyio.Event:
        return self._turns.setdefault(index, anyio.Event())
