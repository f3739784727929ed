"""Jobs over a prefix: every sealed object below it, in one job.

Small objects travel many at a time: one lane's slot is filled with whole objects, which are opened, recorded and kept
as one batch. A larger one goes range by range, as in a job of its own. What a ``get`` has kept is in the vault under an
id that follows from the job and the object, so that another attempt leaves it out.
"""

import contextlib
import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from typing import Any, Self

import anyio
from msgspec.structs import replace

from smp_proto.control import ObjectInfo, Result
from smp_proto.errors import IntegrityError, SmpError, UsageError
from smp_proto.sealed.entries import valid_entry_name
from smp_proto.sealed.envelope import CheckedEnvelope, Signed
from smp_proto.sealed.keys import PublicIdentity
from smpd.jobs.job import Job
from smpd.transfer.box import Box, Meter
from smpd.transfer.evidence import Evidence
from smpd.transfer.grouping import GroupCommit
from smpd.transfer.members import Batch, Large
from smpd.transfer.pipeline import Pipeline, PlainSide, Unit
from smpd.transfer.pool import RemotePool
from smpd.transfer.refusing import Acceptance, Refusals
from smpd.transfer.source import naming, no_objects, open_source
from smpd.transfer.spool import Spool
from smpd.vault.objects import Adoption
from smpd.vault.remotes import PATH_MAX_BYTES

BATCH_OBJECTS = 256  # of one batch, so that its messages fit into frames
Shelf = GroupCommit[Sequence[Adoption]]


async def get_all(box: Box, job: Job, pool: RemotePool, path: str, meter: Meter) -> Result:
    """Bring every sealed object below a prefix into the vault.

    An object that is not to be trusted, or gone, does not keep the others from coming.

    Raises:
        IntegrityError, SmpError: at the end, what is wrong with the first object that was refused.
    """
    vault = box.vault
    done = await anyio.to_thread.run_sync(vault.adopted, job.id)

    def shelve(batches: Sequence[Sequence[Adoption]]) -> None:
        vault.adopt(job.id, [item for batch in batches for item in batch])

    shelf = Shelf(shelve)
    async with Members(box, job, pool, path, meter, shelf, done) as members, shelf.running():
        await Pipeline(pool, None).run(members.units())
    await members.refusals.settle()
    members.raise_refused()
    return await anyio.to_thread.run_sync(vault.summary, job.id)


class Members:
    """The sealed objects below a prefix, as units of a pipeline.

    Args:
        shelf: takes what was checked into the vault; None where the plaintext is what is wanted.
        done: ids of those that are in the vault already.

    Attributes:
        senders: who sealed what was opened, by key id.
        believed: who may have, as read last; for those who check signatures elsewhere.
    """

    def __init__(
        self,
        box: Box,
        job: Job,
        pool: RemotePool,
        path: str,
        meter: Meter,
        shelf: Shelf | None = None,
        done: Collection[str] = (),
    ) -> None:
        self.box = box
        self.job = job
        self.pool = pool
        self.path = path
        self.meter = meter
        self.shelf = shelf
        self.senders: dict[bytes, PublicIdentity] = {}
        self.believed: Collection[PublicIdentity] = ()
        self.refusals = Refusals(box, job)
        self.acceptance = Acceptance(box, job)
        self._done = done
        self._refused = 0
        self._worst: SmpError | None = None  # of what was refused: what is not to be trusted, else the first
        self._seen = 0
        self._under_way: set[tuple[str, str]] = set()  # paths and pins; for a processor also those that were
        self._open: set[Large] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for large in list(self._open):
            large.close()

    async def feed(self, plain: PlainSide) -> None:
        """Bring the plaintext of all, in the order of their names."""
        await Pipeline(self.pool, plain).run(self.units())

    async def units(self) -> AsyncGenerator[Unit, None]:
        """Batches of small objects, and the ranges of larger ones."""
        self.meter.begin("fetch", 0)
        async with contextlib.aclosing(self._groups()) as groups:
            async for group in groups:
                self.meter.found(sum(info.size for info in group))
                if group[0].size <= self.pool.settings.slot_bytes:
                    yield Batch(self, group)
                    continue
                evidence = self.evidence(group[0])
                try:
                    large = await self._open_large(group[0], evidence)
                except SmpError as error:
                    await self.refuse(group[0], error, evidence)
                    self.settled(group)
                    self.meter.advanced(group[0].size)
                    continue
                async with contextlib.aclosing(large.units()) as units:
                    async for unit in units:
                        yield unit
        if not self._seen:
            raise no_objects(self.pool.name, self.path)

    def evidence(self, info: ObjectInfo) -> Evidence:
        """What is kept of an object if it is refused."""
        found = Evidence("" if self.pool.mode == "streaming" else self.part(info), self.box.space)
        found.info = info
        return found

    async def refuse(self, info: ObjectInfo, error: SmpError, evidence: Evidence | None) -> None:
        """Leave an object out, where the others do not depend on it; what was found to be bad goes into quarantine.

        Raises:
            SmpError: the error, where they do, or where trying again helps.
        """
        location = f"{self.pool.name}:{info.path}"
        error = naming(error, location)
        if isinstance(error, IntegrityError):
            await self.refusals.add(location, error, evidence or self.evidence(info))
        if self.shelf is None or error.retryable:
            raise error
        self._refused += 1
        if self._worst is None or isinstance(error, IntegrityError) > isinstance(self._worst, IntegrityError):
            self._worst = error

    def raise_refused(self) -> None:
        """Raise what was wrong with the first object that was refused, and say how many there were."""
        if self._worst is None:
            return
        first = self._worst
        if self._seen > 1:
            first.message += f" ({self._refused} of {self._seen} were refused; the others are in the vault)"
        first.hint = f"{first.hint}; to try again: smpctl job resume {self.job.id}".lstrip("; ")
        raise first

    async def audit(self, event: str, infos: Sequence[ObjectInfo], act: Callable[[], Any] | None = None) -> Any:
        """One record for each object, before the act."""
        subjects = [f"{self.pool.name}:{info.path}" for info in infos]
        return await self.box.audit(event, actor=self.job.owner, job=self.job.id, subjects=subjects, act=act)

    def adoption(self, info: ObjectInfo, signed: Signed, entries: int) -> Adoption:
        """An object of so many entries as the vault takes it."""
        return Adoption(
            self._item(info),
            self.part(info),
            signed.object_id,
            signed.sender,
            info.size,
            entries,
            signed.plain_bytes,
        )

    def part(self, info: ObjectInfo) -> str:
        """The spool file of an object."""
        return os.path.join(self.box.spool_dir, f"{self.job.id}.{self._item(info)}.part")

    def prefix(self, info: ObjectInfo) -> str:
        """What goes before the names of an object's results.

        Raises:
            UsageError: ``bad_name``; the object's name cannot be part of an entry's.
        """
        prefix = info.path.removeprefix(self.path).removesuffix(".smp")
        if self.shelf is None and not valid_entry_name(prefix):
            raise UsageError(
                "bad_name",
                f"{self.pool.name}:{info.path}: results cannot be named after this object",
                hint="run the processor over this object alone, or rename it",
            )
        return prefix

    def remember(self, verified: Sequence[tuple[ObjectInfo, CheckedEnvelope]]) -> None:
        """Note what was verified whole; blocking."""
        self.acceptance.remember([(f"{self.pool.name}:{info.path}", each.signed) for info, each in verified])

    def opened(self, envelope: CheckedEnvelope) -> None:
        """Note whose object it was."""
        self.senders[envelope.signed.sender] = envelope.sender

    def _item(self, info: ObjectInfo) -> str:
        """Its id: 64 bits of a hash over job, path and pin, in hex."""
        return hashlib.sha256("\0".join((self.job.id, info.path, info.pin)).encode()).hexdigest()[:16]

    async def _groups(self) -> AsyncGenerator[list[ObjectInfo], None]:
        """Small objects that together are as large as a range, and larger ones alone, in the order of the listing."""
        group: list[ObjectInfo] = []
        size = 0
        async with contextlib.aclosing(self.pool.list(self.path)) as listing:
            async for infos in listing:
                for info in infos:
                    if (info.path, info.pin) in self._under_way:
                        continue  # a server listed it twice: both would be written to one file
                    self._seen += 1
                    if len(info.path.encode()) > PATH_MAX_BYTES:
                        text = f"its name is longer than {PATH_MAX_BYTES} bytes"
                        error = UsageError("bad_name", text, hint="rename it at the remote")
                        await self.refuse(replace(info, path=f"{info.path[:80]}…"), error, None)
                        continue
                    if self._done and self._item(info) in self._done:
                        self.meter.resumed(info.size)
                        continue
                    self._under_way.add((info.path, info.pin))
                    if group and (size + info.size > self.pool.sizing.range_bytes or len(group) == BATCH_OBJECTS):
                        yield group
                        group, size = [], 0
                    group.append(info)
                    size += info.size
        if group:
            yield group

    async def _open_large(self, info: ObjectInfo, evidence: Evidence) -> Large:
        location, pool, prefix = f"{self.pool.name}:{info.path}", self.pool, self.prefix(info)

        async def check(found: ObjectInfo, act: Callable[[], Any]) -> Any:
            if found.pin != info.pin:
                raise IntegrityError("source_changed", f"{location} changed since it was listed")
            return await self.audit("object.open", [info], act)

        trust = self.box.trust_at(location)
        source = await open_source(pool, info.path, self.box.identities, trust, check, self.acceptance, evidence)
        self.opened(source.opener.envelope)
        large = Large(self, source, prefix)
        self._open.add(large)
        if self.shelf is not None:
            large.spool = await Spool.open(self.box.space, self.part(info), info.size, None)
        return large

    def settled(self, infos: Iterable[ObjectInfo]) -> None:
        """They are in the vault, or refused, or their plaintext was delivered: a processor gets it once."""
        if self.shelf is None:
            return
        self._under_way.difference_update((info.path, info.pin) for info in infos)

    def closed(self, large: Large) -> None:
        """It needs no closing any more."""
        self._open.discard(large)
