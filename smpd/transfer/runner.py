"""What a job does: ``get``, ``run`` and ``put``, from the first request to the delivered result.

Each step may be repeated after a crash without a second effect: ranges count once they are in the journal, results
are sealed into the spool before they are delivered, and are delivered under a name that belongs to the job.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

import anyio

from smp_proto.control import GetSpec, ObjectInfo, PutSpec, Result, RunSpec
from smp_proto.errors import IntegrityError, SmpError, UsageError, one_error
from smp_proto.sealed.bundle import BundleInfo
from smp_proto.sealed.envelope import open_envelope
from smp_proto.sealed.keys import PublicIdentity
from smp_proto.sealed.layout import TRAILER_BYTES, Trailer
from smpd.jobs.job import Job, Progress
from smpd.jobs.queue import RANKS
from smpd.links import computing
from smpd.opening.ranges import Opener
from smpd.transfer.adopting import Brought, keep
from smpd.transfer.ahead import Ahead
from smpd.transfer.arriving import find_objects, seal_arriving
from smpd.transfer.box import Box, Meter
from smpd.transfer.collection import Members, get_all
from smpd.transfer.delivery import Courier
from smpd.transfer.device import finish_results
from smpd.transfer.evidence import Evidence
from smpd.transfer.lanes import rank
from smpd.transfer.leavings import NOTHING_LEFT, Leavings, Left
from smpd.transfer.pipeline import bring_object
from smpd.transfer.places import asker
from smpd.transfer.plain import PlainRing
from smpd.transfer.pool import RemotePool
from smpd.transfer.refusing import Acceptance, Refusals
from smpd.transfer.sealing import SealedFile, sealed_file
from smpd.transfer.source import Cut, Source, check_version, naming, open_source
from smpd.transfer.spool import Spool
from smpd.transfer.yielding import Yielding
from smpd.vault.remotes import is_prefix, parse_location


class Runner:
    """Runs jobs. One instance serves the scheduler; it keeps nothing between jobs.

    Attributes:
        leavings: what attempts leave for the next ones.
        courier: delivers results.
        yielding: has failed jobs give up what they hold, where others wait for room.
    """

    def __init__(self, box: Box) -> None:
        self._box = box
        self.leavings = Leavings(box)
        self.courier = Courier(box, self.leavings.out)
        self.yielding = Yielding(box, self.leavings.part)

    async def __call__(self, job: Job, progress: Progress) -> Result | Job:
        """Do the job, or what is left of it.

        Returns:
            The result; or the job as it ended, where the vault took what it brought and its end in one transaction.

        Raises:
            SmpError: why not; an IntegrityError means the data is not to be trusted.
        """
        meter = Meter(progress)
        rank.set(RANKS[job.priority])
        asker.set("")
        refusals = Refusals(self._box, job)
        try:
            await self.yielding.settled(job.id)
            left = NOTHING_LEFT if job.first else await self._thread(self.leavings.of, job.id)
            with one_error():
                outcome = await self._do(job, meter, left)
                if left.refused:
                    await refusals.settle()
                if isinstance(outcome, Brought):
                    return await keep(self._box, self.leavings, job, meter, outcome)
                return outcome
        except IntegrityError as error:
            await refusals.complete(error)
            raise
        finally:
            meter.stop()

    async def _do(self, job: Job, meter: Meter, left: Left) -> Result | Brought:
        match job.spec:
            case GetSpec():
                return await self._get(job, job.spec, meter)
            case RunSpec():
                return await self._run(job, job.spec, meter, left)
            case PutSpec():
                return await self._put(job, job.spec, meter, left)

    # ── get ────────────────────────────────────────────────────────────────────────────────────────────

    async def _get(self, job: Job, spec: GetSpec, meter: Meter) -> Result | Brought:
        pool, path = await self._locate(spec.source)
        if pool.mode == "streaming":
            raise UsageError(
                "bad_request",
                f"remote {pool.name} is in streaming mode: nothing of it is kept on a disk",
                hint="use smpctl run, or add the remote in mode zero-knowledge",
            )
        if pool.mode != "standard" and is_prefix(path):
            return await get_all(self._box, job, pool, path, meter)
        if pool.mode == "standard":
            info = await self._arrive(job, pool, path, meter)
            return Brought(self.leavings.part(job.id), result_of(info))
        source = await self._open(job, pool, path)
        try:
            spool = await self._fill(job, pool, source, spec.source, meter, plain=None)
            assert spool is not None
            try:
                await spool.finish(source.tail, source.trailer.payload_bytes)
            finally:
                spool.close()
            signed = source.opener.envelope.signed
            result = Result(
                object_id=signed.object_id.hex(),
                entries=len(source.opener.envelope.entries),
                plain_bytes=signed.plain_bytes,
                sealed_bytes=source.info.size,
                content_digest=signed.content_digest.hex(),
            )
            return Brought(spool.path, result, signed.sender)
        finally:
            source.close()

    # ── run ────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self, job: Job, spec: RunSpec, meter: Meter, left: Left) -> Result | Brought:
        try:
            result = await self.leavings.sealed(job.id, left)
        except IntegrityError:  # this box's own disk; it can be made again
            result = None
        fresh = result is None
        if result is None:
            if spec.target:
                await self.courier.plan(job, spec.target)
            result = await self._process(job, spec, meter, left)
        if spec.target:
            await self.courier.deliver(job, spec.target, result, meter, fresh=fresh)
            return result
        return Brought(self.leavings.out(job.id), result)

    async def _process(self, job: Job, spec: RunSpec, meter: Meter, left: Left) -> Result:
        compute = self._box.compute.of(spec.processor)
        pool, path = await self._locate(spec.source)
        standard = pool.mode == "standard"
        if not standard:  # else it is sealed first, for as long as that takes
            compute.host.expect()
        if not standard and is_prefix(path):
            async with Members(self._box, job, pool, path, meter) as members:
                senders = members.senders
                return await self._compute(job, spec, meter, members.feed, senders.values, single=False)
        async with contextlib.AsyncExitStack() as held:
            ahead: Ahead | None = None

            async def early(cut: Cut) -> None:
                nonlocal ahead
                ahead = await held.enter_async_context(Ahead(pool, cut).running())

            if standard:
                async with anyio.create_task_group() as group:  # a mistake in a parameter shows before all is sealed
                    group.start_soon(compute.check, spec.processor, spec.params)
                    await self._arrive(job, pool, path, meter)
                source = await self._open_own(job, pool)
            else:
                source = await self._open(job, pool, path, None if left.begun else early)
            held.callback(source.close)
            if not (standard or left.begun or source.whole or ahead):
                await early(source.cut)

            async def feed(plain: PlainRing) -> None:
                spool = await self._fill(job, pool, source, spec.source, meter, plain=plain, ahead=ahead)
                if spool is not None:
                    spool.close()

            sender = source.opener.envelope.sender
            return await self._compute(job, spec, meter, feed, lambda: [sender], single=True)

    async def _compute(
        self,
        job: Job,
        spec: RunSpec,
        meter: Meter,
        feed: Callable[[PlainRing], Awaitable[None]],
        senders: Callable[[], Iterable[PublicIdentity]],
        *,
        single: bool,
    ) -> Result:
        """Run the processor over what ``feed`` brings; the sealed results are in the spool afterwards.

        They are for whom the job names, or else for the senders and this box.
        """
        named = [PublicIdentity.parse(text) for text in spec.recipients]
        compute = self._box.compute
        request = computing.Run(job.id, spec.processor, spec.params, compute.settings.timeout_s, single)

        async def fed(plain: PlainRing) -> None:
            await feed(plain)
            if not plain.begun:  # it got ready before its turn
                meter.stage("device")
                await plain.turn()
            meter.stage("compute")

        async with sealed_file(self._box.space, self.leavings.out(job.id), self._box.identities, []) as writer:
            # All objects are verified whole when feed returns; only then may a result be finished.
            meter.stage("device")
            done = await compute.of(spec.processor).run(request, writer, fed, again=single)
            meter.transfer.device = done.device
            meter.stage("seal")
            writer.recipients = named or [*senders(), self._box.identity.public]
            return await anyio.to_thread.run_sync(self._finish, job, writer, bool(spec.target))

    def _finish(self, job: Job, writer: SealedFile, delivered: bool) -> Result:
        """In a thread: finish the results. Those to be delivered become durable and noted here; the vault does that."""
        writer.syncs = delivered
        result = result_of(finish_results(writer))
        writer.kept = True  # it may be noted even where the disk fails to say so
        source = self.leavings.sealed_source(job.id, result, writer.signed_by)
        if delivered:
            self._box.journal.keep_result(job.id, source, self.courier.begin(job))
        return result

    # ── put ────────────────────────────────────────────────────────────────────────────────────────────

    async def _put(self, job: Job, spec: PutSpec, meter: Meter, left: Left) -> Result:
        result = await self.leavings.sealed(job.id, left)
        if result is None:
            raise UsageError("bad_request", "the files of this put were never sealed", hint="submit it again")
        await self.courier.deliver(job, spec.target, result, meter)
        return result

    # ── steps ──────────────────────────────────────────────────────────────────────────────────────────

    async def _locate(self, location: str) -> tuple[RemotePool, str]:
        name, path = parse_location(location, prefix=True)
        return await self._box.remote(name), path

    async def _open(
        self, job: Job, pool: RemotePool, path: str, early: Callable[[Cut], Awaitable[None]] | None = None
    ) -> Source:
        """Check the envelope of a remote object; the object is pinned from the job's first attempt on.

        For ``early`` see :func:`~smpd.transfer.source.open_source`.
        """
        location = f"{pool.name}:{path}"
        journal = self._box.journal
        evidence = Evidence("" if pool.mode == "streaming" else self.leavings.part(job.id), self._box.space)

        async def check(info: ObjectInfo, act: Callable[[], Any]) -> Any:
            check_version(job, info, location)

            def pin() -> Any:
                if journal.pin(job.id, info.pin, info.size) != info.pin:
                    raise IntegrityError("source_changed", f"{location} is not the object this job began with")
                return act()

            return await self._audit(job, "object.open", location, act=pin)

        async with self._reading(job, pool, location, evidence):
            trust, acceptance = self._box.trust_at(location), Acceptance(self._box, job)
            return await open_source(pool, path, self._box.identities, trust, check, acceptance, evidence, early)

    @contextlib.asynccontextmanager
    async def _reading(self, job: Job, pool: RemotePool, location: str, evidence: Evidence) -> AsyncIterator[None]:
        """Name the object in what goes wrong with it, and quarantine it if it is not to be trusted.

        After a change the job forgets the object it was pinned to.
        """
        try:
            with one_error():
                yield
        except SmpError as error:
            if error.code == "source_changed":
                await self.leavings.clean(job.id)
                error.hint = f"nothing of it was delivered; to take the object as it is now: smpctl job resume {job.id}"
            named = naming(error, location)
            if isinstance(named, IntegrityError):
                evidence.has_marked(await self._thread(self._box.journal.ranges, job.id))
                await Refusals(self._box, job).add(location, named, evidence)
            raise named from error

    async def _open_own(self, job: Job, pool: RemotePool) -> Source:
        """The bundle that was sealed here on arrival, as a source."""
        path = self.leavings.part(job.id)

        def read() -> Source:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(size - TRAILER_BYTES)
                trailer = Trailer.parse(file.read(), size)
                file.seek(trailer.payload_bytes)
                tail = file.read()
            opened = open_envelope(tail[:-TRAILER_BYTES], trailer, self._box.identities, self._box.own)
            return Source(path, ObjectInfo(path, size), trailer, tail, Opener(opened), pool.cutting(opened.layout))

        return await anyio.to_thread.run_sync(read)

    async def _fill(
        self,
        job: Job,
        pool: RemotePool,
        source: Source,
        location: str,
        meter: Meter,
        *,
        plain: PlainRing | None,
        ahead: Ahead | None = None,
    ) -> Spool | None:
        """Bring all ranges through the pipeline; the spool, if there is one, is returned open."""
        async with self._reading(job, pool, location, source.evidence):
            spool, marks = await self._spool(job, pool, source, keep=plain is None)
            meter.begin("open" if pool.mode == "standard" else "fetch", source.trailer.payload_bytes)
            try:
                async with spool.flushing() if spool else contextlib.nullcontext():
                    await bring_object(pool, source, spool=spool, marks=marks, plain=plain, tally=meter, ahead=ahead)
                if source.is_new(location):
                    await self._thread(source.remember, location)
            except BaseException:
                if spool:
                    spool.close()
                raise
        return spool

    async def _spool(
        self, job: Job, pool: RemotePool, source: Source, *, keep: bool
    ) -> tuple[Spool | None, Mapping[int, bytes] | None]:
        """The spool file, open, and the marks of what of it is there already; None where that is all of it.

        There is none of a ``streaming`` remote, nor of an object of one range that is not to be kept: nothing could be
        resumed.
        """
        if pool.mode == "streaming" or (pool.mode != "standard" and source.cutting.single and not keep):
            return None, {}
        path, size, journal = self.leavings.part(job.id), source.info.size, self._box.journal
        if pool.mode == "standard":
            return await Spool.open(self._box.space, path, size, None), None
        marks = await self._thread(journal.ranges, job.id)
        return await Spool.open(self._box.space, path, size, partial(journal.mark_ranges, job.id)), marks

    async def _arrive(self, job: Job, pool: RemotePool, path: str, meter: Meter) -> BundleInfo:
        """Seal the plaintext objects of a ``standard`` remote into the spool, for this box alone."""
        await self._audit(job, "object.seal", f"{pool.name}:{path}")
        objects = await find_objects(pool, path)
        check_version(job, objects[0], f"{pool.name}:{path}")
        meter.begin("seal", sum(info.size for info in objects))
        async with sealed_file(self._box.space, self.leavings.part(job.id), self._box.identities, None) as writer:
            return await seal_arriving(pool, path, objects, writer, meter)

    async def _audit(self, job: Job, event: str, subject: str, **fields: Any) -> Any:
        return await self._box.audit(event, actor=job.owner, job=job.id, subject=subject, **fields)

    @staticmethod
    async def _thread(act: Callable[..., Any], *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(act, *arguments)


def result_of(info: BundleInfo) -> Result:
    """What a job delivers, as far as the bundle says it."""
    return Result(
        object_id=info.object_id.hex(),
        entries=len(info.entries),
        plain_bytes=info.plain_bytes,
        sealed_bytes=info.object_bytes,
        content_digest=info.content_digest.hex(),
    )
