"""The pipeline: units of work, several at once, whose plaintext arrives in order.

A unit takes one lane, and one slot of the plain ring where plaintext is wanted. :class:`RangeUnit` is a range of one
object; other rooms' units are in :mod:`smpd.transfer.collection`.
"""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Protocol

import anyio

from smp_proto.aio import encode
from smp_proto.errors import IntegrityError
from smp_proto.sealed.entries import Entry
from smpd.host.space import disk_errors
from smpd.links.computing import InputEntry, InputObject
from smpd.opening.ranges import Leaves, from_descriptor, from_memory, from_ring
from smpd.transfer.ahead import Ahead, Arrival
from smpd.transfer.lanes import Lane
from smpd.transfer.openers import Target
from smpd.transfer.pool import RemotePool
from smpd.transfer.source import Source, Tally
from smpd.transfer.spool import Spool

_ANNOUNCED_BYTES = 512 << 10  # of one message, so that it fits a frame
_PREFIX_BYTES = 1024 + 64  # the most that an object adds to its entries
_ENTRY_BYTES = 80  # the most that an entry takes beside its name, media type and attributes
_TOGETHER = 2000  # entries that are looked at as one
_NAME, _MEDIA_TYPE, _ATTRIBUTES = attrgetter("name"), attrgetter("media_type"), attrgetter("attributes")
_UNKEPT = 8  # units beyond the lanes that may be under way: a crash costs them, since nothing says that they are there
_AT_ONCE_BYTES = 128 << 10  # opened in 50 µs, half of what handing it to a thread takes


class PlainSide(Protocol):
    """Where plaintext goes, in order: the plain ring of a compute process."""

    async def take(self) -> int:
        """Wait for a free slot."""

    def target(self, slot: int) -> Target:
        """The slot, to write to; the view is released by whoever asked for it."""

    async def announce(self, objects: Sequence[InputObject]) -> None:
        """Name entries whose plaintext comes next."""

    async def deliver(self, slot: int, length: int) -> None:
        """The next ``length`` bytes of plaintext are in the slot, which now belongs to the receiver."""


class Unit(Protocol):
    """What takes one lane.

    Attributes:
        small: it is many small objects.
    """

    small: bool

    def claim(self) -> Lane | None:
        """The lane that it is in already, or on its way into."""

    async def bring(self, lane: Lane, plain: Target | None) -> int:
        """Fetch and check; returns how many bytes of plaintext are in ``plain``."""

    def objects(self, offset: int) -> Sequence[InputObject]:
        """What is to be announced before this plaintext, which begins at ``offset``."""

    async def keep(self) -> None:
        """Make durable what was checked, where that is wanted."""


class Pipeline:
    """Brings units through, once.

    Args:
        pool: whose lanes limit how much is under way.
        plain: takes the plaintext, in order; None to check only.
    """

    def __init__(self, pool: RemotePool, plain: PlainSide | None) -> None:
        self._pool = pool
        self._plain = plain
        self._turns: dict[int, anyio.Event] = {}
        self._delivered = 0
        self._room = anyio.Semaphore(pool.lanes + _UNKEPT, fast_acquire=True)

    async def run(self, units: AsyncGenerator[Unit, None]) -> None:
        """Fetch, check, deliver and keep every unit; ``units`` is closed, also where one fails.

        Raises:
            IntegrityError: something is not what its sender signed.
            SmpError: the remote's, the spool's, or the receiver's.
        """
        self._turn(0).set()
        index = 0
        # Closed here: what is left of it would ask for its listing until Python's collector comes by.
        async with anyio.create_task_group() as group, contextlib.aclosing(units):
            async for unit in units:
                await self._room.acquire()
                slot = await self._plain.take() if self._plain else None
                lane = unit.claim() or await self._pool.take(small=unit.small)
                group.start_soon(self._one, index, unit, partial(self._in_lane, unit, lane), slot)
                index += 1

    async def alone(self, unit: "RangeUnit") -> None:
        """Bring the only unit through, whose bytes are here: that takes no lane, and no task. Raises as :meth:`run`."""
        self._turn(0).set()
        await self._room.acquire()
        await self._one(0, unit, partial(unit.bring, None), await self._plain.take() if self._plain else None)

    async def _in_lane(self, unit: Unit, lane: Lane, plain: Target | None) -> int:
        try:
            return await unit.bring(lane, plain)
        finally:
            self._pool.give(lane)  # the next unit does not wait for this one's turn, nor for the disk

    async def _one(
        self, index: int, unit: Unit, bring: Callable[[Target | None], Awaitable[int]], slot: int | None
    ) -> None:
        plain = self._plain.target(slot) if self._plain and slot is not None else None
        try:
            length = await bring(plain)
            self._pool.counts.opened(length)
            if self._plain and slot is not None:
                await self._turn(index).wait()
                await announce(self._plain, unit.objects(self._delivered))
                self._delivered += length
                await self._plain.deliver(slot, length)
                self._turn(index + 1).set()
                del self._turns[index]
        finally:
            if plain is not None:
                plain.view.release()
        await unit.keep()
        self._room.release()

    def _turn(self, index: int) -> anyio.Event:
        return self._turns.setdefault(index, anyio.Event())


class RangeUnit:
    """One range of a sealed object: out of the spool where it is there and whole, else from the remote.

    Args:
        index: which range it is.
        segments: what it consists of.
        spool: takes the ciphertext, and gives what it has.
        have: the leaves of what is in the spool; None where that is the whole object, made here.
        leaves: takes the leaves of this range.
        prefix: of the object's results, in a run with several objects.
        ahead: has fetched some of the object, perhaps.
    """

    small = False

    def __init__(
        self,
        pool: RemotePool,
        source: Source,
        index: int,
        segments: range,
        *,
        spool: Spool | None,
        have: Leaves | None,
        leaves: Leaves,
        tally: Tally,
        prefix: str = "",
        ahead: Ahead | None = None,
    ) -> None:
        self._pool = pool
        self._source = source
        self._index = index
        self.segments = segments
        self._spool = spool
        self._have = have
        self._leaves = leaves
        self._tally = tally
        self._prefix = prefix
        self._found = b""  # its leaves
        self._spooled = False
        self._ahead = ahead
        self._arrival: Arrival | None = None

    @property
    def _span(self) -> tuple[int, int]:
        return self._source.opener.layout.span(self.segments)

    @property
    def length(self) -> int:
        """How many bytes of the object it is."""
        start, end = self._span
        return end - start

    def claim(self) -> Lane | None:
        """See :class:`Unit`."""
        self._arrival = self._ahead.claim(self._index) if self._ahead else None
        return self._arrival.lane if self._arrival else None

    async def bring(self, lane: Lane | None, plain: Target | None) -> int:
        """See :class:`Unit`; what came along with the envelope needs no lane."""
        asked = await self._arrival.wait() if self._arrival else 0
        into = plain.view if plain else None
        spooled = await self._from_spool(into)
        self._found = await self._from_remote(lane, into, asked) if spooled is None else spooled
        self._leaves.put(self.segments.start, self._found)
        return self._source.opener.layout.plain_length(self.segments)

    def objects(self, offset: int) -> Sequence[InputObject]:
        """See :class:`Unit`."""
        return [input_object(self._prefix, self._source.opener.envelope.entries, offset)] if self._index == 0 else ()

    async def keep(self) -> None:
        """See :class:`Unit`."""
        # An object of one range is synced whole at its end, or fetched anew.
        if self._spool and not self._spooled and not self._source.cutting.single:
            await self._spool.add(self.segments.start, self._found)
        self._tally.advanced(self.length)

    async def _from_spool(self, plain: memoryview | None) -> bytes | None:
        expected = self._have.of(self.segments) if self._have is not None else None
        if self._spool is None or (self._have is not None and expected is None):
            return None
        opener = self._source.opener
        start, end = self._span
        read = from_descriptor(self._spool.fd, start)

        def work() -> bytes:
            if expected is not None and plain is None:  # it was opened when it came
                return opener.leaves(self.segments, read)
            return opener.open(self.segments, read, plain, None)

        try:
            leaves = await anyio.to_thread.run_sync(work, limiter=self._pool.openers.large)
        except IntegrityError:
            if expected is None:
                raise
            return None  # the disk changed it; the remote still has it
        if expected is not None and leaves != expected:
            return None
        self._spooled = True
        self._source.evidence.has(start, end)
        if expected is not None:  # else it was sealed here just now
            self._tally.resumed(end - start)
        return leaves

    async def _from_remote(self, lane: Lane | None, plain: memoryview | None, asked: int) -> bytes:
        source, spool = self._source, self._spool
        start, end = self._span
        came = source.came(start, end)
        if came is not None:
            read = from_memory(came)
            self._tally.fetched(source.info.size if source.cutting.single else end - start)
        else:
            assert lane is not None
            asked = asked or await self._pool.read(lane, source.path, source.info.pin, start, end - start)
            self._tally.fetched(asked)
            read = from_ring(self._pool.processes.ring(lane), lane.slot)

        def work() -> bytes:
            try:
                with disk_errors("the spool"):
                    leaves = source.opener.open(self.segments, read, plain, spool.write if spool else None)
            except IntegrityError:
                source.evidence.keep(read, start, end - start)
                raise
            if spool:
                source.evidence.has(start, end)
            return leaves

        if end - start <= _AT_ONCE_BYTES and came is not None and spool is None:
            return work()
        return await anyio.to_thread.run_sync(work, limiter=self._pool.openers.large)


async def ranges(
    pool: RemotePool,
    source: Source,
    *,
    spool: Spool | None,
    have: Leaves | None,
    leaves: Leaves,
    tally: Tally,
    prefix: str = "",
    ahead: Ahead | None = None,
) -> AsyncGenerator[RangeUnit, None]:
    """All ranges of an object. Once they went through, :meth:`Opener.check_content` of ``leaves`` is due."""
    for index, segments in enumerate(source.cutting.all(have)):
        yield RangeUnit(
            pool,
            source,
            index,
            segments,
            spool=spool,
            have=have,
            leaves=leaves,
            tally=tally,
            prefix=prefix,
            ahead=ahead,
        )


async def bring_object(
    pool: RemotePool,
    source: Source,
    *,
    spool: Spool | None,
    marks: Mapping[int, bytes] | None,
    plain: PlainSide | None,
    tally: Tally,
    ahead: Ahead | None = None,
) -> None:
    """Bring all ranges of an object through a pipeline of its own, then check the whole.

    Args:
        marks: leaves of what is in the spool, by the segment that they begin with; None where the spool is the whole
            object, made here.

    Raises:
        IntegrityError: the object is not what its sender signed.
        SmpError: the remote's, the spool's, or the receiver's.
    """
    segments = source.opener.layout.segments
    leaves, have = Leaves(segments), None if marks is None else _marked(segments, marks)
    units = ranges(pool, source, spool=spool, have=have, leaves=leaves, tally=tally, ahead=ahead)
    pipeline = Pipeline(pool, plain)
    if source.whole and source.cutting.single:
        async with contextlib.aclosing(units):
            await pipeline.alone(await anext(units))
    else:
        await pipeline.run(units)
    source.opener.check_content(leaves.of(range(segments)))


def _marked(segments: int, marks: Mapping[int, bytes]) -> Leaves:
    found = Leaves(segments)
    for first, leaves in marks.items():
        with contextlib.suppress(ValueError):  # then they are fetched again
            found.put(first, leaves)
    return found


def input_object(prefix: str, entries: Sequence[Entry], offset: int) -> InputObject:
    """An object as a compute process is told of it, its plaintext beginning at ``offset`` of the run's."""
    return InputObject(
        prefix,
        [InputEntry(e.name, offset + e.offset, e.size, e.media_type, e.attributes) for e in entries],
    )


async def announce(plain: PlainSide, objects: Sequence[InputObject]) -> None:
    """Announce objects in as many messages as they need."""
    batch: list[InputObject] = []
    size = 0
    for item in objects:
        parts = list(_parts(item.entries))
        for number, (part, length) in enumerate(parts, 1):
            if batch and size + length > _ANNOUNCED_BYTES:
                await plain.announce(batch)
                batch, size = [], 0
            batch.append(InputObject(item.prefix, part, more=number < len(parts)))
            size += length
    if batch:
        await plain.announce(batch)


def _parts(entries: list[InputEntry]) -> Iterator[tuple[list[InputEntry], int]]:
    """Entries in parts that fit a message, with the most that each may be encoded; one part where there are none."""
    for start in range(0, max(len(entries), 1), _TOGETHER):
        part = entries[start : start + _TOGETHER]
        if any(map(_ATTRIBUTES, part)):
            yield from _one_by_one(part)
            continue
        texts = 4 * sum(map(len, map(_NAME, part))) + sum(map(len, map(_MEDIA_TYPE, part)))
        size = _PREFIX_BYTES + len(part) * _ENTRY_BYTES + texts
        if size <= _ANNOUNCED_BYTES:
            yield part, size
        else:
            yield from _one_by_one(part)


def _one_by_one(entries: list[InputEntry]) -> Iterator[tuple[list[InputEntry], int]]:
    """The same with a look at each of them, which takes five times as long."""
    part: list[InputEntry] = []
    size = _PREFIX_BYTES
    for entry in entries:
        length = _ENTRY_BYTES + len(entry.name) * (1 if entry.name.isascii() else 4) + len(entry.media_type)
        if entry.attributes:
            length += len(encode(entry.attributes))
        if part and size + length > _ANNOUNCED_BYTES:
            yield part, size
            part, size = [], _PREFIX_BYTES
        part.append(entry)
        size += length
    yield part, size
