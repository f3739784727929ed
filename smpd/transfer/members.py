"""The units of a job over a prefix: a batch of small objects, and the ranges of a large one."""

import contextlib
import os
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeGuard

import anyio

from smp_proto.control import ObjectInfo
from smp_proto.errors import IntegrityError, SmpError
from smp_proto.sealed.envelope import CheckedEnvelope
from smpd.host.space import disk_errors
from smpd.links.computing import InputObject
from smpd.links.fetching import Whole
from smpd.opening.link import Found, Refused
from smpd.opening.ranges import Leaves, Reader, from_ring, open_whole
from smpd.transfer.box import trust_at
from smpd.transfer.evidence import Evidence, keep_whole
from smpd.transfer.lanes import Lane
from smpd.transfer.openers import LONG_INDEX_BYTES, SMALL_BYTES, Sealed, Target
from smpd.transfer.pipeline import RangeUnit, Unit, input_object, ranges
from smpd.transfer.source import Source
from smpd.transfer.spool import Spool, remove

if TYPE_CHECKING:
    from smpd.transfer.collection import Members


class Batch:
    """Whole objects that fill one slot."""

    def __init__(self, members: "Members", infos: Sequence[ObjectInfo]) -> None:
        self._members = members
        self._infos = infos
        self._opened: list[tuple[ObjectInfo, CheckedEnvelope]] = []
        self._evidence: dict[int, Evidence] = {}
        self._bytes = sum(info.size for info in infos)
        self.small = self._bytes <= SMALL_BYTES * len(infos)

    async def bring(self, lane: Lane, plain: Target | None) -> int:
        """See :class:`Unit`."""
        members = self._members
        await members.audit("object.open", self._infos)
        wanted, at = [], 0
        for info in self._infos:
            wanted.append(Whole(info.path, info.pin, info.size, at))
            at += info.size
        asked, failed = await members.pool.read_many(lane, wanted)
        members.meter.fetched(asked)
        length, bad = 0, dict[int, SmpError]()
        if len(failed) < len(wanted):  # else there may be no ring
            length, bad = await self._open(lane, wanted, failed, plain)
        for index, error in {**failed, **bad}.items():
            await members.refuse(self._infos[index], error, self._evidence.get(index))
        return length

    def claim(self) -> Lane | None:
        """See :class:`Unit`."""
        return None

    def objects(self, offset: int) -> Sequence[InputObject]:
        """See :class:`Unit`."""
        found = []
        for info, envelope in self._opened:
            found.append(input_object(self._members.prefix(info), envelope.entries, offset))
            offset += envelope.signed.plain_bytes
        return found

    async def keep(self) -> None:
        """See :class:`Unit`."""
        members = self._members
        if members.shelf is not None and self._opened:
            await members.audit("object.store", [info for info, _ in self._opened])
            found = [members.adoption(info, each.signed, len(each.entries)) for info, each in self._opened]
            await members.shelf.add(found)
        members.settled(self._infos)
        members.meter.advanced(self._bytes)

    async def _open(
        self, lane: Lane, wanted: Sequence[Whole], failed: Collection[int], plain: Target | None
    ) -> tuple[int, dict[int, SmpError]]:
        """Check and open what has come; returns the plaintext's length, and what was refused.

        In a process, if there is one and nothing is written to a file; else in a thread.
        """
        members = self._members
        found = await self._open_elsewhere(lane, wanted, failed, plain) if members.shelf is None else None
        if found is not None:
            return found
        opening = partial(self._open_in_room, lane, wanted, failed, plain.view if plain else None)
        return await members.pool.openers.in_thread(self._bytes // len(self._infos), opening)

    async def _open_elsewhere(
        self, lane: Lane, wanted: Sequence[Whole], failed: Collection[int], plain: Target | None
    ) -> tuple[int, dict[int, SmpError]] | None:
        members, openers = self._members, self._members.pool.openers
        if not members.believed:
            members.believed = await anyio.to_thread.run_sync(lambda: members.box.senders().everyone())
        came = {index: whole for index, whole in enumerate(wanted) if index not in failed}
        places = [(whole.at, whole.size) for whole in came.values()]
        sealed = Sealed(members.pool.processes.ring(lane), lane.slot, places)
        opened = await openers.in_process(sealed, plain, members.believed)
        if opened is None:
            return None
        found = dict(zip(came, opened, strict=True))
        return await anyio.to_thread.run_sync(self._accept, lane, wanted, found, plain is not None)

    def _accept(
        self, lane: Lane, wanted: Sequence[Whole], found: Mapping[int, Found | Refused], plain: bool
    ) -> tuple[int, dict[int, SmpError]] | None:
        """In a thread: decide whether what was opened elsewhere is to be taken from where it lies.

        None, where one is of a sender that is believed since :attr:`Members.believed` was read: nothing was noted.
        """
        members = self._members
        senders = members.box.senders()
        for each in found.values():
            if _is_stranger(each) and each.sender in {known.key_id for known in senders.everyone()}:
                members.believed = senders.everyone()
                return None
        accept_at = members.acceptance.among([f"{members.pool.name}:{info.path}" for info in self._infos])
        bad: dict[int, SmpError] = {}
        filled = 0
        for index, each in found.items():
            info = self._infos[index]
            location = f"{members.pool.name}:{info.path}"
            try:
                if isinstance(each, Refused):
                    if _is_stranger(each):
                        senders(each.sender, location)  # says why in full
                    raise SmpError.from_body(each.error)
                filled += each.signed.plain_bytes if plain else 0
                envelope = CheckedEnvelope(each.signed, senders(each.signed.sender, location), each.entries)
                accept_at(location)(envelope)
            except IntegrityError as error:
                bad[index] = error
                read = from_ring(members.pool.processes.ring(lane), lane.slot, wanted[index].at)
                self._keep_evidence(index, read)
                continue
            members.opened(envelope)
            self._opened.append((info, envelope.packed()))
        members.remember(self._opened)
        return filled, bad

    def _keep_evidence(self, index: int, read: Reader) -> None:
        info = self._infos[index]
        self._evidence[index] = self._members.evidence(info)
        keep_whole(self._evidence[index], read, info.size)

    def _open_in_room(
        self, lane: Lane, wanted: Sequence[Whole], failed: Collection[int], plain: memoryview | None
    ) -> tuple[int, dict[int, SmpError]]:
        if self._members.shelf is None:
            return self._open_here(lane, wanted, failed, plain)
        with self._members.box.space.claim(self._bytes, "the spool"):
            return self._open_here(lane, wanted, failed, plain)

    def _open_here(
        self, lane: Lane, wanted: Sequence[Whole], failed: Collection[int], plain: memoryview | None
    ) -> tuple[int, dict[int, SmpError]]:
        """In a thread: check and open what has come; returns the plaintext's length, and what was refused."""
        members = self._members
        ring, senders = members.pool.processes.ring(lane), members.box.senders()
        accept_at = members.acceptance.among([f"{members.pool.name}:{info.path}" for info in self._infos])
        bad: dict[int, SmpError] = {}
        filled = 0
        for index, whole in enumerate(wanted):
            if index in failed:
                continue
            info = self._infos[index]
            location = f"{members.pool.name}:{info.path}"
            read = from_ring(ring, lane.slot, whole.at)
            into = None if plain is None else plain[filled:]
            open_it = partial(open_whole, read, info.size, members.box.identities, trust_at(senders, location), into)
            accept = accept_at(location)
            try:
                if members.shelf is None:
                    envelope = open_it(None, accept)
                else:
                    with _new_file(members.part(info)) as file:
                        envelope = open_it(file, accept)
            except IntegrityError as error:
                bad[index] = error
                self._keep_evidence(index, read)
                continue
            members.opened(envelope)
            self._opened.append((info, envelope))
            filled += envelope.signed.plain_bytes if plain is not None else 0
        members.remember(self._opened)
        return filled, bad


class Large:
    """An object that goes range by range; the last range that is kept finishes it."""

    def __init__(self, members: "Members", source: Source, prefix: str) -> None:
        self._members = members
        self._source = source
        self._prefix = prefix
        self._leaves = Leaves(source.opener.layout.segments)
        self._left = source.opener.layout.segments
        self._entries = len(source.opener.envelope.entries)
        self._announced = anyio.Event()
        self.spool: Spool | None = None
        self._refused: SmpError | None = None
        if members.shelf is not None:
            self.announced()

    async def units(self) -> AsyncGenerator[Unit, None]:
        """Its ranges."""
        members = self._members
        found = ranges(
            members.pool,
            self._source,
            spool=self.spool,
            have=Leaves(self._source.opener.layout.segments),
            leaves=self._leaves,
            tally=members.meter,
            prefix=self._prefix,
        )
        async with contextlib.aclosing(found):
            async for unit in found:
                yield _Part(self, unit)
        if self._source.trailer.envelope_bytes > LONG_INDEX_BYTES:
            await self._announced.wait()  # the next may have as many entries

    def announced(self) -> None:
        """Let go of the entries: their receiver has been told of them, or there is none."""
        self._source.opener.forget_entries()
        self._announced.set()

    async def bring(self, unit: RangeUnit, lane: Lane, plain: Target | None) -> int:
        """Bring a range, unless the object is refused already."""
        if self._refused:
            return 0
        try:
            return await unit.bring(lane, plain)
        except SmpError as error:
            await self._refuse(error)
            return 0

    async def kept(self, unit: RangeUnit) -> None:
        """A range was delivered."""
        if self._refused:
            self._members.meter.advanced(unit.length)
        else:
            await unit.keep()
        self._left -= len(unit.segments)
        if not self._left:
            await self._finish()

    async def _finish(self) -> None:
        members, source, spool = self._members, self._source, self.spool
        members.meter.advanced(len(source.tail))
        try:
            if not self._refused:
                source.opener.check_content(self._leaves.of(range(source.opener.layout.segments)))
        except IntegrityError as error:
            await self._refuse(error)
        if self._refused:
            await members.refuse(source.info, self._refused, source.evidence)
        else:
            await anyio.to_thread.run_sync(members.remember, [(source.info, source.opener.envelope)])
        if spool is not None and self._refused and not isinstance(self._refused, IntegrityError):
            await anyio.to_thread.run_sync(remove, spool.path)
        elif spool is not None and not self._refused:
            assert members.shelf is not None
            await spool.finish(source.tail, source.trailer.payload_bytes)
            await members.audit("object.store", [source.info])
            await members.shelf.add([members.adoption(source.info, source.opener.envelope.signed, self._entries)])
        members.settled([source.info])
        self.close()

    async def _refuse(self, error: SmpError) -> None:
        """Give the object up; its other ranges are passed over, unless the job ends here."""
        if not self._refused:
            self._refused = error
            if self._members.shelf is None or error.retryable:
                await self._members.refuse(self._source.info, error, self._source.evidence)

    def close(self) -> None:
        """Wipe the file key and close the file."""
        self._source.close()
        if self.spool is not None:
            self.spool.close()
        self._members.closed(self)


class _Part:
    """One range of a large object."""

    small = False

    def __init__(self, large: Large, unit: RangeUnit) -> None:
        self._large = large
        self._unit = unit

    async def bring(self, lane: Lane, plain: Target | None) -> int:
        """See :class:`Unit`."""
        return await self._large.bring(self._unit, lane, plain)

    def claim(self) -> Lane | None:
        """See :class:`Unit`."""
        return self._unit.claim()

    def objects(self, offset: int) -> Sequence[InputObject]:
        """See :class:`Unit`."""
        found = self._unit.objects(offset)
        if found:
            self._large.announced()
        return found

    async def keep(self) -> None:
        """See :class:`Unit`."""
        await self._large.kept(self._unit)


def _is_stranger(found: Found | Refused) -> TypeGuard[Refused]:
    """Whether who opened it did not know its sender."""
    return isinstance(found, Refused) and found.error.code == "untrusted_sender" and bool(found.sender)


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[int]:
    """A file for one object, which is removed when the block fails."""
    with disk_errors("the spool"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            yield fd
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
